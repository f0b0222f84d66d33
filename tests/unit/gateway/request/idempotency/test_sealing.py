"""An answer that is sealed with a key is read with that key, unchanged, and not otherwise."""

import secrets

import pytest

from gateway.request.idempotency.sealing import NONCE_BYTES, TAG_BYTES, seal, unseal

KEY = b"k" * 32
DATA = b'{"key": "psk-secret"}' * 20


@pytest.mark.parametrize("data", [b"", b"\0", DATA])
def test_what_was_sealed_is_read_with_the_same_key(data: bytes) -> None:
    sealed = seal(KEY, data)
    assert unseal(KEY, sealed) == data
    assert len(sealed) == NONCE_BYTES + len(data) + TAG_BYTES


def test_another_key_reads_nothing() -> None:
    sealed = seal(KEY, DATA)
    assert unseal(b"j" * 32, sealed) is None
    assert unseal(b"", sealed) is None


@pytest.mark.parametrize("place", [0, NONCE_BYTES - 1, NONCE_BYTES, -TAG_BYTES - 1, -TAG_BYTES, -1])
def test_a_bit_that_was_changed_anywhere_is_noticed(place: int) -> None:
    changed = bytearray(seal(KEY, DATA))
    changed[place] ^= 1
    assert unseal(KEY, bytes(changed)) is None


@pytest.mark.parametrize("length", [0, 1, NONCE_BYTES + TAG_BYTES - 1, NONCE_BYTES + TAG_BYTES])
def test_what_is_too_short_or_was_cut_is_none(length: int) -> None:
    assert unseal(KEY, seal(KEY, DATA)[:length]) is None


def test_nothing_of_the_answer_is_seen_in_what_is_kept() -> None:
    sealed = seal(KEY, DATA)
    assert b"secret" not in sealed
    assert not any(DATA[at : at + 8] in sealed for at in range(len(DATA) - 8))


def test_one_answer_sealed_twice_looks_different_because_its_nonce_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert seal(KEY, DATA) != seal(KEY, DATA)
    nonces = [b"a" * NONCE_BYTES, b"a" * NONCE_BYTES, b"b" * NONCE_BYTES]
    monkeypatch.setattr(secrets, "token_bytes", lambda number: nonces.pop()[:number])
    first, second, third = (seal(KEY, DATA) for _ in range(3))
    assert second == third
    assert first[NONCE_BYTES:-TAG_BYTES] != second[NONCE_BYTES:-TAG_BYTES]


def test_what_was_sealed_by_this_release_is_read_by_later_ones() -> None:
    sealed = bytes.fromhex(
        "000102030405060708090a0b0c0d0e0f305d1272"
        "4cbb63bbbc913f15bbd1f8a414c4fd24f9ceaed07e50e51c6e46193a51a36a7f"
    )
    assert unseal(KEY, sealed) == b"kept"
