"""The audit log covers the ledger: a row of money that was changed, taken out or added shows."""

from typing import Any

import pytest

from auth_worker.auditing import verify_audit
from auth_worker.auditing.audit_check import check_log
from auth_worker.auditing.money_check import CheckedMoney, check_money
from auth_worker.records.operations import (
    AppendAudit,
    AuditEntry,
    AuditRows,
    BookUsage,
    CutAudit,
    FoldLedger,
    ReadAuditRows,
)
from auth_worker.storage.sql_store import SqlStore
from tests.fakes.auth_parts import booking
from tests.fakes.auth_stores import StoreHarness


def paid(number: int, cost: int = 10, **fields: Any) -> BookUsage:
    lease_id = f"lease:000001:{number:010x}:key_user:demo"
    given = {"price_id": "price_1", "price_version": 1, "cost_micros": cost, **fields}
    return booking(lease_id, settled_at_ms=1000 + number)._replace(**given)


def entries(store: SqlStore, action: str = "money_settled") -> list[dict[str, Any]]:
    import json

    (page,) = store.apply([ReadAuditRows(1000, action=action, oldest_first=True)])
    assert isinstance(page, AuditRows)
    return [json.loads(entry.detail) for entry in page.entries]


def checked(store: SqlStore) -> CheckedMoney:
    assert check_log(store.database.reading).trouble is None
    return check_money(store.database.reading)


def test_a_commit_has_one_entry_for_all_its_rows_with_a_price(store: SqlStore) -> None:
    other = AppendAudit(AuditEntry(5, "", "key_created", "key_x"))
    free = booking("lease:000001:000000ff:key_user:demo")
    store.apply([other, *(paid(n, team_id="team_1") for n in range(3)), free])
    store.apply([paid(3), other])
    store.apply([free._replace(lease_id="lease:000001:000001ff:key_user:demo"), other])
    first, second = entries(store)
    assert (first["num_rows"], first["cost_micros"]) == (3, 30)
    assert first["by_team_id"] == {"team_1": 30}
    assert first["by_key_id"] == {"key_user": 30}
    assert (second["num_rows"], second["cost_micros"]) == (1, 10)
    found = checked(store)
    assert (found.trouble, found.num_rows, found.num_entries, found.cost_micros) == (
        None,
        4,
        2,
        40,
    )


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        ("UPDATE ledger SET cost_micros = 9 WHERE request_id = 'req-1'", "was changed"),
        ("UPDATE ledger SET user_id = 'user_x'", "was changed"),
        ("UPDATE ledger SET completion_tokens = completion_tokens + 1", "was changed"),
        (
            "DELETE FROM ledger WHERE substr(lease_id, 14, 10) = '0000000001'",
            "covers 3 rows, and 2",
        ),
        ("DELETE FROM ledger", "covers 3 rows, and 0"),
        ("UPDATE ledger SET audit_seq = 1", "entry 1 covers them, which is none of money"),
        ("UPDATE ledger SET audit_seq = audit_seq + 1", "and 0 of them are there"),
    ],
)
def test_a_row_that_was_changed_shows(
    harness: StoreHarness, store: SqlStore, change: str, trouble: str
) -> None:
    store.apply([paid(number) for number in range(3)])
    assert checked(store).trouble is None
    harness.execute(change)
    found = checked(store)
    assert found.trouble is not None
    assert trouble in found.trouble


def test_a_row_that_was_added_shows(harness: StoreHarness, store: SqlStore) -> None:
    store.apply([paid(1), paid(2)])
    harness.execute(
        "INSERT INTO ledger SELECT 'lease-x', request_id, key_id, model, prompt_tokens,"
        " completion_tokens, cached_tokens, reasoning_tokens, outcome, granted_at_ms,"
        " settled_at_ms, user_id, team_id, end_user, endpoint, cost_micros, price_id,"
        " price_version, charges, audit_seq FROM ledger"
        " WHERE lease_id = 'lease:000001:0000000001:key_user:demo'"
    )
    found = checked(store)
    assert found.trouble is not None
    assert "covers 2 rows, and 3" in found.trouble


def test_a_late_settlement_moves_its_row_and_says_what_it_was(
    harness: StoreHarness, store: SqlStore
) -> None:
    store.apply([paid(1, 7, outcome="expired"), paid(2, 5)])
    store.apply([paid(1, 11)])
    store.apply([paid(1, 99), paid(2, 99)])  # repeated: nothing is written
    _, second = entries(store)
    assert (second["num_rows"], second["cost_micros"]) == (1, 4)
    assert len(second["replaced"]) == 1
    found = checked(store)
    assert (found.trouble, found.num_rows, found.cost_micros) == (None, 2, 16)
    harness.execute(
        "UPDATE ledger SET cost_micros = 7 WHERE substr(lease_id, 14, 10) = '0000000001'"
    )
    assert checked(store).trouble is not None


def test_a_row_whose_correction_costs_nothing_is_covered_to_its_end(store: SqlStore) -> None:
    store.apply([paid(1, 7, outcome="expired")])
    store.apply([paid(1, 0, outcome="unused", price_id="", price_version=0)])
    assert [one["cost_micros"] for one in entries(store)] == [7, -7]
    assert checked(store).trouble is None


def test_what_was_expired_and_corrected_in_one_commit_is_one_row(store: SqlStore) -> None:
    store.apply([paid(1, 7, outcome="expired"), paid(1, 11)])
    assert [one["cost_micros"] for one in entries(store)] == [11]
    assert checked(store).trouble is None


def test_a_price_that_is_gone_when_an_expired_lease_of_the_same_commit_is_settled(
    store: SqlStore,
) -> None:
    settled = paid(0, cost=0, outcome="unused", price_id="", price_version=0)
    store.apply([paid(0, outcome="expired"), settled, paid(1)])
    assert (checked(store).trouble, checked(store).num_rows) == (None, 1)


def test_folded_rows_are_said_to_be_gone(harness: StoreHarness, store: SqlStore) -> None:
    store.apply([paid(1), paid(2)])
    store.apply([paid(3)])
    store.apply([FoldLedger(before_ms=1003, limit=100)])
    (folded,) = entries(store, "ledger_folded")
    assert (folded["num_rows"], folded["cost_micros"]) == (2, 20)
    found = checked(store)
    assert (found.trouble, found.num_folded, found.num_rows) == (None, 1, 1)
    harness.execute("DELETE FROM ledger")
    assert checked(store).trouble is not None


def test_rows_of_entries_that_were_cut_off_are_left_alone(store: SqlStore) -> None:
    store.apply([paid(1)])
    store.apply([CutAudit(before_ms=2**53, limit=100)])
    store.apply([paid(2)])
    found = checked(store)
    assert (found.trouble, found.num_rows) == (None, 1)


def test_an_entry_names_a_few_keys_and_the_rest_together(store: SqlStore) -> None:
    store.apply([paid(n, n, key_id=f"key_{n}") for n in range(40)])
    (entry,) = entries(store)
    assert len(entry["by_key_id"]) == 17
    assert sum(entry["by_key_id"].values()) == entry["cost_micros"] == sum(range(40))
    assert "by_team_id" not in entry


def test_text_that_holds_the_separator_is_another_row(store: SqlStore) -> None:
    store.apply([paid(1, endpoint="a\0b", end_user="c"), paid(2, endpoint="a", end_user="b\0c")])
    assert checked(store).trouble is None


def test_the_command_compares_the_ledger(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    harness = StoreHarness("sqlite", tmp_path, lambda: pytest.fail("SQLite needs no server"))
    store = harness.open()
    store.apply([paid(1)])
    folder = str(store.database.path.parent)  # type: ignore[attr-defined]
    assert verify_audit.main(["--data-dir", folder]) == verify_audit.HOLDS
    assert "1 rows of the ledger are as 1 entries of the audit log say" in capsys.readouterr().out
    harness.execute("UPDATE ledger SET cost_micros = 1")
    assert verify_audit.main(["--data-dir", folder]) == verify_audit.BROKEN
    assert "the ledger is not as the audit log says" in capsys.readouterr().out.lower()
    store.close()
