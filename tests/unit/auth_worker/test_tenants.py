"""Whose prompts, share and places a key uses: its own, unless a tenant is named."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from auth_worker.principals.keys import digest_of
from auth_worker.records.operations import AddKey, AuditEntry
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.wire.messages import CreateKey, Granted, KeyRecord, Keys, ListKeys
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import FakeClock, authority_bench, authorize, stored_key

AUDIT = AuditEntry(0, "", "key_created", "x")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[AuthHandlerBench]:
    bench = AuthHandlerBench(tmp_path)
    yield bench
    bench.store.close()


def create(bench: AuthHandlerBench, secret: str, tenant: str = "") -> None:
    command = CreateKey(
        request_id=secret,
        key_digest=digest_of(secret),
        hint="",
        name=secret,
        tenant=tenant,
        actor_key_id="key_admin",
    )
    assert bench.ask(command) is None


def tenant_of(bench: AuthHandlerBench, secret: str) -> str:
    granted = bench.ask(authorize(secret))
    assert isinstance(granted, Granted)
    return granted.tenant


def by_name(bench: AuthHandlerBench) -> dict[str, KeyRecord]:
    """The keys as they were created, and once more as they are listed."""
    bench.ask(ListKeys(request_id="list"))
    *created, listed = (answer for answer in bench.commit() if isinstance(answer, Keys))
    records = {record.name: record for answer in created for record in answer.records}
    assert {record.name: record for record in listed.records} | records == {
        record.name: record for record in listed.records
    }
    return records


def test_keys_without_a_named_tenant_share_nothing(bench: AuthHandlerBench) -> None:
    create(bench, "one")
    create(bench, "two")
    create(bench, "one")  # its answer was lost
    records = by_name(bench)
    assert tenant_of(bench, "one") == records["one"].tenant == records["one"].key_id
    assert tenant_of(bench, "two") == records["two"].tenant == records["two"].key_id
    assert records["one"].key_id != records["two"].key_id


def test_keys_of_a_named_tenant_share(bench: AuthHandlerBench) -> None:
    create(bench, "one", "team")
    create(bench, "two", "team")
    assert {record.tenant for record in by_name(bench).values()} == {"team"}
    assert {tenant_of(bench, "one"), tenant_of(bench, "two")} == {"team"}


def test_a_key_joins_another_one_that_was_made_without_a_tenant(bench: AuthHandlerBench) -> None:
    create(bench, "two", "key_user")
    by_name(bench)
    assert tenant_of(bench, "two") == "key_user"


def test_keys_of_a_database_from_before_are_no_longer_one_tenant(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, clock=FakeClock())
    keys = [stored_key(f"key_{name}", name, tenant="default") for name in ("one", "two")]
    store.apply([AddKey(key, AUDIT) for key in keys])
    bench = authority_bench(snapshot=store.load(recent_since_ms=0))
    store.close()
    answers = [bench.authority.authorize(authorize(name)) for name in ("one", "two")]
    assert [answer.tenant for answer in answers if isinstance(answer, Granted)] == [
        "key_one",
        "key_two",
    ]
