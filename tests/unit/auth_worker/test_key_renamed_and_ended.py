"""A key's settings and its status change in one step, or neither does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from auth_worker.principals.keys import digest_of
from protocol.errors import ErrorCode
from protocol.wire.messages import Actor, KeySettings, UpdateKey
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import START_S
from tests.fakes.auth_stores import rows
from tests.unit.auth_worker.test_key_life import (
    ADMIN,
    answers,
    keys,
    make,
    opens,
    refusal,
    update,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[AuthHandlerBench]:
    bench = AuthHandlerBench(tmp_path)
    yield bench
    bench.store.close()


def both(key_id: str, action: Any, actor: Actor = ADMIN) -> UpdateKey:
    return structs.replace(update(key_id, actor, name="new"), action=action)


def recorded(bench: AuthHandlerBench) -> list[tuple[Any, ...]]:
    """Actions of the audit log on a key, and what it says of them; names are personal."""
    return rows(bench.store, "SELECT action, detail FROM audit_log WHERE subject = 'key_user'")


@pytest.mark.parametrize("action", ["suspend", "revoke"])
def test_the_last_lasting_admin_is_not_renamed_where_it_can_not_end(
    bench: AuthHandlerBench, action: str
) -> None:
    assert refusal(bench, both("key_admin", action)).code is ErrorCode.INVALID_REQUEST
    bench.write()
    assert rows(bench.store, "SELECT name FROM keys WHERE key_id = 'key_admin'") == [("key_admin",)]
    (renamed,) = answers(bench, update("key_admin", tags=("t",)))
    assert (keys(renamed)[0].status, keys(renamed)[0].settings.name) == ("active", "key_admin")


def test_who_may_end_a_key_and_not_change_it_does_neither(bench: AuthHandlerBench) -> None:
    ends = KeySettings(name="n", role="admin", expires_at=int(START_S) + 100)
    (*_, made) = answers(bench, make(ends, "psk-ends"))
    actor = Actor(key_id=keys(made)[0].key_id, key_digest=digest_of("psk-ends"))
    (*_, other) = answers(bench, make(KeySettings(name="other", role="admin"), "psk-other"))
    key_id = keys(other)[0].key_id
    assert refusal(bench, both(key_id, "revoke", actor)).code is ErrorCode.PERMISSION_DENIED
    assert opens(bench, "psk-other")


def test_both_are_one_entry_of_what_became_of_the_key(bench: AuthHandlerBench) -> None:
    (changed,) = answers(bench, both("key_user", "suspend"))
    assert (keys(changed)[0].status, keys(changed)[0].settings.name) == ("suspended", "new")
    assert not opens(bench)
    (again,) = answers(bench, both("key_user", "reactivate"))
    assert keys(again)[0].status == "active"
    assert opens(bench)
    (same,) = answers(bench, structs.replace(both("key_user", "reactivate"), fields=("tags",)))
    assert keys(same)[0].settings.name == "new"
    (ended,) = answers(bench, both("key_user", "revoke"))
    assert keys(ended)[0].status == "revoked"
    name = '{"name":"\\u2026"}'
    assert recorded(bench) == [
        ("key_suspended", name),
        ("key_reactivated", name),
        ("key_revoked", name),
    ]
    assert refusal(bench, both("key_user", "reactivate")).code is ErrorCode.INVALID_REQUEST


def test_a_status_that_was_so_is_not_told_as_new(bench: AuthHandlerBench) -> None:
    answers(bench, both("key_user", "reactivate"))
    assert recorded(bench) == [("key_updated", '{"name":"\\u2026"}')]
