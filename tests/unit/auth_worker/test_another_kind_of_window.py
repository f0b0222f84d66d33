"""A limit that gets a window of another kind: what was counted by the old one is let go."""

from dataclasses import replace

import pytest

from auth_worker.principals.limit_rules import Holder, Limit, Measure, Window
from auth_worker.records.limit_usage import DropCounters, SaveCounter
from auth_worker.records.operations import Snapshot
from protocol.wire.messages import Granted, Settle
from tests.fakes.auth_parts import AuthorityBench, authority_bench, authorize, stored_key
from tests.fakes.limit_parts import HOUSE_PRICE, limit

HOUR, DAY, TOTAL = Window("hour"), Window("calendar_day"), Window("total")
KEY = stored_key(may_name_end_users=True)


def bench_of(one: Limit) -> AuthorityBench:
    return authority_bench(
        snapshot=Snapshot(keys=(KEY,), leases=(), recent=(), limits=(one,), prices=(HOUSE_PRICE,))
    )


def grant(bench: AuthorityBench, end_user: str = "ada") -> str:
    answer = bench.authority.authorize(authorize(end_user=end_user))
    assert isinstance(answer, Granted), answer
    return answer.lease_id


def settle(bench: AuthorityBench, lease_id: str, end_user: str = "ada") -> None:
    command = Settle(
        lease_id=lease_id,
        request_id="r",
        prompt_tokens=10,
        completion_tokens=20,
        endpoint="/v1/chat/completions",
        end_user=end_user,
    )
    bench.authority.settle(command)


def counters(bench: AuthorityBench) -> set[int]:
    """The rows that the database has by now."""
    found: set[int] = set()
    for operation in bench.emitted:
        if isinstance(operation, SaveCounter):
            found.add(operation.row.counter_id)
        elif isinstance(operation, DropCounters):
            found.difference_update(operation.counter_ids)
    return found


def kinds(bench: AuthorityBench) -> tuple[int, int]:
    """How many sliding meters and how many fixed ones are held."""
    meters = bench.authority._meters
    return len(meters._meters), sum(map(len, meters._windows.values()))


@pytest.mark.parametrize("holder", ["key", "end_user"])
@pytest.mark.parametrize("measure", ["tokens", "money", "requests"])
def test_one_count_at_a_time_is_held_here_and_in_the_database(
    holder: Holder, measure: Measure
) -> None:
    one = limit(measure, 10**6, HOUR, holder)
    bench = bench_of(one)
    for window in (HOUR, DAY, HOUR, TOTAL, DAY, HOUR, DAY):
        bench.authority.limits.put(replace(one, window=window))
        settle(bench, grant(bench))
        assert kinds(bench) == ((1, 0) if window.slides else (0, 1))
        assert len(counters(bench)) == (1 if not window.slides or measure != "money" else 2)
        assert len(bench.authority._meters._by_counter) == (0 if window.slides else 1)
        assert len(bench.authority._meters._of_slot) == (1 if window.slides else 0)


def test_a_limit_of_what_runs_becomes_one_of_what_is_used_and_back() -> None:
    one = limit("parallel", 2, TOTAL)
    quota = replace(one, measure="requests", amount=10**6)
    bench = bench_of(one)
    for _ in range(2):
        bench.authority.limits.put(one)
        grant(bench)
        assert kinds(bench) == (1, 0)
        bench.authority.limits.put(quota)
        grant(bench)
        assert kinds(bench) == (0, 1)


def test_what_runs_meanwhile_ends_in_what_it_began_in() -> None:
    one = limit("tokens", 150, HOUR)
    bench = bench_of(one)
    lease_id = grant(bench)
    bench.authority.limits.put(replace(one, window=DAY))
    new = bench.authority.meter_of(replace(one, window=DAY))
    other = grant(bench)
    settle(bench, lease_id)
    assert (new.total, new.held) == (0, 100)
    settle(bench, other)
    assert (new.total, new.held) == (30, 0)


def test_end_users_who_do_not_come_back_are_forgotten_as_well() -> None:
    one = limit("tokens", 10**6, TOTAL, "end_user")
    bench = bench_of(one)
    for number in range(50):
        settle(bench, grant(bench, f"user-{number}"), f"user-{number}")
    assert kinds(bench) == (0, 50)
    bench.authority.limits.put(replace(one, window=HOUR))
    settle(bench, grant(bench))
    bench.authority.expire()  # which sweeps
    assert kinds(bench) == (1, 0)
    assert len(counters(bench)) == 1
