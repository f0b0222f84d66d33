"""The HTTP surface of a real gateway: who gets in, what errors look like, probes and keys."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from gateway.http.access.guard import GuardedRoute
from gateway.http.access.route_rules import ROUTE_RULES, Access
from gateway.http.app import build_api
from gateway.http.bodies import parsers
from gateway.http.errors.error_table import ERROR_TABLE
from protocol.errors import NO_API_KEY, ErrorCode
from protocol.runtime.metrics import MetricRegistry
from protocol.wire.messages import Authorize, Generate, LimitState, MakeKey
from tests.fakes.fake_workers import FakeEngine
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def guarded_routes(gateway: RunningGateway) -> list[tuple[str, str, Access]]:
    """Method, path and access of every route of the application."""
    found = []
    for route in build_api(gateway.application.parts).routes:
        candidates = getattr(getattr(route, "original_router", None), "routes", [route])
        for one in candidates:
            assert isinstance(one, GuardedRoute), one
            found += [(method, one.path, one.rule.access) for method in one.methods or ()]
    return found


async def test_every_route_but_the_open_ones_demands_authorisation(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True, host="0.0.0.0") as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        await gateway.engine()
        auth.denial = ErrorCode.INVALID_API_KEY
        routes = guarded_routes(gateway)
        assert len(routes) >= 14
        for method, path, access in routes:
            url = path.replace("{model_id:path}", "demo").replace("{key_id}", "key-1")
            body: dict[str, Any] = {"model": "demo", "messages": MESSAGES}
            if path == "/v1/completions":
                body = {"model": "demo", "prompt": "x"}
            if path in ("/v1/embeddings", "/v1/responses"):
                body = {"model": "demo", "input": "x"}
            if path == "/v1/messages":
                body["max_tokens"] = 1
            key = {"X-API-Key": "psk-wrong"}
            response = await gateway.client.request(method, url, json=body, headers=key)
            if access is Access.OPEN:
                assert response.status_code in (200, 503), path
            else:
                assert response.status_code == 401, path
                assert response.headers["www-authenticate"] == "Bearer"
                if path.startswith(("/v1/messages", "/v1/organizations/")):  # Anthropic's shape
                    assert response.json()["error"]["type"] == "authentication_error"
                    continue
                if path == "/mcp":  # JSON-RPC's shape
                    assert response.json()["error"]["data"]["code"] == "invalid_api_key"
                    continue
                assert error_of(response)["code"] == "invalid_api_key"


async def test_without_a_key_the_body_is_not_even_read(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        response = await gateway.client.post("/v1/chat/completions", content=b"{broken")
        assert response.status_code == 401
        assert error_of(response)["message"] == NO_API_KEY
        assert auth.of(Authorize) == []
        empty = {"X-API-Key": ""}
        response = await gateway.client.post("/v1/completions", json={}, headers=empty)
        assert response.status_code == 401


def test_only_probes_are_open() -> None:
    assert {path for path, rule in ROUTE_RULES.items() if rule.access is Access.OPEN} == {
        "/live",
        "/ready",
        "/health",
        "/ping",
    }


async def test_without_an_auth_worker_nobody_gets_in(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.engine()
        response = await gateway.client.get("/v1/models")
        assert response.status_code == 503
        assert "retry-after" in response.headers


async def test_a_gateway_that_requires_keys_never_asks_an_auth_worker_that_does_not(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        await gateway.auth(allow_anonymous=True)
        await gateway.engine()
        gateway.client.headers["X-API-Key"] = "psk-any"
        assert (await gateway.chat()).status_code == 503


@pytest.mark.parametrize(
    "headers", [{"Authorization": "Bearer psk-secret"}, {"X-API-Key": "psk-secret"}]
)
async def test_both_key_headers_reach_auth_as_a_digest_only(
    socket_dir: Path, headers: dict[str, str]
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        await gateway.client.get("/v1/models", headers=headers)
        (authorize,) = auth.of(Authorize)
        assert authorize.key_digest == hashlib.sha256(b"psk-secret").digest()
        assert authorize.address == "127.0.0.1"


async def test_admin_routes_ask_for_the_admin_role_even_without_keys(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        assert (await gateway.client.get("/v1/admin/keys")).status_code == 401
        assert auth.of(Authorize)[0].required_role == "admin"


async def test_keys_are_created_listed_and_revoked(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        gateway.client.headers["Authorization"] = "Bearer admin"
        made = await gateway.client.post("/v1/admin/keys", json={"name": "ci"})
        assert made.status_code == 201
        key = made.json()["key"]
        assert key.startswith("psk-")
        (command,) = auth.of(MakeKey)
        assert command.key_digest == hashlib.sha256(key.encode()).digest()
        assert key not in command.hint
        listed = (await gateway.client.get("/v1/admin/keys")).json()
        assert [one["name"] for one in listed["data"]] == ["ci"]
        assert "key" not in listed["data"][0]
        revoke = f"/v1/admin/keys/{listed['data'][0]['id']}/revoke"
        assert (await gateway.client.delete(revoke)).status_code == 200
        missing = await gateway.client.delete("/v1/admin/keys/nope/revoke")
        assert error_of(missing)["code"] == "not_found"
        bad = await gateway.client.post("/v1/admin/keys", json={"name": "x", "rpm": 3})
        assert error_of(bad)["param"] == "rpm"
        assert (await gateway.client.get("/v1/admin/keys?limit=0")).status_code == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 400),
        ({"Host": "localhost:8000"}, 200),
        ({"Origin": "http://127.0.0.1:9"}, 200),
        ({"Host": "friend.example"}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
async def test_web_pages_cannot_reach_into_a_server_without_keys(
    socket_dir: Path, headers: dict[str, str], status: int
) -> None:
    async with running_gateway(socket_dir, allowed_hosts=("friend.example",)) as gateway:
        await gateway.auth()
        await gateway.engine()
        content = json.dumps({"model": "demo", "messages": MESSAGES})
        response = await gateway.client.post(
            "/v1/chat/completions",
            content=content,
            headers={"Content-Type": "application/json", **headers},
        )
        assert response.status_code == status
        if status != 200:
            error_of(response)


async def test_unknown_paths_and_methods_have_openais_error_shape(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        missing = await gateway.client.get("/v1/nothing")
        assert missing.status_code == 404
        assert "GET /v1/nothing" in error_of(missing)["message"]
        wrong = await gateway.client.get("/v1/chat/completions")
        assert wrong.status_code == 405
        assert wrong.headers["allow"] == "POST"
        assert error_of(wrong)["code"] == "method_not_allowed"
        two = await gateway.client.put("/v1/admin/keys", json={})
        assert (two.status_code, two.headers["allow"]) == (405, "GET, HEAD, POST")


async def test_a_bug_of_ours_is_a_500_that_tells_nothing_and_closes(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_body: bytes) -> None:
        raise KeyError("/secret/path")

    monkeypatch.setattr(parsers, "parse_chat_body", broken)
    async with running_gateway(socket_dir) as gateway:
        response = await gateway.chat()
        assert response.status_code == 500
        assert error_of(response)["code"] == "internal_error"
        assert "secret" not in response.text
        # The server closes the connection; without the header a client would use it again.
        assert response.headers["connection"] == "close"


async def test_a_body_over_the_limit_is_a_413_declared_or_chunked(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, max_body_bytes=2000) as gateway:
        await gateway.auth()
        await gateway.engine()
        declared = await gateway.chat(messages=[{"role": "user", "content": "x" * 3000}])
        assert declared.status_code == 413
        assert error_of(declared)["code"] == "request_too_large"

        async def chunks() -> Any:
            for _ in range(30):
                yield b"x" * 100

        chunked = await gateway.client.post(
            "/v1/chat/completions", content=chunks(), headers={"Content-Type": "application/json"}
        )
        assert chunked.status_code == 413


async def test_a_bug_of_ours_is_a_bland_500(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(socket_dir) as gateway:

        def explode(*_: object) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr("gateway.http.readiness.Readiness.look", explode)
        response = await gateway.client.get("/ready")
        assert response.status_code == 500
        assert "secret" not in response.text
        assert error_of(response)["code"] == "internal_error"


async def test_bad_fields_are_named_before_anything_is_asked_of_a_worker(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        response = await gateway.chat(temperature=9)
        assert response.status_code == 400
        assert error_of(response)["param"] == "temperature"
        assert error_of(await gateway.chat(messages=[]))["param"] == "messages"
        assert auth.of(Authorize) == []


async def test_unknown_fields_are_listed_or_refused(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        response = await gateway.chat(foo=1, bär=2)
        assert response.status_code == 200
        assert response.headers["x-penstock-ignored-fields"] == "b\\xe4r, foo"
        assert "x-penstock-ignored-fields" not in (await gateway.chat(user="me")).headers
    async with running_gateway(socket_dir, strict_fields=True) as gateway:
        await gateway.auth()
        await gateway.engine()
        assert error_of(await gateway.chat(foo=1))["param"] == "foo"


async def test_tools_for_a_model_without_a_tool_format_are_refused(socket_dir: Path) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        response = await gateway.chat(tools=[tool])
        assert response.status_code == 400
        assert error_of(response)["param"] == "tools"


async def test_a_clients_request_id_is_echoed_and_never_used_as_a_key(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        mine = {"X-Request-ID": "abc-1"}
        body = {"model": "demo", "prompt": "x"}
        for _ in range(2):
            response = await gateway.client.post("/v1/completions", json=body, headers=mine)
            assert response.headers["x-request-id"] == "abc-1"
        first, second = engine.of(Generate)
        assert "abc" not in first.request_id
        assert first.request_id != second.request_id
        odd = await gateway.client.get("/live", headers={"X-Request-ID": "a b\tc"})
        assert " " not in odd.headers["x-request-id"]


async def test_limits_of_the_caller_are_shown_as_headers(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        auth.limits = LimitState(
            limit_requests=60, remaining_requests=59, reset_requests_s=1.5, limit_tokens=100
        )
        headers = (await gateway.chat()).headers
        assert headers["x-ratelimit-limit-requests"] == "60"
        assert headers["x-ratelimit-remaining-requests"] == "59"
        assert headers["x-ratelimit-reset-requests"] == "1.5s"
        assert headers["x-ratelimit-limit-tokens"] == "100"
        assert "x-ratelimit-remaining-tokens" not in headers


async def test_models_are_listed_and_found_also_with_slashes(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(model="org/demo")
        listed = (await gateway.client.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert [card["id"] for card in listed["data"]] == ["org/demo"]
        card = (await gateway.client.get("/v1/models/org/demo")).json()
        assert (card["object"], card["created"], card["owned_by"]) == (
            "model",
            1_700_000_000,
            "penstock",
        )
        missing = await gateway.client.get("/v1/models/other")
        assert missing.status_code == 404
        assert "`org/demo`" in error_of(missing)["message"]


async def test_readiness_names_what_is_missing_and_shows_progress(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, models=("demo", "other")) as gateway:
        assert (await gateway.client.get("/live")).status_code == 200
        body = (await gateway.client.get("/ready")).json()
        assert body["missing"] == [
            "engine of model demo",
            "engine of model other",
            "auth worker",
            "toolparser worker",
        ]
        loading = FakeEngine(socket_dir, model="other")
        gateway.workers.append(loading)
        loading.start(announce=False)
        loading.worker.set_phase("loading", 0.5, "weights")
        await gateway.until(
            lambda: any(peer.fraction == 0.5 for peer in gateway.application.peers())
        )
        (shown,) = (await gateway.client.get("/ready")).json()["workers"]
        assert (shown["role"], shown["phase"], shown["detail"]) == ("engine", "loading", "weights")
        waiting = await gateway.auth()
        assert waiting.worker.instance_id
        await gateway.parser()
        await gateway.engine()
        assert (await gateway.chat(model="other")).status_code == 503
        loading.worker.announce(loading.offer)
        await gateway.until(lambda: gateway.is_known(loading))
        ready = await gateway.client.get("/health")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")


async def test_metrics_count_requests_tokens_and_workers(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        await gateway.chat()
        await auth.until(lambda: len(auth.settled()) == 1)
        text = (await gateway.client.get("/metrics")).text
        route = 'route="/v1/chat/completions",status="200"'
        assert f"penstock_gateway_http_requests_total{{{route}}} 1.0" in text
        tokens = 'penstock_gateway_tokens_total{kind="completion",model="demo"} 2.0'
        assert tokens in text
        assert 'penstock_gateway_workers{phase="ready",role="engine"} 1.0' in text
        assert "penstock_gateway_requests_in_flight 0.0" in text


async def test_metrics_show_what_workers_report_until_they_leave(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        engine = await gateway.engine()
        registry = MetricRegistry()
        registry.counter("penstock_engine_tokens", "Tokens.", ("kind",)).add(3, "prompt")
        engine.gateway_id = engine.worker.gateway_ids()[0]
        engine.send(registry.message())
        await gateway.until(lambda: any(peer.metrics for peer in gateway.application.peers()))
        labels = f'instance="{engine.worker.instance_id}",kind="prompt",model="demo",role="engine"'
        series = f"penstock_engine_tokens_total{{{labels}}} 3.0"
        assert series in (await gateway.client.get("/metrics")).text
        await gateway.departure(engine)
        assert "penstock_engine_tokens" not in (await gateway.client.get("/metrics")).text


async def test_the_documentation_offers_both_key_schemes(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        document = (await gateway.client.get("/openapi.json")).json()
        schemes = document["components"]["securitySchemes"]
        assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}
        assert "/v1/chat/completions" in document["paths"]
        body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
        reference = body["content"]["application/json"]["schema"]["$ref"]
        assert reference.rsplit("/", 1)[1] in document["components"]["schemas"]
        rules = {path.replace(":path}", "}"): rule for path, rule in ROUTE_RULES.items()}
        for path, operations in document["paths"].items():
            rule = rules[path]
            is_open = rule.access in (Access.OPEN, Access.LOCAL)
            for operation in operations.values():
                assert set(operation["responses"]) >= {"default"}, path
                assert "422" not in operation["responses"], path
                assert (operation.get("security") == []) == is_open, path


async def test_the_page_for_people_describes_every_route_and_loads_nothing(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        response = await gateway.client.get("/docs")
        assert response.headers["content-type"].startswith("text/html")
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
        for path in (await gateway.client.get("/openapi.json")).json()["paths"]:
            assert path in response.text
        assert "<code>top_logprobs</code></td><td>integer (≥ 0, ≤ 20)</td>" in response.text
        assert not re.search(r"<script|src=|https?://|url\(", response.text)


def test_every_error_code_has_a_row() -> None:
    assert set(ERROR_TABLE) == set(ErrorCode)


def test_guarded_routes_are_api_routes() -> None:
    assert issubclass(GuardedRoute, APIRoute)
