"""Hard budgets and quotas are granted from what is on the disk, and nothing is granted twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from auth_worker.principals.limit_rules import Limit, Window
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Adjust,
    Adjusted,
    Denied,
    Granted,
    LeaseReport,
    Message,
    Renew,
    Settle,
    Settled,
)
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import FakeClock, authorize
from tests.fakes.limit_parts import HOUSE_PRICE, limit

BUDGET = limit("money", 1000, "calendar_month", limit_id="bud_1")
SCOPE = "chat.completions"


@contextmanager
def running(directory: Path, clock: FakeClock, *limits: Limit) -> Iterator[AuthHandlerBench]:
    """An auth worker that is killed at the end: what was not written by then is lost."""
    bench = AuthHandlerBench(directory, clock=clock, limits=limits, prices=(HOUSE_PRICE,))
    try:
        yield bench
    finally:
        bench.store.close()


def ask(bench: AuthHandlerBench, **fields: Any) -> Message | None:
    """An answer, with what had to be written first."""
    answer = bench.ask(authorize(scope=SCOPE, **fields))
    if answer is None:
        answers = [m for m in bench.write() if isinstance(m, Granted | Denied)]
        answer = answers[0] if answers else None
    return answer


def grant(bench: AuthHandlerBench, **fields: Any) -> Granted:
    answer = ask(bench, **fields)
    assert isinstance(answer, Granted), answer
    return answer


def settle(bench: AuthHandlerBench, lease_id: str, **fields: Any) -> None:
    used = {"prompt_tokens": 10, "completion_tokens": 90, **fields}
    command = Settle(lease_id=lease_id, request_id="r", endpoint="/v1/chat/completions", **used)
    assert bench.ask(command) is None
    assert Settled(lease_id=lease_id) in bench.write()


def counters(bench: AuthHandlerBench) -> dict[str, tuple[int, int]]:
    rows = bench.store.load(recent_since_ms=0).counters
    return {row.limit_id: (row.granted, row.used) for row in rows}


def grants_until_refused(bench: AuthHandlerBench) -> tuple[int, Denied]:
    for number in range(1000):
        answer = ask(bench)
        if isinstance(answer, Denied):
            return number, answer
    raise AssertionError("never refused")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_nothing_is_granted_before_its_slice_is_on_the_disk(
    tmp_path: Path, clock: FakeClock
) -> None:
    with running(tmp_path, clock, BUDGET) as bench:
        assert bench.ask(authorize(scope=SCOPE)) is None
        assert counters(bench) == {}
        (answer,) = bench.write()
        assert isinstance(answer, Granted)
        granted, used = counters(bench)["bud_1"]
        assert granted >= 190
        assert used == 0
        assert isinstance(bench.ask(authorize(scope=SCOPE)), Granted)


def test_a_rate_and_a_limit_that_only_warns_wait_for_no_disk(
    tmp_path: Path, clock: FakeClock
) -> None:
    soft = limit("money", 1000, "calendar_month", is_hard=False)
    with running(tmp_path, clock, limit("tokens", 1000, "day"), soft) as bench:
        assert isinstance(bench.ask(authorize(scope=SCOPE)), Granted)


def test_the_next_slice_is_asked_for_while_there_is_room_left(
    tmp_path: Path, clock: FakeClock
) -> None:
    with running(tmp_path, clock, limit("tokens", 50_000, "total", limit_id="lim_1")) as bench:
        grant(bench)
        for number in range(450):
            assert isinstance(bench.ask(authorize(scope=SCOPE)), Granted), number
            if number % 10 == 0:
                bench.write()
        granted, _ = counters(bench)["lim_1"]
        assert 451 * 100 <= granted <= 50_000


def test_a_request_that_nobody_waits_for_any_more_takes_nothing_when_its_slice_comes(
    tmp_path: Path, clock: FakeClock
) -> None:
    with running(tmp_path, clock, BUDGET) as bench:
        assert bench.ask(authorize(scope=SCOPE, wait_s=5.0)) is None
        clock.advance(6.0)
        (answer,) = bench.write()
        assert isinstance(answer, Denied)
        assert answer.code is ErrorCode.WORKER_UNAVAILABLE
        assert grants_until_refused(bench)[0] == 5


def test_growth_waits_for_its_slice_as_well(tmp_path: Path, clock: FakeClock) -> None:
    with running(tmp_path, clock, limit("tokens", 10**6, "total")) as bench:
        lease = grant(bench)
        growth = Adjust(
            request_id="a", lease_id=lease.lease_id, prompt_tokens=10, completion_tokens=500_000
        )
        assert bench.ask(growth) is None
        assert [type(message) for message in bench.write()] == [Adjusted]


def test_what_a_killed_process_granted_stays_taken_until_its_leases_must_have_ended(
    tmp_path: Path, clock: FakeClock
) -> None:
    with running(tmp_path, clock, BUDGET) as bench:
        grant(bench)
        for _ in range(4):
            assert isinstance(bench.ask(authorize(scope=SCOPE)), Granted)  # never written
    with running(tmp_path, clock, BUDGET) as bench:
        assert bench.authority.meter_of(BUDGET).held == 1000  # looking at it frees nothing
        num_granted, refusal = grants_until_refused(bench)
        assert num_granted == 0
        assert refusal.limit is not None
        assert refusal.limit.source == "in_flight"
        clock.advance(601.0)
        bench.handler.expire()
        bench.write()
        assert grants_until_refused(bench)[0] == 5


def test_a_settlement_that_a_kill_forgot_the_lease_of_is_charged_to_its_budget(
    tmp_path: Path, clock: FakeClock
) -> None:
    with running(tmp_path, clock, BUDGET) as bench:
        grant(bench)
        forgotten = bench.ask(authorize(scope=SCOPE))
        assert isinstance(forgotten, Granted)
    with running(tmp_path, clock, BUDGET) as bench:
        for _ in range(3):  # gateways repeat what isn't acknowledged
            settle(bench, forgotten.lease_id)
        assert counters(bench)["bud_1"][1] == 190
        clock.advance(601.0)
        bench.handler.expire()
        bench.write()
        assert grants_until_refused(bench)[0] == 4


def test_a_forgotten_lease_that_is_renewed_and_settled_counts_once(
    tmp_path: Path, clock: FakeClock
) -> None:
    with running(tmp_path, clock, BUDGET) as bench:
        grant(bench)
        forgotten = bench.ask(authorize(scope=SCOPE))
        assert isinstance(forgotten, Granted)
    with running(tmp_path, clock, BUDGET) as bench:
        report = LeaseReport(lease_id=forgotten.lease_id, prompt_tokens=10, completion_tokens=20)
        bench.ask(Renew(leases=(report,)))
        settle(bench, forgotten.lease_id)
        assert counters(bench)["bud_1"][1] == 190
        clock.advance(601.0)
        bench.handler.expire()
        bench.write()
        assert grants_until_refused(bench)[0] == 4


def test_a_forgotten_lease_that_its_gateway_reports_holds_what_it_held(
    tmp_path: Path, clock: FakeClock
) -> None:
    with running(tmp_path, clock, BUDGET) as bench:
        grant(bench)
        forgotten = bench.ask(authorize(scope=SCOPE))
        assert isinstance(forgotten, Granted)
    with running(tmp_path, clock, BUDGET) as bench:
        report = LeaseReport(
            lease_id=forgotten.lease_id,
            prompt_tokens=10,
            completion_tokens=20,
            max_prompt_tokens=10,
            max_completion_tokens=90,
            endpoint="/v1/chat/completions",
        )
        bench.ask(Renew(leases=(report,)))
        for _ in range(2):  # beyond the time for which the unknown is held
            clock.advance(400.0)
            bench.ask(Renew(leases=(report,)))
            bench.handler.expire()
            bench.write()
        num_granted, refusal = grants_until_refused(bench)
        assert refusal.limit is not None
        assert (num_granted, refusal.limit.used) == (4, 0)
        settle(bench, forgotten.lease_id)
        assert counters(bench)["bud_1"][1] == 190


def test_a_settlement_after_the_end_of_its_lease_corrects_what_was_charged(
    tmp_path: Path, clock: FakeClock
) -> None:
    with running(tmp_path, clock, BUDGET) as bench:
        lease = grant(bench)
        report = LeaseReport(lease_id=lease.lease_id, prompt_tokens=10, completion_tokens=20)
        bench.ask(Renew(leases=(report,)))
        clock.advance(601.0)
        bench.handler.expire()
        bench.write()
        assert counters(bench)["bud_1"][1] == 50
        settle(bench, lease.lease_id)
        assert counters(bench)["bud_1"][1] == 190
        assert grants_until_refused(bench)[0] == 4


def test_what_was_spent_is_there_after_a_restart_and_leases_hold_what_they_held(
    tmp_path: Path, clock: FakeClock
) -> None:
    day = limit("tokens", 250, "day", limit_id="lim_day")
    with running(tmp_path, clock, BUDGET, day) as bench:
        settle(bench, grant(bench).lease_id)
        grant(bench)
        bench.authority.close()
        bench.write()
    with running(tmp_path, clock, BUDGET, day) as bench:
        granted, used = counters(bench)["bud_1"]
        assert (granted, used) == (380, 190)
        refusal = grants_until_refused(bench)[1]
        assert refusal.limit is not None
        assert (refusal.limit.limit_id, refusal.limit.used) == ("lim_day", 100)
        assert refusal.limit.reserved == 100
    with running(tmp_path, clock, BUDGET) as bench:
        assert grants_until_refused(bench)[0] == 3


def test_a_process_that_ends_in_good_order_keeps_nothing_back(
    tmp_path: Path, clock: FakeClock
) -> None:
    with running(tmp_path, clock, BUDGET) as bench:
        settle(bench, grant(bench).lease_id)
        assert counters(bench)["bud_1"][0] == 1000
        bench.authority.close()
        bench.write()
        assert counters(bench)["bud_1"] == (190, 190)
    with running(tmp_path, clock, BUDGET) as bench:
        assert grants_until_refused(bench)[0] == 4


def test_counters_of_limits_that_are_gone_are_forgotten(tmp_path: Path, clock: FakeClock) -> None:
    with running(tmp_path, clock, BUDGET, limit("requests", 10, "hour")) as bench:
        grant(bench)
        bench.write()
        assert len(counters(bench)) == 2
    with running(tmp_path, clock) as bench:
        bench.write()
        assert counters(bench) == {}


def test_a_window_that_was_replaced_does_not_come_back(tmp_path: Path, clock: FakeClock) -> None:
    total = limit("tokens", 10**6, "total", limit_id="lim_t")
    month = replace(total, window=Window("calendar_month"))
    with running(tmp_path, clock, total) as bench:
        lease = grant(bench)
        bench.authority.limits.put(month)
        grant(bench)
        bench.write()
        rows = bench.store.load(recent_since_ms=0).counters
        assert len(rows) == 1
        growth = Adjust(
            request_id="a", lease_id=lease.lease_id, prompt_tokens=10, completion_tokens=200_000
        )
        assert isinstance(bench.ask(growth), Adjusted)
        bench.write()
        assert bench.store.load(recent_since_ms=0).counters == rows
