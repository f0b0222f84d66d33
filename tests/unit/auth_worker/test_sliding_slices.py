"""Hard budgets of windows that slide: what their slices keep back after a kill and a clean end."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from auth_worker.decisions.sliced_meters import SLICE_OF_SLIDING
from auth_worker.principals.limit_rules import SLIDING_S, Limit, Window, WindowKind
from auth_worker.records.limit_usage import CounterRow, DropCounters, SaveCounter
from auth_worker.records.operations import SaveLease
from protocol.wire.messages import Adjust, Adjusted, Granted, OrphanUsage, StreamUsage
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import FakeClock, authorize
from tests.fakes.limit_parts import limit
from tests.unit.auth_worker.test_slices import (
    BUDGET,
    SCOPE,
    counters,
    grant,
    grants_until_refused,
    running,
    settle,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.mark.parametrize("kind", ["minute", "hour", "day"])
def test_a_hard_budget_that_slides_is_granted_from_the_disk_and_forgets_nothing_at_a_kill(
    tmp_path: Path, clock: FakeClock, kind: WindowKind
) -> None:
    budget = limit("money", 1000, kind, limit_id="bud_s")
    with running(tmp_path, clock, budget) as bench:
        assert bench.ask(authorize(scope=SCOPE)) is None  # waits for its slice
        assert counters(bench) == {}
        assert [type(message) for message in bench.write()] == [Granted]
        for _ in range(4):
            assert isinstance(bench.ask(authorize(scope=SCOPE)), Granted)  # never written
    with running(tmp_path, clock, budget) as bench:
        assert bench.authority.meter_of(budget).held == 1000
        num_granted, refusal = grants_until_refused(bench)
        assert num_granted == 0
        assert refusal.limit is not None
        assert refusal.limit.source == "in_flight"
        clock.advance(601.0)
        bench.handler.expire()
        bench.write()
        assert grants_until_refused(bench)[0] == 5


@pytest.mark.parametrize("kind", ["minute", "hour"])
def test_what_a_kill_forgot_counts_in_a_sliding_budget_when_its_gateway_tells_of_it(
    tmp_path: Path, clock: FakeClock, kind: WindowKind
) -> None:
    budget = limit("money", 1000, kind, limit_id="bud_s")
    with running(tmp_path, clock, budget) as bench:
        grant(bench)
        forgotten = [bench.ask(authorize(scope=SCOPE)) for _ in range(4)]
    with running(tmp_path, clock, budget) as bench:
        for number, lease in enumerate(forgotten):
            assert isinstance(lease, Granted)
            settle(bench, lease.lease_id)
            meter = bench.authority.meter_of(budget)
            assert (meter.total, meter.total + meter.held) == (190 * (number + 1), 1000)
        assert grants_until_refused(bench)[0] == 0


@pytest.mark.parametrize("is_settled_again_first", [False, True])
@pytest.mark.parametrize("kind", ["minute", "hour"])
def test_what_was_settled_before_a_kill_counts_once_when_an_engine_reports_it_after(
    tmp_path: Path, clock: FakeClock, kind: WindowKind, is_settled_again_first: bool
) -> None:
    """Engines tell the next gateway what they ended lately for one that is gone."""
    budget = limit("money", 1000, kind, limit_id="bud_s")
    with running(tmp_path, clock, budget) as bench:
        leases = [grant(bench).lease_id for _ in range(5)]
        for lease_id in leases:
            settle(bench, lease_id)
    with running(tmp_path, clock, budget) as bench:
        report(bench, *leases)
        used = partial(standing, bench, budget)
        assert used() == (950, 50)
        if is_settled_again_first:
            for lease_id in leases:
                settle(bench, lease_id)
                assert used() == (950, 50)
        clock.advance(31.0)
        bench.handler.expire()
        assert used() == (950, 50)
        bench.write()
        assert used() == (950, 50)
        for lease_id in leases:
            settle(bench, lease_id)
        assert used() == (950, 50)


@pytest.mark.parametrize("kind", ["minute", "hour"])
def test_what_a_kill_forgot_counts_when_an_engine_reports_it(
    tmp_path: Path, clock: FakeClock, kind: WindowKind
) -> None:
    budget = limit("money", 1000, kind, limit_id="bud_s")
    with running(tmp_path, clock, budget) as bench:
        grant(bench)
        forgotten = [bench.ask(authorize(scope=SCOPE)) for _ in range(4)]
    with running(tmp_path, clock, budget) as bench:
        report(bench, *(lease.lease_id for lease in forgotten if isinstance(lease, Granted)))
        meter = bench.authority.meter_of(budget)
        clock.advance(31.0)
        bench.handler.expire()
        assert (meter.total, meter.total + meter.held) == (0, 1000)
        bench.write()
        assert (meter.total, meter.total + meter.held) == (4 * 190, 1000)


def standing(bench: AuthHandlerBench, budget: Limit) -> tuple[int, int]:
    """What counts in a budget, and what is held."""
    meter = bench.authority.meter_of(budget)
    return meter.total, meter.held


def report(bench: AuthHandlerBench, *lease_ids: str) -> None:
    streams = tuple(
        StreamUsage(lease_id=lease_id, stream="r/0", prompt_tokens=10, completion_tokens=90)
        for lease_id in lease_ids
    )
    bench.ask(OrphanUsage(report_id="report-1", engine_id="engine-1", streams=streams))
    bench.write()


def test_what_left_a_sliding_budget_shortly_before_a_kill_made_room_for_others(
    tmp_path: Path, clock: FakeClock
) -> None:
    budget = limit("money", 1000, "minute", limit_id="bud_s")
    with running(tmp_path, clock, budget) as bench:
        for _ in range(5):
            settle(bench, grant(bench).lease_id)
        clock.advance(61.0)
        for _ in range(5):
            assert isinstance(bench.ask(authorize(scope=SCOPE)), Granted)  # never written
    with running(tmp_path, clock, budget) as bench:
        clock.advance(2.0)
        assert grants_until_refused(bench)[0] == 0


def test_the_slice_of_a_sliding_budget_shrinks_with_what_counts(
    tmp_path: Path, clock: FakeClock
) -> None:
    budget = limit("money", 100_000, "hour", limit_id="bud_s")
    with running(tmp_path, clock, budget) as bench:
        for _ in range(200):
            settle(bench, grant(bench).lease_id)
        before = slice_of(bench)
        clock.advance(3700.0)
        grant(bench)
        bench.write()
        assert slice_of(bench) < before / 2
        end(bench)
        assert slices_of(bench) == []
    with running(tmp_path, clock, budget) as bench:
        assert bench.authority.meter_of(budget).held == 190


def slices_of(bench: AuthHandlerBench) -> list[CounterRow]:
    rows = bench.store.load(recent_since_ms=0).counters
    return [row for row in rows if row.begins_at == SLICE_OF_SLIDING]


def slice_of(bench: AuthHandlerBench) -> int:
    (row,) = slices_of(bench)
    return row.granted


def end(bench: AuthHandlerBench) -> None:
    """It ends cleanly."""
    bench.authority.close()
    bench.write()


@pytest.mark.parametrize("kind", ["minute", "hour", "day"])
@pytest.mark.parametrize("leaves", ["before the end", "after the end"])
def test_what_left_a_sliding_budget_is_free_after_a_clean_restart(
    tmp_path: Path, clock: FakeClock, kind: WindowKind, leaves: str
) -> None:
    budget = limit("money", 1000, kind, limit_id="bud_s")
    idle_s = 2 * SLIDING_S[kind]
    with running(tmp_path, clock, budget) as bench:
        for _ in range(5):
            settle(bench, grant(bench).lease_id)
        if leaves == "before the end":
            clock.advance(idle_s)
        end(bench)
    if leaves == "after the end":
        clock.advance(idle_s)
    with running(tmp_path, clock, budget) as bench:
        meter = bench.authority.meter_of(budget)
        assert (meter.total, meter.held) == (0, 0)
        assert grants_until_refused(bench)[0] == 5


@pytest.mark.parametrize("kind", ["minute", "hour"])
def test_what_counts_in_a_sliding_budget_and_what_runs_is_all_that_a_clean_restart_keeps(
    tmp_path: Path, clock: FakeClock, kind: WindowKind
) -> None:
    budget = limit("money", 1000, kind, limit_id="bud_s")
    with running(tmp_path, clock, budget) as bench:
        for _ in range(2):
            settle(bench, grant(bench).lease_id)
        assert isinstance(bench.ask(authorize(scope=SCOPE)), Granted)  # not written before the end
        end(bench)
    with running(tmp_path, clock, budget) as bench:
        meter = bench.authority.meter_of(budget)
        assert (meter.total, meter.held) == (380, 190)
        clock.advance(SLIDING_S[kind] * 31 / 30)  # nobody has charged the lease yet
        meter = bench.authority.meter_of(budget)
        assert (meter.total, meter.held) == (0, 190)
        assert grants_until_refused(bench)[0] == 4


def test_the_leases_of_a_clean_end_are_on_the_disk_before_its_slices_are_dropped(
    tmp_path: Path, clock: FakeClock
) -> None:
    budget = limit("money", 10**6, "hour", limit_id="bud_s")
    with running(tmp_path, clock, budget) as bench:
        grant(bench)
        assert isinstance(bench.ask(authorize(scope=SCOPE)), Granted)
        bench.authority.close()
        # A group is full: the leases beyond it would be written after it, a kill in between.
        bench.committer._take_in()
        operations = [item.operation for item in bench.committer._backlog.take(0.0)]
        kinds = [type(operation) for operation in operations]
        assert kinds.index(SaveLease) < kinds.index(DropCounters)


def test_a_slice_that_was_on_its_way_to_the_disk_is_not_kept_back_after_a_clean_restart(
    tmp_path: Path, clock: FakeClock
) -> None:
    budget = limit("money", 1000, "hour", limit_id="bud_s")
    with running(tmp_path, clock, budget, BUDGET) as bench:
        assert bench.ask(authorize(scope=SCOPE)) is None
        bench.authority.close()
        bench.committer._closing = True  # nobody hears of it any more
        bench.committer._run()
    with running(tmp_path, clock, budget, BUDGET) as bench:
        assert [bench.authority.meter_of(one).held for one in (budget, BUDGET)] == [0, 0]
        assert grants_until_refused(bench)[0] == 5


def test_what_a_kill_left_unknown_is_held_after_a_clean_restart_as_well(
    tmp_path: Path, clock: FakeClock
) -> None:
    budget = limit("money", 1000, "hour", limit_id="bud_s")
    with running(tmp_path, clock, budget) as bench:
        grant(bench)
        for _ in range(4):
            assert isinstance(bench.ask(authorize(scope=SCOPE)), Granted)  # never written
    with running(tmp_path, clock, budget) as bench:
        end(bench)
    with running(tmp_path, clock, budget) as bench:
        assert grants_until_refused(bench)[0] == 0
        clock.advance(601.0)  # by then all of them must have ended
        end(bench)
    with running(tmp_path, clock, budget) as bench:
        assert grants_until_refused(bench)[0] == 5


def test_a_kill_holds_nothing_back_of_a_sliding_budget_in_which_nothing_counted_any_more(
    tmp_path: Path, clock: FakeClock
) -> None:
    budget = limit("money", 1000, "hour", limit_id="bud_s")
    with running(tmp_path, clock, budget) as bench:
        for _ in range(5):
            settle(bench, grant(bench).lease_id)
        bench.handler.expire()
        bench.write()
        assert slice_of(bench) == 1000
        clock.advance(3700.0)
        bench.handler.expire()
        bench.write()
        assert slice_of(bench) == 0
        grant(bench)  # waits for the disk again
        assert slice_of(bench) == 1000
        clock.advance(7200.0)
        bench.handler.expire()
        bench.write()
        clock.advance(7200.0)
        bench.handler.expire()
        bench.write()
    with running(tmp_path, clock, budget) as bench:
        assert bench.authority.meter_of(budget).held == 0
        assert grants_until_refused(bench)[0] == 5


def test_the_slice_of_a_budget_that_was_replaced_does_not_come_back(
    tmp_path: Path, clock: FakeClock
) -> None:
    hour = limit("money", 10**6, "hour", limit_id="bud_s")
    day = replace(hour, window=Window("day"))
    with running(tmp_path, clock, hour) as bench:
        settle(bench, grant(bench).lease_id)
        lease = grant(bench)
        bench.authority.limits.put(day)
        grant(bench)
        bench.write()
        (row,) = bench.store.load(recent_since_ms=0).counters
        assert row.begins_at == SLICE_OF_SLIDING  # neither slots nor slice of the hour are left
        for num_tokens in (20_000, 60_000, 200_000):
            growth = Adjust(
                request_id="a",
                lease_id=lease.lease_id,
                prompt_tokens=10,
                completion_tokens=num_tokens,
            )
            answers = [bench.ask(growth), *bench.write()]
            assert [type(answer) for answer in answers if answer] == [Adjusted]
        settle(bench, lease.lease_id)
        assert bench.store.load(recent_since_ms=0).counters == (row,)
    with running(tmp_path, clock, day) as bench:
        assert bench.authority.meter_of(day).held == row.granted


def test_of_the_slices_of_two_meters_the_newest_is_right_after_a_restart(
    tmp_path: Path, clock: FakeClock
) -> None:
    day = limit("money", 10**6, "day", limit_id="bud_s")
    with running(tmp_path, clock, day) as bench:
        # As earlier releases left them when a budget was replaced.
        for counter_id, granted in ((70, 720_180), (71, 62_690)):
            row = CounterRow(counter_id, "bud_s", "", SLICE_OF_SLIDING, granted)
            bench.store.apply([SaveCounter(row)])
    with running(tmp_path, clock, day) as bench:
        assert bench.authority.meter_of(day).held == 62_690
        bench.write()
        assert [row.counter_id for row in slices_of(bench)] == [71]


def test_slots_of_a_sliding_day_come_and_go_with_it(tmp_path: Path, clock: FakeClock) -> None:
    with running(tmp_path, clock, limit("tokens", 10**6, "day", limit_id="lim_day")) as bench:
        rows: list[CounterRow] = []
        for number in range(130):
            settle(bench, grant(bench).lease_id)
            clock.advance(1441.0)
            if number > 55:
                rows = list(bench.store.load(recent_since_ms=0).counters)
                assert len(rows) <= 62
        assert sum(row.used for row in rows) == len(rows) * 100
