"""The key that a request presents, and what its connection remembers of it."""

import hashlib
from typing import Any

import pytest
from fastapi import Request

from gateway.errors import DeniedError
from gateway.http.access import presented as module
from gateway.http.access.presented import presented
from gateway.http.connections.http_protocol import OF_CONNECTION

Pairs = list[tuple[bytes, bytes]]


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def ask(memo: dict[str, Any] | None, *pairs: tuple[bytes, bytes]) -> module.Presented:
    state = {} if memo is None else {OF_CONNECTION: memo}
    headers: Pairs = [(b"host", b"here"), *pairs]
    return presented(Request({"type": "http", "headers": headers, "state": state}))


def bearer(key: str) -> tuple[bytes, bytes]:
    return b"authorization", f"Bearer {key}".encode()


def test_a_key_that_a_connection_repeats_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    memo: dict[str, Any] = {}
    assert ask(memo, bearer("psk-one")) == (digest("psk-one"), "")
    monkeypatch.setattr(module, "presented_key", lambda _request: "never asked")
    assert ask(memo, bearer("psk-one")) == (digest("psk-one"), "")


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        ([bearer("psk-two")], (digest("psk-two"), "")),
        ([(b"x-api-key", b"psk-two")], (digest("psk-two"), "")),
        ([bearer("eyJ.a.b")], (digest("eyJ.a.b"), "eyJ.a.b")),
        ([bearer("psk-one"), (b"x-api-key", b"psk-one")], (digest("psk-one"), "")),
        ([], (None, "")),
    ],
)
def test_another_key_on_the_same_connection_is_another_caller(
    pairs: Pairs, found: tuple[bytes | None, str]
) -> None:
    memo: dict[str, Any] = {}
    ask(memo, bearer("psk-one"))
    assert ask(memo, *pairs) == found
    assert ask(memo, bearer("psk-one")) == (digest("psk-one"), "")


def test_keys_that_contradict_each_other_are_refused_each_time() -> None:
    memo: dict[str, Any] = {}
    ask(memo, bearer("psk-one"))
    for _ in range(2):
        with pytest.raises(DeniedError):
            ask(memo, bearer("psk-one"), (b"x-api-key", b"psk-two"))


def test_what_comes_over_no_connection_is_remembered_nowhere() -> None:
    assert ask(None, bearer("psk-one")) == (digest("psk-one"), "")
