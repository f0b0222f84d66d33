"""Limits of every holder and window: who is refused by which, what a refusal says, what it
costs."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from auth_worker.principals.limit_rules import Holder, Window, WindowKind
from auth_worker.principals.prices import Price
from auth_worker.records.limit_usage import SaveCounter
from protocol.errors import ErrorCode
from protocol.wire.messages import Adjust, Adjusted, Denied, Granted
from tests.fakes.auth_parts import AuthorityBench
from tests.fakes.limit_bench import (
    OTHER_SECRET,
    ask,
    bench_of,
    denied,
    granted,
    refusing,
    settle,
)
from tests.fakes.limit_parts import HOUSE_PRICE, limit

HOLDERS: dict[Holder, str] = {
    "end_user": "key_user",
    "key": "key_user",
    "user": "user_1",
    "team": "team_1",
    "house": "",
}


def set_wall(bench: AuthorityBench, text: str) -> None:
    wall_s = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    bench.clock.monotonic += max(0.0, wall_s - bench.clock.wall)
    bench.clock.wall = wall_s


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("window", ["minute", "hour", "day"])
def test_a_rate_limit_of_any_holder_refuses_with_429_and_names_itself(
    holder: Holder, window: WindowKind
) -> None:
    rate = limit("requests", 2, window, holder, HOLDERS[holder], name="two only")
    bench = bench_of(rate)
    for _ in range(2):
        granted(bench, end_user="ada")
    answer = denied(bench, end_user="ada")
    found = refusing(answer)
    assert answer.code is ErrorCode.RATE_LIMIT_EXCEEDED
    assert (found.limit_id, found.holder, found.window) == (rate.limit_id, holder, window)
    assert (found.amount, found.used, found.source) == (2, 2, "used")
    assert found.frees_s == answer.retry_after_s
    assert answer.retry_after_s is not None
    assert "'two only'" in answer.message
    assert answer.limits.remaining_requests == 0
    bench.clock.advance(answer.retry_after_s)
    granted(bench, end_user="ada")


@pytest.mark.parametrize(
    ("window", "frees_s"),
    [("calendar_day", 54_000.0), ("calendar_month", 15.625 * 86_400), ("total", None)],
)
def test_a_quota_that_is_used_up_is_429_insufficient_quota_until_its_window_ends(
    window: WindowKind, frees_s: float | None
) -> None:
    bench = bench_of(limit("tokens", 150, window))
    set_wall(bench, "2026-06-15T09:00:00")
    settle(bench, granted(bench))
    answer = denied(bench)
    assert answer.code is ErrorCode.INSUFFICIENT_QUOTA
    assert answer.retry_after_s is None
    assert (refusing(answer).frees_s, refusing(answer).used) == (frees_s, 100)
    assert "Quota exceeded" in answer.message
    if frees_s is not None:
        bench.clock.advance(frees_s - 1)
        denied(bench)
        bench.clock.advance(1)
        granted(bench)


def test_of_several_limits_the_one_that_keeps_out_longest_is_named() -> None:
    bench = bench_of(
        limit("requests", 1, "minute", limit_id="lim_minute"),
        limit("requests", 1, "day", "house", limit_id="lim_day"),
        limit("tokens", 100, "calendar_month", "team", "team_1", limit_id="lim_month"),
    )
    settle(bench, granted(bench))
    assert refusing(denied(bench)).limit_id == "lim_month"
    bench.authority.limits.remove("lim_month")
    assert refusing(denied(bench)).limit_id == "lim_day"


def test_a_refusal_by_one_holder_takes_nothing_from_the_others() -> None:
    bench = bench_of(
        limit("requests", 1, "minute"),
        limit("requests", 5, "hour", "house"),
        limit("tokens", 1000, "calendar_day", "team", "team_1"),
        limit("money", 10**6, "calendar_month", "user", "user_1"),
    )
    granted(bench)
    for _ in range(20):
        denied(bench)
    left = [ask(bench, OTHER_SECRET) for _ in range(5)]
    assert [isinstance(answer, Granted) for answer in left] == [True] * 4 + [False]


def test_a_limit_holds_for_its_models_and_endpoints_only() -> None:
    bench = bench_of(
        limit("requests", 1, "minute", models=("big-*",)),
        limit("requests", 2, "minute", "house", endpoints=("/v1/embeddings",)),
    )
    granted(bench, model="big-one")
    assert refusing(denied(bench, model="big-two")).amount == 1
    for _ in range(3):
        granted(bench, model="small")
    for _ in range(2):
        granted(bench, model="small", endpoint="/v1/embeddings")
    assert refusing(denied(bench, model="small", endpoint="/v1/embeddings")).amount == 2


def test_each_end_user_has_a_limit_of_its_own_by_the_template() -> None:
    bench = bench_of(
        limit("requests", 1, "minute", "end_user", "key_user"),
        limit("tokens", 100, "total", "end_user", "team_1"),
    )
    lease = granted(bench, end_user="ada")
    denied(bench, end_user="ada")
    granted(bench, end_user="bob")
    granted(bench)  # nobody's in particular
    booking = settle(bench, lease)
    assert (booking.end_user, booking.user_id, booking.team_id) == ("ada", "user_1", "team_1")
    bench.clock.advance(61)
    assert denied(bench, end_user="ada").code is ErrorCode.INSUFFICIENT_QUOTA


def test_a_key_that_is_not_trusted_names_nobody() -> None:
    bench = bench_of(limit("requests", 1, "minute", "end_user", "key_other"))
    for _ in range(3):
        answer = ask(bench, OTHER_SECRET, end_user="ada")
        assert isinstance(answer, Granted)
        assert settle(bench, answer).end_user == ""


def test_a_parallel_limit_counts_what_runs() -> None:
    bench = bench_of(limit("parallel", 2, "total", "team", "team_1"))
    leases = [granted(bench) for _ in range(2)]
    answer = denied(bench)
    assert (answer.code, answer.retry_after_s) == (ErrorCode.RATE_LIMIT_EXCEEDED, 5.0)
    assert refusing(answer).source == "in_flight"
    settle(bench, leases[0])
    granted(bench)


# Money.


def test_a_request_is_refused_when_its_upper_bound_is_over_the_budget() -> None:
    bench = bench_of(limit("money", 420, "calendar_month", "team", "team_1", limit_id="bud_1"))
    lease = granted(bench)  # 10 + 90 * 2 = 190
    granted(bench)
    answer = denied(bench)
    assert (answer.code, answer.retry_after_s) == (ErrorCode.BUDGET_EXCEEDED, 5.0)
    found = refusing(answer)
    assert (found.used, found.reserved, found.asked, found.source) == (0, 380, 190, "in_flight")
    assert settle(bench, lease, completion_tokens=10, cached_tokens=4).cost_micros == 28
    granted(bench)


def test_a_budget_that_is_spent_is_402_without_a_retry() -> None:
    bench = bench_of(limit("money", 300, "calendar_month"))
    set_wall(bench, "2026-06-30T23:00:00")
    settle(bench, granted(bench))
    answer = denied(bench)
    assert (answer.code, answer.retry_after_s) == (ErrorCode.BUDGET_EXCEEDED, None)
    assert (refusing(answer).source, refusing(answer).frees_s) == ("used", 3600.0)
    assert "2026-07-01T00:00:00Z" in answer.message
    bench.clock.advance(3600)
    granted(bench)


def test_a_request_that_no_empty_budget_could_carry_says_so() -> None:
    answer = denied(bench_of(limit("money", 100, "total")))
    assert (refusing(answer).source, answer.retry_after_s) == ("request", None)
    assert answer.code is ErrorCode.BUDGET_EXCEEDED


def test_a_model_without_a_price_is_refused_where_a_budget_holds_and_only_there() -> None:
    bench = bench_of(limit("money", 10**6, "total"), prices=(replace(HOUSE_PRICE, models="big"),))
    granted(bench, model="big")
    answer = denied(bench, model="small")
    assert (answer.code, "no price" in answer.message) == (ErrorCode.PERMISSION_DENIED, True)
    assert answer.is_unpriced
    assert isinstance(ask(bench, OTHER_SECRET, model="small"), Granted)


def test_what_is_spent_is_priced_as_of_the_grant() -> None:
    bench = bench_of(limit("money", 10**6, "total"))
    before = granted(bench)
    bench.clock.advance(10)
    dearer = replace(
        HOUSE_PRICE, version=2, valid_from_ms=int(bench.clock.wall * 1000), prompt=9_000_000
    )
    bench.authority.prices.put(dearer)
    after = granted(bench)
    assert (settle(bench, before).cost_micros, settle(bench, after).cost_micros) == (190, 270)


def test_a_thousand_at_once_of_ten_cents_against_five_dollars_admit_fifty() -> None:
    price = replace(HOUSE_PRICE, prompt=0, cached_prompt=0, completion=1_000_000_000)
    bench = bench_of(limit("money", 5_000_000, "calendar_month", "team", "team_1"), prices=(price,))
    answers = [ask(bench, prompt_tokens=1, completion_tokens=100) for _ in range(1000)]
    assert sum(isinstance(answer, Granted) for answer in answers) == 50
    assert {a.code for a in answers if isinstance(a, Denied)} == {ErrorCode.BUDGET_EXCEEDED}


def test_growth_needs_money_too() -> None:
    bench = bench_of(limit("money", 400, "total"))
    lease = granted(bench)
    fits = Adjust(request_id="r", lease_id=lease.lease_id, prompt_tokens=10, completion_tokens=195)
    assert isinstance(bench.authority.adjust(fits), Adjusted)
    more = Adjust(request_id="r", lease_id=lease.lease_id, prompt_tokens=10, completion_tokens=196)
    answer = bench.authority.adjust(more)
    assert isinstance(answer, Denied)
    assert answer.code is ErrorCode.BUDGET_EXCEEDED


def test_a_soft_budget_refuses_nobody_and_warns() -> None:
    bench = bench_of(limit("money", 300, "total", is_hard=False, thresholds=(50,)))
    assert granted(bench).warnings == ()
    for spent, percent in ((190, 50), (380, 100), (570, 100)):
        settle(bench, granted(bench))
        (warning,) = granted(bench).warnings
        assert (warning.used, warning.percent, warning.is_hard) == (spent, percent, False)


def test_what_holds_for_a_key_and_how_far_it_is_used_can_be_looked_at() -> None:
    template = limit("tokens", 50, "total", "end_user", "team_1")
    budget = limit("money", 1000, "calendar_month", "team", "team_1")
    bench = bench_of(template, budget, limit("requests", 5, "minute", holder_id="key_other"))
    settle(bench, granted(bench))
    granted(bench)
    authority = bench.authority
    key = authority.keys.get("key_user")
    assert key is not None
    assert authority.limits_of(key) == (template, budget)
    meter = authority.meter_of(budget)
    assert (meter.amount, meter.total, meter.held) == (1000, 190, 190)
    assert authority.meter_of(template, "ada").total == 0


# Windows.


def test_what_began_before_midnight_is_settled_in_the_window_it_began_in() -> None:
    bench = bench_of(limit("tokens", 150, "calendar_day"))
    set_wall(bench, "2026-06-15T23:59:00")
    lease = granted(bench)
    bench.clock.advance(120)
    today = granted(bench)
    settle(bench, lease)
    assert denied(bench).limit is not None
    settle(bench, today, completion_tokens=0)
    granted(bench)


def test_a_clock_that_steps_back_finds_the_old_count() -> None:
    bench = bench_of(limit("tokens", 150, "calendar_day"))
    set_wall(bench, "2026-06-15T23:59:00")
    settle(bench, granted(bench))
    set_wall(bench, "2026-06-16T00:01:00")
    settle(bench, granted(bench))
    set_wall(bench, "2026-06-15T23:58:00")
    denied(bench)
    set_wall(bench, "2026-06-16T00:02:00")
    denied(bench)


def test_a_clock_that_steps_back_beyond_what_is_known_opens_no_fresh_window() -> None:
    bench = bench_of(limit("tokens", 150, "calendar_day"))
    set_wall(bench, "2026-06-15T12:00:00")
    settle(bench, granted(bench))
    set_wall(bench, "2026-06-01T12:00:00")
    denied(bench)


def test_what_a_window_leaves_rolls_over_but_never_more_than_one_amount() -> None:
    bench = bench_of(limit("tokens", 150, "calendar_day", rolls_over=True))
    set_wall(bench, "2026-06-15T12:00:00")
    settle(bench, granted(bench))
    set_wall(bench, "2026-06-16T12:00:00")
    settle(bench, granted(bench))
    settle(bench, granted(bench))  # 150 and the 50 of yesterday
    assert refusing(denied(bench)).amount == 200
    set_wall(bench, "2026-06-20T12:00:00")
    for _ in range(3):
        settle(bench, granted(bench))
    assert refusing(denied(bench)).amount == 300


@pytest.mark.parametrize("hour", [13, 24])
def test_a_raise_for_a_while_is_not_rolled_over(hour: int) -> None:
    until = datetime(2026, 6, 15, tzinfo=UTC).timestamp() + hour * 3600
    daily = limit(
        "tokens", 150, "calendar_day", rolls_over=True, raised_by=100, raised_until=int(until)
    )
    bench = bench_of(daily)
    set_wall(bench, "2026-06-15T12:00:00")
    settle(bench, granted(bench))
    set_wall(bench, "2026-06-16T12:00:00")
    for _ in range(2):
        settle(bench, granted(bench))
    assert refusing(denied(bench)).amount == 200


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("secret", [None, OTHER_SECRET])
def test_what_rolled_over_is_not_there_when_the_clock_is_set_back(
    secret: str | None, restarts: bool
) -> None:
    daily = limit("tokens", 150, "calendar_day", "house", rolls_over=True)
    bench = bench_of(daily)
    set_wall(bench, "2026-06-15T12:00:00")
    settle(bench, granted(bench))
    denied(bench, secret=OTHER_SECRET)  # which knows yesterday's window from now on
    set_wall(bench, "2026-06-16T12:00:00")
    settle(bench, granted(bench))  # of 150 and the 50 of yesterday
    set_wall(bench, "2026-06-15T13:00:00")
    if restarts:
        rows = {
            one.row.counter_id: one.row for one in bench.emitted if isinstance(one, SaveCounter)
        }
        counters = tuple(row._replace(used=100) for row in rows.values())
        bench = bench_of(daily, counters=counters, clock=bench.clock, epoch=4)
        bench.clock.advance(700)  # what a kill may have forgotten is held no longer
    denied(bench, secret=secret, prompt_tokens=0, completion_tokens=10)
    set_wall(bench, "2026-06-16T13:00:00")
    settle(bench, granted(bench, secret=secret))
    assert refusing(denied(bench, secret=secret)).amount == 200


def test_a_limit_that_does_not_renew_has_no_room_after_its_first_window() -> None:
    bench = bench_of(limit("tokens", 500, "calendar_day", auto_renews=False))
    set_wall(bench, "2026-06-15T12:00:00")
    granted(bench)
    set_wall(bench, "2026-06-16T12:00:00")
    answer = denied(bench)
    assert (answer.code, refusing(answer).frees_s) == (ErrorCode.INSUFFICIENT_QUOTA, None)
    assert "is over" in answer.message


def test_a_limit_that_is_told_to_renew_no_more_lasts_to_the_end_of_its_window() -> None:
    daily = limit("tokens", 500, "calendar_day")
    bench = bench_of(daily)
    for day in ("15", "16"):
        set_wall(bench, f"2026-06-{day}T12:00:00")
        settle(bench, granted(bench))
    bench.authority.limits.put(replace(daily, auto_renews=False))
    settle(bench, granted(bench))
    set_wall(bench, "2026-06-17T12:00:00")
    assert "is over" in denied(bench).message


def test_to_be_asked_about_does_not_begin_the_only_window_of_a_limit() -> None:
    once = limit("tokens", 500, "calendar_day", auto_renews=False)
    bench = bench_of(once)
    set_wall(bench, "2026-06-15T12:00:00")
    meter = bench.authority.meter_of(once)
    assert (meter.amount, meter.total, meter.held) == (500, 0, 0)
    set_wall(bench, "2026-06-16T12:00:00")
    settle(bench, granted(bench))
    assert bench.authority.meter_of(once).total == 100
    set_wall(bench, "2026-06-17T12:00:00")
    denied(bench)


def test_a_custom_window_has_no_room_before_it_begins() -> None:
    starts_at = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp())
    window = Window("custom", starts_at=starts_at, length_s=86_400)
    bench = bench_of(limit("money", 10**6, window, auto_renews=False))
    set_wall(bench, "2026-05-31T23:00:00")
    answer = denied(bench)
    assert (answer.code, refusing(answer).frees_s) == (ErrorCode.BUDGET_EXCEEDED, 3600.0)
    assert "begins at 2026-06-01T00:00:00Z" in answer.message
    set_wall(bench, "2026-06-01T00:00:00")
    granted(bench)
    set_wall(bench, "2026-06-02T00:00:00")
    denied(bench)


def test_a_raise_holds_until_its_moment() -> None:
    ends_at = int(datetime(2026, 6, 15, 12, tzinfo=UTC).timestamp())
    bench = bench_of(limit("tokens", 100, "calendar_month", raised_by=100, raised_until=ends_at))
    set_wall(bench, "2026-06-15T11:00:00")
    first, _ = granted(bench), granted(bench)
    settle(bench, first)
    assert refusing(denied(bench)).amount == 200
    set_wall(bench, "2026-06-15T12:00:00")
    assert refusing(denied(bench)).amount == 100


def test_a_changed_limit_holds_at_once_and_forgets_nothing() -> None:
    quota = limit("tokens", 150, "total")
    bench = bench_of(quota)
    settle(bench, granted(bench))
    denied(bench)
    bench.authority.limits.put(replace(quota, amount=250))
    settle(bench, granted(bench))
    assert refusing(denied(bench)).used == 200
    bench.authority.limits.remove(quota.limit_id)
    granted(bench)


def test_a_key_without_limits_meets_none_of_others() -> None:
    bench = bench_of(limit("requests", 0, "minute", "team", "team_1"))
    assert isinstance(ask(bench, OTHER_SECRET), Granted)
    answer = ask(bench, OTHER_SECRET)
    assert isinstance(answer, Granted)
    assert (answer.gives_back, answer.warnings) == (False, ())
    denied(bench)


def test_the_headers_show_the_window_with_least_room() -> None:
    bench = bench_of(
        limit("requests", 10, "minute"),
        limit("requests", 3, "hour", "house"),
        limit("tokens", 1000, "minute", "team", "team_1"),
        limit("tokens", 500, "calendar_day"),
    )
    state = granted(bench).limits
    assert (state.limit_requests, state.remaining_requests) == (3, 2)
    assert (state.limit_tokens, state.remaining_tokens) == (500, 400)


DEAR = Price("price_dear", 1, "dear*", 0, 0, 0, 0, 0, 0, 900)
CHEAP = Price("price_cheap", 1, "*", 0, 0, 0, 0, 0, 0, 100)


def test_what_another_model_answered_is_booked_at_its_price_and_in_its_limits() -> None:
    of_first = limit("money", 1000, limit_id="first", models=("cheap",))
    of_second = limit("money", 1000, limit_id="second", models=("dear",))
    bench = bench_of(of_first, of_second, prices=(DEAR, CHEAP))
    lease = granted(bench, model="cheap")
    booking = settle(bench, lease, model="dear")
    assert (booking.model, booking.price_id, booking.cost_micros) == ("dear", "price_dear", 900)
    # Nothing of it is left with the first model, and what the second has left is too little.
    for _ in range(10):
        settle(bench, granted(bench, model="cheap"))
    assert refusing(denied(bench, model="cheap")).limit_id == "first"
    assert refusing(denied(bench, model="dear")).limit_id == "second"


def test_the_model_of_a_late_settlement_counts_as_well() -> None:
    bench = bench_of(prices=(DEAR, CHEAP))
    lease = granted(bench, model="cheap")
    bench.clock.advance(3600.0)
    bench.authority.expire()
    late = settle(bench, lease, model="dear")
    assert (late.model, late.price_id, late.cost_micros) == ("dear", "price_dear", 900)
    assert settle(bench, lease).price_id == "price_cheap"


def test_a_late_settlement_of_another_model_is_priced_as_of_the_grant() -> None:
    bench = bench_of(prices=(DEAR, CHEAP))
    lease = granted(bench, model="cheap")
    bench.clock.advance(3600.0)
    bench.authority.expire()
    now_ms = int(bench.clock.wall * 1000)
    bench.authority.prices.put(replace(DEAR, version=2, valid_from_ms=now_ms, request=9_000))
    late = settle(bench, lease, model="dear")
    assert (late.price_version, late.cost_micros) == (1, 900)
