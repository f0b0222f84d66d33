"""Every route, role and scope over HTTP, decided by a real authority: nobody gets past the
table."""

import asyncio
import json
from itertools import count
from pathlib import Path
from typing import Any, get_args

import pytest
from websockets.asyncio.client import connect

from auth_worker.decisions.authority import Authority, Rules
from auth_worker.principals.key_definition import checked, stored
from auth_worker.principals.keys import StoredKey, digest_of
from auth_worker.principals.roles import ROLE_SCOPES, SCOPES
from auth_worker.records.operations import Snapshot
from gateway.http.access.guard import GuardedRoute
from gateway.http.access.route_rules import ROUTE_RULES, Access
from gateway.http.app import build_api
from gateway.workers.auth import AdminQuestion
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    AuthCommand,
    Authorize,
    Denied,
    Failure,
    Generate,
    Granted,
    KeySettings,
    PrincipalRole,
)
from tests.fakes.auth_parts import START_S, FakeClock
from tests.fakes.every_route import call
from tests.fakes.fake_workers import FakeAuth
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway

ROLES: tuple[PrincipalRole, ...] = get_args(PrincipalRole)
_NUMBERS = count(1)


def secret_of(role: str, narrowing: str) -> str:
    return f"psk-{role}-{narrowing}"


def key_of(secret: str, **settings: Any) -> StoredKey:
    return stored(
        checked(KeySettings(name="k", **settings), wall_s=START_S),
        key_id=f"key_{next(_NUMBERS)}",
        digest=digest_of(secret),
        hint="",
        created_at=int(START_S),
    )


async def real_auth(
    gateway: RunningGateway, *keys: StoredKey, allow_anonymous: bool = False
) -> FakeAuth:
    """An auth worker that decides by an authority with these keys."""
    authority = Authority(
        epoch=1,
        snapshot=Snapshot(keys=keys, leases=(), recent=()),
        rules=Rules(allow_anonymous=allow_anonymous),
        clock=FakeClock(),
        emit=lambda operation: None,
    )
    auth = await gateway.auth(allow_anonymous=allow_anonymous)
    answer = auth.answer

    def decide(command: AuthCommand) -> None:
        if isinstance(command, Authorize):
            decided = authority.authorize(command)
            assert isinstance(decided, Granted | Denied)
            auth.send(decided)
        elif isinstance(command, AdminQuestion):
            # So that nobody waits for a time-out; what it is about isn't there.
            gone = ErrorCode.NOT_FOUND
            auth.send(Failure(request_id=command.request_id, code=gone, message="Nothing."))
        else:
            answer(command)

    auth.answer = decide  # type: ignore[method-assign]
    return auth


def routes(gateway: RunningGateway) -> list[tuple[str, str]]:
    """Method and template of every route that asks for a key."""
    found = []
    for route in build_api(gateway.application.parts).routes:
        assert isinstance(route, GuardedRoute)
        if route.rule.access is not Access.OPEN:
            found += [(method, route.path) for method in sorted(route.methods or ())]
    return found


@pytest.mark.parametrize("are_all", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_every_route_is_open_to_just_the_roles_and_scopes_of_the_table(
    socket_dir: Path, *, are_all: bool
) -> None:
    """Every route with a whole key of each role, and with narrowed ones: of all roles, or of one
    that may and one that may not, which are others at the next route."""
    # Of each role a key with all of it, one with each scope alone, and one with all but that.
    narrowings: dict[str, tuple[str, ...] | None] = {"all": None}
    for scope in SCOPES:
        narrowings[f"only-{scope}"] = (scope,)
        narrowings[f"but-{scope}"] = tuple(other for other in SCOPES if other != scope)
    keys = [
        key_of(secret_of(role, name), role=role, scopes=scopes)
        for role in ROLES
        for name, scopes in narrowings.items()
    ]
    async with running_gateway(socket_dir, require_keys=True, host="0.0.0.0") as gateway:
        await real_auth(gateway, *keys)
        walked = set()
        for number, (method, template) in enumerate(routes(gateway)):
            needed = ROUTE_RULES[template].scope
            sides = [
                [role for role in ROLES if (needed in ROLE_SCOPES[role]) is may]
                for may in (True, False)
            ]
            narrowed = {side[number % len(side)] for side in sides if side}
            for role in ROLES:
                narrow = (f"only-{needed}", f"but-{needed}") if are_all or role in narrowed else ()
                for name in ("all", *narrow):
                    headers = {"X-API-Key": secret_of(role, name)}
                    response = await call(gateway.client, method, template, headers)
                    may = needed in ROLE_SCOPES[role] and not name.startswith("but-")
                    where = (method, template, role, name, response.status_code, response.text)
                    assert (response.status_code == 403) is not may, where
                    assert response.status_code != 401, where
            walked.add(template)
        assert walked == {path for path, rule in ROUTE_RULES.items() if rule.scope is not None}


async def test_a_key_that_was_good_on_one_route_is_asked_about_again_on_another(
    socket_dir: Path,
) -> None:
    """Both have one scope, and the second reserves nothing: only the auth worker knows bounds."""
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        bound = key_of("psk-bound", role="service", allowed_endpoints=("/v1/tools",))
        await real_auth(gateway, bound)
        headers = {"X-API-Key": "psk-bound"}
        assert (await call(gateway.client, "GET", "/v1/tools", headers)).status_code == 200
        response = await call(gateway.client, "POST", "/mcp", headers)
        assert (response.status_code, "may not use /mcp" in response.text) == (403, True)


async def test_where_no_key_is_needed_callers_may_do_what_role_service_may(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        keys = [key_of(f"psk-{role}", role=role) for role in ROLES]
        await real_auth(gateway, *keys, allow_anonymous=True)
        for method, template in routes(gateway):
            # The administrative APIs of OpenAI and Anthropic are an administrator's as a whole.
            is_closed = ROUTE_RULES[template].scope not in ROLE_SCOPES["service"]
            is_closed |= template.startswith("/v1/organization")
            for headers in ({}, {"X-API-Key": "psk-unknown"}):
                response = await call(gateway.client, method, template, headers)
                where = (method, template, headers, response.status_code, response.text)
                assert (response.status_code == 401) is is_closed, where
                assert response.status_code != 403, where
        # A key that is known is judged by its role.
        for path in ("/v1/admin/workers", "/v1/providers/status"):
            for role, status in (("user", 403), ("readonly", 200), ("service", 200)):
                headers = {"X-API-Key": f"psk-{role}"}
                response = await gateway.client.get(path, headers=headers)
                assert response.status_code == status, (path, role, response.text)


async def test_a_key_sees_only_the_models_that_it_may_use(socket_dir: Path) -> None:
    narrow = key_of("psk-narrow", allowed_models=("de*",))
    other = key_of("psk-other", allowed_models=("llama*",))
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        await real_auth(gateway, narrow, other, key_of("psk-all"))
        await gateway.engine()
        seen = {}
        for name in ("narrow", "other", "all"):
            headers = {"X-API-Key": f"psk-{name}"}
            listed = (await gateway.client.get("/v1/models", headers=headers)).json()
            one = await gateway.client.get("/v1/models/demo", headers=headers)
            tools = (await gateway.client.get("/v1/tools", headers=headers)).json()
            as_anthropic = await gateway.client.get(
                "/v1/models", headers={**headers, "anthropic-version": "2023-06-01"}
            )
            seen[name] = (
                [model["id"] for model in listed["data"]],
                one.status_code,
                [model["id"] for model in tools["models"]],
                [model["id"] for model in as_anthropic.json()["data"]],
            )
        assert seen == {
            "narrow": (["demo"], 200, ["demo"], ["demo"]),
            "other": ([], 404, [], []),
            "all": (["demo"], 200, ["demo"], ["demo"]),
        }
        refused = await gateway.client.post(
            "/v1/chat/completions",
            json={"model": "demo", "messages": MESSAGES},
            headers={"X-API-Key": "psk-other"},
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
        await gateway.engine(model="secret-model")
        listed_in_404 = {}
        for name in ("narrow", "all"):
            answer = await gateway.client.post(
                "/v1/chat/completions",
                json={"model": "demo-of-none", "messages": MESSAGES},
                headers={"X-API-Key": f"psk-{name}"},
            )
            assert answer.status_code == 404
            listed_in_404[name] = answer.json()["error"]["message"].partition("models: ")[2]
        assert listed_in_404 == {"narrow": "`demo`.", "all": "`demo`, `secret-model`."}


async def test_a_websocket_names_only_models_that_the_key_may_use(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        await real_auth(gateway, key_of("psk-narrow", allowed_models=("de*",)))
        await gateway.engine()
        await gateway.engine(model="secret-model")
        url = f"ws://127.0.0.1:{gateway.client.base_url.port}/v1/responses"
        headers = {"X-API-Key": "psk-narrow"}
        async with connect(url, proxy=None, additional_headers=headers) as socket:
            asked = {"type": "response.create", "model": "demo-of-none", "input": "hi"}
            await socket.send(json.dumps(asked))
            told = json.loads(await asyncio.wait_for(socket.recv(), 60))
        assert told["status"] == 404
        assert told["error"]["message"].endswith("Available models: `demo`."), told


@pytest.mark.parametrize(
    ("settings", "fields", "status"),
    [
        ({"enable_streaming": False}, {"stream": True}, 403),
        ({"enable_streaming": False}, {}, 200),
        ({"enable_function_calling": False}, {}, 200),
        ({"max_tokens_per_request": 8}, {"max_tokens": 9}, 403),
        ({"max_tokens_per_request": 8}, {"max_tokens": 5, "n": 2}, 403),
        ({"max_tokens_per_request": 8}, {"max_tokens": 8}, 200),
        ({"allowed_ip_addresses": ["127.0.0.0/8"]}, {}, 200),
        ({"allowed_ip_addresses": ["10.0.0.0/8"]}, {}, 403),
        ({"allowed_endpoints": ["/v1/models"]}, {}, 403),
        ({"requests_per_minute": 0}, {}, 429),
        ({"max_parallel_requests": 0}, {}, 429),
    ],
)
async def test_what_a_key_may_not_do_is_refused_before_any_work(
    socket_dir: Path, settings: dict[str, Any], fields: dict[str, Any], status: int
) -> None:
    settings = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        await real_auth(gateway, key_of("psk-k", **settings))
        await gateway.engine()
        gateway.client.headers["X-API-Key"] = "psk-k"
        response = await gateway.chat(**fields)
        assert response.status_code == status, response.text
        if status == 429:
            assert response.headers["x-should-retry"] == "false"


async def test_a_tool_offered_by_a_key_that_may_use_none_is_refused(socket_dir: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        await real_auth(gateway, key_of("psk-k", enable_function_calling=False))
        await gateway.engine()
        await gateway.parser()
        gateway.client.headers["X-API-Key"] = "psk-k"
        assert (await gateway.chat(tools=[tool])).status_code == 403
        assert (await gateway.chat(tools=[tool], tool_choice="none")).status_code == 200


async def test_an_answer_ends_at_what_the_key_may_have(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        await real_auth(gateway, key_of("psk-k", max_tokens_per_request=7))
        engine = await gateway.engine()
        gateway.client.headers["X-API-Key"] = "psk-k"
        assert (await gateway.chat(n=3)).status_code == 200
        assert [one.lease_tokens for one in engine.of(Generate)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("Authorization", "Bearer psk-a")], 200),
        ([("X-API-Key", "psk-a")], 200),
        ([("Authorization", "bearer psk-a"), ("X-API-Key", "psk-a")], 200),
        ([("Authorization", "Bearer psk-a"), ("X-API-Key", "psk-b")], 401),
        ([("X-API-Key", "psk-a"), ("X-API-Key", "psk-b")], 401),
        ([("Authorization", "Bearer psk-a"), ("Authorization", "Bearer psk-b")], 401),
        ([("Authorization", "Basic psk-a"), ("X-API-Key", "psk-a")], 401),
        ([("Authorization", ""), ("X-API-Key", "psk-a")], 200),
        ([("Authorization", "Bearer"), ("X-API-Key", "psk-a")], 200),
        ([("X-API-Key", "")], 401),
        ([("api-key", "psk-a")], 401),
    ],
)
async def test_keys_come_from_two_headers_that_must_agree(
    socket_dir: Path, headers: list[tuple[str, str]], status: int
) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        await real_auth(gateway, key_of("psk-a"), key_of("psk-b"))
        await gateway.engine()
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
            body = {"model": "demo", "messages": MESSAGES, "api_key": "psk-a"}
            response = await gateway.client.request(
                method, f"{path}?api_key=psk-a&key=psk-a", headers=headers, json=body
            )
            assert response.status_code == status, (path, response.text)
            if status == 401:
                assert response.json()["error"]["code"] == "invalid_api_key"
