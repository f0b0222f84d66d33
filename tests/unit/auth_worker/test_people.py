"""What a key's user and team do to it: they end it, narrow it, and may share a tenant with it."""

from dataclasses import replace
from typing import Any

import pytest

from auth_worker.principals.keys import KeyDirectory, StoredKey, digest_of
from auth_worker.principals.people import StoredTeam, StoredUser
from auth_worker.principals.roles import ROLE_SCOPES
from auth_worker.records.operations import Snapshot
from protocol.errors import ErrorCode
from protocol.wire.messages import Denied, Granted
from tests.fakes.auth_parts import START_S, USER_SECRET, authority_bench, authorize, stored_key


def user(**fields: Any) -> StoredUser:
    return replace(StoredUser("user_1", "Ada", role="admin"), **fields)


def team(**fields: Any) -> StoredTeam:
    made = StoredTeam("team_1", "search", members={"user_1": "member"})
    return replace(made, **fields)


def key(**fields: Any) -> StoredKey:
    return stored_key(tenant="", **{"user_id": "user_1", "team_id": "team_1", **fields})


def directory(one: StoredKey, whose: StoredUser | None, of: StoredTeam | None) -> KeyDirectory:
    return KeyDirectory([one], [] if whose is None else [whose], [] if of is None else [of])


def known(keys: KeyDirectory) -> StoredKey:
    found = keys.find(digest_of(USER_SECRET))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("whose", "of", "ending"),
    [
        (user(), team(), None),
        (user(suspended_at=1), team(), "belongs to a user who is suspended"),
        (None, team(), "belongs to a user who no longer exists"),
        (user(), team(suspended_at=1), "belongs to a team that is suspended"),
        (user(), None, "belongs to a team that no longer exists"),
        (user(), team(members={}), "belongs to a user who is no longer a member of its team"),
    ],
)
def test_a_key_ends_with_its_user_its_team_and_the_membership(
    whose: StoredUser | None, of: StoredTeam | None, ending: str | None
) -> None:
    one = known(directory(key(), whose, of))
    assert one.is_active(START_S) is (ending is None)
    assert one.status(START_S) == "active"
    if ending is not None:
        assert one.ending(START_S) == f"{ending}; an administrator can change that"


def test_what_changes_about_a_user_holds_at_once_for_a_key_that_is_known_already() -> None:
    whose, of = user(), team()
    one = known(directory(key(), whose, of))
    assert one.is_active(START_S)
    whose.suspended_at = 5
    assert not one.is_active(START_S)
    whose.suspended_at, of.suspended_at = None, 5
    assert not one.is_active(START_S)
    of.suspended_at, of.members = None, {}
    assert not one.is_active(START_S)


def test_a_key_of_a_suspended_team_is_refused_by_name_and_its_leases_grow_no_more() -> None:
    of = team()
    bench = authority_bench(
        snapshot=Snapshot(keys=(key(),), leases=(), recent=(), users=(user(),), teams=(of,))
    )
    granted = bench.authority.authorize(authorize())
    assert isinstance(granted, Granted)
    of.suspended_at = 5
    denied = bench.authority.authorize(authorize())
    assert isinstance(denied, Denied)
    assert denied.code is ErrorCode.INVALID_API_KEY
    assert denied.message == (
        "This API key belongs to a team that is suspended; an administrator can change that."
    )


def test_a_team_shares_its_tenant_only_when_it_says_so_and_a_named_one_wins() -> None:
    of = team()
    keys = directory(key(), user(), of)
    assert known(keys).tenant_id == "key_user"
    of.tenant_is_shared = True
    assert known(keys).tenant_id == "team_1"
    keys.put(replace(known(keys), tenant="own"))
    assert known(keys).tenant_id == "own"


def test_a_key_can_do_no_more_than_its_user() -> None:
    whose = user()
    one = known(directory(key(role="admin"), whose, team()))
    assert "admin.keys" in one.scopes
    assert one.is_of_admin
    whose.role = "readonly"
    assert one.scopes == ROLE_SCOPES["readonly"]
    assert not one.is_of_admin


def test_the_models_of_a_team_narrow_those_of_its_keys() -> None:
    of = team(allowed_models=("demo*",))
    bench = authority_bench(
        snapshot=Snapshot(keys=(key(),), leases=(), recent=(), users=(user(),), teams=(of,))
    )
    granted = bench.authority.authorize(authorize(model="demo"))
    assert isinstance(granted, Granted)
    assert granted.team_allowed_models == ("demo*",)
    denied = bench.authority.authorize(authorize(model="large"))
    assert isinstance(denied, Denied)
    assert (denied.code, denied.message) == (
        ErrorCode.PERMISSION_DENIED,
        "The team of this key may not use the model 'large'.",
    )
    of.allowed_models = ()
    assert isinstance(bench.authority.authorize(authorize(model="demo")), Denied)


def test_the_last_admin_counts_only_while_its_user_lets_it() -> None:
    whose = user()
    keys = directory(key(role="admin"), whose, team())
    assert keys.num_lasting_admins(5) == 1
    whose.role = "user"
    assert keys.num_lasting_admins(5) == 0
