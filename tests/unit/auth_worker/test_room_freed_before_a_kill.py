"""Room that a settlement freed, and that was granted again, is not granted once more after a kill.

A killed process forgets a settlement that was not committed, together with what it granted from the
room that this had freed.
"""

from typing import Any

import pytest

from auth_worker.decisions.authority import Authority, Rules
from auth_worker.decisions.slices import Postponed
from auth_worker.principals.key_rules import KeyRules
from auth_worker.principals.limit_rules import Limit
from auth_worker.records.operations import BookUsage, Snapshot
from protocol.wire.messages import (
    Adjust,
    Adjusted,
    Authorize,
    Denied,
    Granted,
    LeaseReport,
    OrphanUsage,
    Renew,
    Settle,
    StreamUsage,
)
from tests.fakes.auth_parts import FakeClock, authorize, stored_key
from tests.fakes.limit_parts import HOUSE_PRICE, limit
from tests.fakes.memory_store import MemoryStore

LEASE_S = 600.0
LIMITS = [
    limit("tokens", 1000, "total"),
    limit("tokens", 1000, "calendar_day"),
    limit("money", 1900, "calendar_month"),
    limit("money", 1900, "hour"),
]


class Machine:
    """A database, and the auth worker on it, which is killed now and then."""

    def __init__(self, one: Limit, *, lease_s: float = LEASE_S, **of_key: Any) -> None:
        self.clock = FakeClock()
        self.lease_s = lease_s
        self.limit = one
        self.store = MemoryStore(
            Snapshot(
                keys=(stored_key(**of_key),),
                leases=(),
                recent=(),
                limits=(one,),
                prices=(HOUSE_PRICE,),
            )
        )
        self.epoch = 0
        self.authority = self.started()

    def started(self) -> Authority:
        self.epoch += 1
        return Authority(
            epoch=self.epoch,
            snapshot=self.store.load(int((self.clock.wall - 60) * 1000)),
            rules=Rules(lease_duration_s=self.lease_s),
            clock=self.clock,
            emit=self.store.emit,
            commit=self.store.submit,
        )

    def kill(self) -> None:
        """What was not committed never happened."""
        self.store.lose()
        self.authority = self.started()

    def ask(self, completion: int) -> Granted | Denied:
        command: Authorize = authorize(
            prompt_tokens=100, completion_tokens=completion, scope="chat.completions"
        )
        answer = self.authority.authorize(command)
        if isinstance(answer, Postponed):
            self.store.commit()
            answer = self.authority.authorize(command)
        assert isinstance(answer, Granted | Denied)
        return answer

    def grant(self, completion: int) -> str:
        answer = self.ask(completion)
        assert isinstance(answer, Granted), answer
        return answer.lease_id

    def is_refused(self, completion: int) -> bool:
        """Whether it is, as long as what was granted runs."""
        answer = self.ask(completion)
        if isinstance(answer, Denied):
            assert answer.limit is not None
            assert answer.limit.source == "in_flight"
        return isinstance(answer, Denied)

    def settle(self, lease_id: str, completion: int = 0, *, is_unused: bool = False) -> None:
        booking = self.authority.settle(
            Settle(
                lease_id=lease_id,
                request_id="r",
                prompt_tokens=0 if is_unused else 100,
                completion_tokens=completion,
                is_unused=is_unused,
                endpoint="/v1/chat/completions",
            )
        )
        assert isinstance(booking, BookUsage)
        authority = self.authority
        self.store.submit(booking, lambda result: authority.booked(booking, result))

    def renew(self, lease_id: str, completion: int) -> None:
        report = LeaseReport(
            lease_id=lease_id,
            prompt_tokens=0,
            completion_tokens=0,
            max_prompt_tokens=100,
            max_completion_tokens=completion,
            endpoint="/v1/chat/completions",
        )
        self.authority.renew(Renew(leases=(report,)))

    def shrink(self, lease_id: str, completion: int) -> None:
        answer = self.authority.adjust(
            Adjust(
                request_id="a",
                lease_id=lease_id,
                prompt_tokens=100,
                completion_tokens=completion,
            )
        )
        assert isinstance(answer, Adjusted)

    def later(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.authority.expire()
        self.store.commit()


@pytest.fixture(params=LIMITS, ids=lambda one: f"{one.measure} {one.window.kind}")
def machine(request: pytest.FixtureRequest) -> Machine:
    one: Limit = request.param
    return Machine(one)


def fill(machine: Machine) -> str:
    """A durable lease over all that there is."""
    lease_id = machine.grant(900)
    machine.store.commit()
    assert machine.is_refused(100)
    return lease_id


@pytest.mark.parametrize("is_unused", [False, True])
def test_what_a_lost_settlement_freed_and_granted_is_not_granted_again(
    machine: Machine, is_unused: bool
) -> None:
    first = fill(machine)
    machine.settle(first, is_unused=is_unused)
    machine.grant(700)  # it runs on a machine that goes down as well: nobody tells of it
    machine.kill()
    machine.settle(first, is_unused=is_unused)  # its gateway has no answer, and repeats it
    machine.store.commit()
    assert machine.is_refused(700)
    # It has ended when its lease would have.
    machine.later(LEASE_S + 1)
    machine.grant(700)


def test_what_its_gateway_tells_of_is_held_once(machine: Machine) -> None:
    first = fill(machine)
    machine.settle(first)
    second = machine.grant(500)
    for is_told_first in (True, False):
        machine.kill()
        if is_told_first:
            machine.renew(second, 500)
        machine.settle(first)
        if not is_told_first:
            machine.renew(second, 500)
        # 100 are used, 600 held, and 300 may have been granted to others.
        meter = machine.authority.meter_of(machine.limit)
        used, held = (100, 600) if machine.limit.measure == "tokens" else (100, 1100)
        assert meter.total == used
        assert meter.amount - meter.total - meter.free >= held
        assert machine.is_refused(200)


def test_what_ran_on_through_the_kill_gives_back_what_it_did_not_use(machine: Machine) -> None:
    first = fill(machine)
    machine.kill()
    machine.renew(first, 900)
    machine.settle(first)
    machine.grant(700)


def test_what_a_lost_shrinking_freed_is_not_granted_again(machine: Machine) -> None:
    first = fill(machine)
    machine.shrink(first, 100)
    machine.grant(700)
    machine.kill()
    machine.renew(first, 100)  # its gateway holds no more than that
    assert machine.is_refused(700)
    machine.settle(first, 100)
    assert machine.is_refused(700)
    machine.later(LEASE_S + 1)
    machine.grant(600)


def test_what_nobody_tells_of_any_more_frees_nothing_before_all_must_have_ended(
    machine: Machine,
) -> None:
    first = fill(machine)
    machine.settle(first)
    machine.grant(700)
    machine.kill()
    # Its gateway is gone, and an engine tells what was computed.
    usage = StreamUsage(stream="r/0", lease_id=first, prompt_tokens=100, completion_tokens=0)
    machine.authority.note_orphans(OrphanUsage(report_id="1", engine_id="e", streams=(usage,)))
    machine.later(31)
    assert machine.is_refused(700)
    machine.later(LEASE_S)
    machine.grant(700)


def test_a_second_kill_forgets_nothing_of_that(machine: Machine) -> None:
    first = fill(machine)
    machine.settle(first)
    machine.grant(700)
    for _ in range(2):
        machine.kill()
        machine.settle(first)
        machine.store.commit()
        assert machine.is_refused(700)


def test_a_day_that_begins_after_the_kill_is_whole() -> None:
    machine = Machine(limit("tokens", 1000, "calendar_day"))
    first = fill(machine)
    machine.kill()
    machine.clock.advance(86_400)
    machine.settle(first)
    machine.grant(900)


def test_a_limit_that_came_after_the_kill_gives_back_what_it_kept(machine: Machine) -> None:
    new = machine.limit
    machine = Machine(limit("tokens", 100_000, "total"))
    lease = machine.grant(300)
    machine.store.commit()
    machine.kill()
    machine.authority.limits.put(new)
    machine.shrink(lease, 250)  # from here on it counts in the new limit, too
    machine.settle(machine.grant(50))  # a slice of it is there
    machine.store.commit()
    machine.settle(lease)
    machine.store.commit()
    meter = machine.authority.meter_of(new)
    assert meter.total == 200
    assert meter.total + meter.free < meter.amount
    machine.later(LEASE_S + 1)
    meter = machine.authority.meter_of(new)
    assert meter.total + meter.free == meter.amount
    machine.grant(600)


def orphans_of(machine: Machine, *lease_ids: str) -> None:
    """An engine tells of all that its lost gateway had lately, and it is made durable."""
    usages = tuple(
        StreamUsage(stream=f"{lease_id}/0", lease_id=lease_id, prompt_tokens=100)
        for lease_id in lease_ids
    )
    report = OrphanUsage(report_id="1", engine_id="e", streams=usages)
    for operation in machine.authority.note_orphans(report):
        machine.store.submit(operation, lambda _: None)
    machine.store.commit()


@pytest.mark.parametrize("num_kills", [1, 2])
@pytest.mark.parametrize(
    ("one", "most_parallel", "num_left"),
    [
        (limit("parallel", 2, "total"), None, 2),
        (limit("requests", 7, "hour"), None, 5),
        (limit("tokens", 100_000, "total"), 2, 2),
    ],
)
def test_what_was_settled_before_a_kill_takes_no_room_when_an_engine_tells_of_it(
    one: Limit, most_parallel: int | None, num_left: int, num_kills: int
) -> None:
    machine = Machine(one, rules=KeyRules(max_parallel_requests=most_parallel))
    ended = [machine.grant(900) for _ in range(2)]
    for lease_id in ended:
        machine.settle(lease_id)
    machine.store.commit()
    machine.kill()
    orphans_of(machine, *ended)
    for _ in range(num_kills - 1):
        machine.kill()
    assert machine.authority.num_leases == 2
    granted = [machine.grant(100) for _ in range(num_left)]
    assert isinstance(machine.ask(100), Denied)
    for lease_id in granted:
        machine.settle(lease_id)
    machine.later(LEASE_S)  # they are booked once more, and the ledger knows them
    assert machine.authority.num_leases == 0
    assert machine.authority.meter_of(one).held == 0
    assert len(machine.store.ledger) == 2 + num_left


@pytest.mark.parametrize("one", [limit("parallel", 1, "total"), limit("tokens", 1000, "total")])
def test_a_gateway_that_an_engine_lost_sight_of_says_that_its_request_runs(one: Limit) -> None:
    machine = Machine(one)
    running = machine.grant(900)
    machine.kill()
    orphans_of(machine, running)
    machine.renew(running, 900)
    assert machine.is_refused(700)
    machine.settle(running)
    machine.store.commit()
    assert machine.authority.meter_of(one).held == 0
    assert len(machine.store.ledger) == 1


def test_a_request_that_a_kill_forgot_counts_once_when_only_an_engine_tells_of_it() -> None:
    machine = Machine(limit("requests", 2, "hour"))
    forgotten = machine.grant(900)
    machine.kill()
    orphans_of(machine, forgotten)
    machine.later(31)
    machine.store.commit()
    assert machine.authority.meter_of(machine.limit).total == 1
    machine.grant(100)
    assert isinstance(machine.ask(100), Denied)


@pytest.mark.parametrize("one", [limit("tokens", 1000, "minute"), limit("money", 1900, "minute")])
def test_what_was_settled_is_used_once_when_an_engine_told_of_it_between_two_kills(
    one: Limit,
) -> None:
    machine = Machine(one, lease_s=4.0)
    ended = machine.grant(100)
    machine.settle(ended)
    machine.store.commit()
    machine.kill()
    used = machine.authority.meter_of(one).total
    assert used == 100
    orphans_of(machine, ended)
    machine.kill()
    machine.later(5)  # what nobody renewed is over
    machine.later(5)
    assert machine.authority.num_leases == 0
    assert machine.authority.meter_of(one).total == used


def test_what_may_have_left_before_a_kill_is_told_once() -> None:
    machine = Machine(limit("money", 1900, "minute"))
    machine.settle(machine.grant(900), 900)
    machine.store.commit()
    machine.clock.advance(59)
    machine.kill()
    meter = machine.authority.meter_of(machine.limit)
    assert (meter.total, meter.reserved) == (1900, 0)
    assert isinstance(machine.ask(1), Denied)
    machine.later(5)
    assert (meter.total, meter.reserved) == (0, 1900)
    assert machine.is_refused(1)
    machine.later(LEASE_S)
    assert (meter.total, meter.reserved) == (0, 0)
