"""How many tokens of reasoning a request allows reaches the engine, whichever API says so."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol.wire.messages import Generate, Thought
from tests.fakes.running_gateway import running_gateway

THOUGHT = Thought(begins="open", starts=("<think>",), ends=("</think>",), closing="</think>")
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "?"}]}
RESPONSE = {"model": "demo", "input": "?"}
MESSAGE = {"model": "demo", "max_tokens": 9000, "messages": CHAT["messages"]}


async def asked(
    directory: Path,
    path: str,
    body: dict[str, Any],
    *,
    thought: Thought | None = THOUGHT,
    reasoning_format: str | None = "think",
    **settings: Any,
) -> tuple[httpx.Response, list[Generate]]:
    """The answer to one request, and what the engine was told."""
    async with running_gateway(directory, **settings) as gateway:
        await gateway.auth()
        engine = await gateway.engine(reasoning_format=reasoning_format)
        parser = await gateway.parser()
        parser.thought = thought
        response = await gateway.client.post(path, json=body)
        return response, engine.of(Generate)


@pytest.mark.parametrize(
    ("path", "body", "budget"),
    [
        ("/v1/chat/completions", {**CHAT, "thinking_token_budget": 7}, 7),
        ("/v1/chat/completions", {**CHAT, "thinking_token_budget": 0}, 0),
        ("/v1/chat/completions", {**CHAT, "reasoning_effort": "low"}, 1024),
        ("/v1/chat/completions", {**CHAT, "reasoning_effort": "none"}, 0),
        (
            "/v1/chat/completions",
            {**CHAT, "reasoning_effort": "low", "thinking_token_budget": 7},
            7,
        ),
        (
            "/v1/chat/completions",
            {**CHAT, "chat_template_kwargs": {"reasoning_effort": "medium"}},
            4096,
        ),
        ("/v1/responses", {**RESPONSE, "reasoning": {"effort": "medium"}}, 4096),
        (
            "/v1/messages",
            {**MESSAGE, "thinking": {"type": "enabled", "budget_tokens": 2000}},
            2000,
        ),
        (
            "/v1/messages",
            {**MESSAGE, "thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
            1024,
        ),
    ],
)
async def test_the_engine_is_told_how_reasoning_ends_and_after_how_many_tokens(
    socket_dir: Path, path: str, body: dict[str, Any], budget: int
) -> None:
    response, (generate,) = await asked(socket_dir, path, body)
    assert response.status_code == 200
    assert (generate.thought, generate.max_thought_tokens) == (THOUGHT, budget)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "reasoning_effort": "high"}),
        (
            "/v1/chat/completions",
            {**CHAT, "reasoning_effort": "low", "thinking_token_budget": -1},
        ),
        ("/v1/responses", RESPONSE),
        ("/v1/messages", MESSAGE),
    ],
)
async def test_without_a_budget_reasoning_is_as_long_as_it_wants_to_be(
    socket_dir: Path, path: str, body: dict[str, Any]
) -> None:
    response, (generate,) = await asked(socket_dir, path, body)
    assert response.status_code == 200
    assert generate.thought is None


async def test_the_tokens_of_an_effort_are_a_setting(socket_dir: Path) -> None:
    response, (generate,) = await asked(
        socket_dir,
        "/v1/chat/completions",
        {**CHAT, "reasoning_effort": "max"},
        thinking_budgets=("max=33",),
    )
    assert response.status_code == 200
    assert generate.max_thought_tokens == 33


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reasoning_format": None}, "has no reasoning"),
        ({"thought": None}, "No marker ends the reasoning"),
    ],
)
async def test_a_number_that_a_model_cannot_hold_to_is_refused_by_name(
    socket_dir: Path, options: dict[str, Any], words: str
) -> None:
    body = {**CHAT, "thinking_token_budget": 7}
    response, generates = await asked(socket_dir, "/v1/chat/completions", body, **options)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "thinking_token_budget"
    assert error["code"] == "unsupported_parameter"
    assert words in error["message"]
    assert generates == []


@pytest.mark.parametrize("options", [{"reasoning_format": None}, {"thought": None}])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {**RESPONSE, "reasoning": {"effort": "low"}}),
        ("/v1/messages", {**MESSAGE, "thinking": {"type": "enabled", "budget_tokens": 2000}}),
    ],
)
async def test_agents_that_send_an_effort_to_every_model_are_answered(
    socket_dir: Path, path: str, body: dict[str, Any], options: dict[str, Any]
) -> None:
    response, (generate,) = await asked(socket_dir, path, body, **options)
    assert response.status_code == 200
    assert generate.thought is None


async def test_a_prompt_that_closed_the_reasoning_leaves_nothing_to_end(socket_dir: Path) -> None:
    closed = Thought(begins="no", ends=("</think>",), closing="</think>")
    body = {**CHAT, "thinking_token_budget": 7}
    response, (generate,) = await asked(socket_dir, "/v1/chat/completions", body, thought=closed)
    assert response.status_code == 200
    assert generate.thought is None


@pytest.mark.parametrize("value", [-2, 2**31, "7", 1.5])
async def test_a_wrong_number_names_its_field(socket_dir: Path, value: object) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        refused = await gateway.chat(thinking_token_budget=value)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "thinking_token_budget"
