"""Routes that take no body answer whatever a client says of the body that it doesn't send."""

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.http.access.guard import GuardedRoute
from gateway.http.app import build_api
from tests.fakes.running_gateway import RunningGateway, running_gateway
from tests.integration.test_permissions import key_of, real_auth, secret_of

ADMIN = {"X-API-Key": secret_of("admin", "all")}
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"content": b""},
    {"content": b"", "headers": {"Content-Type": "text/plain"}},
    {"content": b"", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    {"content": b"", "headers": {"Content-Type": "application/json"}},
    {"content": b"", "headers": {"Content-Encoding": "gzip"}},
    {"content": b"a=b", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    {"content": b"{}", "headers": {"Content-Type": "text/plain;charset=UTF-8"}},
    {"json": {}},
)
MAY_BE_EMPTY = (
    "/v1/conversations",
    "/v1/admin/keys/{key_id}/rotate",
    "/v1/admin/teams/{team_id}/members/{user_id}",
    "/v1/admin/workers/{name}/drain",
    "/v1/models/invalidate-cache",
)


def routes(gateway: RunningGateway) -> list[tuple[str, GuardedRoute]]:
    """Those of which a client may think that they have a body."""
    found = []
    for route in build_api(gateway.application.parts).routes:
        assert isinstance(route, GuardedRoute)
        methods = {"POST", "PUT", "PATCH", "DELETE"} & set(route.methods or ())
        found += [(method, route) for method in sorted(methods)]
    return found


@pytest.mark.parametrize("require_keys", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_what_is_said_of_no_body_is_not_minded(
    socket_dir: Path, *, require_keys: bool
) -> None:
    async with running_gateway(socket_dir, require_keys=require_keys) as gateway:
        admin = key_of(ADMIN["X-API-Key"], role="admin")
        await real_auth(gateway, admin, allow_anonymous=not require_keys)
        walked = set()
        for method, route in routes(gateway):
            body = (route.openapi_extra or {}).get("requestBody")
            is_of_hooks = route.path.startswith("/v1/hooks/")
            if is_of_hooks or (body is not None and body["required"]):
                continue
            walked.add(route.path)
            url = re.sub(r"\{\w+(:path)?\}", "none", route.path)
            ways = WAYS if body is None else (WAYS[0], WAYS[3], WAYS[5])
            for way in ways:
                headers = ADMIN | way.get("headers", {})
                answer = await gateway.client.request(method, url, **{**way, "headers": headers})
                where = (method, url, way, answer.status_code, answer.text)
                assert answer.status_code in (200, 202, 404, 501), where
        for path in ("/v1/batches/{batch_id}/cancel", "/v1/responses/{response_id}/cancel"):
            assert path in walked
        assert walked >= set(MAY_BE_EMPTY)


async def test_a_body_of_a_web_form_is_no_json(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await real_auth(gateway, allow_anonymous=True)
        for path in ("/v1/conversations", "/v1/chat/completions", "/v1/hooks/a/b"):
            for kind in ("", "text/plain"):
                headers = {"Content-Type": kind} if kind else {}
                answer = await gateway.client.post(path, content=b"{}", headers=headers)
                assert answer.status_code == 400, answer.text
                assert "Content-Type" in answer.json()["error"]["message"]
