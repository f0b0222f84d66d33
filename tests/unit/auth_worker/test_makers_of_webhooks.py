"""A webhook is the server's: who may make one, and what becomes of it after its maker."""

from pathlib import Path
from typing import Any

from msgspec import structs

from auth_worker.principals.keys import digest_of
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Actor,
    ChangeKeyStatus,
    ChangeResource,
    Failure,
    KeySettings,
    KeysFound,
    MakeKey,
    MakeResource,
    ResourcesFound,
    UpdateResource,
)
from tests.unit.auth_worker.test_webhooks import ADMIN, HOOK, Harness


def test_who_is_here_for_a_while_leaves_no_webhook_behind(tmp_path: Path) -> None:
    """It would go on telling of the audit log; whatever ends one is good at any time."""
    harness = Harness(tmp_path)
    webhook_id = harness.make().resource_id
    ends_at = int(harness.clock.wall) + 100
    made = harness.ask(
        MakeKey(
            request_id="k",
            actor=ADMIN,
            key_digest=digest_of("psk-guest"),
            hint="h",
            settings=KeySettings(name="guest", role="admin", expires_at=ends_at),
        )
    )
    assert isinstance(made, KeysFound)
    guest = Actor(key_id=made.keys[0].key_id)
    is_it: dict[str, Any] = {"request_id": "r", "kind": "webhook", "resource_id": webhook_id}
    moved = structs.replace(HOOK, url="https://mine.example/x")
    for command in (
        MakeResource(request_id="m", actor=guest, kind="webhook", settings=HOOK),
        UpdateResource(actor=guest, settings=moved, fields=("url",), **is_it),
        ChangeResource(actor=guest, action="reactivate", **is_it),
    ):
        refused = harness.ask(command)
        assert isinstance(refused, Failure), command
        assert refused.code is ErrorCode.PERMISSION_DENIED
    assert harness.hooks[webhook_id].url == HOOK.url
    for action in ("suspend", "delete"):
        ended = harness.ask(ChangeResource(actor=guest, action=action, **is_it))
        assert isinstance(ended, ResourcesFound)
    assert harness.hooks == {}


def test_a_webhook_is_the_servers_and_goes_on_after_the_key_that_made_it(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    other = harness.ask(
        MakeKey(
            request_id="k",
            actor=ADMIN,
            key_digest=digest_of("psk-other"),
            hint="h",
            settings=KeySettings(name="other", role="admin"),
        )
    )
    assert isinstance(other, KeysFound)
    key_id = other.keys[0].key_id
    made = harness.ask(
        MakeResource(request_id="m", actor=Actor(key_id=key_id), kind="webhook", settings=HOOK)
    )
    assert isinstance(made, ResourcesFound)
    harness.tick()
    ends = ChangeKeyStatus(request_id="c", actor=ADMIN, key_id=key_id, action="delete")
    assert isinstance(harness.ask(ends), KeysFound)
    assert harness.tick() == ["key_deleted"]
    assert harness.show(made.resources[0].resource_id).created_by == key_id


def test_who_may_not_read_the_audit_log_wakes_no_webhook(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    is_it: dict[str, Any] = {"request_id": "r", "kind": "webhook"}
    is_it["resource_id"] = harness.make().resource_id
    narrowed = KeySettings(name="hooks", role="admin", scopes=("admin.webhooks",))
    made = harness.ask(
        MakeKey(
            request_id="k",
            actor=ADMIN,
            key_digest=digest_of("psk-hooks"),
            hint="h",
            settings=narrowed,
        )
    )
    assert isinstance(made, KeysFound)
    actor = Actor(key_id=made.keys[0].key_id)
    suspended = harness.ask(ChangeResource(actor=actor, action="suspend", **is_it))
    assert isinstance(suspended, ResourcesFound)
    refused = harness.ask(ChangeResource(actor=actor, action="reactivate", **is_it))
    assert isinstance(refused, Failure)
    assert "admin.audit" in refused.message
    assert isinstance(
        harness.ask(ChangeResource(actor=ADMIN, action="reactivate", **is_it)), ResourcesFound
    )
