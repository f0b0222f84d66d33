"""What waits for its commit: in order, bounded while the disk is stuck, never out of date."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from auth_worker.decisions.open_leases import ORPHAN_TERM_S
from auth_worker.records.operations import (
    BookUsage,
    Flush,
    LeaseRow,
    Operation,
    ReadKeys,
    Result,
    SaveLease,
    TouchKey,
)
from auth_worker.storage.backlog import MAX_GROUP, Backlog, Item
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.wire.messages import (
    Adjust,
    Granted,
    LeaseReport,
    OrphanUsage,
    Renew,
    StreamUsage,
)
from tests.fakes.auth_parts import FakeClock, authority_bench, authorize, booking, stored_key

LINGER_S = 0.1


def save(lease_id: str, completion_tokens: int = 20) -> SaveLease:
    row = LeaseRow(lease_id, "req-1", "key_user", "demo", 5, 10, completion_tokens, 0, 0)
    return SaveLease(row)


def nothing(_result: Result) -> None:
    pass


def operations(items: Sequence[Item]) -> list[Operation]:
    return [item.operation for item in items]


def test_a_lease_that_is_renewed_for_hours_waits_once_with_its_newest_numbers() -> None:
    bench = authority_bench(stored_key())
    backlog = Backlog(LINGER_S)
    answers = [bench.authority.authorize(authorize()) for _ in range(3)]
    for number in range(1000):
        for answer in answers:
            assert isinstance(answer, Granted)
            lease_id = answer.lease_id
            report = LeaseReport(lease_id=lease_id, prompt_tokens=10, completion_tokens=number)
            bench.authority.renew(Renew(leases=(report,)))
            bench.authority.adjust(
                Adjust(
                    request_id="r", lease_id=lease_id, prompt_tokens=10, completion_tokens=number
                )
            )
    for operation in bench.emitted:
        backlog.add(operation, None, 0.0)
    assert len(backlog) == 3
    group = operations(backlog.take(1.0))
    assert [one.row.reported_completion_tokens for one in group if isinstance(one, SaveLease)] == [
        999
    ] * 3


def test_a_key_that_is_used_for_hours_waits_once() -> None:
    backlog = Backlog(LINGER_S)
    for second in range(1000):
        backlog.add(TouchKey("key_user", second), None, float(second))
    assert operations(backlog.take(1000.0)) == [TouchKey("key_user", 999)]


def test_a_lease_that_is_booked_before_it_was_written_is_never_written() -> None:
    backlog = Backlog(LINGER_S)
    backlog.add(save("a"), None, 0.0)
    backlog.add(booking("a"), nothing, 0.01)
    assert operations(backlog.take(0.02, everything=True)) == [booking("a")]
    assert len(backlog) == 0


def test_leases_linger_while_others_are_answered_and_are_written_when_it_is_time() -> None:
    backlog = Backlog(LINGER_S)
    backlog.add(save("long"), None, 0.0)
    backlog.add(booking("other"), nothing, 0.05)
    assert operations(backlog.take(0.05)) == [booking("other")]
    backlog.add(save("long", 30), None, 0.09)
    assert backlog.due_s() == LINGER_S
    assert operations(backlog.take(LINGER_S)) == [save("long", 30)]
    assert backlog.due_s() is None


def test_a_flush_takes_the_leases_of_before_along() -> None:
    backlog = Backlog(LINGER_S)
    backlog.add(save("a"), None, 0.0)
    backlog.add(Flush(), nothing, 0.0)
    backlog.add(save("a", 30), None, 0.0)
    backlog.add(booking("a"), nothing, 0.0)
    assert backlog.num_urgent == 2
    assert operations(backlog.take(0.0)) == [save("a"), Flush(), booking("a")]
    assert (backlog.num_urgent, len(backlog)) == (0, 0)


def test_groups_are_bounded_and_a_newer_lease_never_overtakes_what_waits() -> None:
    backlog = Backlog(LINGER_S)
    for number in range(MAX_GROUP + 1):
        backlog.add(booking(f"lease-{number}"), nothing, 0.0)
    assert backlog.is_full
    backlog.add(save(f"lease-{MAX_GROUP}"), None, 0.0)  # opened again after it expired
    first = operations(backlog.take(1.0))
    assert first == [booking(f"lease-{number}") for number in range(MAX_GROUP)]
    assert operations(backlog.take(1.0)) == [
        booking(f"lease-{MAX_GROUP}"),
        save(f"lease-{MAX_GROUP}"),
    ]


def test_many_leases_at_once_are_written_group_by_group() -> None:
    backlog = Backlog(LINGER_S)
    for number in range(2 * MAX_GROUP):
        backlog.add(save(f"lease-{number}"), None, 0.0)
    assert backlog.is_full
    assert [len(backlog.take(0.01)) for _ in range(3)] == [MAX_GROUP, MAX_GROUP, 0]


@dataclass
class Model:
    """What the database would hold if every operation were written at once."""

    leases: dict[str, int] = field(default_factory=dict)
    booked: list[str] = field(default_factory=list)

    def apply(self, operation: Operation) -> None:
        if isinstance(operation, SaveLease):
            self.leases[operation.row.lease_id] = operation.row.completion_tokens
        elif isinstance(operation, BookUsage):
            self.leases.pop(operation.lease_id, None)
            self.booked.append(operation.lease_id)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["save", "save awaited", "book", "flush", "take", "touch", "read"]),
            st.integers(0, 3),
        ),
        max_size=60,
    )
)
def test_the_end_is_as_if_each_operation_were_written_at_once(
    actions: list[tuple[str, int]],
) -> None:
    backlog, direct, grouped = Backlog(LINGER_S), Model(), Model()
    flushed: list[dict[str, int]] = []
    seen: list[dict[str, int]] = []
    now_s = 0.0

    def write(items: list[Item]) -> None:
        for item in items:
            grouped.apply(item.operation)
            if isinstance(item.operation, Flush):
                seen.append(dict(grouped.leases))

    for number, (action, which) in enumerate(actions):
        now_s += 0.03
        operation: Operation | None = None
        match action:
            case "save" | "save awaited":
                operation = save(f"lease-{which}", number)
            case "book":
                operation = booking(f"lease-{which}")
            case "flush":
                operation = Flush()
                flushed.append(dict(direct.leases))
            case "touch":
                operation = TouchKey(f"key-{which}", number)
            case "read":
                operation = ReadKeys("", which)
            case _:
                write(backlog.take(now_s))
        if operation is not None:
            direct.apply(operation)
            backlog.add(operation, nothing if action.endswith("awaited") else None, now_s)
    while items := backlog.take(now_s, everything=True):
        write(items)
    assert grouped == direct
    assert seen == flushed
    assert (len(backlog), backlog.num_urgent) == (0, 0)


def test_a_lease_that_is_opened_again_in_the_group_that_booked_it_is_remembered(
    tmp_path: Path,
) -> None:
    store = SqliteStore(tmp_path, clock=FakeClock())
    bench = authority_bench(stored_key())
    answer = bench.authority.authorize(authorize())
    assert isinstance(answer, Granted)
    usage = StreamUsage(
        lease_id=answer.lease_id, stream="r/0", prompt_tokens=10, completion_tokens=7
    )
    bench.clock.advance(600)
    bench.authority.expire()
    report = OrphanUsage(report_id="e:1", engine_id="e", streams=(usage,))
    store.apply([*bench.emitted, *bench.authority.note_orphans(report)])
    (row,) = store.load(recent_since_ms=0).leases
    assert (row.lease_id, row.reported_completion_tokens) == (answer.lease_id, 7)
    # It expires once more; the ledger takes the greater count, and the lease is forgotten.
    bench.emitted.clear()
    bench.clock.advance(ORPHAN_TERM_S)
    assert bench.authority.expire() == 1
    store.apply(bench.emitted)
    assert store.load(recent_since_ms=0).leases == ()
    store.close()


def test_what_is_awaited_without_hurry_is_due_when_its_first_has_waited_long_enough() -> None:
    backlog = Backlog(LINGER_S, patience_s=0.02)
    backlog.add(save("older"), None, 0.0)
    backlog.add(booking("a"), nothing, 1.0, is_patient=True)
    backlog.add(booking("b"), nothing, 1.01, is_patient=True)
    assert (backlog.num_urgent, backlog.num_patient) == (0, 2)
    assert backlog.due_s() == LINGER_S  # that of what nobody waits for
    backlog.add(booking("older"), None, 1.01)
    assert backlog.due_s() == 1.02
    assert operations(backlog.take(1.02)) == [booking("a"), booking("b"), booking("older")]
    assert (backlog.num_patient, backlog.due_s()) == (0, None)
