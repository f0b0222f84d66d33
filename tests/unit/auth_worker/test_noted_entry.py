"""An entry of the audit log that somebody noted is there, was let go, or is missing."""

from pathlib import Path

import pytest

from auth_worker.auditing import verify_audit
from auth_worker.auditing.noted_entry import Finding, NotedEntry, find_noted
from auth_worker.records.audit_chain import ChainedEntry
from auth_worker.records.audit_signing import AuditSigner, Checkpoint
from auth_worker.records.operations import AppendAudit, CutAudit
from auth_worker.storage.audit_table import read_chain
from auth_worker.storage.sql_store import SqlStore
from auth_worker.storage.sqlite_store import SqliteStore
from tests.fakes.auth_parts import FakeClock
from tests.fakes.auth_stores import StoreHarness
from tests.unit.auth_worker.test_retention import KEY, OTHER_KEY, START_MS, entry, signed


def chain_of(store: SqlStore) -> dict[int, ChainedEntry]:
    with store.database.reading() as connection:
        return {link.seq: link for link in read_chain(connection, 0, 100)}


def let_five_go(store: SqlStore, clock: FakeClock) -> dict[int, NotedEntry]:
    """Ten entries after the epoch's own, of which the first five go then; all as they were."""
    store.apply([AppendAudit(entry(number)) for number in range(10)])
    noted = {seq: NotedEntry(seq, link.hash) for seq, link in chain_of(store).items()}
    clock.advance(1)
    store.apply([CutAudit(before_ms=START_MS + 4, limit=100)])
    assert min(chain_of(store)) == 6
    return noted


def test_what_was_let_go_is_told_from_what_is_missing(harness: StoreHarness) -> None:
    checkpoints: list[Checkpoint] = []
    store = signed(harness, checkpoints.append)
    noted = let_five_go(store, harness.clock)
    assert checkpoints[0].seq == 1  # beside the database alone: its own went with the entry

    def found(seq: int, *, signer: AuditSigner | None = KEY, is_other: bool = False) -> Finding:
        wanted = noted.get(seq, NotedEntry(seq, bytes(32)))
        if is_other:
            wanted = wanted._replace(hash=bytes(32))
        return find_noted(store.database.reading, wanted, signer=signer, noted=checkpoints)

    assert [found(seq) for seq in (7, 11, 99)] == [Finding.THERE, Finding.THERE, Finding.MISSING]
    assert found(7, is_other=True) is Finding.MISSING
    # By a checkpoint, by the entry of the cut, by nothing.
    assert [found(seq) for seq in (1, 5, 3)] == [Finding.PROVED, Finding.PROVED, Finding.LET_GO]
    assert [found(seq, is_other=True) for seq in (1, 5)] == [Finding.MISSING, Finding.MISSING]
    for signer in (None, OTHER_KEY):  # what nobody here can verify proves nothing
        assert [found(seq, signer=signer) for seq in (1, 5)] == [Finding.LET_GO, Finding.LET_GO]


def test_the_command_tells_them_apart_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = FakeClock(wall=START_MS / 1000)
    store = SqliteStore(tmp_path, clock=clock)
    noted = let_five_go(store, clock)

    def verified(wanted: object) -> int:
        return verify_audit.main(["--data-dir", str(tmp_path), "--holds", str(wanted)])

    assert verified(noted[3]) == verify_audit.LET_GO == 3
    assert f"Entry {noted[3]} lies before the first entry" in capsys.readouterr().out
    assert verified(noted[8]) == verify_audit.HOLDS
    assert verified(noted[8]._replace(seq=3)) == verify_audit.LET_GO
    assert verified(noted[8]._replace(seq=40)) == verify_audit.BROKEN
    assert "is not there any more" in capsys.readouterr().out
    for text in ("x", "5", "0:00", f"{2**63}:00"):
        assert verified(text) == verify_audit.UNREADABLE
        assert "--holds takes SEQ:HASH" in capsys.readouterr().err
    store.close()
