"""A page of keys asks for each of their users once."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from fastapi import Request, Response

from gateway.errors import RemoteFailureError
from gateway.http.routes.anthropic_organization import workspaces
from gateway.http.routes.organization import parts, projects
from protocol.errors import ErrorCode
from protocol.wire.messages import KeyDetails, KeySettings, KeysFound, Resource, UserSettings

USERS = ("user_1", "user_2", "", "user_gone", "user_1", "user_gone", "user_1", "")


def key_of(number: int, user_id: str) -> KeyDetails:
    return KeyDetails(
        key_id=f"key_{number}",
        hint="h",
        status="active",
        settings=KeySettings(name=f"k{number}", user_id=user_id),
        tenant_id="",
        created_at=1,
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The ids of users that the auth worker was asked for."""
    counts: Counter[str] = Counter()

    async def one(_request: Request, kind: str, resource_id: str) -> Resource:
        if kind == "user":
            counts[resource_id] += 1
        if resource_id == "user_gone":
            raise RemoteFailureError("no such user", code=ErrorCode.NOT_FOUND)
        settings = UserSettings(name=resource_id, email="a@b.c")
        return Resource(resource_id=resource_id, settings=settings, created_at=1)

    async def find_keys(_request: Request, **_wanted: Any) -> KeysFound:
        found = tuple(key_of(number, user_id) for number, user_id in enumerate(USERS))
        return KeysFound(request_id="r", keys=found)

    monkeypatch.setattr(parts, "one", one)
    monkeypatch.setattr(projects, "one", one)
    for routes in (workspaces, projects):
        monkeypatch.setattr(routes, "find_keys", find_keys)
    return counts


async def of_anthropic(request: Request) -> tuple[Response, Callable[[Any], Any]]:
    answer = await workspaces.list_keys(request)
    return answer, lambda key: (key["principal"] or {}).get("user_id")


async def of_openai(request: Request) -> tuple[Response, Callable[[Any], Any]]:
    answer = await projects.list_project_keys(request, "team_1")
    return answer, lambda key: key["owner"].get("user", {}).get("id")


@pytest.mark.parametrize("listed", [of_anthropic, of_openai])
async def test_each_user_of_a_page_of_keys_is_asked_for_once(
    asked: Counter[str],
    listed: Callable[[Request], Awaitable[tuple[Response, Callable[[Any], Any]]]],
) -> None:
    request = Request({"type": "http", "query_string": b"", "headers": []})
    answer, user_of = await listed(request)
    told = [user_of(key) for key in orjson.loads(answer.body)["data"]]
    assert told == [one if one in ("user_1", "user_2") else None for one in USERS]
    assert asked == {"user_1": 1, "user_2": 1, "user_gone": 1}
