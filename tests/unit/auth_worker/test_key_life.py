"""A key's life: every setting changes without a new secret, and nobody locks the deployment."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from auth_worker.principals.keys import digest_of
from auth_worker.records.operations import KeyCounts
from auth_worker.storage.sqlite_store import SqliteStore
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Actor,
    Adjust,
    AuditPage,
    ChangeKeyStatus,
    CountKeys,
    Denied,
    Failure,
    FindKeys,
    Granted,
    KeyDetails,
    KeysCounted,
    KeySettings,
    KeysFound,
    MakeKey,
    Message,
    ReadAudit,
    RotateKey,
    UpdateKey,
)
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import (
    ADMIN_SECRET,
    START_S,
    USER_SECRET,
    FakeClock,
    authorize,
    stored_key,
)

ADMIN = Actor(key_id="key_admin", address="192.0.2.1")
OTHER_SECRET = "psk-other-0000000000000000"
FULL = KeySettings(
    name="full",
    description="d",
    owner="ada",
    role="service",
    scopes=("chat.completions", "models.list"),
    tenant="team",
    expires_at=int(START_S) + 1000,
    tags=("a", 'quo"te', "100%"),
    metadata={"k": "v", "ü": "\n"},
    requests_per_minute=0,
    tokens_per_minute=7,
    max_parallel_requests=8,
    max_tokens_per_request=9,
    allowed_models=(),
    allowed_endpoints=("/v1/*",),
    allowed_ip_addresses=("10.0.0.0/8",),
    blocked_ip_addresses=("10.0.0.1",),
    enable_streaming=False,
    enable_function_calling=False,
    priority="high",
)
FIELDS = tuple(KeySettings.__struct_fields__)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[AuthHandlerBench]:
    bench = AuthHandlerBench(tmp_path)
    yield bench
    bench.store.close()


def make(settings: KeySettings, secret: str = OTHER_SECRET, actor: Actor = ADMIN) -> MakeKey:
    return MakeKey(
        request_id="r", actor=actor, key_digest=digest_of(secret), hint="h", settings=settings
    )


def update(key_id: str, actor: Actor = ADMIN, **settings: Any) -> UpdateKey:
    return UpdateKey(
        request_id="r",
        actor=actor,
        key_id=key_id,
        fields=tuple(settings),
        settings=KeySettings(**{"name": "", **settings}),
    )


def change(key_id: str, action: Any, actor: Actor = ADMIN) -> ChangeKeyStatus:
    return ChangeKeyStatus(request_id="r", actor=actor, key_id=key_id, action=action)


def rotate(secret: str, overlap_s: int = 0, key_id: str = "key_user") -> RotateKey:
    return RotateKey(
        request_id="r",
        actor=ADMIN,
        key_id=key_id,
        key_digest=digest_of(secret),
        hint="h2",
        overlap_s=overlap_s,
    )


def answers(bench: AuthHandlerBench, *commands: Any) -> list[Message]:
    """The answers of commands that were all taken in, after one commit."""
    for command in commands:
        assert bench.ask(command) is None, command
    return list(bench.write())


def keys(message: Message) -> tuple[KeyDetails, ...]:
    assert isinstance(message, KeysFound), message
    return message.keys


def refusal(bench: AuthHandlerBench, command: Any) -> Failure:
    answer = bench.ask(command)
    assert isinstance(answer, Failure), answer
    return answer


def opens(bench: AuthHandlerBench, secret: str = USER_SECRET, **fields: Any) -> bool:
    return isinstance(bench.ask(authorize(secret, scope="models.list", **fields)), Granted)


def test_a_key_has_all_its_settings_when_it_was_made_and_after_a_restart(
    bench: AuthHandlerBench,
) -> None:
    (made,) = answers(bench, make(FULL))
    (details,) = keys(made)
    assert details.settings == FULL
    assert (details.status, details.created_by, details.tenant_id) == (
        "active",
        "key_admin",
        "team",
    )
    found = bench.administration._keys.get(details.key_id)
    bench.store.close()
    store = SqliteStore(bench.store.path.parent, clock=FakeClock())
    assert found in store.load(recent_since_ms=0).keys
    store.close()


def test_every_setting_changes_and_clears_without_a_new_secret(bench: AuthHandlerBench) -> None:
    everything = {name: getattr(FULL, name) for name in FIELDS}
    defaults = KeySettings(name="plain")
    cleared = {name: getattr(defaults, name) for name in FIELDS}
    changed, back = answers(bench, update("key_user", **everything), update("key_user", **cleared))
    assert keys(changed)[0].settings == FULL
    assert keys(back)[0].settings == defaults
    assert keys(back)[0].tenant_id == "key_user"
    assert opens(bench)


def test_only_the_named_settings_change(bench: AuthHandlerBench) -> None:
    for name in FIELDS:
        command = update("key_user", **{name: getattr(FULL, name)})
        assert bench.ask(command) is None
    (*_, last) = bench.write()
    assert keys(last)[0].settings == FULL


def test_a_changed_limit_counts_at_once_and_forgets_nothing(bench: AuthHandlerBench) -> None:
    bench.ask(update("key_user", requests_per_minute=2))
    for expected in (True, True, False):
        answer = bench.ask(authorize(scope="chat.completions"))
        assert isinstance(answer, Granted) is expected
    bench.ask(update("key_user", requests_per_minute=3))
    last = bench.ask(authorize(scope="chat.completions"))
    assert isinstance(last, Granted)
    assert isinstance(bench.ask(authorize(scope="chat.completions")), Denied)
    bench.ask(update("key_user", tokens_per_minute=0))
    growth = Adjust(request_id="r", lease_id=last.lease_id, prompt_tokens=10, completion_tokens=91)
    assert isinstance(bench.ask(growth), Denied)
    bench.ask(update("key_user", requests_per_minute=None, tokens_per_minute=None))
    assert isinstance(bench.ask(authorize(scope="chat.completions")), Granted)


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"scopes": ("chat.completions", "chat.nothing")}, "scopes"),
        ({"allowed_ip_addresses": ("10.0.0.0/33",)}, "allowed_ip_addresses"),
        ({"blocked_ip_addresses": ("host.example",)}, "blocked_ip_addresses"),
        ({"allowed_models": ("",)}, "allowed_models"),
        ({"allowed_endpoints": ("x" * 201,)}, "allowed_endpoints"),
        ({"allowed_models": ("x",) * 101}, "allowed_models"),
        ({"tags": ("t" * 65,)}, "tags"),
        ({"tags": ("t",) * 33}, "tags"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"max_parallel_requests": -1}, "max_parallel_requests"),
        ({"max_tokens_per_request": 2**53}, "max_tokens_per_request"),
        ({"owner": "two\nlines"}, "owner"),
        ({"expires_at": 5}, "expires_at"),
        ({"name": " "}, "name"),
        ({"name": "\ud800"}, "name"),
    ],
)
def test_a_setting_out_of_bounds_is_named_and_changes_nothing(
    bench: AuthHandlerBench, settings: dict[str, Any], param: str
) -> None:
    answer = refusal(bench, update("key_user", **settings))
    assert (answer.code, answer.param) == (ErrorCode.INVALID_REQUEST, param)
    answer = refusal(bench, make(KeySettings(**{"name": "n", **settings})))
    assert (answer.code, answer.param) == (ErrorCode.INVALID_REQUEST, param)
    assert bench.handler.num_unfinished() == 0


def test_a_setting_that_nobody_knows_is_refused(bench: AuthHandlerBench) -> None:
    command = UpdateKey(
        request_id="r",
        actor=ADMIN,
        key_id="key_user",
        fields=("budget",),
        settings=KeySettings(name=""),
    )
    assert refusal(bench, command).param == "budget"


def test_a_suspended_key_opens_nothing_until_it_is_reactivated(bench: AuthHandlerBench) -> None:
    assert opens(bench)
    assert bench.ask(change("key_user", "suspend")) is None
    denied = bench.ask(authorize())
    assert isinstance(denied, Denied)
    assert (denied.code, denied.message) == (
        ErrorCode.INVALID_API_KEY,
        "This API key is suspended until an administrator reactivates it.",
    )
    assert bench.ask(change("key_user", "reactivate")) is None
    assert opens(bench)
    suspended, active = bench.write()
    assert keys(suspended)[0].status == "suspended"
    assert keys(active)[0].status == "active"


def test_a_suspended_key_extends_no_running_request(bench: AuthHandlerBench) -> None:
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    bench.ask(change("key_user", "suspend"))
    growth = Adjust(
        request_id="r", lease_id=granted.lease_id, prompt_tokens=10, completion_tokens=91
    )
    assert isinstance(bench.ask(growth), Denied)
    bench.ask(change("key_user", "delete"))
    assert isinstance(bench.ask(growth), Denied)


def test_a_revoked_key_is_so_for_good(bench: AuthHandlerBench) -> None:
    bench.ask(change("key_user", "revoke"))
    for command in (
        change("key_user", "reactivate"),
        change("key_user", "suspend"),
        update("key_user", name="n"),
        rotate(OTHER_SECRET),
    ):
        assert "for good" in refusal(bench, command).message
    assert not opens(bench)


def test_a_rotated_key_overlaps_with_its_old_secret_for_as_long_as_was_said(
    bench: AuthHandlerBench,
) -> None:
    (rotated,) = answers(bench, rotate(OTHER_SECRET, overlap_s=60))
    (details,) = keys(rotated)
    assert (details.hint, details.last_rotated_by) == ("h2", "key_admin")
    assert details.last_rotated_at == int(START_S)
    assert details.previous_until == int(START_S) + 60
    assert opens(bench)
    assert opens(bench, OTHER_SECRET)
    bench.clock.advance(60)
    assert not opens(bench)
    denied = bench.ask(authorize())
    assert isinstance(denied, Denied)
    assert "rotated" in denied.message
    assert opens(bench, OTHER_SECRET)


def test_without_an_overlap_and_at_the_second_rotation_old_secrets_end_at_once(
    bench: AuthHandlerBench,
) -> None:
    bench.ask(rotate(OTHER_SECRET, overlap_s=60))
    bench.ask(rotate("psk-third", overlap_s=60))
    assert [opens(bench, one) for one in (USER_SECRET, OTHER_SECRET, "psk-third")] == [
        False,
        True,
        True,
    ]
    bench.ask(rotate("psk-fourth"))
    assert [opens(bench, one) for one in (OTHER_SECRET, "psk-third", "psk-fourth")] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("overlap_s", [-1, 31 * 24 * 3600])
def test_an_overlap_out_of_range_is_refused(bench: AuthHandlerBench, overlap_s: int) -> None:
    assert refusal(bench, rotate(OTHER_SECRET, overlap_s=overlap_s)).param == "overlap_s"


def test_a_rotated_key_is_not_given_a_secret_that_is_another_keys(bench: AuthHandlerBench) -> None:
    assert refusal(bench, rotate(ADMIN_SECRET)).param == "key_digest"


def test_a_deleted_key_is_gone_and_its_audit_row_names_nobody(bench: AuthHandlerBench) -> None:
    settings = KeySettings(name="Ada's laptop", owner="ada@example.org", metadata={"who": "Ada"})
    (made,) = answers(bench, make(settings))
    key_id = keys(made)[0].key_id
    deleted, gone, log = answers(
        bench,
        change(key_id, "delete"),
        FindKeys(request_id="r", actor=ADMIN, key_id=key_id),
        ReadAudit(request_id="r", reader=ADMIN, key_id=key_id),
    )
    assert keys(deleted)[0].key_id == key_id
    assert isinstance(gone, Failure)
    assert gone.code is ErrorCode.NOT_FOUND
    assert not opens(bench, OTHER_SECRET)
    assert isinstance(log, AuditPage)
    assert [entry.action for entry in log.entries] == ["key_deleted", "key_created"]
    assert all("Ada" not in entry.detail and "@" not in entry.detail for entry in log.entries)


LOCKING: list[dict[str, Any]] = [
    {"role": "user"},
    {"role": "service"},
    {"scopes": ()},
    {"scopes": ("admin.audit",)},
    {"expires_at": int(START_S) + 10_000},
    {"allowed_endpoints": ()},
    {"allowed_endpoints": ("/v1/admin/keys",)},
    {"allowed_ip_addresses": ("127.0.0.1",)},
    {"blocked_ip_addresses": ("10.0.0.0/8",)},
]


@pytest.mark.parametrize("settings", LOCKING)
def test_no_change_locks_out_the_last_lasting_admin(
    bench: AuthHandlerBench, settings: dict[str, Any]
) -> None:
    answer = refusal(bench, update("key_admin", **settings))
    assert (answer.code, answer.param) == (ErrorCode.INVALID_REQUEST, next(iter(settings)))
    assert opens(bench, ADMIN_SECRET)
    (made,) = answers(bench, make(KeySettings(name="second", role="admin")))
    second = Actor(key_id=keys(made)[0].key_id)
    answers(bench, update("key_admin", second, **settings))
    assert isinstance(bench.ask(update(second.key_id, second, **settings)), Failure)


@pytest.mark.parametrize("action", ["suspend", "revoke", "delete"])
def test_the_last_lasting_admin_does_not_end(bench: AuthHandlerBench, action: str) -> None:
    answer = refusal(bench, change("key_admin", action))
    assert (answer.code, answer.param) == (ErrorCode.INVALID_REQUEST, "key_id")
    assert opens(bench, ADMIN_SECRET)


@pytest.mark.parametrize(
    "settings",
    [{"allowed_models": ()}, {"requests_per_minute": 0}, {"scopes": ("admin.keys",)}],
)
def test_what_does_not_lock_the_deployment_may_change(
    bench: AuthHandlerBench, settings: dict[str, Any]
) -> None:
    assert bench.ask(update("key_admin", **settings)) is None
    assert isinstance(
        bench.ask(
            authorize(
                ADMIN_SECRET,
                scope="admin.keys",
                required_role="admin",
                prompt_tokens=0,
                completion_tokens=0,
                model="",
            )
        ),
        Granted,
    )


def test_a_narrowed_admin_makes_and_touches_no_key_that_may_do_more(
    bench: AuthHandlerBench,
) -> None:
    narrow = KeySettings(name="narrow", role="admin", scopes=("admin.keys", "models.list"))
    (made,) = answers(bench, make(narrow))
    actor = Actor(key_id=keys(made)[0].key_id)
    for command in (
        make(KeySettings(name="n", role="admin"), "psk-x", actor),
        update("key_user", actor, role="readonly"),
        update(actor.key_id, actor, scopes=None),
        update("key_admin", actor, name="mine"),
        change("key_admin", "suspend", actor),
        change("key_admin", "delete", actor),
    ):
        answer = refusal(bench, command)
        assert answer.code is ErrorCode.PERMISSION_DENIED
    assert bench.ask(make(KeySettings(name="n"), "psk-y", actor)) is None
    assert bench.ask(update("key_user", actor, requests_per_minute=1)) is None


BOUNDED: list[tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]] = [
    (
        {"allowed_endpoints": ("/v1/admin/keys*", "/v1/models")},
        [
            {},
            {"allowed_endpoints": ("*",)},
            {"allowed_endpoints": ("/v1/admin/keys", "/v1/admin/*")},
            {"allowed_endpoints": ("/v1/admin/key[a-z]",)},
        ],
        [
            {"allowed_endpoints": ()},
            {"allowed_endpoints": ("/v1/admin/keys/*", "/v1/models")},
            {"allowed_endpoints": ("/v1/admin/keys/{key_id}",)},
        ],
    ),
    (
        {"allowed_endpoints": ("/v1/admin/key?",)},
        [{"allowed_endpoints": ("/v1/admin/key*",)}],
        [{"allowed_endpoints": ("/v1/admin/key?",)}, {"allowed_endpoints": ("/v1/admin/keys",)}],
    ),
    (
        {"allowed_ip_addresses": ("10.0.0.0/8", "2001:db8::/32")},
        [
            {},
            {"allowed_ip_addresses": ("0.0.0.0/0",)},
            {"allowed_ip_addresses": ("10.1.0.0/16", "192.0.2.1")},
            {"allowed_ip_addresses": ("::/0",)},
        ],
        [
            {"allowed_ip_addresses": ("10.1.0.0/16",)},
            {"allowed_ip_addresses": ("2001:db8::1", "10.0.0.0/8")},
        ],
    ),
    (
        {"blocked_ip_addresses": ("203.0.113.0/24",)},
        [{}, {"blocked_ip_addresses": ("203.0.113.0/25",)}],
        [{"blocked_ip_addresses": ("203.0.113.0/24", "192.0.2.1")}],
    ),
]


@pytest.mark.parametrize(("bounds", "wider", "within"), BOUNDED)
def test_a_bounded_admin_makes_and_touches_no_admin_with_wider_bounds(
    bench: AuthHandlerBench,
    bounds: dict[str, Any],
    wider: list[dict[str, Any]],
    within: list[dict[str, Any]],
) -> None:
    (made,) = answers(bench, make(KeySettings(name="bounded", role="admin", **bounds)))
    actor = Actor(key_id=keys(made)[0].key_id)
    for number, settings in enumerate(wider):
        admin = KeySettings(name="n", role="admin", **settings)
        answer = refusal(bench, make(admin, f"psk-{number}", actor))
        assert answer.code is ErrorCode.PERMISSION_DENIED, settings
    takes_over = RotateKey(
        request_id="r", actor=actor, key_id="key_admin", key_digest=digest_of("psk-t"), hint="h"
    )
    (cleared,) = bounds
    for command in (
        takes_over,
        update("key_admin", actor, name="mine"),
        change("key_admin", "suspend", actor),
        update("key_user", actor, role="admin"),
        update(actor.key_id, actor, **{cleared: () if cleared.startswith("blocked") else None}),
    ):
        assert refusal(bench, command).code is ErrorCode.PERMISSION_DENIED, command
    for number, settings in enumerate(within):
        admin = KeySettings(name="n", role="admin", **settings)
        assert bench.ask(make(admin, f"psk-in-{number}", actor)) is None, settings
    assert bench.ask(make(KeySettings(name="n", role="service"), "psk-s", actor)) is None
    assert bench.ask(update("key_user", actor, requests_per_minute=1)) is None


def test_an_admin_that_expires_makes_and_touches_no_admin_that_outlasts_it(
    bench: AuthHandlerBench,
) -> None:
    soon, later = int(START_S) + 1000, int(START_S) + 1001
    (made,) = answers(bench, make(KeySettings(name="for now", role="admin", expires_at=soon)))
    actor = Actor(key_id=keys(made)[0].key_id)
    takes_over = RotateKey(
        request_id="r", actor=actor, key_id="key_admin", key_digest=digest_of("psk-t"), hint="h"
    )
    for command in (
        make(KeySettings(name="n", role="admin"), "psk-1", actor),
        make(KeySettings(name="n", role="admin", expires_at=later), "psk-2", actor),
        make(KeySettings(name="n", role="admin", scopes=("admin.audit",)), "psk-3", actor),
        takes_over,
        update("key_admin", actor, name="mine"),
        update("key_user", actor, role="admin"),
        update(actor.key_id, actor, expires_at=later),
        update(actor.key_id, actor, expires_at=None),
        change("key_admin", "reactivate", actor),
    ):
        assert refusal(bench, command).code is ErrorCode.PERMISSION_DENIED, command
    within = KeySettings(name="n", role="admin", expires_at=soon)
    (other,) = answers(bench, make(within, "psk-within", actor))
    assert bench.ask(update(actor.key_id, actor, expires_at=soon - 1)) is None
    assert bench.ask(make(KeySettings(name="n", role="service"), "psk-s", actor)) is None
    assert bench.ask(update("key_user", actor, requests_per_minute=1)) is None
    # It may end any.
    (*_, lasting) = answers(bench, make(KeySettings(name="lasting", role="admin"), "psk-lasting"))
    for key_id, action in (
        (keys(lasting)[0].key_id, "suspend"),
        (keys(lasting)[0].key_id, "revoke"),
        (keys(lasting)[0].key_id, "delete"),
        (keys(other)[0].key_id, "delete"),
    ):
        assert bench.ask(change(key_id, action, actor)) is None, action


def test_a_token_of_an_admin_makes_keys_that_outlast_it(bench: AuthHandlerBench) -> None:
    token = stored_key("token_1", "eyJ", role="admin", expires_at=int(START_S) + 60)
    assert bench.authority.keys.put_token(token) is None
    actor = Actor(key_id="token_1", key_digest=token.digest)
    assert bench.ask(make(KeySettings(name="n", role="admin"), "psk-1", actor)) is None


@pytest.mark.parametrize("actor", ["key_user", "anonymous", "key_none", ""])
def test_only_who_may_administer_does(bench: AuthHandlerBench, actor: str) -> None:
    who = Actor(key_id=actor)
    for command in (
        make(KeySettings(name="n"), actor=who),
        update("key_user", who, name="n"),
        change("key_user", "delete", who),
        FindKeys(request_id="r", actor=who),
        CountKeys(request_id="r", actor=who),
        ReadAudit(request_id="r", reader=who),
    ):
        assert refusal(bench, command).code is ErrorCode.PERMISSION_DENIED


def test_keys_are_found_by_role_status_owner_and_tag(bench: AuthHandlerBench) -> None:
    answers(bench, make(FULL), change("key_user", "suspend"))
    wanted: list[dict[str, Any]] = [
        {"role": "service"},
        {"status": "suspended"},
        {"status": "active"},
        {"owner": "ada"},
        {"tag": 'quo"te'},
        {"tag": "100%"},
        {"tag": "100_"},
        {"tag": "quo"},
        {},
    ]
    pages = answers(bench, *(FindKeys(request_id="r", actor=ADMIN, **one) for one in wanted))
    names = [[key.settings.name for key in keys(page)] for page in pages]
    assert names == [
        ["full"],
        ["key_user"],
        ["full", "key_admin"],
        ["full"],
        ["full"],
        ["full"],
        [],
        [],
        ["full", "key_user", "key_admin"],
    ]


def test_a_status_follows_from_the_time(bench: AuthHandlerBench) -> None:
    answers(bench, update("key_user", expires_at=int(START_S) + 10))
    bench.clock.advance(10)
    (page,) = answers(bench, FindKeys(request_id="r", actor=ADMIN, status="expired"))
    assert [(key.key_id, key.status) for key in keys(page)] == [("key_user", "expired")]


def test_keys_are_counted(bench: AuthHandlerBench) -> None:
    answers(bench, make(FULL), change("key_user", "revoke"))
    (counted,) = answers(bench, CountKeys(request_id="r", actor=ADMIN))
    assert isinstance(counted, KeysCounted)
    assert counted.num_keys == 3
    assert counted.by_role == {"admin": 1, "service": 1, "user": 1, "readonly": 0}
    assert counted.by_status == {"active": 2, "revoked": 1, "expired": 0, "suspended": 0}
    assert counted.histograms["last_used"]["never"] == 3
    assert counted.histograms["expires_in"] == {
        **dict.fromkeys(("past", "day", "week", "month", "year", "longer"), 0),
        "never": 2,
        "hour": 1,
    }
    assert all(sum(buckets.values()) == 3 for buckets in counted.histograms.values())
    assert set(KeyCounts.__dataclass_fields__) | {"request_id"} == set(
        KeysCounted.__struct_fields__
    )


def test_a_revocation_while_the_disk_is_stuck_is_written_when_it_is_asked_for_again(
    bench: AuthHandlerBench,
) -> None:
    bench.committer._max_backlog = 0
    assert isinstance(bench.ask(change("key_user", "revoke")), Failure)
    assert not opens(bench)
    bench.committer._max_backlog = 100
    (page,) = answers(bench, change("key_user", "revoke"))
    assert keys(page)[0].revoked_at == int(START_S)
