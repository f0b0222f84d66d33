"""Users and teams: whose keys they end, who may change them, and what shows of them in keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from auth_worker.principals.keys import digest_of
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Actor,
    ChangeKeyStatus,
    ChangeResource,
    CountKeys,
    Denied,
    FindKeys,
    Granted,
    KeysCounted,
    KeySettings,
    KeysFound,
    LimitHolder,
    LimitSettings,
    MakeKey,
    Member,
    Message,
    ResourceKind,
    RotateKey,
    SetMember,
    TeamSettings,
    UpdateKey,
    UserSettings,
)
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import ADMIN_SECRET, USER_SECRET, FakeClock, authorize
from tests.unit.auth_worker.test_resources import (
    ADMIN,
    NOW,
    actions,
    asked,
    change,
    find,
    found,
    harness,
    key_belongs,
    make,
    member,
    refused,
    update,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[AuthHandlerBench]:
    bench = AuthHandlerBench(tmp_path)
    yield bench
    bench.store.close()


def test_a_suspended_user_or_team_ends_its_keys_before_anything_is_written(
    bench: AuthHandlerBench,
) -> None:
    user, team = harness(bench)
    assert isinstance(key_belongs(bench, user_id=user, team_id=team), KeysFound)
    kinds: tuple[tuple[ResourceKind, str], ...] = (("user", user), ("team", team))
    for kind, resource_id in kinds:
        assert isinstance(bench.ask(authorize()), Granted)
        command = ChangeResource(
            request_id="r", actor=ADMIN, kind=kind, resource_id=resource_id, action="suspend"
        )
        assert bench.ask(command) is None
        denied = bench.ask(authorize())
        assert isinstance(denied, Denied)
        assert kind in denied.message
        bench.write()
        found(change(bench, kind, resource_id, "reactivate"))
    assert isinstance(bench.ask(authorize()), Granted)


def test_a_removed_member_loses_the_teams_keys_at_once(bench: AuthHandlerBench) -> None:
    user, team = harness(bench)
    assert isinstance(key_belongs(bench, user_id=user, team_id=team), KeysFound)
    found(member(bench, team, user, ""))
    assert isinstance(bench.ask(authorize()), Denied)
    assert refused(member(bench, team, user, "")) == (ErrorCode.NOT_FOUND, "user_id")
    found(member(bench, team, user, "owner"))
    assert isinstance(bench.ask(authorize()), Granted)
    one = found(find(bench, "team", resource_id=team))
    assert one.members == (Member(user_id=user, role="owner", added_at=NOW),)
    assert found(find(bench, "user", resource_id=user)).team_ids == (team,)


def test_a_key_says_by_whom_it_is_closed_whatever_its_own_status(bench: AuthHandlerBench) -> None:
    user, team = harness(bench)
    key_belongs(bench, user_id=user, team_id=team)

    def told() -> tuple[str, str, int]:
        """Of the key by itself, of it in a list, and how many there are of the kind."""
        one = asked(bench, FindKeys(request_id="r", actor=ADMIN, key_id="key_user"))
        all_of_team = asked(bench, FindKeys(request_id="r", actor=ADMIN, team_id=team))
        counted = asked(bench, CountKeys(request_id="r", actor=ADMIN))
        assert isinstance(one, KeysFound)
        assert isinstance(all_of_team, KeysFound)
        assert isinstance(counted, KeysCounted)
        assert one.keys == all_of_team.keys
        assert counted.by_status["active"] + counted.by_status["suspended"] == 2
        return one.keys[0].status, one.keys[0].closed_by, counted.num_closed

    assert told() == ("active", "", 0)
    kinds: tuple[tuple[ResourceKind, str], ...] = (("user", user), ("team", team))
    for kind, resource_id in kinds:
        found(change(bench, kind, resource_id, "suspend"))
        assert told() == ("active", kind, 1)
        found(change(bench, kind, resource_id, "reactivate"))
    found(member(bench, team, user, ""))
    assert told() == ("active", "membership", 1)
    suspended = ChangeKeyStatus(request_id="r", actor=ADMIN, key_id="key_user", action="suspend")
    answer = asked(bench, suspended)
    assert isinstance(answer, KeysFound)
    assert answer.keys[0].closed_by == "membership"
    assert told() == ("suspended", "membership", 0)


def test_a_key_belongs_only_to_whom_there_is(bench: AuthHandlerBench) -> None:
    user, team = harness(bench)
    stranger = found(make(bench, "user", UserSettings(name="Bob"))).resource_id
    for settings, param in (
        ({"user_id": "user_9"}, "user_id"),
        ({"team_id": "team_9"}, "team_id"),
        ({"user_id": stranger, "team_id": team}, "team_id"),
    ):
        assert refused(key_belongs(bench, **settings)) == (ErrorCode.INVALID_REQUEST, param)
    key_belongs(bench, user_id=user)
    assert refused(key_belongs(bench, user_id=stranger, team_id=team))[1] == "team_id"
    made = MakeKey(
        request_id="r",
        actor=ADMIN,
        key_digest=digest_of("psk-new"),
        hint="h",
        settings=KeySettings(name="new", user_id="user_9"),
    )
    assert refused(asked(bench, made)) == (ErrorCode.INVALID_REQUEST, "user_id")


@pytest.mark.parametrize("kind", ["user", "team"])
def test_deleting_a_user_or_team_revokes_its_keys_and_takes_its_limits_along(
    bench: AuthHandlerBench, kind: Literal["user", "team"], tmp_path: Path
) -> None:
    user, team = harness(bench)
    key_belongs(bench, user_id=user, team_id=team)
    holder_id = user if kind == "user" else team
    holders: tuple[LimitHolder, ...] = (kind, "house")
    for holder in holders:
        settings = LimitSettings(
            name="n",
            holder=holder,
            holder_id=holder_id if holder == kind else "",
            measure="tokens",
            amount=1,
            window="day",
        )
        found(make(bench, "limit", settings))
    found(change(bench, kind, holder_id, "delete"))
    assert isinstance(bench.ask(authorize()), Denied)
    assert [limit.holder for limit in bench.authority.limits] == ["house"]
    assert refused(find(bench, kind, resource_id=holder_id)) == (ErrorCode.NOT_FOUND, "id")
    # On record under an id that names nobody.
    (said,) = [detail for action, _, detail in actions(bench) if action == f"{kind}_deleted"]
    assert '"keys_revoked":1' in said
    assert not any("Ada" in detail for _, _, detail in actions(bench))
    keys = asked(bench, FindKeys(request_id="r", actor=ADMIN, key_id="key_user"))
    assert isinstance(keys, KeysFound)
    assert (keys.keys[0].status, keys.keys[0].revoked_at) == ("revoked", NOW)
    bench.store.close()
    store = SqliteStore(tmp_path, clock=FakeClock())
    snapshot = store.load(recent_since_ms=0)
    store.close()
    left = snapshot.teams if kind == "user" else snapshot.users
    assert len(left) == 1
    assert [limit.holder for limit in snapshot.limits] == ["house"]
    assert all(not one.members for one in snapshot.teams)


def test_the_last_admin_is_not_locked_out_by_a_user_or_a_team(bench: AuthHandlerBench) -> None:
    user = found(make(bench, "user", UserSettings(name="Root", role="admin"))).resource_id
    team = found(make(bench, "team", TeamSettings(name="ops"))).resource_id
    member(bench, team, user, "member")
    moved = UpdateKey(
        request_id="r",
        actor=ADMIN,
        key_id="key_admin",
        fields=("user_id", "team_id"),
        settings=KeySettings(name="", user_id=user, team_id=team),
    )
    assert isinstance(asked(bench, moved), KeysFound)
    for answer in (
        change(bench, "user", user, "suspend"),
        change(bench, "user", user, "delete"),
        update(bench, "user", user, role="user"),
        change(bench, "team", team, "suspend"),
        change(bench, "team", team, "delete"),
        member(bench, team, user, ""),
    ):
        assert refused(answer)[0] is ErrorCode.INVALID_REQUEST
        assert isinstance(bench.ask(authorize(ADMIN_SECRET)), Granted)


def test_a_narrowed_admin_makes_nobody_more_than_itself(bench: AuthHandlerBench) -> None:
    narrowed = MakeKey(
        request_id="r",
        actor=ADMIN,
        key_digest=digest_of("psk-narrow"),
        hint="h",
        settings=KeySettings(name="n", role="admin", scopes=("admin.users",)),
    )
    made = asked(bench, narrowed)
    assert isinstance(made, KeysFound)
    actor = Actor(key_id=made.keys[0].key_id)
    answer = make(bench, "user", UserSettings(name="x", role="admin"), actor)
    assert refused(answer)[0] is ErrorCode.PERMISSION_DENIED
    user = found(make(bench, "user", UserSettings(name="x"), actor)).resource_id
    answer = update(bench, "user", user, actor, role="admin")
    assert refused(answer)[0] is ErrorCode.PERMISSION_DENIED
    assert refused(make(bench, "team", TeamSettings(name="x"), actor))[0] is (
        ErrorCode.PERMISSION_DENIED
    )


def test_a_bounded_admin_wakes_no_key_that_may_do_more(bench: AuthHandlerBench) -> None:
    user = found(make(bench, "user", UserSettings(name="x"))).resource_id
    bounds = ("/v1/admin/users*",)
    actors = []
    for settings in (
        KeySettings(name="dormant", role="admin", user_id=user),
        KeySettings(name="n", role="admin", allowed_endpoints=bounds),
    ):
        digest = digest_of(f"psk-{settings.name}")
        made = asked(
            bench,
            MakeKey(request_id="r", actor=ADMIN, key_digest=digest, hint="h", settings=settings),
        )
        assert isinstance(made, KeysFound)
        actors.append(Actor(key_id=made.keys[0].key_id))
    answer = update(bench, "user", user, actors[1], role="admin")
    assert refused(answer)[0] is ErrorCode.PERMISSION_DENIED
    assert bench.authority.keys.users[user].role == "user"
    found(update(bench, "user", user, role="admin"))


def key_of(bench: AuthHandlerBench, name: str, **settings: Any) -> Actor:
    digest = digest_of(f"psk-{name}")
    made = asked(
        bench,
        MakeKey(
            request_id="r",
            actor=ADMIN,
            key_digest=digest,
            hint="h",
            settings=KeySettings(name=name, **settings),
        ),
    )
    assert isinstance(made, KeysFound)
    return Actor(key_id=made.keys[0].key_id)


@pytest.mark.parametrize(
    "bounds",
    [
        {"scopes": ("admin.users", "admin.teams")},
        {"allowed_endpoints": ("/v1/admin/users*", "/v1/admin/teams*")},
    ],
)
def test_a_narrowed_admin_ends_and_wakes_nobody_who_may_do_more(
    bench: AuthHandlerBench, bounds: dict[str, Any]
) -> None:
    boss = found(make(bench, "user", UserSettings(name="Boss", role="admin"))).resource_id
    ada = found(make(bench, "user", UserSettings(name="Ada"))).resource_id
    ops = found(make(bench, "team", TeamSettings(name="ops"))).resource_id
    lab = found(make(bench, "team", TeamSettings(name="lab"))).resource_id
    for team, user in ((ops, boss), (ops, ada), (lab, ada)):
        member(bench, team, user, "member")
    boss_key = key_of(bench, "boss", role="admin", user_id=boss, team_id=ops)
    key_of(bench, "ada", user_id=ada, team_id=lab)
    key_of(bench, "ops", user_id=ada, team_id=ops)
    narrow = key_of(bench, "narrow", role="admin", **bounds)

    def as_narrow(kind: ResourceKind, resource_id: str, action: Any) -> Message:
        return asked(
            bench,
            ChangeResource(
                request_id="r", actor=narrow, kind=kind, resource_id=resource_id, action=action
            ),
        )

    def as_narrow_member(team: str, user: str, role: Any) -> Message:
        return asked(
            bench,
            SetMember(request_id="r", actor=narrow, team_id=team, user_id=user, role=role),
        )

    def refuses() -> None:
        for action in ("suspend", "delete", "reactivate"):
            for kind, one in (("user", boss), ("team", ops)):
                answer = as_narrow(kind, one, action)  # type: ignore[arg-type]
                assert refused(answer)[0] is ErrorCode.PERMISSION_DENIED
        answer = update(bench, "user", boss, narrow, role="user")
        assert refused(answer)[0] is ErrorCode.PERMISSION_DENIED
        answer = as_narrow_member(ops, boss, "")
        assert refused(answer)[0] is ErrorCode.PERMISSION_DENIED

    refuses()
    assert isinstance(bench.ask(authorize("psk-boss")), Granted)
    change(bench, "user", boss, "suspend")
    member(bench, ops, boss, "")
    answer = as_narrow_member(ops, boss, "member")
    assert refused(answer)[0] is ErrorCode.PERMISSION_DENIED
    assert isinstance(bench.ask(authorize("psk-boss")), Denied)
    # Of those who may do no more than itself, everything.
    for action in ("suspend", "reactivate"):
        found(as_narrow("user", ada, action))
        found(as_narrow("team", lab, action))
    found(as_narrow_member(lab, ada, ""))
    found(as_narrow_member(ops, ada, ""))
    found(as_narrow("team", lab, "delete"))
    found(as_narrow("user", ada, "delete"))
    # A key that is revoked opens nothing, so it keeps nobody from anything.
    revoke = ChangeKeyStatus(request_id="r", actor=ADMIN, key_id=boss_key.key_id, action="revoke")
    assert isinstance(asked(bench, revoke), KeysFound)
    found(as_narrow("team", ops, "suspend"))


@pytest.mark.parametrize("bounds", [{"scopes": ("admin.keys",)}, {"expires_at": int(NOW) + 1000}])
def test_no_key_is_made_or_rotated_to_wait_until_its_user_administers(
    bench: AuthHandlerBench, bounds: dict[str, Any]
) -> None:
    ada = found(make(bench, "user", UserSettings(name="Ada"))).resource_id
    waiting = key_of(bench, "waiting", role="admin", user_id=ada).key_id
    plain = key_of(bench, "plain", user_id=ada).key_id
    actor = key_of(bench, "narrow", role="admin", **bounds)
    digest = digest_of("psk-mine")
    to_come = KeySettings(name="to come", role="admin", user_id=ada)
    for command in (
        MakeKey(request_id="r", actor=actor, key_digest=digest, hint="h", settings=to_come),
        RotateKey(request_id="r", actor=actor, key_id=waiting, key_digest=digest, hint="h"),
        UpdateKey(request_id="r", actor=actor, key_id=plain, settings=to_come, fields=("role",)),
    ):
        assert refused(asked(bench, command))[0] is ErrorCode.PERMISSION_DENIED, command
    for key_id, action in ((plain, "suspend"), (waiting, "suspend"), (waiting, "revoke")):
        ends = ChangeKeyStatus(request_id="r", actor=actor, key_id=key_id, action=action)  # type: ignore[arg-type]
        assert isinstance(asked(bench, ends), KeysFound)


def test_an_admin_that_expires_wakes_nobody_who_outlasts_it(bench: AuthHandlerBench) -> None:
    boss = found(make(bench, "user", UserSettings(name="Boss", role="admin"))).resource_id
    ada = found(make(bench, "user", UserSettings(name="Ada"))).resource_id
    ops = found(make(bench, "team", TeamSettings(name="ops"))).resource_id
    member(bench, ops, boss, "member")
    soon = int(NOW) + 1000
    for user in (boss, ada):
        key_of(bench, f"soon of {user}", role="admin", user_id=user, expires_at=soon)
        key_of(bench, f"key of {user}", role="admin", user_id=user)
    key_of(bench, "ops", role="admin", user_id=boss, team_id=ops)
    actor = key_of(bench, "for now", role="admin", expires_at=soon)

    def as_expiring(kind: ResourceKind, resource_id: str, action: Any) -> Message:
        command = ChangeResource(
            request_id="r", actor=actor, kind=kind, resource_id=resource_id, action=action
        )
        return asked(bench, command)

    found(as_expiring("user", boss, "suspend"))
    found(as_expiring("team", ops, "suspend"))
    for answer in (
        as_expiring("user", boss, "reactivate"),
        as_expiring("team", ops, "reactivate"),
        update(bench, "user", ada, actor, role="admin"),
    ):
        assert refused(answer)[0] is ErrorCode.PERMISSION_DENIED
    assert bench.authority.keys.users[ada].role == "user"
    assert isinstance(bench.ask(authorize(f"psk-key of {boss}")), Denied)
    remove = SetMember(request_id="r", actor=actor, team_id=ops, user_id=boss, role="")
    found(asked(bench, remove))
    back = SetMember(request_id="r", actor=actor, team_id=ops, user_id=boss, role="member")
    assert refused(asked(bench, back))[0] is ErrorCode.PERMISSION_DENIED
    found(update(bench, "user", boss, actor, role="user"))
    found(as_expiring("user", boss, "reactivate"))  # whose keys administer nothing now


def test_keys_are_found_by_their_user_and_their_team(bench: AuthHandlerBench) -> None:
    user, team = harness(bench)
    key_belongs(bench, user_id=user, team_id=team)
    cases: tuple[tuple[dict[str, Any], list[str]], ...] = (
        ({"user_id": user}, ["key_user"]),
        ({"team_id": team}, ["key_user"]),
        ({"user_id": "user_9"}, []),
        ({}, ["key_user", "key_admin"]),
    )
    for wanted, expected in cases:
        answer = asked(bench, FindKeys(request_id="r", actor=ADMIN, **wanted))
        assert isinstance(answer, KeysFound)
        assert [key.key_id for key in answer.keys] == expected


def test_a_team_that_shares_its_tenant_shows_in_its_keys(bench: AuthHandlerBench) -> None:
    _, team = harness(bench)
    asked(
        bench,
        UpdateKey(
            request_id="r",
            actor=ADMIN,
            key_id="key_user",
            fields=("tenant", "team_id"),
            settings=KeySettings(name="", team_id=team),
        ),
    )
    for shared, tenant in ((False, "key_user"), (True, team)):
        found(update(bench, "team", team, tenant_is_shared=shared))
        granted = bench.ask(authorize(USER_SECRET))
        assert isinstance(granted, Granted)
        shown = asked(bench, FindKeys(request_id="r", actor=ADMIN, key_id="key_user"))
        assert isinstance(shown, KeysFound)
        assert granted.tenant == shown.keys[0].tenant_id == tenant
