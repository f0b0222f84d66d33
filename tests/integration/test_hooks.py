"""Hooks of other packages, installed by their entry points, in a real gateway."""

import asyncio
import importlib
import json
import logging
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from gateway.application import Application
from gateway.errors import GatewayError
from gateway.hooks.hook import Hook, HookRequest, Refusal
from gateway.hooks.runner import HookRunner
from gateway.http.access.hooking import BodySecrets
from protocol.errors import ConfigurationError
from protocol.wire.messages import Authorize, Generate, Prepare
from tests.fakes.mcp_server import mcp_server
from tests.fakes.running_gateway import MESSAGES, gateway_settings, running_gateway

EXAMPLE = Path(__file__).parents[2] / "examples" / "block_patterns.py"
Install = Callable[[str], None]

FAULTY = """
import asyncio
import time
from gateway.hooks.hook import Hook, Refusal

class Faulty(Hook):
    def refine_request(self, request):
        if request.endpoint != "/v1/chat/completions":
            return None
        match request.body["messages"][0]["content"]:
            case "raise":
                raise RuntimeError("psk-secret")
            case "hang":
                time.sleep(3.0)
            case "nonsense":
                return "no"
            case "no json":
                request.body["messages"] = object()
            case "wrong":
                request.body["temperature"] = "hot"
            case "model":
                request.body["messages"][0]["content"] = "changed"

    async def refine_sampling(self, request, sampling):
        if request.body["messages"][0]["content"] == "hang too":
            await asyncio.sleep(60)

    def answer(self, call):
        if call.path == "raise":
            raise RuntimeError("psk-secret")
        if call.path == "object":
            from gateway.hooks.hook import HookAnswer
            return HookAnswer(object())
"""


NOTING = """
import copy
from gateway.hooks.hook import Hook

seen = []

class Noting(Hook):
    def refine_request(self, request):
        seen.append(copy.deepcopy(request.body))
        if request.body.get("user") == "cool":
            request.body["temperature"] = 0.5
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a folder look like an installed package with a hook."""
    info = tmp_path / "some_hooks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-hooks\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(entry: str) -> None:
        (info / "entry_points.txt").write_text(f"[penstock.hooks]\n{entry}\n")

    return make


@pytest.fixture
def patterns(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example, as a package of its own."""
    shutil.copy(EXAMPLE, tmp_path / "patterns_hook.py")
    monkeypatch.setenv("BLOCKED_PATTERNS", "forbidden words?\n")
    install("patterns = patterns_hook:PatternHook")


@pytest.fixture
def faulty(install: Install, tmp_path: Path) -> None:
    (tmp_path / "faulty_hook.py").write_text(FAULTY)
    install("faulty = faulty_hook:Faulty")


def asking(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def test_a_chat_by_mcp_is_shown_as_the_chat_that_it_is(
    socket_dir: Path, faulty: None
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        for prompt in ("raise", "model"):
            call = {"name": "generate", "arguments": {"prompt": prompt}}
            message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
            answer = await gateway.client.post("/mcp", json=message)
            assert answer.status_code == (500 if prompt == "raise" else 200)
            assert answer.json()["id"] == 1
        assert answer.json()["result"]["content"][0]["text"] == "Hello, world"
        assert json.loads(engine.of(Prepare)[-1].messages_json or "") == asking("changed")


async def test_credentials_for_mcp_servers_are_blank_for_hooks_and_reach_their_server(
    socket_dir: Path, install: Install, tmp_path: Path
) -> None:
    (tmp_path / "noting_hook.py").write_text(NOTING)
    install("noting = noting_hook:Noting")
    tool = {"type": "mcp", "server_label": "calc", "require_approval": "never"}
    given = {"authorization": "token-of-the-client", "headers": {"X-Team": "team-of-the-client"}}
    with mcp_server() as server:
        async with running_gateway(socket_dir, mcp_servers=(f"calc={server.url()}",)) as gateway:
            await gateway.parser()
            await gateway.auth()
            await gateway.engine(tool_format="hermes")
            body = {"model": "demo", "input": "hi", "tools": [tool | given]}
            answer = await gateway.client.post("/v1/responses", json=body)
            assert answer.status_code == 200
        (seen,) = importlib.import_module("noting_hook").seen
        assert seen == body | {
            "tools": [tool | {"authorization": "***", "headers": {"X-Team": "***"}}]
        }
        headers = server.asked("tools/list")[-1]["headers"]
        assert headers["authorization"] == "Bearer token-of-the-client"
        assert headers["x-team"] == "team-of-the-client"


MINE: dict[str, Any] = {
    "type": "mcp",
    "server_label": "a",
    "server_url": "https://a.example/mcp",
    "authorization": "token-a",
    "headers": {"X-Key": "key-a"},
}


def test_credentials_come_back_for_their_server_only() -> None:
    secrets = BodySecrets()
    other = {"type": "mcp", "server_label": "b", "authorization": "token-b"}
    body = {
        "tools": [{"type": "function", "name": "f"}, {"type": "namespace", "tools": [MINE]}, other],
        "mcp_servers": [
            {"name": "c", "url": "https://c.example", "authorization_token": "token-c"}
        ],
    }
    shown = secrets.blanked(body)
    told = json.dumps(shown)
    assert not [one for one in ("token-a", "key-a", "token-b", "token-c") if one in told]
    assert secrets.restored(shown) == body
    # Moved within the list, and with a header of the hook's own.
    _, space, second = shown["tools"]
    (first,) = space["tools"]
    changed = {**first, "headers": {"X-Own": "own", **first["headers"]}}
    found = secrets.restored({"tools": [second, changed]})
    assert found == {"tools": [other, {**MINE, "headers": {"X-Own": "own", "X-Key": "key-a"}}]}
    # Another server gets none of it, nor blanks in its place.
    moved = {**first, "server_url": "https://evil.example/mcp"}
    (found_tool,) = secrets.restored({"tools": [moved]})["tools"]
    assert found_tool == {
        **{name: moved[name] for name in ("type", "server_label", "server_url")},
        "headers": {},
    }
    assert secrets.restored({"tools": 7, "input": "x"}) == {"tools": 7, "input": "x"}


@pytest.mark.usefixtures("patterns")
async def test_the_example_refuses_by_pattern_on_every_route_that_generates(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock.access")
    text = "say the Forbidden Word"
    async with running_gateway(socket_dir, access_log=True) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine()
        response = await gateway.chat(messages=asking(text))
        assert response.status_code == 403
        assert response.headers["x-penstock-risk-score"] == "0.9"
        error = response.json()["error"]
        assert error["code"] == "refused_by_hook"
        assert error["message"] == "This server doesn't answer such prompts."
        bodies: dict[str, dict[str, Any]] = {
            "/v1/completions": {"prompt": text},
            "/v1/responses": {"input": text, "store": False},
            "/v1/messages": {"messages": asking(text), "max_tokens": 4},
        }
        for route, body in bodies.items():
            refused = await gateway.client.post(route, json={"model": "demo", **body})
            assert refused.status_code == 403, route
            assert "doesn't answer such prompts" in refused.text
        assert not engine.of(Generate)
        assert not [one for one in auth.of(Authorize) if one.is_metered]
        assert (await gateway.chat()).status_code == 200
        counts = await gateway.client.get("/v1/hooks/patterns/counts")
        assert counts.json() == {"refused": 4}
        metrics = (await gateway.client.get("/metrics")).text
        assert 'penstock_gateway_hook_calls_total{hook="patterns",outcome="refused"} 4.0' in metrics
    lines = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert {"blocked": "forbidden words?"} in [line.get("tags") for line in lines]


@pytest.mark.usefixtures("patterns")
async def test_the_example_bounds_the_temperature_and_leaves_other_bodies_as_they_are(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        assert (await gateway.chat(temperature=1.9)).status_code == 200
        assert (await gateway.chat(temperature=0.25)).status_code == 200
        found = [one.sampling.temperature for one in engine.of(Generate)]
        assert found == [1.0, 0.25]


@pytest.mark.usefixtures("patterns")
async def test_a_stranger_reaches_no_hook(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.good_keys = ("psk-good",)
        await gateway.engine()
        headers = {"Authorization": "Bearer psk-unknown"}
        body = {"model": "demo", "messages": asking("the forbidden word")}
        for route in ("/v1/chat/completions", "/v1/hooks/patterns/counts"):
            refused = await gateway.client.post(route, json=body, headers=headers)
            assert refused.status_code == 401, route
        metrics = gateway.application.parts.metrics.registry
        labels = {"hook": "patterns", "outcome": "refused"}
        assert metrics.get_sample_value("penstock_gateway_hook_calls_total", labels) is None
        headers = {"Authorization": "Bearer psk-good"}
        refused = await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
        assert refused.status_code == 403
        assert metrics.get_sample_value("penstock_gateway_hook_calls_total", labels) == 1


@pytest.mark.usefixtures("faulty")
async def test_a_hook_that_fails_fails_one_request_and_tells_nothing(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, hook_timeout_s=1.5) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        for text in ("raise", "hang", "nonsense", "hang too", "no json"):
            response = await gateway.chat(messages=asking(text))
            assert response.status_code == 500, text
            assert "psk-secret" not in response.text
            assert response.headers.get("connection") != "close"
        wrong = await gateway.chat(messages=asking("wrong"))
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")
        assert not engine.of(Generate)
        assert (await gateway.chat()).status_code == 200
        broken = await gateway.client.get("/v1/hooks/faulty/raise")
        assert broken.status_code == 500
        assert "psk-secret" not in broken.text
        assert (await gateway.client.get("/v1/hooks/faulty/object")).status_code == 500
        assert (await gateway.client.get("/v1/hooks/faulty/other")).status_code == 404
        nobody = await gateway.client.get("/v1/hooks/nobody/x/y")
        assert nobody.status_code == 404
        assert "No hook `nobody` of this server answers 'x/y'." in nobody.text


@pytest.mark.usefixtures("faulty")
async def test_what_a_hook_changes_is_what_is_asked(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        assert (await gateway.chat(messages=asking("model"))).status_code == 200
        prepared = engine.of(Prepare)
        assert "changed" in prepared[-1].messages_json


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("lost = no_such_module:Hook", "lost"),
        ("odd = collections:OrderedDict", "odd"),
        ("raises = builtins:int.missing", "raises"),
    ],
)
async def test_a_gateway_does_not_start_without_a_hook_that_it_should_have(
    socket_dir: Path, install: Install, entry: str, named: str
) -> None:
    install(entry)
    with pytest.raises(ConfigurationError, match=named):
        Application(gateway_settings(socket_dir))


async def test_without_hooks_bodies_are_not_looked_at(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        assert not gateway.application.parts.hooks
        response = await gateway.chat(messages=MESSAGES)
        assert response.status_code == 200
        assert (await gateway.client.get("/v1/hooks/any/thing")).status_code == 404


SEEING = """
from gateway.hooks.hook import Hook, HookAnswer, Refusal

class Seeing(Hook):
    def __init__(self):
        self.key_ids = []

    async def refine_request(self, request):
        self.key_ids.append(request.key_id)
        request.tags.update({f"tag {number}": "x" * 100 for number in range(40)})
        if request.body.get("refuse"):
            return Refusal("no")

    async def answer(self, call):
        return HookAnswer(self.key_ids)
"""


@pytest.fixture
def seeing(install: Install, tmp_path: Path) -> None:
    (tmp_path / "seeing_hook.py").write_text(SEEING)
    install("seeing = seeing_hook:Seeing")


@pytest.mark.usefixtures("seeing")
async def test_a_hook_is_told_whose_key_it_is_however_long_a_connection_is_open(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.good_keys = ("psk-good",)
        await gateway.engine()
        headers = {"Authorization": "Bearer psk-good"}
        url = f"ws://127.0.0.1:{gateway.client.base_url.port}/v1/responses"
        async with connect(url, proxy=None, additional_headers=headers) as socket:
            for _ in range(2):
                # As when the last grant was long ago.
                gateway.application.identities.clear()
                turn = {"type": "response.create", "model": "demo", "input": "hi", "store": False}
                await socket.send(json.dumps(turn))
                while json.loads(await socket.recv())["type"] != "response.completed":
                    pass
            seen = await gateway.client.get("/v1/hooks/seeing/keys", headers=headers)
            assert seen.json() == ["key-1", "key-1"]
            auth.good_keys = ()
            gateway.application.identities.clear()
            await socket.send(json.dumps(turn))
            assert json.loads(await socket.recv())["status"] == 401
            auth.good_keys = ("psk-good",)
            gateway.application.identities.clear()
            seen = await gateway.client.get("/v1/hooks/seeing/keys", headers=headers)
            assert len(seen.json()) == 2


@pytest.mark.usefixtures("seeing")
async def test_tags_are_bounded_also_of_what_is_refused(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock.access")
    async with running_gateway(socket_dir, access_log=True) as gateway:
        await gateway.auth()
        await gateway.engine()
        assert (await gateway.chat(refuse=True)).status_code == 403
        assert (await gateway.chat()).status_code == 200
    lines = [record.fields for record in caplog.records if hasattr(record, "fields")]
    tags = [line["tags"] for line in lines if "tags" in line]
    assert [len(one) for one in tags] == [16, 16]
    assert {len(text) for one in tags for text in one.values()} == {64}


@pytest.mark.usefixtures("seeing")
async def test_a_body_that_is_nested_too_deep_for_a_hook_is_the_client_s_fault(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        deep = b'{"model":"demo","messages":' + b"[" * 300 + b"]" * 300 + b"}"
        response = await gateway.client.post(
            "/v1/chat/completions", content=deep, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
        assert "nested too deep" in response.json()["error"]["message"]


@pytest.mark.parametrize("score", ["high", float("nan"), -0.1, 1.5])
async def test_a_risk_that_is_none_is_a_failure_of_the_hook(score: Any) -> None:
    class Odd(Hook):
        async def refine_request(self, request: HookRequest) -> Refusal:
            return Refusal("no", score)

    outcomes: list[str] = []
    runner = HookRunner({"odd": Odd()}, 5.0, lambda _hook, outcome: outcomes.append(outcome))
    with pytest.raises(GatewayError) as raised:
        await runner.refine(HookRequest("r", "", "", "", {}, {}))
    assert raised.type is GatewayError
    assert outcomes == ["ok", "failed"]


async def test_hooks_that_never_return_keep_no_thread_of_the_gateway() -> None:
    release = threading.Event()

    class Stuck(Hook):
        def refine_request(self, request: HookRequest) -> None:
            release.wait()

    runner = HookRunner({"stuck": Stuck()}, 0.05, lambda _hook, _outcome: None)
    requests = [HookRequest(str(one), "", "", "", {}, {}) for one in range(48)]
    try:
        ends = await asyncio.gather(*map(runner.refine, requests), return_exceptions=True)
        assert {type(end) for end in ends} == {GatewayError}
        async with asyncio.timeout(60):
            assert await asyncio.to_thread(lambda: "done") == "done"
    finally:
        release.set()
        await runner.stop()


@pytest.mark.parametrize("user", ["cool", "other"])
async def test_a_hook_sees_long_integers_and_its_changes_leave_their_digits(
    socket_dir: Path, install: Install, tmp_path: Path, user: str
) -> None:
    (tmp_path / "counting_hook.py").write_text(NOTING)
    install("counting = counting_hook:Noting")
    number = "123456789012345678901234567890"
    schema = {"const": "number"}
    asked = {"model": "demo", "messages": MESSAGES, "user": user, "guided_json": schema}
    body = json.dumps(asked).replace('"number"', number)
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        answer = await gateway.client.post(
            "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 200, answer.text
        seen = importlib.import_module("counting_hook").seen
        assert seen.pop()["guided_json"] == {"const": int(number)}
        generate = engine.of(Generate)[-1]
    assert generate.grammar is not None
    assert number in generate.grammar.source
    assert (generate.sampling.temperature == 0.5) is (user == "cool")


NUMBERING = """
from gateway.hooks.hook import Hook, HookAnswer

class Numbering(Hook):
    number = 0

    def answer(self, call):
        Numbering.number += 1
        return HookAnswer({"number": self.number, "key": call.headers.get("idempotency-key")})
"""


async def test_a_hook_hears_of_a_repeated_request_once(
    socket_dir: Path, install: Install, tmp_path: Path
) -> None:
    (tmp_path / "numbering_hook.py").write_text(NUMBERING)
    install("numbering = numbering_hook:Numbering")
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        post = partial(gateway.client.post, json={}, headers={"Idempotency-Key": "once"})
        first, again = [await post("/v1/hooks/numbering/up?step=1") for _ in range(2)]
        assert first.json() == {"number": 1, "key": "once"}
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        # The query is a part of what is asked.
        assert (await post("/v1/hooks/numbering/up?step=2")).status_code == 422
        without = await gateway.client.post("/v1/hooks/numbering/up?step=1", json={})
        assert without.json() == {"number": 2, "key": None}
