"""A disk that stands still for hours: every kind of message goes on coming, and memory stays."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from auth_worker.records.operations import Operation, Result
from protocol.wire.messages import (
    Adjust,
    CreateKey,
    Granted,
    LeaseReport,
    ListKeys,
    OrphanUsage,
    Renew,
    RevokeKey,
    Settle,
    Settled,
    StreamUsage,
)
from tests.fakes.auth_handler_bench import MAX_BACKLOG, AuthHandlerBench
from tests.fakes.auth_parts import ADMIN_SECRET, authorize

WAIT_S = 60.0
NUM_ROUNDS = 300
NUM_LEASES = 3


class StuckDisk:
    """A committer that stands in the middle of a write until it is let go."""

    def __init__(self, bench: AuthHandlerBench, monkeypatch: pytest.MonkeyPatch) -> None:
        self._bench = bench
        self._go_on = threading.Event()
        entered = threading.Event()
        write = bench.store.apply

        def apply(operations: Sequence[Operation]) -> list[Result]:
            entered.set()
            assert self._go_on.wait(WAIT_S)
            return write(operations)

        monkeypatch.setattr(bench.store, "apply", apply)
        bench.committer.start()
        bench.ask(ListKeys(request_id="first"))
        assert entered.wait(WAIT_S)

    def let_go(self) -> list[Any]:
        """Everything is written; what was answered for that."""
        self._bench.sent.clear()
        self._go_on.set()
        assert self._bench.committer.close(WAIT_S)
        for delivery in self._bench._deliveries:
            self._bench.handler.deliver(delivery)
        return [message for _, message in self._bench.sent]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[AuthHandlerBench]:
    bench = AuthHandlerBench(tmp_path)
    yield bench
    bench.store.close()


def of_a_lease(lease_id: str, number: int) -> list[Any]:
    """What comes of a lease in use, with numbers that grow."""
    report = LeaseReport(lease_id=lease_id, prompt_tokens=10, completion_tokens=number)
    usage = StreamUsage(lease_id=lease_id, stream="r/0", prompt_tokens=10, completion_tokens=number)
    return [
        Renew(leases=(report,)),
        Adjust(request_id="r", lease_id=lease_id, prompt_tokens=10, completion_tokens=500 + number),
        OrphanUsage(report_id=f"e:{number}", engine_id="e", streams=(usage,)),
        authorize(completion_tokens=0, prompt_tokens=0, is_metered=True),
        authorize(completion_tokens=0, prompt_tokens=0),
        authorize(ADMIN_SECRET, completion_tokens=0, prompt_tokens=0),
        authorize(required_role="admin"),
        Settle(
            lease_id=f"gone-{lease_id}-{number}",
            request_id="gone",
            prompt_tokens=1,
            completion_tokens=1,
        ),
        CreateKey(request_id="c", key_digest=bytes(32), hint="", name="x", actor_key_id="no"),
        RevokeKey(request_id="v", key_id="key_none", actor_key_id="key_admin"),
        ListKeys(request_id="l"),
    ]


def test_nothing_piles_up_and_the_newest_numbers_are_written_in_the_end(
    bench: AuthHandlerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = StuckDisk(bench, monkeypatch)
    granted = [bench.ask(authorize()) for _ in range(NUM_LEASES)]
    lease_ids = [one.lease_id for one in granted if isinstance(one, Granted)]
    assert len(lease_ids) == NUM_LEASES
    most = 0
    for number in range(1, NUM_ROUNDS + 1):
        for lease_id in lease_ids:
            for message in of_a_lease(lease_id, number):
                bench.ask(message)
        bench.clock.advance(61.0)  # last uses are noted once a minute
        with bench.committer._lock:
            bench.committer._take_in()
        most = max(most, len(bench.committer._backlog))
    # A lease stands there once with its newest numbers, and once more for each report taken.
    assert most <= MAX_BACKLOG + 2 * NUM_LEASES
    disk.let_go()
    rows = {row.lease_id: row for row in bench.store.load(recent_since_ms=0).leases}
    for lease_id in lease_ids:
        assert rows[lease_id].reported_completion_tokens == NUM_ROUNDS
        assert rows[lease_id].completion_tokens == 500 + NUM_ROUNDS


def test_decisions_and_beats_go_on_while_the_disk_stands_still(
    bench: AuthHandlerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = StuckDisk(bench, monkeypatch)
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    settle = Settle(lease_id=granted.lease_id, request_id="r", prompt_tokens=1, completion_tokens=1)
    assert bench.ask(settle) is None
    # All that a beat says is told by the thread that decides, which waits for nothing.
    handler = bench.handler
    assert (handler.load().num_running, handler.progress_counter()) == (2, 0)
    assert handler.credits("gateway-1") is None
    bench.clock.advance(3600.0)
    assert isinstance(bench.ask(authorize()), Granted)
    assert Settled(lease_id=granted.lease_id) in disk.let_go()


def test_a_settlement_that_found_no_room_is_booked_when_it_comes_again(
    bench: AuthHandlerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = StuckDisk(bench, monkeypatch)
    settles = [
        Settle(lease_id=f"lease-{n}", request_id="r", prompt_tokens=1, completion_tokens=1)
        for n in range(MAX_BACKLOG + 1)
    ]
    for settle in settles:
        assert bench.ask(settle) is None
    answers = disk.let_go()
    taken = [answer.lease_id for answer in answers if isinstance(answer, Settled)]
    assert taken == [settle.lease_id for settle in settles[:-1]]
    bench.ask(settles[-1])
    assert bench.committer.num_unanswered == 1
