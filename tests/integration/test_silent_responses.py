"""Responses whose first token takes long: clients hear that they are in progress."""

import asyncio
import json
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from gateway.http.openresponses.render import _SILENCES
from protocol.wire.messages import Generate
from tests.fakes.hosted_harness import EVENT
from tests.fakes.running_gateway import named_events_of, running_gateway

BODY = {"model": "demo", "input": "hi", "stream": True}
BEGINNING = ["response.created", "response.in_progress"]


async def test_a_silent_stream_says_that_its_response_is_in_progress(socket_dir: Path) -> None:
    """Codex gives up a stream without an event, and counts no comments."""
    async with running_gateway(socket_dir, ping_interval_s=0.05) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        request = gateway.client.build_request("POST", "/v1/responses", json=BODY)
        response = await gateway.client.send(request, stream=True)
        lines, before = response.aiter_lines(), list[str]()
        async for line in lines:
            before.append(line)
            if before.count("event: response.in_progress") == 3:
                break
        # It is a word from time to time, and a comment otherwise.
        first = before.index(": ping")
        assert [event["type"] for event in named_events_of("\n".join(before[:first]))] == BEGINNING
        assert before[first:].count(": ping") == (_SILENCES - 2) + (_SILENCES - 1)
        await engine.until(lambda: len(engine.of(Generate)) == 1)
        (generate,) = engine.of(Generate)
        engine.emit(generate, "yes")
        engine.finish(generate)
        rest = [line async for line in lines]
        *events, done = named_events_of("\n".join([*before, *rest]))
        assert done == "[DONE]"
        for event in events:
            EVENT.validate_python(event)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [event["type"] for event in events].count("response.created") == 1
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == "yes"


async def test_a_silent_response_of_a_socket_is_in_progress_as_well(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, ping_interval_s=0.05) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        url = f"ws://127.0.0.1:{gateway.client.base_url.port}/v1/responses"
        async with asyncio.timeout(60), connect(url, proxy=None) as socket:
            await socket.send(json.dumps({**BODY, "type": "response.create"}))
            told: list[Any] = [json.loads(await socket.recv()) for _ in range(3)]
            assert [event["type"] for event in told] == [*BEGINNING, BEGINNING[-1]]
            await engine.until(lambda: len(engine.of(Generate)) == 1)
            (generate,) = engine.of(Generate)
            engine.emit(generate, "yes")
            engine.finish(generate)
            while told[-1]["type"] != "response.completed":
                told.append(json.loads(await socket.recv()))
        assert [event["sequence_number"] for event in told] == list(range(len(told)))
