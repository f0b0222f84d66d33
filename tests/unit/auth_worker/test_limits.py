"""Windows: exact over any minute, never overspent, reserved returns to zero."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth_worker.decisions.limits import SETTLEMENT_RETRY_S, KeyLimits, Refusal, SlidingWindow


def admitted_times(limit: int, times: list[float]) -> list[float]:
    limits = KeyLimits(requests_per_minute=limit, tokens_per_minute=None)
    return [now for now in times if limits.reserve(now, 1) is None]


@given(
    limit=st.integers(1, 5),
    steps=st.lists(st.floats(0.0, 20.0, allow_nan=False), min_size=1, max_size=60),
)
def test_no_minute_wherever_it_begins_admits_more_than_the_limit(
    limit: int, steps: list[float]
) -> None:
    times = [sum(steps[: index + 1]) for index in range(len(steps))]
    admitted = admitted_times(limit, times)
    for begin in admitted:
        assert sum(begin <= moment < begin + 60.0 for moment in admitted) <= limit


@given(
    limit=st.integers(1, 5),
    steps=st.lists(st.floats(0.0, 20.0, allow_nan=False), min_size=1, max_size=60),
)
def test_who_waits_as_long_as_told_is_admitted(limit: int, steps: list[float]) -> None:
    limits = KeyLimits(requests_per_minute=limit, tokens_per_minute=None)
    now = 0.0
    for step in steps:
        now += step
        refusal = limits.reserve(now, 1)
        if refusal is not None:
            assert refusal.retry_after_s is not None
            assert 0.0 < refusal.retry_after_s <= 61.0
            now += refusal.retry_after_s
            assert limits.reserve(now, 1) is None


def test_a_window_forgets_after_a_minute_and_at_most_a_second_more() -> None:
    window = SlidingWindow()
    window.add(10.9, 5)
    assert window.used(70.89) == 5
    assert window.used(71.0) == 0
    assert window.reset_s(71.0) == 0.0


def test_a_window_holds_one_slot_a_second_however_much_comes() -> None:
    window = SlidingWindow()
    for tick in range(100_000):
        window.add(tick / 1000, 1)
    window.used(100.0)
    assert len(window._slots) <= 62


def test_an_amount_that_the_window_does_not_hold_has_no_wait() -> None:
    window = SlidingWindow()
    window.add(0.0, 3)
    assert window.wait_for(1.0, 4) is None
    assert window.wait_for(1.0, 3) == pytest.approx(60.0)


def test_concurrent_reservations_cannot_overspend() -> None:
    limits = KeyLimits(requests_per_minute=None, tokens_per_minute=1000)
    granted = [limits.reserve(0.0, 100) is None for _ in range(50)]
    assert sum(granted) == 10
    assert limits.state(0.0).remaining_tokens == 0


def test_a_settlement_gives_back_what_was_not_used() -> None:
    limits = KeyLimits(requests_per_minute=None, tokens_per_minute=1000)
    assert limits.reserve(0.0, 1000) is None
    limits.settle(1.0, 1000, 50)
    assert limits.reserved_tokens == 0
    assert limits.reserve(1.0, 950) is None
    assert limits.reserve(1.0, 1) is not None


def test_use_beyond_the_reservation_counts_in_full() -> None:
    limits = KeyLimits(requests_per_minute=None, tokens_per_minute=100)
    assert limits.reserve(0.0, 10) is None
    limits.settle(0.0, 10, 150)
    refusal = limits.reserve(30.0, 1)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(31.0)
    assert limits.state(30.0).remaining_tokens == 0


def test_a_request_over_the_whole_limit_is_refused_for_good_with_both_numbers() -> None:
    limits = KeyLimits(requests_per_minute=None, tokens_per_minute=1000)
    refusal = limits.reserve(0.0, 5000)
    assert refusal is not None
    assert refusal.retry_after_s is None
    assert "5000" in refusal.message
    assert "1000" in refusal.message


def test_a_refused_token_bound_takes_no_request() -> None:
    limits = KeyLimits(requests_per_minute=1, tokens_per_minute=100)
    assert limits.reserve(0.0, 500) is not None
    assert limits.reserve(0.0, 100) is None


def test_only_running_requests_in_the_way_means_a_short_wait() -> None:
    limits = KeyLimits(requests_per_minute=None, tokens_per_minute=100)
    assert limits.reserve(0.0, 100) is None
    refusal = limits.reserve(0.0, 1)
    assert refusal is not None
    assert refusal.retry_after_s == SETTLEMENT_RETRY_S


def test_a_shrinking_reservation_is_never_refused() -> None:
    limits = KeyLimits(requests_per_minute=None, tokens_per_minute=100)
    assert limits.reserve(0.0, 100) is None
    limits.settle(0.0, 0, 500)
    assert limits.resize(0.0, 100, 40) is None
    assert isinstance(limits.resize(0.0, 40, 41), Refusal)
    assert limits.reserved_tokens == 40


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 600)), max_size=40)
)
def test_reserved_returns_to_zero_and_never_passes_the_limit(
    requests: list[tuple[int, int, int]],
) -> None:
    limits = KeyLimits(requests_per_minute=None, tokens_per_minute=1000)
    open_bounds: list[int] = []
    for index, (bound, resized, used) in enumerate(requests):
        now = float(index)
        if limits.reserve(now, bound) is None:
            open_bounds.append(resized if limits.resize(now, bound, resized) is None else bound)
        assert 0 <= limits.reserved_tokens == sum(open_bounds) <= 1000
        if index % 3 == 2 and open_bounds:
            limits.settle(now, open_bounds.pop(0), used)
    for bound in open_bounds:
        limits.settle(100.0, bound, 0)
    assert limits.reserved_tokens == 0
