"""Responses with tools that run in the background, also across a restart of their gateway."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from protocol.errors import ErrorCode
from protocol.wire.messages import Generate
from tests.fakes.hosted_harness import CALL, Harness, kinds, opened
from tests.fakes.mcp_server import FakeMcpServer, mcp_server
from tests.fakes.running_gateway import named_events_of


@pytest.fixture(scope="module")
def server() -> Iterator[FakeMcpServer]:
    with mcp_server() as found:
        yield found


@pytest.fixture
async def harness(socket_dir: Path, server: FakeMcpServer) -> AsyncIterator[Harness]:
    async with opened(socket_dir, server) as harness:
        yield harness


async def in_background(harness: Harness, **fields: Any) -> str:
    found = await harness.post(background=True, **fields)
    assert found["status"] == "queued"
    name: str = found["id"]
    return name


async def told(harness: Harness, name: str, kind: str, times: int = 1) -> list[dict[str, Any]]:
    """The events in the store, once there is one of a kind."""
    store = harness.gateway.application.store
    assert store is not None
    async with asyncio.timeout(60):
        while True:
            pieces = await store.jobs.told(name, -1)
            events = [event for piece in pieces for event in orjson.loads(piece.body)]
            if [event["type"] for event in events].count(kind) >= times:
                return events
            await asyncio.sleep(0.01)


async def ended(harness: Harness, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    client = harness.gateway.client
    answer = await client.get(f"/v1/responses/{name}", params={"stream": "true"})
    *events, _ = named_events_of(answer.text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    found = (await client.get(f"/v1/responses/{name}")).json()
    assert events[-1]["response"] == found
    return found, events


async def test_it_runs_in_the_background_too(harness: Harness) -> None:
    harness.engine.script = [CALL]
    found, events = await ended(harness, await in_background(harness))
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "message"]
    assert found["output"][1]["output"] == "5"
    assert found["usage"]["output_tokens"] == 5
    assert [event["type"] for event in events].count("response.output_item.done") == 3
    await harness.gateway.until(lambda: len(harness.auth.settled()) == 2)
    assert not [one for one in harness.auth.settled() if one.is_unused]


async def test_one_that_fails_says_what_was_spent_until_then(harness: Harness) -> None:
    harness.engine.script = [CALL]
    harness.engine.fails_after_script = ErrorCode.INTERNAL_ERROR
    found, _ = await ended(harness, await in_background(harness))
    assert (found["status"], found["usage"]["output_tokens"]) == ("failed", 3)
    assert found["output"][1]["status"] == "completed"


async def test_a_call_that_was_interrupted_is_not_made_again(
    socket_dir: Path, server: FakeMcpServer
) -> None:
    num_calls = len(server.asked("tools/call"))
    async with opened(socket_dir, server) as harness:
        harness.engine.script = [("<call:later__add>", *CALL[1:])]
        name = await in_background(harness, tools=[harness.tool(server_label="later")])
        before = await told(harness, name, "response.mcp_call.in_progress")
        await harness.gateway.application.drain(5.0)
    async with opened(socket_dir, server) as harness:
        found, events = await ended(harness, name)
        assert events[: len(before)] == before
        assert kinds(found) == ["mcp_list_tools", "mcp_call", "message"]
        assert "not made again" in found["output"][1]["error"]["message"]
        assert json.loads(found["output"][1]["arguments"]) == {"a": 2, "b": 3}
        assert "Error: " in harness.messages(0)[-1]["content"]
        done = [event["item"] for event in events if event["type"].endswith("item.done")]
        assert done == found["output"]
    assert len(server.asked("tools/call")) <= num_calls + 1


async def test_a_turn_that_was_interrupted_goes_on_behind_its_calls(
    socket_dir: Path, server: FakeMcpServer
) -> None:
    num_calls = len(server.asked("tools/call"))
    async with opened(socket_dir, server) as harness:
        harness.engine.script, harness.engine.text = [CALL], None
        name = await in_background(harness)
        await harness.engine.until(lambda: len(harness.engine.of(Generate)) == 2)
        first, second = harness.engine.of(Generate)
        harness.engine.emit(second, "It i")
        before = await told(harness, name, "response.output_text.delta")
        await harness.gateway.application.drain(5.0)
        assert [one.lease_id for one in harness.auth.settled() if not one.is_unused] == [
            first.lease_id
        ]
    async with opened(socket_dir, server) as harness:
        harness.engine.text = ("It is ", "5.")
        found, events = await ended(harness, name)
        assert events[: len(before)] == before
        assert kinds(found) == ["mcp_list_tools", "mcp_call", "message"]
        text = "".join(event["delta"] for event in events if event["type"].endswith("text.delta"))
        assert text == found["output"][2]["content"][0]["text"] == "It is 5."
        # The same seed, and what was begun is booked on the lease that it was begun with.
        (again,) = harness.engine.of(Generate)
        assert again.sampling.seed == second.sampling.seed
        await harness.gateway.until(lambda: len(harness.auth.settled()) >= 2)
        used = [one.lease_id for one in harness.auth.settled() if not one.is_unused]
        assert used == [second.lease_id]
    assert len(server.asked("tools/call")) == num_calls + 1


async def test_a_turn_that_finished_and_is_taken_back_is_not_what_is_booked(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.http.background.background_take.RETRY_S", 0.0)
    harness.engine.text = None
    name = await in_background(harness)
    await harness.engine.until(lambda: bool(harness.engine.of(Generate)))
    (first,) = harness.engine.of(Generate)
    harness.engine.emit(first, "Hello")
    await told(harness, name, "response.output_text.delta")
    other = await harness.gateway.engine(fingerprint="new", text=None, tool_format="hermes")
    # A part of what was told: only the end of the turn shows that it is another text.
    other.script = [("Hell",), ("An", "other", " ", "text")]
    await harness.gateway.departure(harness.engine)
    await other.until(lambda: len(other.of(Generate)) == 2)  # then it may be read
    found, _ = await ended(harness, name)
    assert kinds(found) == ["mcp_list_tools", "message"]
    assert found["output"][1]["content"][0]["text"] == "Another text"
    await harness.gateway.until(lambda: len(harness.auth.settled()) >= 3)
    booked = [one for one in harness.auth.settled() if not one.is_unused]
    assert [(one.lease_id, one.completion_tokens) for one in booked] == [(first.lease_id, 4)]


async def test_credentials_are_not_kept_for_later(harness: Harness) -> None:
    tool = harness.tool(authorization="token-of-the-client")
    error = await harness.post(status=400, background=True, tools=[tool])
    assert error["error"]["param"] == "background"
    error = await harness.post(
        status=400, background=True, tools=[harness.tool(server_label="unknown")]
    )
    assert error["error"]["param"] == "tools[0].server_label"
