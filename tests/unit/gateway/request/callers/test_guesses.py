"""Addresses that guess keys are slowed down; whoever has a good key behind one never notices."""

import pytest

from gateway.errors import DeniedError
from gateway.request.callers import guesses
from gateway.request.callers.guesses import REFILL_S, GuessGuard
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


def test_what_was_refused_is_told_once_by_the_address_that_it_came_from() -> None:
    guard = GuessGuard(5, Clock())
    assert guard.take_refused("192.0.2.1") == 0
    guess(guard, range(12))
    guess(guard, range(12, 20), "2001:db8:1:1::1")
    assert guard.take_refused("192.0.2.9") == 0
    assert guard.take_refused("2001:db8:1:1::2") == 3
    assert [guard.take_refused("192.0.2.1") for _ in range(2)] == [7, 0]


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


def test_the_table_of_callers_says_so_before_anybody_is_asked() -> None:
    clock = Clock()
    table = IdentityTable(clock, max_wrong_keys=2)
    stranger = DeniedError("unknown", code=ErrorCode.INVALID_API_KEY)
    granted = Granted(request_id="r", lease_id="", tenant="t", key_id="k", role="user")
    table.note_granted(b"good", granted, "models.list", "/v1/models", "")
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


def test_the_pause_is_told_in_whole_seconds_of_what_is_left_of_it() -> None:
    clock = Clock()
    guard = GuessGuard(2, clock)
    assert guess(guard, range(3)) == 2
    for passed_s, retry_after_s in ((1.0, 5), (2.5, 3), (2.4, 1)):
        clock.now += passed_s
        error = guard.refusal(digest(9), "192.0.2.1")
        assert error is not None
        assert error.retry_after_s == retry_after_s
        assert error.message == ("Too many wrong API keys came from this address; try again later.")
    clock.now += 0.2
    assert guard.refusal(digest(9), "192.0.2.1") is None


def test_keys_that_were_looked_up_at_once_cost_no_more_than_the_burst() -> None:
    """They were all asked about before the first answer came."""
    clock = Clock()
    guard = GuessGuard(3, clock)
    for number in range(50):
        guard.note_wrong(digest(number), "192.0.2.1")
    clock.now += REFILL_S - 0.1
    assert guard.refusal(digest(99), "192.0.2.1") is not None
    clock.now += 0.1
    assert guard.refusal(digest(99), "192.0.2.1") is None


def test_an_address_is_as_free_as_before_after_a_burst_of_refills_and_no_freer() -> None:
    clock = Clock()
    guard = GuessGuard(3, clock)
    assert guess(guard, range(10)) == 3
    clock.now += 2 * REFILL_S
    assert guess(guard, range(10, 20)) == 2
    clock.now += 100 * REFILL_S
    assert guess(guard, range(20, 30)) == 3


def test_of_addresses_the_one_that_was_quiet_longest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guesses, "MAX_ADDRESSES", 2)
    guard = GuessGuard(1, Clock())
    for number, address in enumerate(("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3")):
        guard.note_wrong(digest(number), address)
    refused = [guard.refusal(digest(9), f"192.0.2.{number}") is not None for number in (1, 2, 3)]
    assert refused == [True, False, True]


def test_of_keys_the_one_that_was_seen_longest_ago_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guesses, "MAX_DIGESTS", 2)
    guard = GuessGuard(1, Clock())
    guard.note_wrong(b"x", "192.0.2.1")
    for key in (b"a", b"b", b"a", b"c"):
        guard.note_good(key)
    heard = [guard.refusal(key, "192.0.2.1") is None for key in (b"a", b"b", b"c")]
    assert heard == [True, False, True]


def test_a_wrong_key_without_an_address_stays_what_it_was() -> None:
    guard = GuessGuard(1, Clock())
    guard.note_good(b"good")
    guard.note_wrong(b"good", "")
    guard.note_wrong(b"x", "192.0.2.1")
    assert guard.refusal(b"good", "192.0.2.1") is None


def test_a_guard_that_is_off_remembers_nothing() -> None:
    guard = GuessGuard(0, Clock())
    guard.note_good(b"good")
    guard.note_wrong(b"bad", "192.0.2.1")
    assert not guard._good
    assert not guard._wrong
    assert not guard._buckets
