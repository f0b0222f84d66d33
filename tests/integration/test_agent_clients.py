"""Requests as Claude Code, Codex CLI and LangChain send them, against a whole gateway."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from protocol.wire.messages import OpenParse, Prepare
from tests.fakes.client_requests import (
    APPLY_PATCH_LARK,
    CLAUDE_CODE_HEADERS,
    CODEX_HEADERS,
    claude_code_title,
    claude_code_turn,
    codex_turn,
    langchain_turn,
)
from tests.fakes.fake_workers import FakeEngine, FakeParser
from tests.fakes.running_gateway import RunningGateway, named_events_of, running_gateway

pytestmark = pytest.mark.asyncio
IGNORED = "x-penstock-ignored-fields"


@pytest.fixture
async def gateway(socket_dir: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.parser()
        await gateway.engine(
            text=("<think>Well</think>", "Hello"), tool_format="hermes", reasoning_format="think"
        )
        yield gateway


def engine_of(gateway: RunningGateway) -> FakeEngine:
    (engine,) = [one for one in gateway.workers if isinstance(one, FakeEngine)]
    return engine


def parser_of(gateway: RunningGateway) -> FakeParser:
    (parser,) = [one for one in gateway.workers if isinstance(one, FakeParser)]
    return parser


def prompt_of(gateway: RunningGateway) -> list[dict[str, Any]]:
    """The messages that the engine got last."""
    found: list[dict[str, Any]] = json.loads(engine_of(gateway).of(Prepare)[-1].messages_json)
    return found


def tools_of(gateway: RunningGateway) -> list[str]:
    tools = json.loads(engine_of(gateway).of(Prepare)[-1].tools_json)
    return [tool["function"]["name"] for tool in tools]


async def ask_claude(
    gateway: RunningGateway, body: dict[str, Any]
) -> tuple[list[Any], dict[str, str]]:
    answer = await gateway.client.post(
        "/v1/messages?beta=true", json=body, headers=CLAUDE_CODE_HEADERS
    )
    assert answer.status_code == 200, answer.text
    return named_events_of(answer.text), dict(answer.headers)


async def test_a_turn_of_claude_code_is_answered_with_its_thinking(
    gateway: RunningGateway,
) -> None:
    events, headers = await ask_claude(gateway, claude_code_turn("demo", "1"))
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    blocks = [
        one["content_block"]["type"] for one in events if one["type"] == "content_block_start"
    ]
    assert blocks == ["thinking", "text"]
    assert events[-2]["delta"]["stop_reason"] == "end_turn"
    # The search that Anthropic's server runs.
    assert headers[IGNORED] == "tools[2]"
    assert "request-id" in headers
    assert tools_of(gateway) == ["Bash", "Read"]


async def test_the_prompts_of_two_turns_begin_alike_whatever_the_billing_line_says(
    gateway: RunningGateway,
) -> None:
    prompts = []
    for billing in ("1ab", "f00"):
        await ask_claude(gateway, claude_code_turn("demo", billing))
        prompts.append(prompt_of(gateway))
    assert prompts[0] == prompts[1]
    assert prompts[0][0]["content"] == "You are an agent of the command line.\nAnswer in one line."
    assert [message["role"] for message in prompts[0]] == ["system", "user", "system"]


async def test_claude_code_runs_a_tool_and_goes_on(gateway: RunningGateway) -> None:
    engine = engine_of(gateway)
    engine.text = ("<call>", '{"command": "ls"}')
    first = claude_code_turn("demo", "1")
    events, _ = await ask_claude(gateway, first)
    started = next(
        one["content_block"]
        for one in events
        if one["type"] == "content_block_start" and one["content_block"]["type"] == "tool_use"
    )
    pieces = [
        one["delta"].get("partial_json", "") for one in events if "index" in one and "delta" in one
    ]
    assert json.loads("".join(pieces)) == {"command": "ls"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"

    engine.text = ("Done",)
    thinking = {"type": "thinking", "thinking": "Well", "signature": "of-another-model"}
    call = {"type": "tool_use", "id": started["id"], "name": "Bash", "input": {"command": "ls"}}
    result = {
        "type": "tool_result",
        "tool_use_id": started["id"],
        "content": [{"type": "text", "text": "a.py"}],
        "is_error": False,
        "cache_control": {"type": "ephemeral"},
    }
    reminder = {"type": "text", "text": "<system-reminder>Go on.</system-reminder>"}
    turn = claude_code_turn("demo", "2")
    turn["messages"] += [
        {"role": "assistant", "content": [thinking, call]},
        {"role": "user", "content": [result, reminder]},
    ]
    events, _ = await ask_claude(gateway, turn)
    assert events[-2]["delta"]["stop_reason"] == "end_turn"
    prompt = prompt_of(gateway)
    assert [message["role"] for message in prompt[-3:]] == ["assistant", "tool", "user"]
    assert prompt[-3]["reasoning_content"] == "Well"
    assert (prompt[-2]["tool_call_id"], prompt[-2]["content"]) == (
        prompt[-3]["tool_calls"][0]["id"],
        "a.py",
    )


async def test_claude_code_counts_the_tokens_of_the_same_prompt(gateway: RunningGateway) -> None:
    await ask_claude(gateway, claude_code_turn("demo", "1"))
    asked = engine_of(gateway).of(Prepare)[-1]
    body = claude_code_turn("demo", "2")
    for name in ("max_tokens", "stream", "metadata"):
        del body[name]
    answer = await gateway.client.post(
        "/v1/messages/count_tokens?beta=true", json=body, headers=CLAUDE_CODE_HEADERS
    )
    assert answer.json() == {"input_tokens": 5}
    counted = engine_of(gateway).of(Prepare)[-1]
    for name in ("messages_json", "tools_json", "template_kwargs_json"):
        assert getattr(counted, name) == getattr(asked, name)


async def test_claude_code_asks_for_a_title_and_for_its_quota(gateway: RunningGateway) -> None:
    engine = engine_of(gateway)
    engine.text = ('{"title": "Files"}',)
    events, _ = await ask_claude(gateway, claude_code_title("demo"))
    text = "".join(
        one["delta"].get("text", "") for one in events if "index" in one and "delta" in one
    )
    assert json.loads(text) == {"title": "Files"}
    assert "title" in parser_of(gateway).of(OpenParse)[-1].response_grammar.source
    quota = {
        "model": "demo",
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "quota"}],
        "metadata": {"user_id": "{}"},
    }
    answer = await gateway.client.post(
        "/v1/messages?beta=true", json=quota, headers=CLAUDE_CODE_HEADERS
    )
    assert answer.json()["type"] == "message"
    listed = await gateway.client.get("/v1/models?limit=1000", headers=CLAUDE_CODE_HEADERS)
    assert [one["id"] for one in listed.json()["data"]] == ["demo"]


async def ask_codex(gateway: RunningGateway, body: dict[str, Any]) -> tuple[list[Any], str]:
    answer = await gateway.client.post("/v1/responses", json=body, headers=CODEX_HEADERS)
    assert answer.status_code == 200, answer.text
    *events, done = named_events_of(answer.text)
    assert done == "[DONE]"
    return events, answer.headers.get(IGNORED, "")


def items_of(events: list[Any]) -> list[dict[str, Any]]:
    """What Codex keeps of a stream; it looks at nothing of the last response but id and usage."""
    assert all("type" in event for event in events)
    last = events[-1]
    assert last["type"] == "response.completed"
    assert last["response"]["id"].startswith("resp_")
    assert last["response"]["usage"].keys() >= {"input_tokens", "output_tokens", "total_tokens"}
    items = [one["item"] for one in events if one["type"] == "response.output_item.done"]
    assert items == last["response"]["output"]
    return items


async def test_a_turn_of_codex_has_its_reasoning_sealed(gateway: RunningGateway) -> None:
    events, ignored = await ask_codex(gateway, codex_turn("demo"))
    reasoning, said = items_of(events)
    assert (reasoning["type"], reasoning["summary"][0]["text"]) == ("reasoning", "Well")
    assert reasoning["encrypted_content"]
    assert said["content"][0]["text"] == "Hello"
    assert ignored == "tools[3], text.verbosity"
    assert tools_of(gateway) == ["exec_command", "write_stdin", "apply_patch", "mcp__docs__find"]
    roles = [message["role"] for message in prompt_of(gateway)]
    assert roles == ["system", "developer", "user", "user"]
    assert events[-1]["response"]["store"] is False


async def test_codex_replays_what_it_got_and_goes_on(gateway: RunningGateway) -> None:
    engine = engine_of(gateway)
    engine.text = ("<think>Look</think>", "<call>", '{"cmd": "ls"}')
    first = codex_turn("demo")
    events, _ = await ask_codex(gateway, first)
    items = items_of(events)
    call = items[-1]
    assert (call["type"], json.loads(call["arguments"])) == ("function_call", {"cmd": "ls"})

    engine.text = ("Done",)
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "a.py\n"}
    replayed = [{key: item[key] for key in item if key not in ("id", "status")} for item in items]
    events, _ = await ask_codex(
        gateway, codex_turn("demo", input=[*first["input"], *replayed, output])
    )
    assert items_of(events)[-1]["content"][0]["text"] == "Done"
    turn, result = prompt_of(gateway)[-2:]
    assert turn["reasoning_content"] == "Look"
    assert (result["role"], result["content"]) == ("tool", "a.py\n")


async def test_the_patches_of_codex_are_held_to_its_grammar(gateway: RunningGateway) -> None:
    await ask_codex(gateway, codex_turn("demo"))
    tools = json.loads(parser_of(gateway).of(OpenParse)[-1].tools_json)
    (patch,) = [one["function"] for one in tools if one["function"]["name"] == "apply_patch"]
    assert patch["strict"] is True
    assert "Begin Patch" in patch["parameters"]["properties"]["input"]["pattern"]
    shown = json.loads(engine_of(gateway).of(Prepare)[-1].tools_json)
    assert APPLY_PATCH_LARK.strip() in shown[2]["function"]["description"]


async def test_codex_replays_the_patches_that_it_made(gateway: RunningGateway) -> None:
    patch = "*** Begin Patch\n*** Delete File: a\n*** End Patch"
    call = {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": patch}
    output = {"type": "custom_tool_call_output", "call_id": "c1", "output": "Success."}
    spaced = {
        "type": "function_call",
        "call_id": "c2",
        "namespace": "mcp__docs",
        "name": "find",
        "arguments": '{"query": "x"}',
    }
    found = {
        "type": "function_call_output",
        "call_id": "c2",
        "output": [{"type": "input_text", "text": "y"}],
    }
    body = codex_turn("demo")
    body["input"] += [call, output, spaced, found]
    await ask_codex(gateway, body)
    first, result, second, other = prompt_of(gateway)[-4:]
    assert json.loads(first["tool_calls"][0]["function"]["arguments"]) == {"input": patch}
    assert second["tool_calls"][0]["function"]["name"] == "mcp__docs__find"
    assert (result["content"], other["content"]) == ("Success.", "y")


async def test_codex_opens_a_websocket_and_sends_only_what_is_new(
    gateway: RunningGateway,
) -> None:
    headers = {**CODEX_HEADERS, "OpenAI-Beta": "responses_websockets=2026-02-06"}
    del headers["user-agent"]
    url = f"ws://127.0.0.1:{gateway.client.base_url.port}/v1/responses"
    async with connect(url, proxy=None, additional_headers=headers) as socket:

        async def turn(**fields: Any) -> list[Any]:
            body = {"type": "response.create", **codex_turn("demo", **fields)}
            await socket.send(json.dumps(body))
            told: list[Any] = []
            while not told or told[-1]["type"] != "response.completed":
                told.append(json.loads(await asyncio.wait_for(socket.recv(), 60)))
                assert told[-1]["type"] != "error", told[-1]
            return told

        # It warms the prompt up first, then goes on from that by id.
        warm = await turn(generate=False, input=codex_turn("demo")["input"])
        first = await turn(input=[], previous_response_id=warm[-1]["response"]["id"])
        await socket.send(
            json.dumps({"type": "response.processed", "response_id": first[-1]["response"]["id"]})
        )
        said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "?"}]}
        await turn(input=[said], previous_response_id=first[-1]["response"]["id"])
    texts = [message["content"] for message in prompt_of(gateway)]
    assert texts[-2:] == ["Hello", "?"]
    assert texts[-3] == "Fix the bug."


async def test_codex_is_told_to_compact_by_its_own_prompt(gateway: RunningGateway) -> None:
    body = codex_turn("demo", tools=[], parallel_tool_calls=False)
    body["input"].append(
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Summarize for another model."}],
        }
    )
    events, _ = await ask_codex(gateway, body)
    assert items_of(events)[-1]["type"] == "message"
    compact = {
        "model": "demo",
        "instructions": "You are a coding agent.",
        "input": body["input"],
        "tools": [],
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium"},
        "text": {"verbosity": "low"},
    }
    answer = await gateway.client.post("/v1/responses/compact", json=compact, headers=CODEX_HEADERS)
    assert answer.json()["output"][-1]["type"] == "compaction"
    assert IGNORED not in answer.headers


async def test_langchain_sends_its_answers_back_as_blocks(gateway: RunningGateway) -> None:
    answer = await gateway.client.post("/v1/responses", json=langchain_turn("demo"))
    assert IGNORED not in answer.headers
    assert items_of(named_events_of(answer.text)[:-1])[-1]["type"] == "message"
    contents = [message["content"] for message in prompt_of(gateway)]
    assert contents == ["Be brief.", "Hello.", "Hi.", "What is 2 + 3?"]
