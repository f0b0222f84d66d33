"""Users, teams, limits, budgets and prices: made, changed, ended, and what holds from when on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from auth_worker.principals.limit_rules import Limit, Window
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Actor,
    AuditPage,
    ChangeKeyStatus,
    ChangeResource,
    Failure,
    FindResources,
    KeySettings,
    LimitSettings,
    MakeResource,
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
from tests.fakes.auth_parts import START_S, FakeClock

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
        counts_since=NOW,
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
        ({"valid_from": 1_893_456_000_000}, "valid_from"),  # milliseconds: the year 61971
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
    bench.clock.advance(100)  # the raise that it was made with is over
    assert refused(update(bench, "budget", budget, raised_by=9))[1] == "raised_until"
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


def test_of_two_prices_of_one_name_that_are_asked_for_at_once_one_is_made(
    bench: AuthHandlerBench,
) -> None:
    command = MakeResource(request_id="r", actor=ADMIN, kind="price", settings=PRICE)
    assert bench.ask(command) is None
    again = bench.ask(command)
    assert again is not None
    assert refused(again) == (ErrorCode.INVALID_REQUEST, "models")
    (made,) = map(found, bench.write())
    change(bench, "price", made.resource_id, "delete")
    assert isinstance(make(bench, "price", PRICE), ResourcesFound)
