"""Sums of settlements wait beside the totals: nothing is lost, counted twice or read too early."""

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auth_worker.auditing.database_check import check_database
from auth_worker.records.operations import (
    AddKey,
    AppendAudit,
    AuditEntry,
    ChangeKey,
    CountKeyRows,
    DropKey,
    KeyCounts,
    KeyPage,
    PutKey,
    ReadKeys,
    ReadUsageRows,
    UsagePage,
)
from auth_worker.storage import pending_sums
from auth_worker.storage.migrations import downgrade
from auth_worker.storage.pending_sums import load_sums
from auth_worker.storage.sql_store import SqlStore
from tests.fakes.auth_parts import START_S, booking, stored_key
from tests.fakes.auth_stores import StoreHarness, rows
from tests.fakes.fuzz_effort import EFFORT

AUDIT = AuditEntry(int(START_S * 1000), "key_admin", "key_created", "key_user", {})
HOUR_MS = 3_600_000
TOTALS = "SELECT sum(num_requests), sum(completion_tokens) FROM usage_by_hour"


def key_of(number: int) -> AddKey:
    return AddKey(stored_key(f"key_{number}", f"psk-{number}"), AUDIT)


@pytest.fixture
def busy(store: SqlStore) -> SqlStore:
    """A store in which the sums of two keys wait, one settlement each."""
    store.apply([key_of(0), key_of(1)])
    store.apply([booking("first", key_id="key_0")])  # the first ones are due at once
    store.apply([booking("a", key_id="key_0"), booking("b", key_id="key_1", completion_tokens=7)])
    return store


def num_waiting(store: SqlStore) -> int:
    with store.database.reading() as connection:
        return sum(amounts[0] for amounts in load_sums(connection).sums.values())


def findings(store: SqlStore) -> list[str]:
    found = check_database(store.database.reading, signer=None, noted=())
    return [text for holds, text in found if not holds]


def test_a_commit_for_many_keys_touches_none_of_their_totals(store: SqlStore) -> None:
    store.apply([key_of(number) for number in range(64)])
    store.apply([booking("first", key_id="key_0")])
    store.apply([booking(f"lease-{n}", key_id=f"key_{n}") for n in range(64)])
    assert rows(store, TOTALS) == [(1, 20)]
    assert rows(store, "SELECT sum(total_requests) FROM keys") == [(1,)]
    assert rows(store, "SELECT count(*) FROM pending_sums") == [(1,)]
    assert num_waiting(store) == 64
    assert findings(store) == []


@pytest.mark.parametrize(
    ("read", "left"),
    [
        (CountKeyRows(), 0),
        (ReadKeys("", 10), 0),
        (ReadKeys("", 10, key_id="key_0"), 1),
        (ReadUsageRows(0, 2**31, 10), 0),
        (ReadUsageRows(0, 2**31, 10, key_id="key_1"), 1),
        (ReadUsageRows(0, 2**31, 10, user_id="user_other"), 2),
        (ReadUsageRows(0, 2**31, 10, model="demo"), 0),
    ],
)
def test_who_reads_totals_reads_what_waits_and_leaves_the_rest(
    busy: SqlStore, read: Any, left: int
) -> None:
    (result,) = busy.apply([read])
    assert num_waiting(busy) == left
    if isinstance(result, KeyCounts):
        assert (result.total_requests, result.total_completion_tokens) == (3, 47)
    elif isinstance(result, KeyPage):
        found = {record.key_id: record.total_requests for record in result.records}
        assert found.items() <= {"key_0": 2, "key_1": 1}.items()
        assert found
    elif isinstance(result, UsagePage) and read.user_id == "":
        assert sum(row.num_requests for row in result.rows) == 3 - left - (left and 1)
    assert findings(busy) == []


def test_settlements_of_the_same_group_are_read_too(busy: SqlStore) -> None:
    _, page = busy.apply([booking("c", key_id="key_0"), ReadKeys("", 10, key_id="key_0")])
    assert isinstance(page, KeyPage)
    assert page.records[0].total_requests == 3


@pytest.mark.parametrize(
    "change",
    [
        ChangeKey("key_0", {"name": "new"}, AUDIT),
        PutKey(stored_key("key_0", "psk-new"), AUDIT),
        DropKey("key_0", AUDIT),
    ],
)
def test_the_answer_to_a_change_of_a_key_has_its_whole_totals(busy: SqlStore, change: Any) -> None:
    (page,) = busy.apply([change])
    assert isinstance(page, KeyPage)
    assert (page.records[0].total_requests, page.records[0].last_used_at) == (2, int(START_S))
    assert num_waiting(busy) == 1


def test_what_waits_when_a_process_dies_is_in_the_totals_of_the_next(
    harness: StoreHarness, busy: SqlStore
) -> None:
    busy.close()  # nothing is written at the end either
    store = harness.open()
    assert rows(store, TOTALS) == [(3, 47)]
    assert rows(store, "SELECT sum(total_requests) FROM keys") == [(3,)]
    assert rows(store, "SELECT * FROM pending_sums") == []
    store.apply([booking("c", key_id="key_0")])
    assert findings(store) == []


def test_a_transaction_that_fails_changes_nothing_of_what_waits(busy: SqlStore) -> None:
    bad = booking("c", key_id="key_0", outcome=None)
    with pytest.raises(Exception, match="(?i)null"):
        busy.apply([ReadKeys("", 10), bad])
    assert num_waiting(busy) == 2
    (page,) = busy.apply([ReadKeys("", 10)])
    assert isinstance(page, KeyPage)
    assert sorted(record.total_requests for record in page.records) == [1, 2]
    assert findings(busy) == []


def test_a_late_settlement_of_before_and_after_is_counted_once(busy: SqlStore) -> None:
    busy.apply([booking("x", key_id="key_0", outcome="expired", completion_tokens=1)])
    busy.apply([booking("x", key_id="key_0", completion_tokens=5)])
    (page,) = busy.apply([ReadKeys("", 10, key_id="key_0")])
    assert isinstance(page, KeyPage)
    assert (page.records[0].total_requests, page.records[0].total_completion_tokens) == (3, 45)
    busy.apply([booking("y", key_id="key_1", outcome="expired", completion_tokens=1)])
    busy.apply([ReadKeys("", 10)])
    busy.apply([booking("y", key_id="key_1", completion_tokens=3)])
    assert findings(busy) == []
    (page,) = busy.apply([ReadKeys("", 10, key_id="key_1")])
    assert isinstance(page, KeyPage)
    assert (page.records[0].total_requests, page.records[0].total_completion_tokens) == (2, 10)


def test_a_second_later_the_oldest_are_added_and_the_rest_waits_on(
    harness: StoreHarness, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_sums, "MIN_ADDED", 4)
    monkeypatch.setattr(pending_sums, "MAX_ROWS", 5)
    harness.clock.advance(10.0)
    store.apply([booking("first", settled_at_ms=0)])
    for number in range(16):
        store.apply([booking(f"lease-{number}", settled_at_ms=number * HOUR_MS)])
    assert rows(store, "SELECT count(*) FROM usage_by_hour") == [(1,)]
    harness.clock.advance(1.0)
    store.apply([booking("last", settled_at_ms=99 * HOUR_MS)])
    hours = rows(store, "SELECT hour FROM usage_by_hour ORDER BY hour")
    assert hours == [(0,), (1,), (2,), (3,)]
    # Many rows that say little were written anew as few.
    assert len(rows(store, "SELECT seq FROM pending_sums")) <= 5
    assert num_waiting(store) == 13
    assert findings(store) == []


def test_a_wrong_sum_that_waits_shows(harness: StoreHarness, busy: SqlStore) -> None:
    assert findings(busy) == []
    harness.execute("DELETE FROM pending_sums")
    assert any("totals" in text for text in findings(busy))


def test_the_way_back_adds_what_waits(harness: StoreHarness, busy: SqlStore) -> None:
    with busy.database.transaction() as connection:
        downgrade(connection, 10, now_s=5.0)
    assert rows(busy, TOTALS) == [(3, 47)]
    assert rows(busy, "SELECT key_id, total_requests, last_used_at FROM keys ORDER BY key_id") == [
        ("key_0", 2, int(START_S)),
        ("key_1", 1, int(START_S)),
    ]
    busy.close()
    store = harness.open()  # and forward again
    assert findings(store) == []


bookings = st.builds(
    booking,
    st.sampled_from([f"lease-{number}" for number in range(12)]),
    key_id=st.sampled_from(["key_0", "key_1", ""]),
    model=st.sampled_from(["demo", "other\0name"]),
    completion_tokens=st.integers(0, 9),
    cost_micros=st.integers(0, 3),
    outcome=st.sampled_from(["finished", "expired", "unused"]),
    settled_at_ms=st.integers(0, 3).map(lambda hour: hour * HOUR_MS),
)
steps = st.one_of(
    st.lists(bookings, min_size=1, max_size=6),
    st.sampled_from(["read", "read one", "second", "restart"]),
)


PLAN: list[Any] = [
    [booking("a", key_id="key_0", outcome="expired"), booking("b", key_id="key_1")],
    [booking("a", key_id="key_0", completion_tokens=2), booking("c", key_id="", cost_micros=3)],
    "second",
    [booking(f"d{hour}", key_id="key_1", settled_at_ms=hour * HOUR_MS) for hour in range(4)],
    "second",
    [booking("e", key_id="key_0", outcome="unused")],
    "read one",
    "restart",
    [booking("a", key_id="key_0")],
]


def test_totals_and_what_waits_are_the_sums_of_the_ledger(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_sums, "MIN_ADDED", 2)
    monkeypatch.setattr(pending_sums, "MAX_ROWS", 3)
    carry_out(harness, PLAN)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=5 * EFFORT,
    deadline=None,
)
@given(st.lists(steps, max_size=12))
def test_they_are_at_any_moment_whatever_comes(tmp_path: Path, plan: list[Any]) -> None:
    harness = StoreHarness("sqlite", Path(mkdtemp(dir=tmp_path)), lambda: pytest.fail("no server"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending_sums, "MIN_ADDED", 2)
        patch.setattr(pending_sums, "MAX_ROWS", 3)
        carry_out(harness, plan)


def carry_out(harness: StoreHarness, plan: list[Any]) -> None:
    store = harness.open()
    store.apply([key_of(0), key_of(1), AppendAudit(AUDIT)])
    for step in plan:
        if step == "restart":
            store.close()
            store = harness.open()
        elif step == "second":
            harness.clock.advance(1.0)
        elif isinstance(step, str):
            store.apply([ReadKeys("", 10, key_id="key_0" if step == "read one" else "")])
        else:
            store.apply(step)
        assert findings(store) == []
    expected = rows(
        store,
        "SELECT key_id, model, count(*), sum(completion_tokens), sum(cost_micros) FROM ledger"
        " WHERE outcome <> 'unused' GROUP BY key_id, model ORDER BY key_id, model",
    )
    store.apply([CountKeyRows()])
    found = rows(
        store,
        "SELECT key_id, model, sum(num_requests), sum(completion_tokens), sum(cost_micros)"
        " FROM usage_by_hour GROUP BY key_id, model ORDER BY key_id, model",
    )
    assert [row for row in found if row[2]] == expected
    store.close()
