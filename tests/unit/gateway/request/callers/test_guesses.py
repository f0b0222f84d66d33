"""Addresses that guess keys are slowed down; whoever has a good key behind one never notices."""

import pytest

from gateway.errors import DeniedError
from gateway.request.callers import guesses
from gateway.request.callers.guesses import REFILL_S, GuessGuard, network_of
from gateway.request.callers.identity import BAD_S, IdentityTable
from protocol.errors import ErrorCode
from protocol.wire.messages import Granted


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def guess(guard: GuessGuard, numbers: range, address: str = "192.0.2.1") -> int:
    """How many of these wrong keys somebody would be asked about."""
    num_heard = 0
    for number in numbers:
        if guard.refusal(digest(number), address) is None:
            num_heard += 1
            guard.note_wrong(digest(number), address)
    return num_heard


def test_wrong_keys_of_one_address_are_heard_up_to_a_burst_and_then_slowly() -> None:
    clock = Clock()
    guard = GuessGuard(5, clock)
    assert guess(guard, range(100)) == 5
    assert guard.num_refused == 95
    error = guard.refusal(digest(7), "192.0.2.1")
    assert error is not None
    assert error.code is ErrorCode.TOO_MANY_WRONG_KEYS
    assert error.retry_after_s == REFILL_S
    clock.now += REFILL_S
    assert guess(guard, range(100, 200)) == 1
    clock.now += 3600
    assert guess(guard, range(200, 300)) == 5


def test_another_address_is_not_concerned() -> None:
    guard = GuessGuard(1, Clock())
    assert guess(guard, range(3), "192.0.2.1") == 1
    assert guess(guard, range(3, 6), "192.0.2.2") == 1
    assert guess(guard, range(6, 9), "2001:db8:1:1::1") == 1
    assert guess(guard, range(9, 12), "2001:db8:1:1:ffff::1") == 0
    assert guess(guard, range(12, 15), "2001:db8:1:2::1") == 1


def test_a_good_key_is_heard_from_an_address_that_guesses_until_it_is_bad_itself() -> None:
    guard = GuessGuard(1, Clock())
    guard.note_good(b"good")
    guess(guard, range(10))
    assert guard.refusal(b"good", "192.0.2.1") is None
    guard.note_wrong(b"good", "192.0.2.1")
    assert guard.refusal(b"good", "192.0.2.1") is not None


def test_one_wrong_key_again_and_again_is_no_guessing() -> None:
    guard = GuessGuard(2, Clock())
    for _ in range(50):
        guard.note_wrong(b"stale", "192.0.2.1")
    assert guard.refusal(b"other", "192.0.2.1") is None


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "MAX_ADDRESSES", 3)
    monkeypatch.setattr(guesses, "MAX_DIGESTS", 3)
    guard = GuessGuard(1, Clock())
    for number in range(10):
        guard.note_wrong(digest(number), f"192.0.2.{number}")
        guard.note_good(digest(100 + number))
    assert (len(guard._buckets), len(guard._wrong), len(guard._good)) == (3, 3, 3)


def test_callers_without_a_key_or_an_address_and_a_guard_that_is_off() -> None:
    guard = GuessGuard(1, Clock())
    guess(guard, range(3))
    assert guard.refusal(None, "192.0.2.1") is None
    guard.note_wrong(b"x", "")
    assert guard.refusal(b"y", "") is None
    assert guess(GuessGuard(0, Clock()), range(100)) == 100


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("not:an:address", "not:an:address"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address: str, network: str) -> None:
    assert network_of(address) == network


def test_the_table_of_callers_says_so_before_anybody_is_asked() -> None:
    clock = Clock()
    table = IdentityTable(clock, max_wrong_keys=2)
    stranger = DeniedError("unknown", code=ErrorCode.INVALID_API_KEY)
    granted = Granted(request_id="r", lease_id="", tenant="t", key_id="k", role="user")
    table.note_granted(b"good", granted, "models.list")
    for key in (b"a", b"b"):
        assert table.refusal(key, "192.0.2.1") is None
        table.note_denied(key, stranger, "192.0.2.1")
    clock.now += BAD_S
    refused = table.refusal(b"c", "192.0.2.1")
    assert refused is not None
    assert refused.code is ErrorCode.TOO_MANY_WRONG_KEYS
    table.clear()
    assert table.refusal(b"c", "192.0.2.1") is not None
    assert table.refusal(b"good", "192.0.2.1") is None
