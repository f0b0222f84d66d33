"""The commit thread: groups, order, retries, isolation, a clean end."""

import threading
from collections.abc import Callable, Sequence
from queue import Queue

import pytest

from auth_worker.errors import AuthError, StoreError, StoreFencedError, StoreUnavailableError
from auth_worker.records.operations import (
    LeaseRow,
    Operation,
    Result,
    SaveLease,
    Snapshot,
    TouchKey,
)
from auth_worker.storage.backlog import MAX_GROUP
from auth_worker.storage.committer import (
    MIN_BUSY_GROUP,
    MIN_PATIENT_GROUP,
    Committer,
    Delivery,
)
from tests.fakes.auth_parts import booking

WAIT_S = 60.0


class ScriptedStore:
    """A store that notes its groups and does what a script says before each."""

    epoch = 1

    def __init__(self, before: Callable[[Sequence[Operation]], None] | None = None) -> None:
        self.groups: list[list[Operation]] = []
        self._before = before or (lambda operations: None)

    def load(self, *, recent_since_ms: int) -> Snapshot:
        return Snapshot((), (), ())

    def apply(self, operations: Sequence[Operation]) -> list[Result]:
        self._before(operations)
        self.groups.append(list(operations))
        return [None for _ in operations]

    def close(self) -> None:
        pass


class Bench:
    """A committer whose answers and fatal errors can be awaited."""

    def __init__(
        self,
        store: ScriptedStore,
        *,
        linger_s: float = 3600.0,
        interval_s: float = 0.0,
        patience_s: float = 3600.0,
        max_backlog: int = 10,
    ) -> None:
        self.answers: Queue[tuple[str, Result]] = Queue()
        self.fatal: Queue[StoreError] = Queue()
        self.committer = Committer(
            store,
            deliver=self._deliver,
            on_fatal=self.fatal.put,
            max_backlog=max_backlog,
            linger_s=linger_s,
            interval_s=interval_s,
            patience_s=patience_s,
        )

    @staticmethod
    def _deliver(delivery: Delivery) -> None:
        for on_done, result in delivery:
            on_done(result)

    def submit(self, lease_id: str, *, is_patient: bool = False) -> None:
        self.committer.submit(
            booking(lease_id),
            lambda result: self.answers.put((lease_id, result)),
            is_patient=is_patient,
        )

    def is_healthy(self) -> bool:
        return self.committer.is_healthy

    def answer(self) -> tuple[str, Result]:
        return self.answers.get(timeout=WAIT_S)


def test_what_queues_up_during_a_commit_becomes_one_group_in_order() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def before(operations: Sequence[Operation]) -> None:
        entered.set()
        assert go_on.wait(WAIT_S)

    store = ScriptedStore(before)
    bench = Bench(store)
    bench.committer.start()
    bench.submit("first")
    assert entered.wait(WAIT_S)
    for number in range(5):
        bench.submit(f"lease-{number}")
    assert bench.committer.num_unanswered == 6
    assert bench.answers.empty()
    go_on.set()
    assert [bench.answer()[0] for _ in range(6)] == ["first", *(f"lease-{n}" for n in range(5))]
    assert [len(group) for group in store.groups] == [1, 5]
    assert bench.committer.close(WAIT_S)
    assert bench.committer.num_unanswered == 0


def test_under_load_the_next_group_gathers_for_a_while() -> None:
    store = ScriptedStore()
    bench = Bench(store, interval_s=3600.0)
    for number in range(MIN_BUSY_GROUP):
        bench.submit(f"lease-{number}")
    bench.committer.start()
    for _ in range(MIN_BUSY_GROUP):
        bench.answer()
    for number in range(MIN_BUSY_GROUP - 1):
        bench.submit(f"next-{number}")
    assert bench.answers.empty()
    assert bench.committer.close(WAIT_S)
    assert [len(group) for group in store.groups] == [MIN_BUSY_GROUP, MIN_BUSY_GROUP - 1]


def test_when_as_many_wait_as_waited_for_the_last_group_the_next_one_begins_at_once() -> None:
    store = ScriptedStore()
    bench = Bench(store, interval_s=3600.0)
    for number in range(MIN_BUSY_GROUP):
        bench.submit(f"lease-{number}")
    bench.committer.start()
    for turn in range(3):
        for _ in range(MIN_BUSY_GROUP):
            bench.answer()
        for number in range(MIN_BUSY_GROUP):
            bench.submit(f"turn-{turn}-{number}")
    for _ in range(MIN_BUSY_GROUP):
        bench.answer()
    assert bench.committer.close(WAIT_S)
    assert [len(group) for group in store.groups] == [MIN_BUSY_GROUP] * 4


def test_without_load_nobody_waits_for_company() -> None:
    bench = Bench(ScriptedStore(), interval_s=3600.0)
    bench.committer.start()
    for number in range(3):
        bench.submit(f"lease-{number}")
        assert bench.answer() == (f"lease-{number}", None)
    assert bench.committer.close(WAIT_S)


def test_a_whole_group_waits_no_longer() -> None:
    store = ScriptedStore()
    bench = Bench(store, interval_s=3600.0)
    for number in range(3 * MAX_GROUP):
        bench.submit(f"lease-{number}")
    bench.committer.start()
    for _ in range(3 * MAX_GROUP):
        bench.answer()
    assert bench.committer.close(WAIT_S)
    assert [len(group) for group in store.groups] == [MAX_GROUP] * 3


def test_what_nobody_waits_for_lingers_until_somebody_comes() -> None:
    store = ScriptedStore()
    bench = Bench(store)
    bench.committer.start()
    bench.committer.submit(TouchKey("key_user", 1))
    bench.submit("lease")
    bench.answer()
    assert [len(group) for group in store.groups] == [2]
    assert bench.committer.close(WAIT_S)


def test_what_nobody_waits_for_is_written_after_a_moment() -> None:
    written = threading.Event()
    bench = Bench(ScriptedStore(lambda operations: written.set()), linger_s=0.001)
    bench.committer.start()
    bench.committer.submit(TouchKey("key_user", 1))
    assert written.wait(WAIT_S)
    assert bench.committer.close(WAIT_S)


def test_what_is_awaited_without_hurry_gathers_until_somebody_is_in_one() -> None:
    store = ScriptedStore()
    bench = Bench(store)
    bench.committer.start()
    for number in range(5):
        bench.submit(f"settled-{number}", is_patient=True)
    assert bench.committer.num_unanswered == 5
    bench.submit("urgent")
    assert [bench.answer()[0] for _ in range(6)][-1] == "urgent"
    assert [len(group) for group in store.groups] == [6]
    assert bench.committer.close(WAIT_S)


def test_what_is_awaited_without_hurry_is_written_when_it_has_waited_long_enough() -> None:
    bench = Bench(ScriptedStore(), patience_s=0.001)
    bench.committer.start()
    bench.submit("settled", is_patient=True)
    assert bench.answer() == ("settled", None)
    assert bench.committer.close(WAIT_S)


def test_as_many_as_the_last_time_gather_no_longer_and_hurry_nobody_else() -> None:
    store = ScriptedStore()
    bench = Bench(store, interval_s=3600.0, max_backlog=1000)
    sizes = (2 * MIN_PATIENT_GROUP, 2 * MIN_PATIENT_GROUP)
    for number in range(sizes[0]):
        bench.submit(f"settled-{number}", is_patient=True)
    bench.committer.start()
    for _ in range(sizes[0]):
        bench.answer()
    for number in range(sizes[1]):
        bench.submit(f"again-{number}", is_patient=True)
    for _ in range(sizes[1]):
        bench.answer()
    # A large group of them is no load for who is in a hurry.
    bench.submit("urgent")
    bench.answer()
    assert bench.committer.close(WAIT_S)
    assert [len(group) for group in store.groups] == [*sizes, 1]


def test_closing_writes_what_is_queued() -> None:
    store = ScriptedStore()
    bench = Bench(store)
    for number in range(2000):
        bench.committer.submit(booking(f"lease-{number}"))
    bench.committer.start()
    assert bench.committer.close(WAIT_S)
    assert sum(len(group) for group in store.groups) == 2000


def test_a_full_disk_is_tried_again_and_nothing_is_granted_meanwhile() -> None:
    failing, recovered = threading.Event(), threading.Event()
    attempts: list[int] = []

    def before(operations: Sequence[Operation]) -> None:
        attempts.append(len(operations))
        if not recovered.is_set():
            if len(attempts) > 1:
                failing.set()
            raise StoreUnavailableError("disk full")

    bench = Bench(ScriptedStore(before))
    bench.committer.start()
    bench.submit("lease")
    assert failing.wait(WAIT_S)
    assert not bench.is_healthy()
    assert bench.answers.empty()
    assert bench.committer.num_groups == 0
    recovered.set()
    assert bench.answer() == ("lease", None)
    assert bench.is_healthy()
    assert bench.committer.close(WAIT_S)


def test_closing_while_the_disk_fails_gives_up_without_an_answer() -> None:
    failing = threading.Event()

    def before(operations: Sequence[Operation]) -> None:
        failing.set()
        raise StoreUnavailableError("disk full")

    bench = Bench(ScriptedStore(before))
    bench.committer.start()
    bench.submit("lease")
    assert failing.wait(WAIT_S)
    assert bench.committer.close(WAIT_S)
    assert isinstance(bench.fatal.get(timeout=WAIT_S), StoreUnavailableError)
    assert bench.answers.empty()


def test_one_bad_operation_spoils_only_itself() -> None:
    def before(operations: Sequence[Operation]) -> None:
        if any(operation == booking("bad") for operation in operations):
            raise OverflowError("no column takes this")

    bench = Bench(ScriptedStore(before))
    for lease_id in ("good", "bad", "also good"):
        bench.submit(lease_id)
    bench.committer.start()
    results = dict(bench.answer() for _ in range(3))
    assert results["good"] is None
    assert results["also good"] is None
    assert isinstance(results["bad"], AuthError)
    assert bench.committer.close(WAIT_S)


def test_a_fenced_store_ends_the_thread_and_answers_nobody() -> None:
    def before(operations: Sequence[Operation]) -> None:
        raise StoreFencedError("epoch 9")

    bench = Bench(ScriptedStore(before))
    bench.committer.start()
    bench.submit("lease")
    assert isinstance(bench.fatal.get(timeout=WAIT_S), StoreFencedError)
    assert bench.committer.close(WAIT_S)
    assert bench.answers.empty()
    assert not bench.committer.is_healthy


@pytest.mark.parametrize(("num_waiting", "is_healthy"), [(9, True), (10, False)])
def test_a_long_backlog_is_not_healthy(num_waiting: int, is_healthy: bool) -> None:
    bench = Bench(ScriptedStore())
    for number in range(num_waiting):
        bench.committer.submit(booking(f"lease-{number}"))
    assert bench.committer.is_healthy is is_healthy


def test_who_submits_waits_for_nobody_who_holds_the_lock() -> None:
    bench = Bench(ScriptedStore())

    def submit() -> None:
        bench.submit("lease")
        bench.committer.submit(TouchKey("key_user", 1))

    thread = threading.Thread(target=submit, daemon=True)
    with bench.committer._lock:
        thread.start()
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert bench.committer.num_unanswered == 1


def test_what_was_submitted_before_the_thread_slept_wakes_it_or_is_seen() -> None:
    bench = Bench(ScriptedStore(), interval_s=3600.0)
    bench.committer.start()
    for number in range(500):
        bench.submit(f"lease-{number}")
        assert bench.answer() == (f"lease-{number}", None)
    assert bench.committer.close(WAIT_S)


def test_a_lease_that_changes_for_hours_stands_once_while_the_disk_is_stuck() -> None:
    entered, go_on = threading.Event(), threading.Event()
    stuck = [True]

    def before(operations: Sequence[Operation]) -> None:
        if stuck.pop() if stuck else False:
            entered.set()
            assert go_on.wait(WAIT_S)

    store = ScriptedStore(before)
    bench = Bench(store)
    bench.committer.start()
    bench.submit("first")
    assert entered.wait(WAIT_S)
    for number in range(5 * MAX_GROUP):
        row = LeaseRow("lease", "req-1", "key_user", "demo", 5, 10, number, 0, 0)
        bench.committer.submit(SaveLease(row))
        assert len(bench.committer._incoming) < MAX_GROUP
    assert bench.is_healthy()
    go_on.set()
    assert bench.committer.close(WAIT_S)
    assert [len(group) for group in store.groups] == [1, 1]
