"""The audit log is written, read, and found changed, short or out of order."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import event

from auth_worker.auditing import verify_audit
from auth_worker.auditing.audit_check import BATCH_ENTRIES, BackgroundCheck, CheckedLog, check_log
from auth_worker.decisions.refusals import BURST, HOUSE_BURST, INTERVAL_S, MAX_CALLERS, RefusalLog
from auth_worker.records.audit_chain import ChainCheck, ChainedEntry, chain, hash_of
from auth_worker.records.operations import AppendAudit, AuditEntry, AuditRows, ReadAuditRows
from auth_worker.storage.audit_table import read_page
from auth_worker.storage.sqlite_database import reading_file
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.wire.messages import Actor, AuditPage, Denied, Failure, Granted, MakeKey, ReadAudit
from protocol.wire.messages import KeySettings as Settings
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import (
    ADMIN_SECRET,
    START_S,
    FakeClock,
    authority_bench,
    authorize,
    stored_key,
)

START_MS = int(START_S * 1000)
WAIT_S = 60.0


def entry(number: int, **fields: Any) -> AuditEntry:
    made = AuditEntry(
        at_ms=START_MS + number,
        actor_key_id="key_admin",
        action="key_created",
        subject=f"key_{number}",
        detail={"name": "ü", "number": number},
        address="192.0.2.1",
        request_id=f"req-{number}",
    )
    return replace(made, **fields)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path, clock=FakeClock())
    yield store
    store.close()


def harm(store: SqliteStore, *statements: str) -> None:
    connection = sqlite3.connect(store.path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_chain_holds_across_restarts_and_batches(store: SqliteStore) -> None:
    store.apply([AppendAudit(entry(number)) for number in range(BATCH_ENTRIES)])
    store.close()
    store = SqliteStore(store.path.parent, clock=FakeClock())
    store.apply([AppendAudit(entry(5000))])
    checked = check_log(store.database.reading)
    assert (checked.num_entries, checked.trouble) == (BATCH_ENTRIES + 3, None)
    assert checked.head is not None
    assert checked.head.subject == "key_5000"
    store.close()


@pytest.mark.parametrize(
    ("statements", "trouble"),
    [
        (["UPDATE audit_log SET subject = 'key_9' WHERE seq = 3"], "entry 3 was changed"),
        (["UPDATE audit_log SET at_ms = at_ms + 1 WHERE seq = 3"], "entry 3 was changed"),
        (["UPDATE audit_log SET outcome = 'refused' WHERE seq = 3"], "entry 3 was changed"),
        (["UPDATE audit_log SET outcome = '' WHERE seq = 3"], "entry 3 was changed"),
        (
            ["UPDATE audit_log SET outcome = '', address = '', request_id = '' WHERE seq = 3"],
            "entry 3 was changed",
        ),
        (["UPDATE audit_log SET address = '' WHERE seq = 3"], "entry 3 was changed"),
        (["UPDATE audit_log SET detail = '{}' WHERE seq = 3"], "entry 3 was changed"),
        (["DELETE FROM audit_log WHERE seq = 3"], "entry 3 is missing"),
        (["DELETE FROM audit_log WHERE seq = 1"], "entry 1 is missing"),
        (["UPDATE audit_log SET seq = seq - 10 WHERE seq = 3"], "entry 1 is missing"),
        (
            [
                "UPDATE audit_log SET seq = 99 WHERE seq = 3",
                "UPDATE audit_log SET seq = 3 WHERE seq = 4",
                "UPDATE audit_log SET seq = 4 WHERE seq = 99",
            ],
            "entry 3 does not follow the entry before it",
        ),
        (["UPDATE audit_log SET previous_hash = zeroblob(32) WHERE seq = 3"], "entry 3 does not"),
    ],
)
def test_what_was_changed_taken_out_or_moved_is_found(
    store: SqliteStore, statements: list[str], trouble: str
) -> None:
    store.apply([AppendAudit(entry(number)) for number in range(5)])
    assert check_log(store.database.reading).trouble is None
    harm(store, *statements)
    found = check_log(store.database.reading).trouble
    assert found is not None
    assert found.startswith(trouble)


def test_an_entry_made_anew_with_a_good_hash_of_its_own_is_found(store: SqliteStore) -> None:
    store.apply([AppendAudit(entry(number)) for number in range(5)])
    connection = sqlite3.connect(store.path)
    row = ChainedEntry(*connection.execute("SELECT * FROM audit_log WHERE seq = 3").fetchone())
    forged = hash_of(row._replace(subject="key_innocent"))
    connection.execute(
        "UPDATE audit_log SET subject = 'key_innocent', hash = ? WHERE seq = 3", (forged,)
    )
    connection.commit()
    connection.close()
    trouble = check_log(store.database.reading).trouble
    assert trouble is not None
    assert trouble.startswith("entry 4 does not follow")


def test_entries_of_before_there_were_outcomes_hold() -> None:
    old = ChainedEntry(1, 5, "", "epoch_started", "1", "{}", bytes(32), b"")
    old = old._replace(
        # As releases before outcomes computed it.
        hash=hashlib.sha256(bytes(32) + b'[1,5,"","epoch_started","1","{}"]').digest()
    )
    new = chain(entry(2), seq=2, previous_hash=old.hash)
    assert ChainCheck().first_broken([old, new]) is None


def test_the_check_runs_in_the_background_and_ends_when_told(store: SqliteStore) -> None:
    done: list[CheckedLog] = []
    failed: list[str] = []
    check = BackgroundCheck(
        store.database.reading, on_done=done.append, on_failed=failed.append, delay_s=0.0
    )
    check.start()
    check._thread.join(WAIT_S)
    assert [one.trouble for one in done] == [None]
    check.stop()
    store.apply([AppendAudit(entry(number)) for number in range(3)])
    stopped = BackgroundCheck(
        store.database.reading, on_done=done.append, on_failed=failed.append, delay_s=0.0
    )
    stopped._stop.set()
    stopped.start()
    stopped.stop()
    missing = partial(reading_file, store.path.with_name("none.sqlite3"))
    unreadable = BackgroundCheck(missing, on_done=done.append, on_failed=failed.append, delay_s=0.0)
    unreadable.start()
    unreadable._thread.join(WAIT_S)
    assert (len(done), len(failed)) == (1, 1)


def pages(store: SqliteStore, **wanted: Any) -> list[int]:
    (page,) = store.apply([ReadAuditRows(limit=100, **wanted)])
    assert isinstance(page, AuditRows)
    return [one.seq for one in page.entries]


def test_entries_are_found_by_key_actor_action_outcome_and_time(store: SqliteStore) -> None:
    store.apply(
        [
            AppendAudit(entry(1)),
            AppendAudit(entry(2, action="key_revoked", subject="key_1")),
            AppendAudit(entry(3, actor_key_id="key_1", outcome="refused")),
        ]
    )
    assert pages(store) == [4, 3, 2, 1]
    assert pages(store, oldest_first=True) == [1, 2, 3, 4]
    assert pages(store, key_id="key_1") == [4, 3, 2]
    assert pages(store, actor="key_1") == [4]
    assert pages(store, action="key_revoked") == [3]
    assert pages(store, outcome="refused") == [4]
    assert pages(store, since_ms=START_MS + 2) == [4, 3]
    assert pages(store, since_ms=START_MS + 1, until_ms=START_MS + 3) == [3, 2]
    assert pages(store, after_seq=3) == [2, 1]
    assert pages(store, after_seq=2, oldest_first=True) == [3, 4]
    assert pages(store, key_id="key_1", outcome="done", after_seq=3) == [2]
    store.apply([AppendAudit(entry(9, actor_key_id="key_1", subject="key_1"))])
    assert pages(store, key_id="key_1") == [5, 4, 3, 2], "what it did to itself is one entry"
    assert pages(store, key_id="key_1", actors=("key_1", "key_9")) == [5, 4]


def test_entries_are_found_by_several_values_of_each_filter(store: SqliteStore) -> None:
    store.apply(
        [
            AppendAudit(
                entry(
                    number,
                    action=("key_created", "key_updated", "key_revoked")[number % 3],
                    actor_key_id=f"key_{number % 2}",
                    subject=f"key_{number % 5}",
                )
            )
            for number in range(30)
        ]
    )

    def wanted(**filters: Any) -> list[int]:
        seqs = list[int]()
        after, has_more = None, True
        while has_more:
            (page,) = store.apply([ReadAuditRows(limit=4, after_seq=after, **filters)])
            assert isinstance(page, AuditRows)
            seqs += [one.seq for one in page.entries]
            after, has_more = seqs[-1] if seqs else None, page.has_more
        return [seq - 2 for seq in seqs]  # the first entry is the epoch's

    revoked = wanted(actions=("key_revoked", "key_created"))
    assert revoked == [number for number in range(29, -1, -1) if number % 3 != 1]
    assert wanted(actions=("key_revoked",), oldest_first=True) == list(range(2, 30, 3))
    assert wanted(actors=("key_1", "key_0")) == list(range(29, -1, -1))
    of_all = {"actions": ("key_created", "key_updated"), "actors": ("key_0", "key_9")}
    assert wanted(**of_all, subjects=("key_2", "key_4", "key_2")) == [24, 22, 12, 4]
    assert wanted(**of_all, subjects=("key_2", "key_4"), since_ms=START_MS + 12) == [24, 22, 12]
    assert wanted(subjects=("key_9",)) == []


def plan_of(store: SqliteStore, **filters: Any) -> list[str]:
    """The steps by which SQLite finds a page."""
    plans = list[list[str]]()
    with store.database.reading() as connection:

        def explain(_conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            rows = cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append([row[3].partition(" (")[0] for row in rows])

        event.listen(connection, "before_cursor_execute", explain)
        read_page(connection, ReadAuditRows(limit=10, **filters))
    (plan,) = plans
    return plan


@pytest.mark.parametrize(
    ("filters", "indexes"),
    [
        ({"key_id": "a"}, ["audit_by_subject", "audit_by_actor"]),
        ({"actor": "a"}, ["audit_by_actor"]),
        ({"action": "a"}, ["audit_by_action"]),
        ({"since_ms": 1, "until_ms": 2}, ["audit_by_time"]),
        ({"key_id": "a", "outcome": "done"}, ["audit_by_subject", "audit_by_actor"]),
    ],
)
def test_each_filter_is_answered_by_an_index(
    store: SqliteStore, filters: dict[str, Any], indexes: list[str]
) -> None:
    looks = [step for step in plan_of(store, **filters) if "audit_log" in step]
    assert looks == [f"SEARCH audit_log USING INDEX {index}" for index in indexes]


@pytest.mark.parametrize(
    ("index", "column"), [("audit_by_actor", "actor_key_id"), ("audit_by_subject", "subject")]
)
def test_what_a_commit_says_of_money_stands_in_no_index_by_actor_or_subject(
    store: SqliteStore, index: str, column: str
) -> None:
    found = f"SELECT seq FROM audit_log INDEXED BY {index} WHERE {column} = "
    connection = sqlite3.connect(store.path)
    connection.execute(f"{found} 'key_1' AND {column} <> ''")
    with pytest.raises(sqlite3.OperationalError, match="no query solution"):
        connection.execute(f"{found} ''")
    connection.close()


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"actions": ("a", "b")}, "audit_by_action"),
        ({"actors": ("a", "b"), "actions": ("a", "b")}, "audit_by_actor"),
        ({"subjects": ("a", "b"), "actors": ("a", "b")}, "audit_by_subject"),
    ],
)
def test_several_values_of_a_filter_are_read_in_the_order_of_an_index(
    store: SqliteStore, filters: dict[str, Any], index: str
) -> None:
    plan = plan_of(store, **filters)
    looks = [number for number, step in enumerate(plan) if "audit_log" in step]
    assert [plan[number] for number in looks] == [f"SEARCH audit_log USING INDEX {index}"] * 2
    # What follows a look is the page that it made: the entries of a value are not sorted.
    assert all(plan[number + 1].startswith("SCAN") for number in looks)


def test_what_concerns_a_key_is_read_in_the_order_of_two_indexes(store: SqliteStore) -> None:
    plan = plan_of(store, key_id="a")
    for index in ("audit_by_subject", "audit_by_actor"):
        look = plan.index(f"SEARCH audit_log USING INDEX {index}")
        assert plan[look + 1].startswith("SCAN"), "its entries are not sorted"


def test_pages_follow_one_another(store: SqliteStore) -> None:
    store.apply([AppendAudit(entry(number)) for number in range(6)])
    seen: list[int] = []
    after, has_more = None, True
    while has_more:
        (page,) = store.apply([ReadAuditRows(limit=3, after_seq=after)])
        assert isinstance(page, AuditRows)
        seen += [one.seq for one in page.entries]
        after, has_more = seen[-1], page.has_more
    assert seen == [7, 6, 5, 4, 3, 2, 1]


def test_admin_changes_and_refusals_are_on_record_with_who_and_from_where(tmp_path: Path) -> None:
    bench = AuthHandlerBench(tmp_path)
    actor = Actor(key_id="key_admin", address="192.0.2.7")
    command = MakeKey(
        request_id="req-7",
        actor=actor,
        key_digest=bytes(32),
        hint="h",
        settings=Settings(name="Ada", role="service", requests_per_minute=7),
    )
    assert bench.ask(command) is None
    assert isinstance(bench.ask(replace_name(command, "")), Failure)
    assert isinstance(
        bench.ask(
            authorize(
                scope="admin.keys",
                required_role="admin",
                address="192.0.2.9",
                endpoint="/v1/admin/keys",
                model="",
            )
        ),
        Denied,
    )
    assert isinstance(bench.ask(authorize("psk-nobody", address="198.51.100.1")), Denied)
    profile = authorize(
        ADMIN_SECRET,
        scope="admin.profile",
        required_role="admin",
        endpoint="/v1/admin/profile",
        prompt_tokens=0,
        completion_tokens=0,
    )
    assert isinstance(bench.ask(profile), Granted)
    bench.write()
    bench.ask(ReadAudit(request_id="r", reader=actor, limit=5))
    (page,) = bench.write()
    assert isinstance(page, AuditPage)
    assert [
        (one.action, one.outcome, one.actor, one.address) for one in reversed(page.entries)
    ] == [
        ("key_created", "done", "key_admin", "192.0.2.7"),
        ("change_refused", "refused", "key_admin", "192.0.2.7"),
        ("request_refused", "refused", "key_user", "192.0.2.9"),
        ("request_refused", "refused", "", "198.51.100.1"),
        ("engine_profiled", "done", "key_admin", ""),
    ]
    made = next(one for one in page.entries if one.action == "key_created")
    assert json.loads(made.detail) == {"name": "…", "requests_per_minute": 7, "role": "service"}
    refused = next(one for one in page.entries if one.action == "change_refused")
    assert json.loads(refused.detail) == {
        "code": "invalid_request",
        "command": "make_key",
        "param": "name",
    }
    bench.store.close()


def replace_name(command: MakeKey, name: str) -> MakeKey:
    return structs.replace(command, settings=structs.replace(command.settings, name=name))


def test_refusals_above_a_rate_are_sampled_and_counted() -> None:
    clock = FakeClock()
    written: list[Any] = []
    log = RefusalLog(clock, written.append)
    for _ in range(BURST + 5):
        log.note(entry(1, actor_key_id="key_1"))
    assert len(written) == BURST
    clock.advance(INTERVAL_S)
    log.note(entry(1, actor_key_id="key_1"))
    assert len(written) == BURST + 1
    assert written[-1].entry.detail["num_left_out"] == 5
    log.note(entry(1, actor_key_id="key_2"))
    assert "num_left_out" not in written[-1].entry.detail


def test_many_strangers_fill_neither_the_log_nor_the_memory() -> None:
    clock = FakeClock()
    written: list[Any] = []
    log = RefusalLog(clock, written.append)
    for number in range(MAX_CALLERS + 100):
        log.note(entry(1, actor_key_id="", address=f"address {number}"))
    assert len(written) == HOUSE_BURST
    assert len(log._callers) == MAX_CALLERS


def test_the_rate_of_a_busy_keys_refusals_does_not_touch_its_decisions() -> None:
    bench = authority_bench(stored_key(requests_per_minute=0))
    answers = [bench.authority.authorize(authorize()) for _ in range(100)]
    assert all(isinstance(one, Denied) for one in answers)
    assert len(bench.emitted) == BURST


# The command.


def export(store: SqliteStore, path: Path, first: int = 1) -> list[dict[str, Any]]:
    """As `penstock audit export` prints it."""
    (page,) = store.apply([ReadAuditRows(limit=100, oldest_first=True, after_seq=first - 1)])
    assert isinstance(page, AuditRows)
    lines = []
    for one in page.entries:
        fields = {name: getattr(one, name) for name in one.__struct_fields__}
        fields |= {"previous_hash": one.previous_hash.hex(), "hash": one.hash.hex()}
        lines.append({**fields, "detail": json.loads(one.detail)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_the_command_says_whether_a_database_holds(
    store: SqliteStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.apply([AppendAudit(entry(number)) for number in range(3)])
    folder = str(store.path.parent)
    assert verify_audit.main(["--data-dir", folder]) == verify_audit.HOLDS
    out = capsys.readouterr().out
    assert out.startswith("4 entries of the audit log hold, the last one is 4:")
    noted = out.strip().rstrip(".").rpartition(" ")[2]
    assert verify_audit.main(["--data-dir", folder, "--holds", noted]) == verify_audit.HOLDS
    harm(store, "DELETE FROM audit_log WHERE seq = 4")
    assert verify_audit.main(["--data-dir", folder]) == verify_audit.HOLDS
    assert verify_audit.main(["--data-dir", folder, "--holds", noted]) == verify_audit.BROKEN
    harm(store, "UPDATE audit_log SET actor_key_id = 'key_x' WHERE seq = 2")
    assert verify_audit.main(["--data-dir", folder]) == verify_audit.BROKEN
    assert "entry 2 was changed; 1 before it do" in capsys.readouterr().out


def test_the_command_says_whether_an_export_holds(
    store: SqliteStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.apply([AppendAudit(entry(number)) for number in range(4)])
    path = tmp_path / "audit.jsonl"
    for first in (1, 3):
        lines = export(store, path, first)
        assert verify_audit.main(["--file", str(path)]) == verify_audit.HOLDS
    noted = f"{lines[-1]['seq']}:{lines[-1]['hash']}"
    assert verify_audit.main(["--file", str(path), "--holds", noted]) == verify_audit.HOLDS
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    assert verify_audit.main(["--file", str(path), "--holds", noted]) == verify_audit.BROKEN
    lines[1]["detail"] = {"name": "somebody else"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert verify_audit.main(["--file", str(path)]) == verify_audit.BROKEN
    capsys.readouterr()


@pytest.mark.parametrize("text", ["{", "[]", '{"seq": "x"}', '{"seq": 1}', "[" * 100_000])
def test_what_is_no_audit_log_is_one_clear_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(text + "\n")
    assert verify_audit.main(["--file", str(path)]) == verify_audit.UNREADABLE
    assert capsys.readouterr().err == (
        "The audit log can't be read: line 1 is no entry of an audit log.\n"
    )
    assert verify_audit.main(["--data-dir", str(tmp_path)]) == verify_audit.UNREADABLE
    assert "there is no" in capsys.readouterr().err
    (tmp_path / "auth.sqlite3").write_bytes(b"no database" * 100)
    assert verify_audit.main(["--data-dir", str(tmp_path)]) == verify_audit.UNREADABLE


def test_keys_that_a_gateway_refused_unasked_are_one_entry_with_their_number() -> None:
    bench = authority_bench()
    for number in (0, 7, 0, 4):
        bench.authority.authorize(
            authorize("psk-wrong", address="192.0.2.1", num_refused_guesses=number)
        )
    entries = [one.entry for one in bench.emitted if isinstance(one, AppendAudit)]
    told = [(entry.address, entry.detail) for entry in entries if "num_refused" in entry.detail]
    assert told == [
        ("192.0.2.1", {"code": "too_many_wrong_keys", "num_refused": 7}),
        ("192.0.2.1", {"code": "too_many_wrong_keys", "num_refused": 4}),
    ]
    for _ in range(9):
        bench.authority.authorize(
            authorize("psk-wrong", address="192.0.2.1", num_refused_guesses=100)
        )
    bench.clock.advance(11.0)
    bench.authority.authorize(authorize("psk-wrong", address="192.0.2.1"))
    last = [one.entry for one in bench.emitted if isinstance(one, AppendAudit)][-1]
    assert isinstance(last.detail["num_left_out"], int)
    assert last.detail["num_left_out"] > 500
