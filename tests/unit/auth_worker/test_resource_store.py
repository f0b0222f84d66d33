"""Users, teams, limits and prices in either database: written, read in pages, changed and
dropped."""

from dataclasses import replace
from typing import Any

from auth_worker.errors import InvalidCommandError, KeyNotFoundError, ResourceNotFoundError
from auth_worker.records.operations import (
    AddKey,
    AddResource,
    AuditEntry,
    ChangeResourceRow,
    CountKeyRows,
    DropKey,
    DropResource,
    KeyCounts,
    KeyPage,
    PutMember,
    ReadKeys,
    ReadResources,
    ResourcePage,
)
from auth_worker.storage.sql_store import SqlStore
from protocol.wire.messages import (
    LimitSettings,
    Member,
    PriceSettings,
    Resource,
    ResourceKind,
    ResourceSettings,
    TeamSettings,
    UserSettings,
)
from tests.fakes.auth_parts import START_S, stored_key

NOW = int(START_S)
AUDIT = AuditEntry(NOW * 1000, "key_admin", "user_created", "x")
USER = UserSettings(name="Ada", tags=("a", 'quo"te', "100%"), metadata={"ü": "\n"})
TEAM = TeamSettings(name="search", allowed_models=(), tenant_is_shared=True)
BUDGET = LimitSettings(
    name="b",
    holder="team",
    holder_id="team_1",
    measure="money",
    amount=2**53 - 1,
    window="calendar_month",
    models=("demo*",),
    thresholds=(5, 10),
)
PRICE = PriceSettings(models="demo", prompt=1, completion=2, valid_from=NOW)


def add(store: SqlStore, kind: ResourceKind, resource_id: str, settings: ResourceSettings) -> None:
    version = 1 if kind == "price" else 0
    resource = Resource(
        resource_id=resource_id,
        settings=settings,
        created_at=NOW,
        created_by="key_admin",
        version=version,
    )
    (page,) = store.apply([AddResource(kind, resource, AUDIT)])
    assert page == ResourcePage((resource,))


def page(store: SqlStore, kind: ResourceKind, **wanted: Any) -> tuple[Resource, ...]:
    (found,) = store.apply([ReadResources(kind, wanted.pop("limit", 10), **wanted)])
    assert isinstance(found, ResourcePage), found
    return found.resources


def ids(store: SqlStore, kind: ResourceKind, **wanted: Any) -> list[str]:
    return [one.resource_id for one in page(store, kind, **wanted)]


def filled(store: SqlStore) -> None:
    add(store, "user", "user_1", USER)
    add(store, "user", "user_2", UserSettings(name="Bob"))
    add(store, "team", "team_1", TEAM)
    add(store, "budget", "bud_1", BUDGET)
    add(store, "price", "price_1", PRICE)
    store.apply([PutMember("team_1", "user_1", "owner", NOW, AUDIT)])


def test_everything_reads_back_as_it_was_said(store: SqlStore) -> None:
    filled(store)
    (user,) = page(store, "user", resource_id="user_1")
    assert (user.settings, user.team_ids) == (USER, ("team_1",))
    (team,) = page(store, "team", resource_id="team_1")
    assert team.settings == TEAM
    assert team.members == (Member(user_id="user_1", role="owner", added_at=NOW),)
    (budget,) = page(store, "budget", resource_id="bud_1")
    assert budget.settings == BUDGET
    (price,) = page(store, "price", resource_id="price_1")
    assert price.settings == PRICE
    snapshot = store.load(recent_since_ms=0)
    assert [one.user_id for one in snapshot.users] == ["user_1", "user_2"]
    assert snapshot.teams[0].members == {"user_1": "owner"}
    assert (snapshot.limits[0].amount, snapshot.limits[0].counts_since) == (2**53 - 1, NOW)
    assert (snapshot.prices[0].cached_prompt, snapshot.prices[0].valid_from_ms) == (1, NOW * 1000)


def test_pages_and_filters(store: SqlStore) -> None:
    filled(store)
    store.apply([ChangeResourceRow("user", "user_2", {"suspended_at": NOW}, AUDIT)])
    assert ids(store, "user") == ["user_2", "user_1"]
    assert ids(store, "user", limit=1) == ["user_2"]
    assert ids(store, "user", after_id="user_2") == ["user_1"]
    assert ids(store, "user", status="active") == ["user_1"]
    assert ids(store, "user", tag='quo"te') == ["user_1"]
    assert ids(store, "user", tag="100_") == []
    assert ids(store, "user", tag="A") == [], "the case of a tag counts in either database"
    assert ids(store, "user", tag=",") == [], "what stands between two tags is none"
    assert ids(store, "user", tag="a") == ids(store, "user", tag="100%") == ["user_1"]
    assert ids(store, "user", member="team_1") == ["user_1"]
    assert ids(store, "team", member="user_1") == ["team_1"]
    assert ids(store, "team", member="user_2") == []
    assert ids(store, "budget", holder="team", holder_id="team_1") == ["bud_1"]
    assert ids(store, "limit") == []


def test_a_list_that_is_emptied_while_it_is_read_goes_on_after_what_is_gone(
    store: SqlStore,
) -> None:
    filled(store)
    store.apply([AddKey(stored_key(f"key_{number}", f"psk-{number}"), AUDIT) for number in (1, 2)])
    of_user = replace(AUDIT, action="user_deleted", subject="user_2")
    of_key = replace(AUDIT, action="key_deleted", subject="key_2")
    store.apply([DropResource("user", "user_2", NOW, of_user), DropKey("key_2", of_key)])
    assert ids(store, "user", after_id="user_2") == ["user_1"]
    page, none, no_user = store.apply(
        [
            ReadKeys("key_2", 10),
            ReadKeys("key_3", 10),
            ReadResources("user", 10, after_id="key_2"),
        ]
    )
    assert isinstance(page, KeyPage)
    assert "key_1" in [key.key_id for key in page.records]
    assert isinstance(none, KeyNotFoundError)
    assert isinstance(no_user, ResourceNotFoundError)


def test_a_price_changes_by_versions(store: SqlStore) -> None:
    filled(store)
    later = AuditEntry((NOW + 9) * 1000, "key_other", "price_updated", "price_1")
    store.apply([ChangeResourceRow("price", "price_1", {"prompt": 7}, later)])
    store.apply([DropResource("price", "price_1", NOW + 9, later)])
    versions = page(store, "price", resource_id="price_1")
    assert [(one.version, one.is_ended, one.created_by) for one in versions] == [
        (3, True, "key_other"),
        (2, False, "key_other"),
        (1, False, "key_admin"),
    ]
    assert [one.version for one in page(store, "price")] == [3]


def test_what_hangs_on_a_team_goes_with_it(store: SqlStore) -> None:
    filled(store)
    store.apply([AddKey(stored_key(team_id="team_1"), AUDIT)])
    (dropped,) = store.apply([DropResource("team", "team_1", NOW + 5, AUDIT)])
    assert isinstance(dropped, ResourcePage)
    assert ids(store, "budget") == []
    assert page(store, "user", resource_id="user_1")[0].team_ids == ()
    (keys, gone) = store.apply(
        [ReadKeys("", 1, key_id="key_user"), ReadResources("team", 1, resource_id="team_1")]
    )
    assert isinstance(keys, KeyPage)
    assert keys.records[0].revoked_at == NOW + 5
    assert isinstance(gone, ResourceNotFoundError)


def test_a_change_before_an_announced_one_takes_over_nothing_of_it(store: SqlStore) -> None:
    filled(store)
    announced = {"prompt": 7, "valid_from": NOW + 1000}
    now = AuditEntry((NOW + 9) * 1000, "key_other", "price_updated", "price_1")
    store.apply([ChangeResourceRow("price", "price_1", announced, now)])
    (refused,) = store.apply([ChangeResourceRow("price", "price_1", {"completion": 3}, now)])
    assert isinstance(refused, InvalidCommandError)
    assert refused.param == "valid_from"
    assert "Say prompt as well" in str(refused)
    assert f"(valid_from {NOW + 1000})" in str(refused)
    both = {"prompt": 1, "completion": 3}
    store.apply([ChangeResourceRow("price", "price_1", both, now)])
    at_announced = {"completion": 4, "valid_from": NOW + 1000}
    store.apply([ChangeResourceRow("price", "price_1", at_announced, now)])
    prices = store.load(recent_since_ms=0).prices
    assert [(one.version, one.prompt, one.completion) for one in prices] == [
        (1, 1, 2),
        (2, 7, 2),
        (3, 1, 3),
        (4, 1, 4),
    ]


def test_active_keys_that_their_user_or_team_closes_are_counted(store: SqlStore) -> None:
    add(store, "user", "user_1", USER)
    add(store, "user", "user_2", USER)
    add(store, "team", "team_1", TEAM)
    store.apply([PutMember("team_1", "user_1", "member", NOW, AUDIT)])
    of_whom: dict[str, dict[str, Any]] = {
        "nobody": {},
        "user": {"user_id": "user_1"},
        "team": {"team_id": "team_1"},
        "member": {"user_id": "user_1", "team_id": "team_1"},
        "no member": {"user_id": "user_2", "team_id": "team_1"},
        "revoked": {"user_id": "user_2", "team_id": "team_1", "revoked_at": NOW},
    }
    for name, fields in of_whom.items():
        store.apply([AddKey(stored_key(name, f"psk-{name}", **fields), AUDIT)])

    def num_closed() -> int:
        (counts,) = store.apply([CountKeyRows()])
        assert isinstance(counts, KeyCounts)
        assert (counts.num_keys, counts.by_status["active"]) == (6, 5)
        return counts.num_closed

    assert num_closed() == 1
    store.apply([ChangeResourceRow("user", "user_1", {"suspended_at": NOW}, AUDIT)])
    assert num_closed() == 3
    store.apply([ChangeResourceRow("team", "team_1", {"suspended_at": NOW}, AUDIT)])
    assert num_closed() == 4
