"""Users, teams, limits, budgets and prices: made, changed, ended, and what holds from when on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from auth_worker.principals.keys import digest_of
from auth_worker.principals.limit_rules import Limit, Window
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Actor,
    AuditPage,
    ChangeKeyStatus,
    ChangeResource,
    Denied,
    Failure,
    FindKeys,
    FindResources,
    Granted,
    KeySettings,
    KeysFound,
    LimitHolder,
    LimitSettings,
    MakeKey,
    MakeResource,
    Member,
    Message,
    PriceSettings,
    ReadAudit,
    Resource,
    ResourceKind,
    ResourceSettings,
    ResourcesFound,
    SetMember,
    TeamSettings,
    UpdateKey,
    UpdateResource,
    UserSettings,
)
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import ADMIN_SECRET, START_S, USER_SECRET, FakeClock, authorize

ADMIN = Actor(key_id="key_admin", address="192.0.2.1")
NOW = int(START_S)
BUDGET = LimitSettings(
    name="team budget",
    holder="team",
    holder_id="team_2",
    measure="money",
    amount=20_000_000,
    window="calendar_month",
    time_zone="Europe/Berlin",
    models=("demo*",),
    endpoints=(),
    is_hard=False,
    thresholds=(50, 90),
    rolls_over=True,
    raised_by=5,
    raised_until=NOW + 100,
)
PRICE = PriceSettings(models="demo", prompt=150_000, completion=600_000, cached_prompt=0)
FULL: dict[str, ResourceSettings] = {
    "user": UserSettings(
        name="Ada",
        email="ada@example.com",
        role="service",
        kind="service_account",
        tags=("a", 'quo"te'),
        metadata={"k": "v"},
    ),
    "team": TeamSettings(
        name="search",
        tenant_is_shared=True,
        allowed_models=(),
        tags=("b",),
        metadata={"ü": "\n"},
    ),
    "budget": BUDGET,
    "price": PRICE,
}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[AuthHandlerBench]:
    bench = AuthHandlerBench(tmp_path)
    yield bench
    bench.store.close()


def asked(bench: AuthHandlerBench, command: Any) -> Message:
    """The answer, when everything is durable."""
    at_once = bench.ask(command)
    if at_once is not None:
        return at_once
    (answer,) = bench.write()
    return answer


def found(answer: Message) -> Resource:
    assert isinstance(answer, ResourcesFound), answer
    return answer.resources[0]


def make(
    bench: AuthHandlerBench, kind: ResourceKind, settings: ResourceSettings, actor: Actor = ADMIN
) -> Message:
    command = MakeResource(request_id="r", actor=actor, kind=kind, settings=settings)
    return asked(bench, command)


def update(
    bench: AuthHandlerBench,
    kind: ResourceKind,
    resource_id: str,
    actor: Actor = ADMIN,
    **values: Any,
) -> Message:
    base: dict[ResourceKind, ResourceSettings] = {
        "user": UserSettings(name=""),
        "team": TeamSettings(name=""),
        "limit": LimitSettings(name="", holder="house", measure="tokens", amount=0, window="total"),
        "price": PriceSettings(models="", prompt=0, completion=0),
    }
    base["budget"] = base["limit"]
    settings = type(base[kind])(**{**_fields(base[kind]), **values})
    command = UpdateResource(
        request_id="r",
        actor=actor,
        kind=kind,
        resource_id=resource_id,
        fields=tuple(values),
        settings=settings,
    )
    return asked(bench, command)


def _fields(settings: ResourceSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in type(settings).__struct_fields__}


def change(
    bench: AuthHandlerBench, kind: ResourceKind, resource_id: str, action: Any, actor: Actor = ADMIN
) -> Message:
    command = ChangeResource(
        request_id="r", actor=actor, kind=kind, resource_id=resource_id, action=action
    )
    return asked(bench, command)


def find(bench: AuthHandlerBench, kind: ResourceKind, **wanted: Any) -> Message:
    return asked(bench, FindResources(request_id="r", actor=ADMIN, kind=kind, **wanted))


def member(bench: AuthHandlerBench, team_id: str, user_id: str, role: Any) -> Message:
    command = SetMember(request_id="r", actor=ADMIN, team_id=team_id, user_id=user_id, role=role)
    return asked(bench, command)


def key_belongs(bench: AuthHandlerBench, **settings: Any) -> Message:
    """The test's user key gets a user or a team."""
    command = UpdateKey(
        request_id="r",
        actor=ADMIN,
        key_id="key_user",
        fields=tuple(settings),
        settings=KeySettings(name="", **settings),
    )
    return asked(bench, command)


def refused(answer: Message) -> tuple[ErrorCode, str | None]:
    assert isinstance(answer, Failure), answer
    return answer.code, answer.param


def actions(bench: AuthHandlerBench) -> list[tuple[str, str, str]]:
    answer = asked(bench, ReadAudit(request_id="r", reader=ADMIN, oldest_first=True))
    assert isinstance(answer, AuditPage)
    return [(entry.action, entry.subject, entry.detail) for entry in answer.entries][3:]


def harness(bench: AuthHandlerBench) -> tuple[str, str]:
    """A user who is a member of a team."""
    user = found(make(bench, "user", UserSettings(name="Ada"))).resource_id
    team = found(make(bench, "team", TeamSettings(name="search"))).resource_id
    found(member(bench, team, user, "member"))
    return user, team


@pytest.mark.parametrize("kind", ["user", "team", "budget", "price"])
def test_what_is_said_about_a_resource_comes_back_as_it_was_said_also_after_a_restart(
    bench: AuthHandlerBench, kind: ResourceKind, tmp_path: Path
) -> None:
    harness(bench)
    made = found(make(bench, kind, FULL[kind]))
    settings = made.settings
    if isinstance(settings, PriceSettings):
        assert settings.valid_from == NOW
        assert made.version == 1
    else:
        assert settings == FULL[kind]
    assert (made.created_at, made.created_by) == (NOW, "key_admin")
    assert found(find(bench, kind, resource_id=made.resource_id)) == made
    bench.store.close()
    store = SqliteStore(tmp_path, clock=FakeClock())
    snapshot = store.load(recent_since_ms=0)
    store.close()
    ids = {
        "user": [user.user_id for user in snapshot.users],
        "team": [team.team_id for team in snapshot.teams],
        "budget": [limit.limit_id for limit in snapshot.limits],
        "price": [price.price_id for price in snapshot.prices],
    }
    assert made.resource_id in ids[kind]


def test_a_budget_holds_once_it_is_durable_and_ends_so(bench: AuthHandlerBench) -> None:
    harness(bench)
    command = MakeResource(request_id="r", actor=ADMIN, kind="budget", settings=BUDGET)
    assert bench.ask(command) is None
    assert len(bench.authority.limits) == 0
    made = found(bench.write()[0])
    assert bench.authority.limits.get(made.resource_id) == Limit(
        limit_id=made.resource_id,
        name="team budget",
        holder="team",
        holder_id="team_2",
        measure="money",
        amount=20_000_000,
        window=Window("calendar_month", "Europe/Berlin"),
        models=("demo*",),
        endpoints=(),
        is_hard=False,
        thresholds=(50, 90),
        rolls_over=True,
        raised_by=5,
        raised_until=NOW + 100,
        created_at=NOW,
    )
    found(update(bench, "budget", made.resource_id, amount=7, models=None))
    (limit,) = bench.authority.limits
    assert (limit.amount, limit.models, limit.name) == (7, None, "team budget")
    found(change(bench, "budget", made.resource_id, "delete"))
    assert len(bench.authority.limits) == 0
    gone = find(bench, "budget", resource_id=made.resource_id)
    assert refused(gone) == (ErrorCode.NOT_FOUND, "id")


@pytest.mark.parametrize(
    ("kind", "change_to", "param"),
    [
        ("budget", {"name": " "}, "name"),
        ("budget", {"measure": "tokens"}, "measure"),
        ("limit", {}, "measure"),
        ("budget", {"amount": -1}, "amount"),
        ("budget", {"amount": 2**53}, "amount"),
        ("budget", {"holder": "house"}, "holder_id"),
        ("budget", {"holder_id": ""}, "holder_id"),
        ("budget", {"holder_id": "team_9"}, "holder_id"),
        ("budget", {"holder": "user"}, "holder_id"),
        ("budget", {"holder": "key"}, "holder_id"),
        ("budget", {"holder": "end_user", "holder_id": "user_1"}, "holder_id"),
        ("budget", {"time_zone": "Mars/Olympus"}, "time_zone"),
        ("budget", {"time_zone": "../etc/passwd"}, "time_zone"),
        ("budget", {"time_zone": "/etc/passwd"}, "time_zone"),
        ("budget", {"time_zone": ""}, "time_zone"),
        ("budget", {"time_zone": "Europe"}, "time_zone"),
        ("budget", {"window": "total", "rolls_over": False}, "time_zone"),
        ("budget", {"window": "custom", "time_zone": "UTC"}, "starts_at"),
        ("budget", {"window": "custom", "time_zone": "UTC", "starts_at": 1}, "length_s"),
        ("budget", {"starts_at": 1}, "starts_at"),
        ("budget", {"length_s": 3600}, "length_s"),
        (
            "budget",
            {"window": "custom", "time_zone": "UTC", "starts_at": 1, "length_s": 59},
            "length_s",
        ),
        ("budget", {"window": "minute", "time_zone": "UTC"}, "rolls_over"),
        (
            "budget",
            {"window": "hour", "time_zone": "UTC", "rolls_over": False, "auto_renews": False},
            "auto_renews",
        ),
        ("budget", {"thresholds": (50, 50)}, "thresholds"),
        ("budget", {"thresholds": (90, 50)}, "thresholds"),
        ("budget", {"thresholds": (0,)}, "thresholds"),
        ("budget", {"thresholds": (101,)}, "thresholds"),
        ("budget", {"models": ("",)}, "models"),
        ("budget", {"endpoints": ("x" * 201,)}, "endpoints"),
        ("budget", {"raised_by": -1}, "raised_by"),
        ("budget", {"raised_by": 0}, "raised_until"),
        ("budget", {"raised_until": NOW}, "raised_until"),
        (
            "limit",
            {"measure": "parallel", "time_zone": "UTC", "rolls_over": False},
            "window",
        ),
    ],
)
def test_a_wrong_budget_is_refused_by_the_name_of_its_field(
    bench: AuthHandlerBench, kind: ResourceKind, change_to: dict[str, Any], param: str
) -> None:
    harness(bench)
    settings = LimitSettings(**{**_fields(BUDGET), **change_to})
    assert refused(make(bench, kind, settings)) == (ErrorCode.INVALID_REQUEST, param)
    assert len(bench.authority.limits) == 0


@pytest.mark.parametrize(
    ("change_to", "param"),
    [
        ({"models": ""}, "models"),
        ({"models": "x" * 201}, "models"),
        ({"prompt": -1}, "prompt"),
        ({"completion": 10**12 + 1}, "completion"),
        ({"cached_prompt": -1}, "cached_prompt"),
        ({"request": -1}, "request"),
        ({"valid_from": NOW}, "valid_from"),
    ],
)
def test_a_wrong_price_is_refused_by_the_name_of_its_field(
    bench: AuthHandlerBench, change_to: dict[str, Any], param: str
) -> None:
    settings = PriceSettings(**{**_fields(PRICE), **change_to})
    assert refused(make(bench, "price", settings)) == (ErrorCode.INVALID_REQUEST, param)
    made = found(make(bench, "price", PRICE)).resource_id
    answer = update(bench, "price", made, **change_to)
    assert refused(answer) == (ErrorCode.INVALID_REQUEST, param)


def test_settings_of_another_kind_are_refused(bench: AuthHandlerBench) -> None:
    assert refused(make(bench, "team", UserSettings(name="Ada")))[1] == "settings"
    team = found(make(bench, "team", TeamSettings(name="t"))).resource_id
    command = UpdateResource(
        request_id="r",
        actor=ADMIN,
        kind="team",
        resource_id=team,
        fields=("name",),
        settings=UserSettings(name="Ada"),
    )
    assert refused(asked(bench, command))[1] == "settings"


def test_whose_a_limit_is_and_what_it_counts_stays(bench: AuthHandlerBench) -> None:
    user, _ = harness(bench)
    budget = found(make(bench, "budget", BUDGET)).resource_id
    for name, value in (("holder", "house"), ("holder_id", user), ("measure", "tokens")):
        answer = update(bench, "budget", budget, ADMIN, **{name: value})
        assert refused(answer) == (ErrorCode.INVALID_REQUEST, name)
    assert refused(update(bench, "limit", budget, amount=1)) == (ErrorCode.NOT_FOUND, "id")


def test_a_raise_is_an_action_of_its_own_on_record(bench: AuthHandlerBench) -> None:
    harness(bench)
    budget = found(make(bench, "budget", BUDGET)).resource_id
    found(update(bench, "budget", budget, raised_by=9, raised_until=None))
    assert actions(bench)[-1] == (
        "budget_raised",
        budget,
        '{"raised_by":9,"raised_until":null}',
    )


def test_a_new_price_is_a_new_version_and_the_old_one_stays(bench: AuthHandlerBench) -> None:
    made = found(make(bench, "price", PRICE)).resource_id
    bench.clock.advance(100)
    found(update(bench, "price", made, prompt=300_000))
    bench.clock.advance(100)
    found(update(bench, "price", made, completion=1, valid_from=NOW + 1000))
    versions = find(bench, "price", resource_id=made)
    assert isinstance(versions, ResourcesFound)
    said = [
        (
            one.version,
            one.settings.valid_from,
            one.settings.prompt,
            one.settings.completion,
            one.settings.cached_prompt,
            one.settings.reasoning,
        )
        for one in versions.resources
        if isinstance(one.settings, PriceSettings)
    ]
    assert said == [
        (3, NOW + 1000, 300_000, 1, 0, None),
        (2, NOW + 100, 300_000, 600_000, 0, None),
        (1, NOW, 150_000, 600_000, 0, None),
    ]
    prices = bench.authority.prices
    for at_s, prompt in ((NOW - 1, None), (NOW, 150_000), (NOW + 100, 300_000)):
        price = prices.price_of("demo", at_s * 1000)
        assert (None if price is None else price.prompt) == prompt
    listed = find(bench, "price")
    assert isinstance(listed, ResourcesFound)
    assert [one.version for one in listed.resources] == [3]


def test_an_ended_price_is_none_and_its_models_may_get_another(bench: AuthHandlerBench) -> None:
    made = found(make(bench, "price", PRICE)).resource_id
    again = make(bench, "price", PRICE)
    assert refused(again) == (ErrorCode.INVALID_REQUEST, "models")
    bench.clock.advance(10)
    ended = found(change(bench, "price", made, "delete"))
    assert (ended.version, ended.is_ended) == (2, True)
    assert bench.authority.prices.price_of("demo", (NOW + 10) * 1000) is None
    assert bench.authority.prices.price_of("demo", (NOW + 9) * 1000) is not None
    assert refused(update(bench, "price", made, prompt=1)) == (ErrorCode.NOT_FOUND, "id")
    found(make(bench, "price", PRICE))


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
    assert (f"{kind}_deleted", holder_id, '{"keys_revoked":1}') in actions(bench)
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


def test_pages_are_newest_first_and_filtered(bench: AuthHandlerBench) -> None:
    user, team = harness(bench)
    other = found(make(bench, "user", UserSettings(name="Bob", tags=("x",)))).resource_id
    change(bench, "user", other, "suspend")

    def ids(**wanted: Any) -> list[str]:
        answer = find(bench, "user", **wanted)
        assert isinstance(answer, ResourcesFound)
        return [one.resource_id for one in answer.resources]

    assert ids() == [other, user]
    assert ids(limit=1) == [other]
    assert ids(after_id=other) == [user]
    assert ids(status="suspended") == [other]
    assert ids(status="active") == [user]
    assert ids(tag="x") == [other]
    assert ids(member=team) == [user]
    assert refused(find(bench, "user", after_id="user_9")) == (ErrorCode.NOT_FOUND, "after")
    budget = found(make(bench, "budget", BUDGET)).resource_id
    limit = found(
        make(
            bench,
            "limit",
            LimitSettings(name="l", holder="house", measure="tokens", amount=1, window="day"),
        )
    ).resource_id
    for kind, wanted, expected in (
        ("budget", {}, [budget]),
        ("limit", {}, [limit]),
        ("limit", {"holder": "house"}, [limit]),
        ("limit", {"holder": "team"}, []),
        ("budget", {"holder_id": team}, [budget]),
    ):
        answer = find(bench, kind, **wanted)  # type: ignore[arg-type]
        assert isinstance(answer, ResourcesFound)
        assert [one.resource_id for one in answer.resources] == expected


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


def test_a_holder_has_so_many_limits_and_no_more(bench: AuthHandlerBench) -> None:
    settings = LimitSettings(name="l", holder="house", measure="tokens", amount=1, window="day")
    made = [make(bench, "limit", settings) for _ in range(33)]
    assert all(isinstance(answer, ResourcesFound) for answer in made[:32])
    assert refused(made[32]) == (ErrorCode.INVALID_REQUEST, "holder_id")
    change(bench, "limit", found(made[0]).resource_id, "delete")
    found(make(bench, "limit", settings))


def test_limits_of_a_key_end_with_it(bench: AuthHandlerBench) -> None:
    settings = LimitSettings(
        name="l", holder="key", holder_id="key_user", measure="tokens", amount=1, window="day"
    )
    found(make(bench, "limit", settings))
    asked(
        bench,
        ChangeKeyStatus(request_id="r", actor=ADMIN, key_id="key_user", action="delete"),
    )
    assert len(bench.authority.limits) == 0
    answer = find(bench, "limit")
    assert isinstance(answer, ResourcesFound)
    assert answer.resources == ()


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


def test_a_resource_that_is_so_already_is_not_put_on_record_again(
    bench: AuthHandlerBench,
) -> None:
    user, team = harness(bench)
    before = len(actions(bench))
    found(update(bench, "user", user, name="Ada"))
    found(change(bench, "user", user, "reactivate"))
    found(member(bench, team, user, "member"))
    assert len(actions(bench)) == before


def test_refused_changes_are_on_record(bench: AuthHandlerBench) -> None:
    change(bench, "team", "team_9", "suspend")
    action, subject, detail = actions(bench)[-1]
    assert (action, subject) == ("change_refused", "team_9")
    assert '"command":"change_resource"' in detail
