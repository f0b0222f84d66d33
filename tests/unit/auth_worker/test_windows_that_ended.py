"""What is settled after a window ended counts in that window, whatever a kill forgot of it."""

from datetime import UTC, datetime

import pytest

from auth_worker.principals.limit_rules import Limit
from auth_worker.records.limit_usage import SaveCounter, amounts_of
from auth_worker.records.operations import BookUsage, Snapshot
from protocol.wire.messages import Denied, Granted, LeaseReport, Renew, Settle
from tests.fakes.auth_parts import AuthorityBench, authority_bench, authorize, stored_key
from tests.fakes.limit_parts import HOUSE_PRICE, limit

KEY = stored_key()


def bench_of(*limits: Limit) -> AuthorityBench:
    return authority_bench(KEY, limits=limits, prices=(HOUSE_PRICE,))


def granted(bench: AuthorityBench) -> Granted:
    answer = bench.authority.authorize(authorize())
    assert isinstance(answer, Granted), answer
    return answer


def settle(bench: AuthorityBench, lease: Granted, model: str) -> BookUsage:
    command = Settle(
        lease_id=lease.lease_id,
        request_id="req-1",
        prompt_tokens=10,
        completion_tokens=90,
        model=model,
    )
    booking = bench.authority.settle(command)
    assert isinstance(booking, BookUsage)
    bench.authority.booked(booking, None)
    return booking


def set_wall(bench: AuthorityBench, text: str) -> None:
    wall_s = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    bench.clock.monotonic += max(0.0, wall_s - bench.clock.wall)
    bench.clock.wall = wall_s


def counter_of(bench: AuthorityBench) -> int:
    """The one counter of which a slice was committed."""
    rows = [one.row for one in bench.emitted if isinstance(one, SaveCounter)]
    (counter_id,) = {row.counter_id for row in rows if row.granted}
    return counter_id


def killed(bench: AuthorityBench, *limits: Limit) -> AuthorityBench:
    """The next process after a kill that forgot every lease; counters had been committed."""
    counters = {
        one.row.counter_id: one.row for one in bench.emitted if isinstance(one, SaveCounter)
    }
    snapshot = Snapshot(
        keys=(KEY,),
        leases=(),
        recent=(),
        limits=limits,
        prices=(HOUSE_PRICE,),
        counters=tuple(counters.values()),
    )
    return authority_bench(snapshot=snapshot, epoch=4, clock=bench.clock)


@pytest.mark.parametrize("auto_renews", [True, False])
@pytest.mark.parametrize("model", ["demo", "other"])
def test_what_a_kill_forgot_is_settled_in_the_window_it_began_in(
    auto_renews: bool, model: str
) -> None:
    daily = limit("tokens", 5000, "calendar_day", auto_renews=auto_renews)
    first = bench_of(daily)
    set_wall(first, "2026-06-15T23:59:00")
    lease = granted(first)
    granted_from = counter_of(first)
    second = killed(first, daily)
    set_wall(second, "2026-06-16T00:01:00")
    booking = settle(second, lease, model)
    assert amounts_of(booking) == [(granted_from, 100)]
    set_wall(second, "2026-06-15T23:59:30")  # to look at that window
    assert second.authority.meter_of(daily).total == 100


def test_a_model_that_answered_after_the_window_ended_counts_in_the_one_it_began_in() -> None:
    once = limit("tokens", 5000, "calendar_day", auto_renews=False)
    bench = bench_of(once)
    set_wall(bench, "2026-06-15T23:59:00")
    lease = granted(bench)
    granted_from = counter_of(bench)
    set_wall(bench, "2026-06-16T00:01:00")
    assert amounts_of(settle(bench, lease, "other")) == [(granted_from, 100)]


def test_a_lease_of_before_a_limit_was_made_does_not_begin_and_end_its_only_window() -> None:
    once = limit("tokens", 5000, "calendar_day", auto_renews=False)
    first = bench_of()
    set_wall(first, "2026-06-15T23:59:00")
    lease = granted(first)
    set_wall(first, "2026-06-16T00:01:00")
    second = killed(first, once)
    report = LeaseReport(
        lease.lease_id,
        10,
        40,
        endpoint="/v1/chat/completions",
        max_prompt_tokens=10,
        max_completion_tokens=90,
    )
    second.authority.renew(Renew(leases=(report,)))
    granted(second)
    set_wall(second, "2026-06-17T00:01:00")
    assert isinstance(second.authority.authorize(authorize()), Denied)


def test_a_limit_rolls_over_nothing_of_the_time_before_it_was_made() -> None:
    daily = limit("tokens", 1000, "calendar_day", rolls_over=True)
    first = bench_of()
    set_wall(first, "2026-06-15T23:59:00")
    lease = granted(first)
    set_wall(first, "2026-06-16T00:01:00")
    second = killed(first, daily)
    settle(second, lease, model="demo")
    meter = second.authority.meter_of(daily)
    assert (meter.amount, meter.total) == (1000, 100)
