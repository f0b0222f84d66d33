"""Names that callers choose stop nobody, whatever is in them and however long they are."""

import random

import pytest

from auth_worker.errors import StoreError
from auth_worker.records.operations import AddKey, AuditEntry, BookUsage, FoldLedger, Removed
from auth_worker.records.stored_names import MAX_NAME_BYTES, stored_name
from auth_worker.storage.sql_store import SqlStore
from protocol.wire.messages import Granted, Settle
from tests.fakes.auth_parts import START_S, authority_bench, authorize, booking, stored_key
from tests.fakes.auth_stores import StoreHarness, rows

AUDIT = AuditEntry(int(START_S * 1000), "key_admin", "key_created", "key_user", {})
COUNTED = "SELECT CAST(sum(num_requests) AS BIGINT) FROM usage_by_hour"


def astral(num_chars: int, seed: int = 0) -> str:
    """So many characters of four bytes each that nothing compresses."""
    dice = random.Random(seed)
    return "".join(chr(dice.randrange(0x20000, 0x2A000)) for _ in range(num_chars))


def wait_for_names(store: SqlStore, *models: str) -> None:
    """Settlements whose sums wait beside the totals, a commit each."""
    store.apply([AddKey(stored_key(), AUDIT)])
    store.apply([booking("first")])  # the first ones are due at once
    for number, model in enumerate(models):
        store.apply([booking(f"lease-{number}", model=model)])


@pytest.mark.parametrize("is_restarted", [False, True])
def test_names_that_become_one_are_added_up(harness: StoreHarness, is_restarted: bool) -> None:
    store = harness.open()
    wait_for_names(store, "a\0", "a\ufffd")
    if is_restarted:
        store.close()
        store = harness.open()
    harness.clock.advance(1)
    store.apply([booking("last")])
    harness.clock.advance(1)
    store.apply([AddKey(stored_key(), AUDIT)])
    assert rows(store, COUNTED) == [(4,)]
    assert rows(store, "SELECT num_requests FROM usage_by_hour WHERE model <> 'demo'") == [(2,)]


@pytest.mark.parametrize("is_restarted", [False, True])
def test_names_too_long_for_an_index_are_counted(harness: StoreHarness, is_restarted: bool) -> None:
    store = harness.open()
    store.apply([AddKey(stored_key(), AUDIT)])
    store.apply([booking("first")])
    store.apply([booking("long", model=astral(512), end_user=astral(256, 1))])
    if is_restarted:
        store.close()
        store = harness.open()
    harness.clock.advance(1)
    store.apply([booking("last")])
    assert rows(store, COUNTED)[0][0] in (2, 3)
    (removed,) = store.apply([FoldLedger(int(START_S * 1000) + 3_600_000, 10)])
    assert removed == Removed(3)
    assert rows(store, "SELECT CAST(sum(num_requests) AS BIGINT) FROM ledger_hours") == [(3,)]


def test_what_is_too_long_for_an_index_spoils_only_itself(harness: StoreHarness) -> None:
    store = harness.open()
    if harness.kind == "postgresql":
        with pytest.raises(Exception, match="maximum 2704") as raised:
            store.apply([booking(astral(1024))])
        assert not isinstance(raised.value, StoreError)
    store.apply([booking("other")])
    assert rows(store, "SELECT lease_id FROM ledger WHERE lease_id = 'other'") == [("other",)]


def settle_of(lease_id: str, model: str = "") -> Settle:
    return Settle(
        lease_id=lease_id,
        request_id="req-1",
        prompt_tokens=1,
        completion_tokens=1,
        cached_tokens=0,
        reasoning_tokens=0,
        outcome="finished",
        model=model,
    )


def test_a_lease_is_known_by_the_name_under_which_it_is_stored(store: SqlStore) -> None:
    key = stored_key(may_name_end_users=True)
    authority = authority_bench(key).authority
    granted = authority.authorize(authorize(model="a\0", end_user="u\0"))
    assert isinstance(granted, Granted)
    assert "\0" not in granted.lease_id
    booked = authority.settle(settle_of(granted.lease_id))
    assert isinstance(booked, BookUsage)
    assert (booked.model, booked.end_user) == ("a\ufffd", "u\ufffd")
    # One of an older release, told twice.
    for _ in range(2):
        late = authority.settle(settle_of("lease:000001:0000000001:key_user:b\0"))
        assert isinstance(late, BookUsage)
        store.apply([late])
    assert rows(store, "SELECT count(*) FROM ledger") == [(1,)]
    store.close()


def test_a_longer_name_is_told_by_its_digest() -> None:
    assert stored_name("x" * MAX_NAME_BYTES) == "x" * MAX_NAME_BYTES
    one, other = stored_name(astral(129)), stored_name(astral(129, 1))
    assert one.startswith("sha256:")
    assert one != other
    assert stored_name(one) == one
    granted = authority_bench(stored_key()).authority.authorize(authorize(model=astral(512)))
    assert isinstance(granted, Granted)
    assert granted.lease_id.endswith(stored_name(astral(512)))
