"""The requirements of the Open Responses compliance suite, one test each, named as it names them.

https://github.com/openresponses/openresponses; against a scripted engine, so that only the server
counts. `image-input` demands of a model what no model of text can do: it is refused by name.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from websockets.asyncio.client import ClientConnection, connect

from tests.fakes.running_gateway import RunningGateway, named_events_of, running_gateway

pytestmark = pytest.mark.asyncio
REQUIRED: Final = frozenset(
    (
        *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model"),
        *("previous_response_id", "instructions", "output", "error", "tools", "tool_choice"),
        *("truncation", "parallel_tool_calls", "text", "top_p", "presence_penalty"),
        *("frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage"),
        *("max_output_tokens", "max_tool_calls", "store", "background", "service_tier"),
        *("metadata", "safety_identifier", "prompt_cache_key"),
    )
)
"""Keys of a response, some of which may be null."""
NUMBERS: Final = ("top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "temperature")
PIXEL: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)
WEATHER: Final = {
    "type": "function",
    "name": "f",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
EVENT: Final[TypeAdapter[Any]] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
async def gateway(socket_dir: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.parser()
        await gateway.engine(text=("Hello", ", world"), tool_format="hermes")
        yield gateway


def check(response: dict[str, Any]) -> dict[str, Any]:
    """A response object as the suite's schema wants it."""
    Response.model_validate(response, strict=True)
    assert response.keys() >= REQUIRED
    assert all(isinstance(response[name], int | float) for name in NUMBERS)
    for name in ("parallel_tool_calls", "store", "background"):
        assert isinstance(response[name], bool)
    assert response["status"] == "completed"
    assert response["output"]
    return response


async def create(gateway: RunningGateway, items: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": "demo", "input": items, **fields}
    answer = await gateway.client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    return check(answer.json())


def message(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content, **fields}


def opened(gateway: RunningGateway) -> connect:
    return connect(f"ws://127.0.0.1:{gateway.client.base_url.port}/v1/responses", proxy=None)


async def turn(socket: ClientConnection, **fields: Any) -> list[dict[str, Any]]:
    body = {"type": "response.create", "model": "demo", **fields}
    await socket.send(json.dumps(body))
    told: list[dict[str, Any]] = []
    while not told or told[-1]["type"] not in ("response.completed", "response.failed", "error"):
        told.append(json.loads(await asyncio.wait_for(socket.recv(), 60)))
    return told


def check_events(told: list[dict[str, Any]]) -> dict[str, Any]:
    for event in told:
        EVENT.validate_python(event)
    assert told[-1]["type"] == "response.completed"
    return check(told[-1]["response"])


async def test_basic_response(gateway: RunningGateway) -> None:
    found = await create(gateway, [message("user", "Say hello in exactly 3 words.")])
    (item,) = found["output"]
    assert item["content"][0]["text"] == "Hello, world"


async def test_multi_turn(gateway: RunningGateway) -> None:
    items = [message("user", "My name is A."), message("assistant", "Hi A."), message("user", "?")]
    await create(gateway, items)


async def test_system_prompt(gateway: RunningGateway) -> None:
    await create(gateway, [message("system", "You are a pirate."), message("user", "Hello.")])


async def test_assistant_phase(gateway: RunningGateway) -> None:
    said = message("assistant", "Let me see.", phase="commentary")
    await create(gateway, [message("user", "Hi."), said, message("user", "Go on.")])


async def test_response_output_phase_schema(gateway: RunningGateway) -> None:
    found = await create(gateway, "hi")
    (item,) = found["output"]
    assert item.get("phase") in (None, "commentary", "final_answer")


async def test_streaming_response(gateway: RunningGateway) -> None:
    body = {"model": "demo", "input": [message("user", "Count.")], "stream": True}
    answer = await gateway.client.post("/v1/responses", json=body)
    *told, done = named_events_of(answer.text)
    assert done == "[DONE]"
    check_events(told)


async def test_websocket_response(gateway: RunningGateway) -> None:
    async with opened(gateway) as socket:
        check_events(await turn(socket, input=[message("user", "Hi.")]))


async def test_websocket_sequential_responses(gateway: RunningGateway) -> None:
    async with opened(gateway) as socket:
        names = {check_events(await turn(socket, input="Hi."))["id"] for _ in range(2)}
    assert len(names) == 2


async def test_websocket_continuation(gateway: RunningGateway) -> None:
    async with opened(gateway) as socket:
        first = check_events(await turn(socket, input="Hi.", store=False))
        told = await turn(socket, input="More.", store=False, previous_response_id=first["id"])
        assert check_events(told)["previous_response_id"] == first["id"]


async def test_websocket_reconnect_store_false_recovery(gateway: RunningGateway) -> None:
    async with opened(gateway) as socket:
        first = check_events(await turn(socket, input="Hi.", store=False))
    async with opened(gateway) as socket:
        told = await turn(socket, input="x", store=False, previous_response_id=first["id"])
        assert told[-1]["error"]["code"] == "previous_response_not_found"
        check_events(await turn(socket, input="Hi.", store=False))


async def test_websocket_previous_response_not_found(gateway: RunningGateway) -> None:
    async with opened(gateway) as socket:
        told = await turn(socket, input="x", previous_response_id="resp_missing")
        assert told[-1]["error"]["code"] == "previous_response_not_found"


async def test_websocket_failed_continuation_evicts_cache(gateway: RunningGateway) -> None:
    orphan = [{"type": "function_call_output", "call_id": "call_missing", "output": "1"}]
    async with opened(gateway) as socket:
        first = check_events(await turn(socket, input="Hi.", store=False))
        fields = {"store": False, "previous_response_id": first["id"]}
        assert (await turn(socket, input=orphan, **fields))[-1]["type"] == "error"
        told = await turn(socket, input="x", **fields)
        assert told[-1]["error"]["code"] == "previous_response_not_found"


async def test_websocket_compact_new_chain(gateway: RunningGateway) -> None:
    body = {"model": "demo", "input": [message("user", "a"), message("assistant", "b")]}
    compacted = (await gateway.client.post("/v1/responses/compact", json=body)).json()
    async with opened(gateway) as socket:
        items = [*compacted["output"], message("user", "Go on.")]
        check_events(await turn(socket, input=items, tools=[], store=False))


async def test_tool_calling(gateway: RunningGateway) -> None:
    engine = gateway.workers[-1]
    engine.text = ("<call>", '{"city": "Paris"}')  # type: ignore[attr-defined]  # the scripted one
    found = await create(gateway, [message("user", "The weather?")], tools=[WEATHER])
    (item,) = found["output"]
    assert (item["type"], item["name"]) == ("function_call", "f")
    assert json.loads(item["arguments"]) == {"city": "Paris"}
    assert found["tools"][0].keys() >= {"type", "name", "description", "parameters", "strict"}


async def test_image_input(gateway: RunningGateway) -> None:
    parts = [{"type": "input_text", "text": "?"}, {"type": "input_image", "image_url": PIXEL}]
    body = {"model": "demo", "input": [message("user", parts)]}
    answer = await gateway.client.post("/v1/responses", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"] == "input[0].content[1].type"


async def test_compact_response(gateway: RunningGateway) -> None:
    body = {"model": "demo", "input": [message("user", "a"), message("assistant", "b")]}
    answer = await gateway.client.post("/v1/responses/compact", json=body)
    assert (answer.status_code, answer.json()["object"]) == (200, "response.compaction")
    assert "compaction" in [item["type"] for item in answer.json()["output"]]


async def test_compact_missing_model(gateway: RunningGateway) -> None:
    answer = await gateway.client.post("/v1/responses/compact", json={"input": "a"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
