"""The store over either database: durable, fenced, every lease booked once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from auth_worker.errors import (
    InvalidCommandError,
    KeyNotFoundError,
    StoreFencedError,
    StoreForeignError,
    StoreTooNewError,
)
from auth_worker.records.limit_usage import Booked
from auth_worker.records.operations import (
    AddKey,
    AppendAudit,
    AuditEntry,
    AuditRows,
    BookUsage,
    ChangeKey,
    KeyPage,
    LeaseRow,
    PutKey,
    ReadAuditRows,
    ReadKeys,
    ReadUsageRows,
    Result,
    SaveLease,
    TouchKey,
)
from auth_worker.storage import ledger, schema
from auth_worker.storage.bulk import run
from auth_worker.storage.sql_store import SqlStore
from protocol.wire.messages import KeyDetails
from tests.fakes.auth_parts import START_S, booking, stored_key
from tests.fakes.auth_stores import StoreHarness, rows
from tests.fakes.fuzz_effort import EFFORT

AUDIT = AuditEntry(int(START_S * 1000), "key_admin", "key_created", "key_user", {"name": "ü"})
LEASE = LeaseRow("lease:1:1:key_user:demo", "req-1", "key_user", "demo", 5, 10, 20, 3, 4)


def the_key(store: SqlStore) -> KeyDetails:
    (page,) = store.apply([ReadKeys("", 10)])
    assert isinstance(page, KeyPage)
    return page.records[0]


def test_the_epoch_grows_with_each_opening(harness: StoreHarness) -> None:
    for epoch in (1, 2, 3):
        store = harness.open()
        assert store.epoch == epoch
        store.close()


def test_a_store_whose_epoch_is_over_writes_nothing(harness: StoreHarness, store: SqlStore) -> None:
    harness.execute("UPDATE authority SET epoch = 99")
    with pytest.raises(StoreFencedError, match="99"):
        store.apply([booking("lease-1")])
    assert rows(store, "SELECT * FROM ledger") == []


def test_keys_leases_and_recent_use_come_back_after_a_restart(
    harness: StoreHarness, store: SqlStore
) -> None:
    key = stored_key(requests_per_minute=5, expires_at=99)
    store.apply([AddKey(key, AUDIT), SaveLease(LEASE), booking("a", settled_at_ms=1000)])
    store.close()
    store = harness.open()
    snapshot = store.load(recent_since_ms=500)
    assert snapshot.keys == (key,)
    assert snapshot.leases == (LEASE,)
    assert [use.num_tokens for use in snapshot.recent] == [30]
    assert store.load(recent_since_ms=1001).recent == ()


def test_a_saved_lease_takes_the_newest_numbers(store: SqlStore) -> None:
    grown = LEASE._replace(completion_tokens=50, reported_completion_tokens=40)
    store.apply([SaveLease(LEASE)])
    store.apply([SaveLease(LEASE), SaveLease(grown)])
    assert store.load(recent_since_ms=0).leases == (grown,)


def test_booking_ends_the_lease_whether_it_was_written_before_or_comes_along(
    store: SqlStore,
) -> None:
    other = LEASE._replace(lease_id="other")
    store.apply([SaveLease(LEASE)])
    store.apply([SaveLease(other), booking(LEASE.lease_id), booking("other")])
    assert store.load(recent_since_ms=0).leases == ()


def test_totals_and_last_use_follow_the_bookings(store: SqlStore) -> None:
    store.apply([AddKey(stored_key(), AUDIT)])
    store.apply([booking("a"), booking("b", model="other", completion_tokens=1)])
    record = the_key(store)
    assert record.total_requests == 2
    assert record.total_prompt_tokens == 20
    assert record.total_completion_tokens == 21
    assert record.last_used_at == int(START_S)
    assert len(rows(store, "SELECT * FROM usage_by_hour")) == 2


def test_a_lease_is_booked_once_within_a_group_and_across_groups(store: SqlStore) -> None:
    store.apply([AddKey(stored_key(), AUDIT), booking("a"), booking("a", completion_tokens=999)])
    store.apply([booking("a"), booking("a", outcome="expired")])
    record = the_key(store)
    assert (record.total_requests, record.total_completion_tokens) == (1, 20)


@pytest.mark.parametrize("in_one_group", [True, False])
def test_a_late_settlement_corrects_an_expired_lease_once(
    store: SqlStore, in_one_group: bool
) -> None:
    store.apply([AddKey(stored_key(), AUDIT)])
    day_ms = 86_400_000
    expired = booking("a", outcome="expired", completion_tokens=5)
    late = booking("a", completion_tokens=20, model="", settled_at_ms=2 * day_ms)
    groups = [[expired, late, late]] if in_one_group else [[expired], [late], [late]]
    for group in groups:
        store.apply(group)
    record = the_key(store)
    assert (record.total_requests, record.total_completion_tokens) == (1, 20)
    assert rows(store, "SELECT model, outcome FROM ledger") == [("demo", "finished")]
    totals = rows(store, "SELECT num_requests, completion_tokens FROM usage_by_hour")
    assert totals == [(1, 20)]


def test_a_late_settlement_may_be_of_another_model(store: SqlStore) -> None:
    store.apply([booking("a", outcome="expired", completion_tokens=5)])
    store.apply([booking("a", model="other")])
    store.apply([ReadUsageRows(0, 2**31, 10)])
    totals = (
        "SELECT model, num_requests, completion_tokens FROM usage_by_hour WHERE num_requests > 0"
    )
    assert rows(store, totals) == [("other", 1, 20)]


@pytest.mark.parametrize("num_bookings", [1, 2, 127, 128, 300])
@pytest.mark.parametrize("is_one_known", [True, False])
def test_groups_of_any_size_are_booked_whole(
    store: SqlStore, num_bookings: int, is_one_known: bool
) -> None:
    group = [booking(f"lease-{number}", prompt_tokens=number) for number in range(num_bookings)]
    saved = [SaveLease(LEASE._replace(lease_id=item.lease_id)) for item in group]
    store.apply([AddKey(stored_key(), AUDIT), *saved, SaveLease(LEASE)])
    assert len(store.load(recent_since_ms=0).leases) == num_bookings + 1
    if is_one_known:
        store.apply(group[-1:])
    store.apply(group)
    assert rows(store, "SELECT * FROM ledger ORDER BY prompt_tokens") == [
        tuple(item) for item in group
    ]
    record = the_key(store)
    assert record.total_requests == num_bookings
    assert record.total_prompt_tokens == sum(range(num_bookings))
    assert store.load(recent_since_ms=0).leases == (LEASE,)


def test_usage_of_nobody_is_in_the_ledger_and_harms_no_key(store: SqlStore) -> None:
    store.apply([AddKey(stored_key(), AUDIT), booking("?", key_id="", model="")])
    assert the_key(store).total_requests == 0
    assert rows(store, "SELECT key_id FROM ledger") == [("",)]


def test_last_use_never_runs_backwards(store: SqlStore) -> None:
    store.apply([AddKey(stored_key(), AUDIT), TouchKey("key_user", 500)])
    store.apply([TouchKey("key_user", 400)])
    assert the_key(store).last_used_at == 500


def test_the_same_key_again_is_answered_as_the_first_time(store: SqlStore) -> None:
    first = store.apply([AddKey(stored_key(), AUDIT)])
    again = store.apply([AddKey(replace(stored_key(), key_id="key_2", created_at=7), AUDIT)])
    assert again == first
    assert len(rows(store, "SELECT * FROM audit_log")) == 2


def test_a_known_digest_with_other_values_is_refused(store: SqlStore) -> None:
    store.apply([AddKey(stored_key(), AUDIT)])
    (refused,) = store.apply([AddKey(stored_key("key_2", role="admin"), AUDIT)])
    assert isinstance(refused, InvalidCommandError)
    assert the_key(store).settings.role == "user"


def test_putting_a_key_replaces_its_digest_and_keeps_its_totals(store: SqlStore) -> None:
    store.apply([AddKey(stored_key(), AUDIT), booking("a")])
    replaced = stored_key(secret="psk-other", name="new")
    store.apply([booking("b"), PutKey(replaced, AUDIT)])
    assert the_key(store).settings.name == "new"
    assert the_key(store).total_requests == 2
    assert store.load(recent_since_ms=0).keys == (replaced,)


def test_a_change_asked_for_twice_is_one_audit_entry(store: SqlStore) -> None:
    ended = replace(AUDIT, action="key_revoked")
    store.apply([AddKey(stored_key(), AUDIT)])
    for _ in range(2):
        (page,) = store.apply([ChangeKey("key_user", {"revoked_at": 10}, ended)])
        assert isinstance(page, KeyPage)
        assert page.records[0].revoked_at == 10
    (missing,) = store.apply([ChangeKey("key_none", {"revoked_at": 1}, ended)])
    assert isinstance(missing, KeyNotFoundError)
    assert rows(store, "SELECT count(*) FROM audit_log WHERE action = 'key_revoked'") == [(1,)]


def test_pages_go_from_newest_to_oldest_and_say_when_there_is_more(store: SqlStore) -> None:
    keys = [stored_key(f"key_{number}", f"psk-{number}") for number in range(5)]
    store.apply([AddKey(key, AUDIT) for key in keys])
    seen: list[str] = []
    after, has_more = "", True
    while has_more:
        (page,) = store.apply([ReadKeys(after, 2)])
        assert isinstance(page, KeyPage)
        seen += [record.key_id for record in page.records]
        after, has_more = seen[-1], page.has_more
    assert seen == [f"key_{number}" for number in reversed(range(5))]
    (unknown,) = store.apply([ReadKeys("key_none", 2)])
    assert isinstance(unknown, KeyNotFoundError)


def test_results_stand_in_the_order_of_the_operations(store: SqlStore) -> None:
    results: list[Result] = store.apply(
        [booking("a"), AddKey(stored_key(), AUDIT), TouchKey("key_user", 1), ReadKeys("", 1)]
    )
    assert [type(result) for result in results] == [type(None), KeyPage, type(None), KeyPage]


def test_a_database_of_a_newer_penstock_is_refused_and_its_lock_let_go(
    harness: StoreHarness,
) -> None:
    harness.open().close()
    harness.execute("INSERT INTO schema_version VALUES (999, 'future', 0)")
    for _ in range(2):
        with pytest.raises(StoreTooNewError, match="999"):
            harness.open()
    harness.execute("DELETE FROM schema_version WHERE version = 999")
    harness.open()


def test_a_database_of_another_program_is_refused(harness: StoreHarness) -> None:
    if harness.kind == "sqlite":
        harness.data_dir.mkdir()
    else:
        harness.begin_anew(is_bare=True)
    harness.execute("CREATE TABLE customers (id INTEGER)")
    with pytest.raises(StoreForeignError, match=r"not Penstock's \(customers\)"):
        harness.open()


OUTCOMES = st.sampled_from(["finished", "aborted", "failed", "expired"])
BOOKINGS = st.builds(
    lambda lease, key, model, tokens, outcome, at: booking(
        f"lease-{lease}",
        key_id=f"key_{key}",
        model=model,
        prompt_tokens=tokens,
        outcome=outcome,
        settled_at_ms=at,
    ),
    lease=st.integers(0, 12),
    key=st.integers(0, 2),
    model=st.sampled_from(["a", "b"]),
    tokens=st.integers(0, 1000),
    outcome=OUTCOMES,
    at=st.integers(0, 5 * 86_400_000),
)


@settings(
    max_examples=8 * EFFORT,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(groups=st.lists(st.lists(BOOKINGS, max_size=8), max_size=6))
def test_totals_are_always_the_sums_of_the_ledger(
    harness: StoreHarness, groups: list[list[BookUsage]]
) -> None:
    harness.begin_anew()
    store = harness.open()
    store.apply([AddKey(stored_key(f"key_{n}", f"psk-{n}"), AUDIT) for n in range(3)])
    for group in groups:
        store.apply(group)
    (page,) = store.apply([ReadKeys("", 10)])
    assert isinstance(page, KeyPage)
    by_ledger = dict.fromkeys(("key_0", "key_1", "key_2"), (0, 0))
    for key_id, count, tokens in rows(
        store,
        "SELECT key_id, count(*), CAST(sum(prompt_tokens) AS BIGINT) FROM ledger GROUP BY key_id",
    ):
        assert isinstance(key_id, str)
        assert isinstance(count, int)
        assert isinstance(tokens, int)
        by_ledger[key_id] = (count, tokens)
    assert {
        record.key_id: (record.total_requests, record.total_prompt_tokens)
        for record in page.records
    } == by_ledger
    by_hour = rows(
        store,
        "SELECT key_id, model, settled_at_ms / 3600000, count(*),"
        " CAST(sum(prompt_tokens) AS BIGINT)"
        " FROM ledger GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
    )
    totals = rows(
        store,
        "SELECT key_id, model, hour, num_requests, prompt_tokens FROM usage_by_hour"
        " ORDER BY 1, 2, 3",
    )
    assert totals == by_hour
    finals = {item.lease_id for group in groups for item in group}
    assert len(rows(store, "SELECT lease_id FROM ledger")) == len(finals)
    store.close()


def test_a_booking_reads_back_as_it_was_written(store: SqlStore) -> None:
    given_booking = booking("a", granted_at_ms=None)
    store.apply([given_booking])
    assert rows(store, "SELECT * FROM ledger") == [tuple(given_booking)]


def test_only_a_group_that_repeats_a_booking_needs_a_savepoint(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    def noted(connection: Connection, text: str, values: Sequence[Any] = ()) -> Any:
        texts.append(text.split()[0])
        return run(connection, text, values)

    monkeypatch.setattr(ledger, "run", noted)
    first = [booking(f"lease-{number}") for number in range(3)]
    assert store.apply(first) == [None] * 3
    assert texts == []
    again = booking("lease-1", prompt_tokens=77)
    new, repeated, last = store.apply([booking("lease-3"), again, booking("lease-4")])
    assert (new, repeated, last) == (None, Booked(()), None)
    assert texts == ["SAVEPOINT", "ROLLBACK", "RELEASE"]
    with store.database.reading() as connection:
        rows = connection.execute(select(schema.ledger.c.lease_id, schema.ledger.c.prompt_tokens))
        found = {row.lease_id: row.prompt_tokens for row in rows}
    assert found == {f"lease-{number}": first[0].prompt_tokens for number in range(5)}


def test_what_a_key_did_and_what_was_done_to_it_are_one_list(store: SqlStore) -> None:
    made = [("a", "b"), ("b", "a"), ("a", "a"), ("b", "b"), ("b", "a"), ("a", "c")]
    store.apply([AppendAudit(replace(AUDIT, actor_key_id=by, subject=on)) for by, on in made])

    def of_a(limit: int, after_seq: int | None = None, **wanted: Any) -> list[tuple[str, str]]:
        asked = ReadAuditRows(limit, key_id="a", after_seq=after_seq, **wanted)
        (page,) = store.apply([asked])
        assert isinstance(page, AuditRows)
        found = [(one.actor, one.subject) for one in page.entries]
        if not page.has_more:
            return found
        return found + of_a(limit, page.entries[-1].seq, **wanted)

    expected = [one for one in made if "a" in one]
    for limit in (1, 2, 10):
        assert of_a(limit) == expected[::-1]
        assert of_a(limit, oldest_first=True) == expected
        assert of_a(limit, subjects=("a", "c"), actors=("a",)) == [("a", "c"), ("a", "a")]
