"""What every answer that costs something says in its headers, whichever route it is of."""

import array
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.http.access.route_rules import ROUTE_RULES, Access
from gateway.http.openapi.document import EXAMPLES
from protocol.wire.messages import (
    Authorize,
    Classified,
    Classify,
    Embed,
    Embedded,
    EngineCommand,
    LimitState,
    LimitWarning,
    Score,
    Scored,
)
from tests.fakes.fake_workers import FakeEngine
from tests.fakes.running_gateway import RunningGateway, running_gateway

METERED = sorted(path for path, rule in ROUTE_RULES.items() if rule.access is Access.METERED)
ALIAS = "gpt-4o"
WITHOUT_MODEL = {"/v1/tools/execute"}
LIMITS = LimitState(
    limit_requests=10,
    remaining_requests=9,
    reset_requests_s=6.0,
    limit_tokens=1000,
    remaining_tokens=900,
    reset_tokens_s=12.0,
)
WARNING = LimitWarning(
    limit_id="limit_1",
    name="monthly",
    holder="team",
    measure="money",
    window="calendar_month",
    amount=10_000_000,
    used=8_000_000,
    percent=80,
)


class AnsweringEngine(FakeEngine):
    """Also makes vectors, scores and classes."""

    def answer(self, command: EngineCommand) -> None:
        """At once."""
        if isinstance(command, Embed):
            num = len(command.texts) + len(command.token_ids)
            self.send(
                Embedded(
                    request_id=command.request_id,
                    num_dimensions=2,
                    vectors=array.array("f", [1.0, 0.0] * num).tobytes(),
                    num_tokens=(1,) * num,
                )
            )
        elif isinstance(command, Score):
            num = sum(len(command.label_sets[one.label_set]) for one in command.questions)
            logprobs = array.array("f", [-1.0] * num).tobytes()
            self.send(Scored(command.request_id, logprobs=logprobs, num_prompt_tokens=7))
        elif isinstance(command, Classify):
            num = command.num_inputs
            logits = array.array("f", [0.5] * num).tobytes()
            self.send(Classified(command.request_id, 1, logits=logits, num_tokens=(7,) * num))
        else:
            super().answer(command)


def body_of(path: str) -> dict[str, Any]:
    """A body that is answered with 200; of the alias, where it may name a model."""
    if path == "/v1/tools/execute":
        return {"name": "add", "arguments": {"a": 1, "b": 2}}
    if path == "/mcp":
        arguments = {"prompt": "hi", "model": ALIAS}
        params = {"name": "generate", "arguments": arguments}
        return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    return EXAMPLES[path] | {"model": ALIAS}


async def answered(gateway: RunningGateway, path: str, body: dict[str, Any]) -> httpx.Response:
    """The answer of a gateway with everything that a route may need."""
    engine = AnsweringEngine(
        gateway.directory,
        tool_format="hermes",
        capabilities=("chat", "completions", "embeddings", "scores", "classify"),
        labels=("LABEL_0",),
    )
    gateway.workers.append(engine)
    engine.start()
    await gateway.until(lambda: gateway.is_known(engine))
    await gateway.parser()
    answer = await gateway.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("path", METERED)
async def test_every_metered_answer_tells_the_caller_s_limits_and_who_answered(
    socket_dir: Path, plugin: Path, path: str
) -> None:
    async with running_gateway(socket_dir, model_aliases=(f"{ALIAS}=demo",)) as gateway:
        auth = await gateway.auth()
        auth.limits, auth.warnings = LIMITS, (WARNING,)
        answer = await answered(gateway, path, body_of(path))
        shown = dict(answer.headers)
        assert shown["x-penstock-budget-warning"].startswith('"limit_1"'), shown
        if path.startswith("/v1/messages"):
            assert shown["anthropic-ratelimit-requests-remaining"] == "9"
            assert shown["anthropic-ratelimit-tokens-limit"] == "1000"
        else:
            assert shown["x-ratelimit-remaining-requests"] == "9"
            assert shown["x-ratelimit-limit-tokens"] == "1000"
        assert {one.model for one in auth.of(Authorize)} <= {"", "demo"}
        if path in WITHOUT_MODEL:
            assert "x-penstock-model" not in shown
        elif path == "/v1/parse":
            # No model answers: it only says how its texts are to be read.
            assert answer.json()["format"] == "hermes"
        else:
            assert shown["x-penstock-model"] == "demo"
            assert answer.json().get("model", "demo") == "demo"


@pytest.mark.parametrize("path", [path for path in METERED if "model" in body_of(path)])
async def test_a_model_by_its_own_name_is_not_told_again(
    socket_dir: Path, plugin: Path, path: str
) -> None:
    async with running_gateway(socket_dir, model_aliases=(f"{ALIAS}=demo",)) as gateway:
        await gateway.auth()
        answer = await answered(gateway, path, body_of(path) | {"model": "demo"})
        assert "x-penstock-model" not in answer.headers
        assert "x-penstock-budget-warning" not in answer.headers
        assert answer.json().get("model", "demo") == "demo"


async def test_a_tool_called_by_mcp_tells_the_caller_s_limits(
    socket_dir: Path, plugin: Path
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        auth.limits, auth.warnings = LIMITS, (WARNING,)
        params = {"name": "add", "arguments": {"a": 1, "b": 2}}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        answer = await answered(gateway, "/mcp", call)
        assert answer.headers["x-penstock-budget-warning"].startswith('"limit_1"')
        assert answer.headers["x-ratelimit-remaining-requests"] == "9"
