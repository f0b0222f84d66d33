"""Old ledger rows go into sums, old audit entries go with a proof, and a cut-off end shows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from auth_worker.auditing.audit_check import check_log
from auth_worker.errors import StoreError
from auth_worker.records.audit_signing import AuditSigner, Checkpoint
from auth_worker.records.operations import (
    AddKey,
    AppendAudit,
    AuditEntry,
    BookUsage,
    CutAudit,
    FoldLedger,
    Operation,
    Removed,
    Result,
    SaveLease,
    SignAudit,
)
from auth_worker.serving.housekeeping import (
    AUDIT_INTERVAL_S,
    INTERVAL_S,
    MAX_ROWS,
    SIGNING_INTERVAL_S,
    Housekeeping,
)
from auth_worker.storage.audit_key import MAX_NOTES_BYTES, CheckpointNotes, load_signer
from auth_worker.storage.durable_file import write_durably
from auth_worker.storage.retention import Retention
from auth_worker.storage.sql_store import CHECKPOINT_ENTRIES, SqlStore
from tests.fakes.auth_parts import FakeClock, booking, stored_key
from tests.fakes.auth_stores import StoreHarness, rows
from tests.unit.auth_worker.test_store import LEASE

START_MS = 1_750_000_000_000
AUDIT = AuditEntry(5, "", "key_created", "key_user")
HOUR_MS = 3_600_000
KEY, OTHER_KEY = AuditSigner(bytes(32)), AuditSigner(bytes(31) + b"x")


def lease(number: int) -> str:
    return f"lease:000001:{number:010x}:key_user:demo"


def settled(number: int, hour: int, **fields: Any) -> BookUsage:
    return booking(lease(number), settled_at_ms=hour * HOUR_MS + number, **fields)


def totals(store: SqlStore) -> list[tuple[object, ...]]:
    """Requests and tokens of all time: in the ledger and folded, and as the totals have them."""
    query = (
        "SELECT CAST(sum(n) AS BIGINT), CAST(sum(p) AS BIGINT), CAST(sum(c) AS BIGINT) FROM ("
        " SELECT count(*) AS n, sum(prompt_tokens) AS p, sum(cost_micros) AS c FROM ledger"
        " WHERE outcome <> 'unused' UNION ALL"
        " SELECT sum(num_requests), sum(prompt_tokens), sum(cost_micros) FROM ledger_hours"
        ") AS parts"
    )
    return rows(store, query)


def test_old_rows_go_into_their_hours_and_young_ones_stay(store: SqlStore) -> None:
    store.apply([AddKey(stored_key(), AUDIT)])
    store.apply([settled(n, hour=n // 4, cost_micros=7, endpoint="/x") for n in range(12)])
    store.apply([settled(12, hour=0, outcome="unused", prompt_tokens=0)])
    before = totals(store)
    (some,) = store.apply([FoldLedger(before_ms=2 * HOUR_MS, limit=5)])
    assert some == Removed(5)
    assert totals(store) == before
    (rest,) = store.apply([FoldLedger(before_ms=2 * HOUR_MS, limit=5)])
    assert rest == Removed(4)
    assert store.apply([FoldLedger(before_ms=2 * HOUR_MS, limit=5)]) == [Removed(0)]
    assert totals(store) == before
    assert rows(store, "SELECT lease_id FROM ledger ORDER BY 1") == [
        (lease(number),) for number in range(8, 12)
    ]
    by_hour = "SELECT hour, key_id, model, endpoint, num_requests, cost_micros FROM ledger_hours"
    assert rows(store, f"{by_hour} ORDER BY hour") == [
        (0, "key_user", "demo", "/x", 4, 28),
        (1, "key_user", "demo", "/x", 4, 28),
    ]


def test_a_settlement_that_comes_again_after_its_row_was_folded_is_not_charged_twice(
    harness: StoreHarness, store: SqlStore
) -> None:
    store.apply([AddKey(stored_key(), AUDIT), *(settled(n, hour=0) for n in (1, 2, 5))])
    store.apply([SaveLease(LEASE._replace(lease_id=lease(3))), settled(4, hour=9)])
    store.apply([FoldLedger(before_ms=HOUR_MS, limit=10)])
    before = totals(store)
    store.apply([settled(1, hour=10), settled(5, hour=10), settled(4, hour=10)])
    assert totals(store) == before
    store.close()
    store = harness.open()
    store.apply([settled(2, hour=10)])
    assert totals(store) == before
    # One that was open all the time, though its id is smaller, and a new one are charged.
    store.apply([settled(3, hour=10), settled(6, hour=10), settled(1, hour=10)])
    ((num_requests, _, _),) = totals(store)
    assert num_requests == 6
    assert rows(store, "SELECT total_requests FROM keys") == [(6,)]


def test_entries_that_were_cut_off_on_purpose_leave_a_log_that_holds(harness: StoreHarness) -> None:
    store = signed(harness)
    store.apply([AppendAudit(entry(number)) for number in range(10)])
    harness.clock.advance(1)  # none of them is still to come
    (cut,) = store.apply([CutAudit(before_ms=START_MS + 4, limit=100)])
    assert cut == Removed(5)  # with the epoch's own
    checked = check_log(store.database.reading, signer=KEY)
    assert (checked.trouble, checked.num_entries) == (None, 7)
    store.apply([CutAudit(before_ms=START_MS + 6, limit=100), AppendAudit(entry(50))])
    assert check_log(store.database.reading, signer=KEY).trouble is None
    assert store.apply([CutAudit(before_ms=START_MS + 6, limit=100)]) == [Removed(0)]


def test_a_check_goes_on_while_old_entries_are_let_go(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = signed(harness)
    store.apply([AppendAudit(entry(number)) for number in range(20)])
    harness.clock.advance(1)
    monkeypatch.setattr("auth_worker.auditing.audit_check.BATCH_ENTRIES", 3)
    moments = iter((START_MS + 6, START_MS + 12))

    def cut() -> None:
        before_ms = next(moments, None)
        if before_ms is not None:
            store.apply([CutAudit(before_ms=before_ms, limit=100)])

    checked = check_log(store.database.reading, signer=KEY, pause=cut)
    assert checked.trouble is None
    assert checked.head is not None
    if harness.kind == "sqlite":  # PostgreSQL reads as of the moment at which it began
        assert checked.num_entries == 10  # 8 that were left, and the two that say so
    # Who takes out what is just being looked at explains nothing.
    deletes = iter((f"DELETE FROM audit_log WHERE seq <= {checked.head.seq - 4}",))

    def take_out() -> None:
        harness.execute(*deletes)

    trouble = check_log(store.database.reading, signer=KEY, pause=take_out).trouble
    if harness.kind == "sqlite":
        assert trouble is not None
        assert "no entry says that they were cut off" in trouble


def test_entries_of_a_clock_that_was_ahead_go_with_those_after_them(harness: StoreHarness) -> None:
    store = signed(harness)
    ahead = 10**12
    store.apply([AppendAudit(entry(number)) for number in (1, 2, ahead, ahead + 1, 3, 4, ahead)])
    harness.clock.advance(1)
    (cut,) = store.apply([CutAudit(before_ms=START_MS + 3, limit=100)])
    assert cut == Removed(3)  # with the epoch's own: none after those of the clock is old
    (cut,) = store.apply([CutAudit(before_ms=START_MS + 4, limit=100)])
    assert cut == Removed(3)
    checked = check_log(store.database.reading, signer=KEY)
    assert (checked.trouble, checked.num_entries) == (None, 4)


def test_more_entries_of_such_a_clock_than_go_at_once_hold_back_nothing(
    harness: StoreHarness,
) -> None:
    store = signed(harness)
    ahead = 10**12
    store.apply([AppendAudit(entry(ahead + number)) for number in range(5)])
    store.apply([AppendAudit(entry(number)) for number in (1, 2, ahead, 3)])
    harness.clock.advance(1)

    def cut(before: int) -> list[int]:
        """How many go, in the transactions that follow one another."""
        found: list[int] = []
        while not found or found[-1] == 3:
            (removed,) = store.apply([CutAudit(before_ms=START_MS + before, limit=3)])
            assert isinstance(removed, Removed)
            found.append(removed.num_rows)
        return found

    assert cut(1) == [1]  # the epoch's own; none of those behind the clock's is old
    assert cut(3) == [3, 3, 1]
    checked = check_log(store.database.reading, signer=KEY)
    assert checked.trouble is None
    times = [row[0] for row in rows(store, "SELECT at_ms FROM audit_log ORDER BY seq")]
    assert times[:2] == [START_MS + ahead, START_MS + 3]


def entry(number: int) -> AuditEntry:
    return AuditEntry(START_MS + number, "key_admin", "key_updated", f"key_{number}")


def signed(
    harness: StoreHarness, notes: Callable[[Checkpoint], object] = lambda _: None
) -> SqlStore:
    harness.clock.wall = START_MS / 1000  # the epoch's own entry is the oldest
    return harness.open(signer=KEY, on_checkpoint=notes)


def test_a_beginning_that_nobody_cut_off_in_order_is_missing(harness: StoreHarness) -> None:
    store = signed(harness)
    store.apply([AppendAudit(entry(number)) for number in range(5)])
    harness.execute("DELETE FROM audit_log WHERE seq <= 3")
    trouble = check_log(store.database.reading).trouble
    assert trouble is not None
    assert trouble.startswith("entry 1 is missing, and up to 3 all are")


@pytest.mark.parametrize(("signer", "holds"), [(KEY, True), (OTHER_KEY, True), (None, False)])
def test_a_cut_that_was_forged_shows(
    harness: StoreHarness, signer: AuditSigner | None, holds: bool
) -> None:
    """A cut of another worker's key can't be judged; one that names none, or ours, can."""
    harness.clock.wall = START_MS / 1000
    store = harness.open(signer=signer)
    store.apply([AppendAudit(entry(number)) for number in range(5)])
    store.apply([CutAudit(before_ms=START_MS + 2, limit=100)])
    trouble = check_log(store.database.reading, signer=KEY).trouble
    assert (trouble is None) == holds
    if not holds:
        assert trouble is not None
        assert "its signature is forged" in trouble


def test_an_end_that_was_cut_off_shows_by_the_checkpoints(
    harness: StoreHarness, tmp_path: Path
) -> None:
    notes = CheckpointNotes(tmp_path / "notes")
    store = signed(harness, notes.add)
    store.apply([AppendAudit(entry(number)) for number in range(3)])
    store.apply([SignAudit()])
    store.apply([SignAudit()])  # nothing new: no second one
    checked = check_log(store.database.reading, signer=KEY, noted=notes.read())
    assert (checked.trouble, checked.num_checkpoints) == (None, 2)  # the first entry, and the last
    harness.execute("DELETE FROM audit_log WHERE seq > 2")
    trouble = check_log(store.database.reading, signer=KEY).trouble
    assert trouble == (
        "entries 3 to 4 are missing: the end was cut off, for a checkpoint names the last of them"
    )
    # Whoever cuts the checkpoints off, too, has not got the file.
    harness.execute("DELETE FROM audit_checkpoints WHERE seq > 2")
    assert check_log(store.database.reading, signer=KEY).trouble is None
    assert check_log(store.database.reading, signer=KEY, noted=notes.read()).trouble == trouble


def test_an_entry_that_was_chained_anew_is_another_one_than_its_checkpoint_says(
    harness: StoreHarness,
) -> None:
    noted: list[Checkpoint] = []
    store = signed(harness, noted.append)
    store.apply([AppendAudit(entry(1)), SignAudit()])
    store.close()
    harness.execute("DELETE FROM audit_log WHERE seq = 2", "DELETE FROM audit_checkpoints")
    store = harness.open(signer=OTHER_KEY)  # chains on, as somebody without the key can
    trouble = check_log(store.database.reading, signer=KEY, noted=noted).trouble
    assert trouble == "entry 2 is another one than its checkpoint says"


def test_a_checkpoint_that_was_changed_is_forged_and_one_of_another_key_is_counted(
    harness: StoreHarness,
) -> None:
    store = signed(harness)
    store.apply([AppendAudit(entry(1)), SignAudit()])
    checked = check_log(store.database.reading, signer=OTHER_KEY)
    assert (checked.trouble, checked.num_unverified) == (None, 2)
    assert "2 of them signed with a key that is not here" in str(checked)
    harness.execute("UPDATE audit_checkpoints SET at_ms = at_ms + 1 WHERE seq = 2")
    assert check_log(store.database.reading, signer=KEY).trouble == (
        "the checkpoint of entry 2 is forged"
    )


def test_the_last_entry_is_signed_after_so_many_others_or_so_long(harness: StoreHarness) -> None:
    noted: list[Checkpoint] = []
    store = signed(harness, noted.append)
    del noted[:]
    store.apply([AppendAudit(entry(n)) for n in range(CHECKPOINT_ENTRIES - 1)])
    assert noted == []
    store.apply([AppendAudit(entry(0))])
    assert [one.seq for one in noted] == [CHECKPOINT_ENTRIES + 1]
    harness.clock.advance(601)
    store.apply([AppendAudit(entry(0))])
    assert [one.seq for one in noted][1:] == [CHECKPOINT_ENTRIES + 2]
    store.close()
    store = harness.open(signer=KEY, on_checkpoint=noted.append)
    assert len(noted) == 2, "the newest one is known after a restart"


def test_the_key_is_made_once_with_mode_0600_and_bad_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    assert load_signer(path, may_make=False) is None
    made = load_signer(path)
    again = load_signer(path)
    assert made is not None
    assert again is not None
    assert made.name == again.name
    assert path.stat().st_mode & 0o077 == 0
    assert path.read_text().strip() not in repr(made)
    assert list(tmp_path.iterdir()) == [path]
    for text in ("", "abc", "zz" * 32, "00" * 31):
        path.write_text(text)
        with pytest.raises(StoreError, match="openssl rand -hex 32"):
            load_signer(path)


def test_of_two_workers_that_make_the_key_at_once_both_have_the_first_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.key"

    def write_late(own: Path, text: str) -> None:
        monkeypatch.setattr("auth_worker.storage.audit_key.write_durably", write_durably)
        others.append(load_signer(path))
        write_durably(own, text)

    others: list[AuditSigner | None] = []
    monkeypatch.setattr("auth_worker.storage.audit_key.write_durably", write_late)
    mine = load_signer(path)
    (other,) = others
    assert mine is not None
    assert other is not None
    assert mine.name == other.name


def test_notes_survive_a_line_that_a_crash_cut_off(tmp_path: Path) -> None:
    notes = CheckpointNotes(tmp_path / "notes")
    assert notes.read() == []
    one = KEY.checkpoint(7, bytes(32), 9)
    notes.add(one)
    with (tmp_path / "notes").open("a") as file:
        file.write("8 abcdef\n")
    notes.add(one)
    assert notes.read() == [one, one]
    CheckpointNotes(tmp_path / "none" / "notes").add(one)  # said in the log, and passed over


def test_notes_that_became_many_are_thinned_out_and_still_show_a_cut_off_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notes"
    many = [KEY.checkpoint(seq, bytes(32), 9) for seq in range(1, 9001)]
    path.write_text("".join(f"{one.line()}\n" for one in many))
    assert path.stat().st_size > MAX_NOTES_BYTES
    newest = KEY.checkpoint(9001, bytes(32), 9)
    CheckpointNotes(path).add(newest)
    left = CheckpointNotes(path).read()
    assert left == [*many[0:-999:2], *many[-999:], newest]
    assert path.stat().st_size < MAX_NOTES_BYTES
    assert path.stat().st_mode & 0o077 == 0

    def refused(_path: Path, _text: str) -> None:
        raise StoreError("it may only be appended to")

    monkeypatch.setattr("auth_worker.storage.audit_key.write_durably", refused)
    path.write_text("".join(f"{one.line()}\n" for one in many))
    notes = CheckpointNotes(path)
    for _ in range(3):
        notes.add(newest)
    assert notes.read() == [*many, newest, newest, newest]
    assert len(caplog.messages) == 1


class Commits:
    """Notes what housekeeping asks for; a test says how many rows went."""

    def __init__(self) -> None:
        self.asked: list[Operation] = []
        self.answers: list[Callable[[Result], None]] = []

    def __call__(self, operation: Operation, on_done: Callable[[Result], None]) -> None:
        self.asked.append(operation)
        self.answers.append(on_done)


def test_housekeeping_goes_on_as_long_as_there_is_more_and_begins_again_later() -> None:
    clock, commits = FakeClock(), Commits()
    keeping = Housekeeping(Retention(ledger_days=2, audit_days=3), clock=clock, commit=commits)
    now_ms = int(clock.wall * 1000)
    keeping.tick()
    fold = FoldLedger(now_ms - 2 * 86_400_000, MAX_ROWS)
    assert commits.asked == [fold, CutAudit(now_ms - 3 * 86_400_000, 10_000)]
    commits.answers[0](Removed(MAX_ROWS))
    assert commits.asked[2:] == [fold]
    commits.answers[2](Removed(MAX_ROWS - 1))
    keeping.tick()
    assert len(commits.asked) == 3
    clock.advance(INTERVAL_S)
    keeping.tick()
    assert [type(one) for one in commits.asked[3:]] == [FoldLedger, SignAudit]
    clock.advance(AUDIT_INTERVAL_S)
    keeping.tick()
    assert [type(one) for one in commits.asked[5:]] == [FoldLedger, CutAudit, SignAudit]


def test_zero_days_keep_everything() -> None:
    clock, commits = FakeClock(), Commits()
    keeping = Housekeeping(Retention(ledger_days=0, audit_days=0), clock=clock, commit=commits)
    clock.advance(SIGNING_INTERVAL_S)
    keeping.tick()
    assert commits.asked == [SignAudit()]


FOREIGN = "lease:000028:0000000001:key_user:demo"


@pytest.mark.parametrize("is_marked_before", [False, True])
def test_folding_a_lease_of_another_database_folds_none_of_this_one(
    harness: StoreHarness, is_marked_before: bool
) -> None:
    store = harness.open()
    store.apply([AddKey(stored_key(), AUDIT)])
    store.apply([settled(1, hour=0), booking(FOREIGN, settled_at_ms=HOUR_MS)])
    assert store.apply([FoldLedger(before_ms=2 * HOUR_MS, limit=5)]) == [Removed(2)]
    if is_marked_before:  # by a release that didn't look whose it is
        store.close()
        harness.execute(f"UPDATE ledger_fold SET last_lease_id = '{FOREIGN}'")
        store = harness.open()
    # What was granted since counts; what was folded is not counted again.
    store.apply([settled(2, hour=3)])
    store.apply([FoldLedger(before_ms=4 * HOUR_MS, limit=5)])
    store.apply([settled(2, hour=3), settled(3, hour=5)])
    assert rows(store, "SELECT lease_id FROM ledger ORDER BY 1") == [(lease(3),)]
