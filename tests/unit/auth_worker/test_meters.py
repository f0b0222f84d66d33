"""Windows that slide: exact over any span, never overspent, bounded, what is held returns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth_worker.decisions.limit_refusals import SETTLEMENT_RETRY_S, Refusal, refuse
from auth_worker.decisions.meters import SLOTS_A_SPAN, SlidingMeter
from auth_worker.decisions.plans import Plan, needs_of
from auth_worker.principals.limit_rules import SLIDING_S, WindowKind
from protocol.errors import ErrorCode
from protocol.wire.messages import Granted
from tests.fakes.auth_parts import authority_bench, authorize, stored_key
from tests.fakes.limit_parts import limit, meter, parallel, plan

SPANS: tuple[WindowKind, ...] = ("minute", "hour", "day")
PROPORTION = st.floats(0.0, 0.34, allow_nan=False)
"""Of a span: between two requests."""


def reserve(limits: Plan, now_s: float, tokens: int = 0, money: int = 0) -> Refusal | None:
    shorts = limits.reserve(now_s, needs_of(tokens, 0, money))
    return refuse(shorts, now_s, 0.0) if shorts else None


@given(
    kind=st.sampled_from(SPANS),
    amount=st.integers(1, 5),
    steps=st.lists(PROPORTION, min_size=1, max_size=60),
)
def test_no_span_wherever_it_begins_admits_more_than_the_amount(
    kind: WindowKind, amount: int, steps: list[float]
) -> None:
    limits, span_s = plan(meter("requests", amount, kind)), SLIDING_S[kind]
    times = [sum(steps[: index + 1]) * span_s for index in range(len(steps))]
    admitted = [now_s for now_s in times if reserve(limits, now_s) is None]
    for begin in admitted:
        assert sum(begin <= moment < begin + span_s for moment in admitted) <= amount


@given(
    kind=st.sampled_from(SPANS),
    amount=st.integers(1, 5),
    steps=st.lists(PROPORTION, min_size=1, max_size=60),
)
def test_who_waits_as_long_as_told_is_admitted(
    kind: WindowKind, amount: int, steps: list[float]
) -> None:
    limits, span_s = plan(meter("requests", amount, kind)), SLIDING_S[kind]
    now_s = 0.0
    for step in steps:
        now_s += step * span_s
        refusal = reserve(limits, now_s)
        if refusal is not None:
            assert refusal.retry_after_s is not None
            assert 0.0 < refusal.retry_after_s <= span_s * (1 + 1 / SLOTS_A_SPAN)
            now_s += refusal.retry_after_s
            assert reserve(limits, now_s) is None


@pytest.mark.parametrize("kind", SPANS)
def test_a_window_forgets_after_its_span_and_at_most_a_sixtieth_more(kind: WindowKind) -> None:
    span_s = SLIDING_S[kind]
    slot_s = span_s / 60
    window = meter("tokens", 100, kind)
    window.settle(10.9 * slot_s, 0, 5)
    window.refresh(70.89 * slot_s)
    assert window.total == 5
    window.refresh(71.0 * slot_s)
    assert (window.total, window.room) == (0, 100)
    assert window.reset_s(71.0 * slot_s, 0.0) == 0.0


@pytest.mark.parametrize("kind", SPANS)
def test_a_window_holds_one_slot_a_sixtieth_however_much_comes(kind: WindowKind) -> None:
    window = meter("tokens", 10**9, kind)
    step_s = SLIDING_S[kind] / 10_000
    most = 0
    for tick in range(30_000):
        if tick * step_s >= window.due_s:
            window.refresh(tick * step_s)
        window.settle(tick * step_s, 0, 1)
        most = max(most, window.num_slots)
    assert most <= SLOTS_A_SPAN + 1


def test_room_comes_back_slot_by_slot_and_its_moment_is_known() -> None:
    window = meter("tokens", 10)
    window.settle(0.5, 0, 4)
    window.settle(20.5, 0, 6)
    assert window.frees_s(30.0, 0.0, 3) == pytest.approx(31.0)
    assert window.frees_s(30.0, 0.0, 5) == pytest.approx(51.0)
    assert window.frees_s(30.0, 0.0, 11) == float("inf")


@given(
    amount=st.integers(1, 5),
    steps=st.lists(st.tuples(PROPORTION, st.integers(0, 2)), min_size=1, max_size=60),
)
def test_callers_who_share_a_window_find_its_room_the_moment_that_it_is_there(
    amount: int, steps: list[tuple[float, int]]
) -> None:
    kinds: tuple[WindowKind, ...] = ("minute", "hour", "day")
    shared = meter("requests", amount)
    callers = [plan(meter("requests", 1000, kind), shared) for kind in kinds]
    now_s = 0.0
    for step, caller in steps:
        now_s += step * SLIDING_S["minute"]
        refusal = reserve(callers[caller], now_s)
        if refusal is not None:
            assert refusal.retry_after_s is not None
            now_s += refusal.retry_after_s
            assert reserve(callers[(caller + 1) % 3], now_s) is None


def test_concurrent_reservations_cannot_overspend() -> None:
    window = meter("tokens", 1000)
    limits = plan(window)
    assert sum(reserve(limits, 0.0, 100) is None for _ in range(50)) == 10
    assert (window.held, limits.state(0.0, 0.0).remaining_tokens) == (1000, 0)


def test_a_window_that_never_ends_has_no_time_at_which_it_is_whole_again() -> None:
    """It was infinity, from which a gateway made a 500 of each answer."""
    never = (limit("requests", 5, "total"), limit("tokens", 100, "total"))
    for one in never:
        bench = authority_bench(stored_key(), limits=(one,))
        granted = bench.authority.authorize(authorize())
        assert isinstance(granted, Granted)
        state = granted.limits
        assert (state.limit_requests or state.limit_tokens) == one.amount
        assert (state.reset_requests_s, state.reset_tokens_s) == (None, None)


def test_a_settlement_gives_back_what_was_not_used() -> None:
    window = meter("tokens", 1000)
    limits = plan(window)
    assert reserve(limits, 0.0, 1000) is None
    limits.settle(1.0, needs_of(1000, 0, 0), needs_of(50, 0, 0))
    assert window.held == 0
    assert reserve(limits, 1.0, 950) is None
    assert reserve(limits, 1.0, 1) is not None


def test_use_beyond_the_reservation_counts_in_full() -> None:
    limits = plan(meter("tokens", 100))
    assert reserve(limits, 0.0, 10) is None
    limits.settle(0.0, needs_of(10, 0, 0), needs_of(150, 0, 0))
    refusal = reserve(limits, 30.0, 1)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(31.0)
    assert limits.state(30.0, 0.0).remaining_tokens == 0


def test_a_request_over_the_whole_amount_is_refused_for_good_with_both_numbers() -> None:
    refusal = reserve(plan(meter("tokens", 1000)), 0.0, 5000)
    assert refusal is not None
    assert (refusal.code, refusal.retry_after_s) == (ErrorCode.RATE_LIMIT_EXCEEDED, None)
    assert "5000" in refusal.message
    assert "1000" in refusal.message


def test_a_refusal_by_any_limit_takes_from_none() -> None:
    requests, tokens, running = meter("requests", 1), meter("tokens", 100), parallel(1)
    limits = plan(requests, tokens, running)
    assert reserve(limits, 0.0, 500) is not None
    assert (requests.room, tokens.room, running.room) == (1, 100, 1)
    assert reserve(limits, 0.0, 100) is None
    assert (requests.room, tokens.room, running.room) == (0, 0, 0)


def test_only_running_requests_in_the_way_means_a_short_wait() -> None:
    limits = plan(meter("tokens", 100))
    assert reserve(limits, 0.0, 100) is None
    refusal = reserve(limits, 0.0, 1)
    assert refusal is not None
    assert refusal.limit is not None
    assert (refusal.retry_after_s, refusal.limit.source) == (SETTLEMENT_RETRY_S, "in_flight")


def test_prompt_and_completion_are_counted_apart() -> None:
    limits = plan(meter("prompt_tokens", 100), meter("completion_tokens", 10))
    assert not limits.reserve(0.0, needs_of(100, 5, 0))
    assert [short.meter.limit.measure for short in limits.reserve(0.0, needs_of(1, 5, 0))] == [
        "prompt_tokens"
    ]
    assert [short.meter.limit.measure for short in limits.reserve(0.0, needs_of(0, 6, 0))] == [
        "completion_tokens"
    ]
    assert not limits.reserve(0.0, needs_of(0, 5, 0))


def test_a_shrinking_reservation_is_never_refused() -> None:
    window = meter("tokens", 100)
    limits = plan(window)
    assert reserve(limits, 0.0, 100) is None
    window.settle(0.0, 0, 500)
    assert not limits.grow(0.0, needs_of(100, 0, 0), needs_of(40, 0, 0))
    assert limits.grow(0.0, needs_of(40, 0, 0), needs_of(41, 0, 0))
    assert window.held == 40


def test_a_request_that_is_taken_back_was_never_counted() -> None:
    requests, tokens = meter("requests", 1), meter("tokens", 100)
    limits = plan(requests, tokens)
    assert reserve(limits, 5.0, 100) is None
    limits.take_back(needs_of(100, 0, 0), 5.0)
    assert (requests.room, requests.total, tokens.room) == (1, 0, 100)


def test_requests_at_a_time_come_back_one_by_one() -> None:
    limits = plan(parallel(2))
    assert [reserve(limits, 0.0) is None for _ in range(3)] == [True, True, False]
    limits.settle(1.0, needs_of(0, 0, 0), needs_of(0, 0, 0))
    assert [reserve(limits, 1.0) is None for _ in range(2)] == [True, False]


def test_a_changed_amount_keeps_what_was_counted() -> None:
    window = meter("tokens", 100)
    window.settle(0.0, 0, 80)
    window.change(window.limit, 50)
    assert window.room == -30
    window.change(window.limit, 200)
    assert window.room == 120


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 600)), max_size=40)
)
def test_what_is_held_returns_to_zero_and_never_passes_the_amount(
    requests: list[tuple[int, int, int]],
) -> None:
    window: SlidingMeter = meter("tokens", 1000)
    limits = plan(window)
    running: list[int] = []
    for index, (bound, resized, used) in enumerate(requests):
        now_s = float(index)
        if reserve(limits, now_s, bound) is None:
            grown = not limits.grow(now_s, needs_of(bound, 0, 0), needs_of(resized, 0, 0))
            running.append(resized if grown else bound)
        assert 0 <= window.held == sum(running) <= 1000
        if index % 3 == 2 and running:
            limits.settle(now_s, needs_of(running.pop(0), 0, 0), needs_of(used, 0, 0))
    for bound in running:
        limits.settle(100.0, needs_of(bound, 0, 0), needs_of(0, 0, 0))
    assert window.held == 0
