"""Keys as Anthropic's organization client sees and changes them."""

from typing import Any

import orjson
import pytest
from fastapi import Request

from gateway.http.routes.anthropic_organization import workspaces
from gateway.http.schemas.administration.organization import WorkspaceKeyRequest
from protocol.wire.messages import (
    Actor,
    ChangeKeyStatus,
    KeyDetails,
    KeySettings,
    KeysFound,
    UpdateKey,
)

ACTOR = Actor(key_id="key_admin")


def key_of(number: int, **fields: Any) -> KeyDetails:
    kept: dict[str, Any] = {
        "hint": "h",
        "status": "active",
        "settings": KeySettings(name="k"),
        "tenant_id": "",
        "created_at": 1,
    }
    return KeyDetails(key_id=f"key_{number}", **{**kept, **fields})


KEYS = (
    key_of(9),
    key_of(8, closed_by="user"),
    key_of(7, status="revoked", closed_by="team"),
    key_of(6, status="suspended"),
    key_of(5, status="expired"),
    key_of(4, closed_by="membership"),
    key_of(3),
)


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("", "active inactive archived inactive expired inactive active"),
        ("active", "active active"),
        ("inactive", "inactive inactive inactive"),
        ("archived", "archived"),
        ("expired", "expired"),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_a_key_that_its_user_or_team_closes_is_inactive(
    monkeypatch: pytest.MonkeyPatch, status: str, shown: str, limit: int
) -> None:
    async def find_keys(_request: Request, **wanted: Any) -> KeysFound:
        ids = [key.key_id for key in KEYS]
        rest = KEYS[ids.index(wanted["after_key_id"]) + 1 :] if wanted["after_key_id"] else KEYS
        fit = [key for key in rest if wanted["status"] in ("", key.status)]
        page = min(2, wanted["limit"])  # as small as they come
        return KeysFound(request_id="r", keys=tuple(fit[:page]), has_more=len(fit) > page)

    monkeypatch.setattr(workspaces, "find_keys", find_keys)
    told: list[tuple[str, str]] = []
    after, has_more = "", True
    while has_more:
        query = f"limit={limit}" + (f"&status={status}" if status else "")
        query += f"&after_id={after}" if after else ""
        scope = {"type": "http", "query_string": query.encode(), "headers": []}
        answer = orjson.loads((await workspaces.list_keys(Request(scope))).body)
        assert len(answer["data"]) <= limit
        told += [(key["id"], key["status"]) for key in answer["data"]]
        after, has_more = answer["last_id"], answer["has_more"]
    assert [status for _, status in told] == shown.split()
    assert len(dict(told)) == len(told)


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (
            {"name": "new", "status": "archived"},
            UpdateKey("r", ACTOR, "key_9", ("name",), KeySettings(name="new"), "revoke"),
        ),
        ({"name": "new"}, UpdateKey("r", ACTOR, "key_9", ("name",), KeySettings(name="new"))),
        ({"status": "inactive"}, ChangeKeyStatus("r", ACTOR, "key_9", "suspend")),
    ],
)
async def test_what_is_to_be_different_about_a_key_is_one_command(
    monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], asked: UpdateKey | ChangeKeyStatus
) -> None:
    commands: list[Any] = []

    async def administer_keys(_request: Request, question: Any) -> KeysFound:
        commands.append(question)
        return KeysFound(request_id="r", keys=(key_of(9),))

    async def body_of(*_: Any) -> WorkspaceKeyRequest:
        return WorkspaceKeyRequest(**body)

    monkeypatch.setattr(workspaces, "administer_keys", administer_keys)
    monkeypatch.setattr(workspaces, "body_of", body_of)
    monkeypatch.setattr(workspaces, "actor_of", lambda _request: ACTOR)
    request = Request({"type": "http", "query_string": b"", "headers": []})
    request.state.request_id = "r"
    await workspaces.change_key(request, "key_9")
    assert commands == [asked]
