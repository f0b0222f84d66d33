"""Grants that nobody waits for: not given where that is known, else taken back whole."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from auth_worker.decisions.authority import Authority, Rules
from auth_worker.decisions.open_leases import ORPHAN_TERM_S
from auth_worker.records.operations import (
    AddKey,
    AuditEntry,
    BookUsage,
    KeyPage,
    Operation,
    ReadKeys,
)
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Denied,
    Granted,
    KeyDetails,
    OrphanUsage,
    Settle,
    StreamUsage,
)
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import FakeClock, authorize, stored_key

AUDIT = AuditEntry(0, "", "key_created", "key_user")
KEY = stored_key(requests_per_minute=2, tokens_per_minute=150)


def unused(lease_id: str, **fields: Any) -> Settle:
    defaults: dict[str, Any] = {"request_id": "r", "prompt_tokens": 0, "completion_tokens": 0}
    return Settle(lease_id=lease_id, is_unused=True, **{**defaults, **fields})


class Process:
    """An authority on a real store; what it emits is written when the test says so."""

    def __init__(self, directory: Path, clock: FakeClock) -> None:
        self.clock = clock
        self._directory = directory
        self._open()

    def _open(self) -> None:
        self.store = SqliteStore(self._directory, clock=self.clock)
        self.store.apply([AddKey(KEY, AUDIT)])
        self.emitted: list[Operation] = []
        self.authority = Authority(
            epoch=self.store.epoch,
            snapshot=self.store.load(recent_since_ms=int((self.clock.wall - 60) * 1000)),
            rules=Rules(),
            clock=self.clock,
            emit=self.emitted.append,
        )

    def restart(self) -> None:
        self.store.close()
        self._open()

    def write(self, *operations: Operation) -> None:
        self.store.apply([*self.emitted, *operations])
        self.emitted.clear()

    def grant(self, **fields: Any) -> Granted:
        answer = self.authority.authorize(authorize(**fields))
        assert isinstance(answer, Granted), answer
        return answer

    def settle(self, command: Settle) -> None:
        booking = self.authority.settle(command)
        assert isinstance(booking, BookUsage)
        self.write(booking)

    def record(self) -> KeyDetails:
        (page,) = self.store.apply([ReadKeys("", 10)])
        assert isinstance(page, KeyPage)
        return page.records[0]

    def outcomes(self) -> list[str]:
        with self.store._engine.connect() as connection:
            return list(connection.exec_driver_sql("SELECT outcome FROM ledger").scalars())


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path, FakeClock())
    yield process
    process.store.close()


def nothing_is_left_of_it(process: Process) -> bool:
    """Both windows have all their room, no total has moved, no lease is remembered."""
    record = process.record()
    state = process.grant(completion_tokens=140).limits
    return (
        (state.remaining_requests, state.remaining_tokens) == (1, 0)
        and (record.total_requests, record.total_prompt_tokens) == (0, 0)
        and (record.total_completion_tokens, record.last_used_at) == (0, None)
        and process.store.load(recent_since_ms=0).leases == ()
    )


@pytest.mark.parametrize("is_lease_written", [True, False])
@pytest.mark.parametrize("num_told", [1, 2])
def test_an_unused_grant_goes_back_whole_however_often_that_is_told(
    process: Process, is_lease_written: bool, num_told: int
) -> None:
    lease_id = process.grant().lease_id
    if is_lease_written:
        process.write()
    for _ in range(num_told):
        process.settle(unused(lease_id))
    assert process.authority.num_leases == 0
    assert nothing_is_left_of_it(process)


def test_counts_of_an_unused_grant_are_not_believed(process: Process) -> None:
    lease_id = process.grant().lease_id
    process.settle(unused(lease_id, prompt_tokens=10, completion_tokens=90))
    assert nothing_is_left_of_it(process)


def test_only_its_own_request_leaves_the_window(process: Process) -> None:
    late, used = process.grant(completion_tokens=10), process.grant(completion_tokens=10)
    process.settle(
        Settle(lease_id=used.lease_id, request_id="r", prompt_tokens=1, completion_tokens=1)
    )
    process.settle(unused(late.lease_id))
    process.settle(unused(late.lease_id))
    assert process.grant().limits.remaining_requests == 0
    assert process.record().total_requests == 1


def test_an_unused_grant_of_before_a_restart_leaves_the_window_too(process: Process) -> None:
    lease_id = process.grant().lease_id
    process.write()
    process.clock.advance(20)
    process.restart()
    process.settle(unused(lease_id))
    assert nothing_is_left_of_it(process)


def test_a_restart_counts_no_unused_grant_again(process: Process) -> None:
    process.settle(unused(process.grant().lease_id))
    process.restart()
    assert nothing_is_left_of_it(process)


def test_a_grant_that_a_kill_forgot_is_unused_all_the_same(process: Process) -> None:
    lease_id = process.grant().lease_id
    process.restart()
    process.settle(unused(lease_id))
    assert nothing_is_left_of_it(process)
    assert process.outcomes() == ["unused"]


def test_an_expired_grant_that_turns_out_unused_leaves_the_totals(process: Process) -> None:
    lease_id = process.grant().lease_id
    process.clock.advance(600)
    process.authority.expire()
    process.write()
    assert process.record().total_requests == 1
    process.settle(unused(lease_id))
    record = process.record()
    assert (record.total_requests, process.outcomes()) == (0, ["unused"])
    with process.store._engine.connect() as connection:
        query = "SELECT num_requests FROM usage_by_hour"
        assert connection.exec_driver_sql(query).scalars().all() == []


def test_what_is_told_of_an_unused_grant_later_changes_nothing(process: Process) -> None:
    lease_id = process.grant().lease_id
    process.settle(unused(lease_id))
    process.restart()  # so that only the ledger knows of it
    usage = StreamUsage(lease_id=lease_id, stream="r/0", prompt_tokens=1, completion_tokens=5)
    process.write(
        *process.authority.note_orphans(
            OrphanUsage(report_id="e:1", engine_id="e", streams=(usage,))
        )
    )
    process.clock.advance(ORPHAN_TERM_S)
    assert process.authority.expire() == 1
    process.write()
    process.settle(Settle(lease_id=lease_id, request_id="r", prompt_tokens=3, completion_tokens=3))
    record = process.record()
    assert (record.total_requests, record.total_completion_tokens) == (0, 0)
    assert process.outcomes() == ["unused"]


def test_a_settlement_that_came_first_stands(process: Process) -> None:
    lease_id = process.grant().lease_id
    process.settle(Settle(lease_id=lease_id, request_id="r", prompt_tokens=3, completion_tokens=4))
    process.settle(unused(lease_id))
    record = process.record()
    assert (record.total_requests, record.total_completion_tokens) == (1, 4)
    assert process.outcomes() == ["finished"]


@pytest.mark.parametrize(
    ("age_s", "wait_s", "is_granted"),
    [
        (4.9, 5.0, True),
        (5.0, 5.0, False),
        (20.0, 5.0, False),
        (20.0, 0.0, True),
        (0.0, 5.0, True),
        (20.0, -1.0, True),
        (20.0, math.nan, True),
        (20.0, math.inf, True),
    ],
)
def test_what_nobody_waits_for_any_more_is_not_granted(
    tmp_path: Path, age_s: float, wait_s: float, is_granted: bool
) -> None:
    bench = AuthHandlerBench(tmp_path, age_s=lambda: age_s)
    answer = bench.ask(authorize(wait_s=wait_s))
    assert isinstance(answer, Granted) == is_granted
    assert bench.handler.num_leases == is_granted
    bench.commit()
    assert len(bench.store.load(recent_since_ms=0).leases) == is_granted
    bench.store.close()


def test_a_question_that_is_too_old_is_worth_another_try(tmp_path: Path) -> None:
    bench = AuthHandlerBench(tmp_path, age_s=lambda: 20.0)
    answer = bench.ask(authorize(wait_s=5.0))
    assert isinstance(answer, Denied)
    assert (answer.code, answer.key_id) == (ErrorCode.WORKER_UNAVAILABLE, "key_user")
    assert answer.retry_after_s is not None
    bench.store.close()
