"""Calls by a name that no tool was given: models leave out its server, or make one up."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.hosted_harness import CALL, Harness, kinds, opened
from tests.fakes.mcp_server import FakeMcpServer, mcp_server

ARGUMENTS = CALL[1:]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeMcpServer]:
    with mcp_server() as found:
        yield found


@pytest.fixture
async def harness(socket_dir: Path, server: FakeMcpServer) -> AsyncIterator[Harness]:
    async with opened(socket_dir, server) as harness:
        yield harness


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": {"type": "object"}}


async def test_a_tool_is_meant_by_its_own_name_where_no_other_one_is_called_so(
    harness: Harness,
) -> None:
    harness.engine.script = [("<call:add>", *ARGUMENTS)]
    events = await harness.stream()
    found = events[-1]["response"]
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "message"]
    call = found["output"][1]
    assert (call["name"], call["server_label"], call["output"]) == ("add", "calc", "5")
    *_, asked, told = harness.messages(1)
    assert asked["tool_calls"][0]["function"]["name"] == "calc__add"
    assert told["content"] == "5"
    assert "response.function_call_arguments.delta" not in {event["type"] for event in events}
    # Who has to approve its calls is asked.
    harness.engine.script = [("<call:add>", *ARGUMENTS)]
    asking = await harness.post(tools=[harness.tool(require_approval="always")])
    assert kinds(asking) == ["mcp_list_tools", "mcp_approval_request"]
    assert asking["output"][1]["name"] == "add"


async def test_a_function_of_the_client_and_tools_of_two_servers_are_not_confused(
    harness: Harness,
) -> None:
    harness.engine.script = [("<call:add>", *ARGUMENTS)]
    own = await harness.post(tools=[harness.tool(), function("add")])
    assert kinds(own) == ["mcp_list_tools", "function_call"]
    assert own["output"][1]["name"] == "add"
    harness.engine.script = [("<call:add>", *ARGUMENTS)]
    both = await harness.post(tools=[harness.tool(), harness.tool(server_label="old")])
    assert kinds(both) == ["mcp_list_tools", "mcp_list_tools", "mcp_call", "message"]
    assert both["output"][2]["error"]["message"] == "Unknown tool: add"


@pytest.mark.parametrize("called", ["calc__subtract", "subtract"])
async def test_a_call_of_no_tool_fails_and_the_model_reads_why(
    harness: Harness, called: str
) -> None:
    harness.engine.script = [(f"<call:{called}>", *ARGUMENTS)]
    found = await harness.post()
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "message"]
    call = found["output"][1]
    assert (call["server_label"], call["name"], call["status"]) == ("calc", "subtract", "failed")
    error = {"type": "mcp_protocol_error", "code": -32602, "message": "Unknown tool: subtract"}
    assert (call["error"], call["output"]) == (error, None)
    *_, asked, told = harness.messages(1)
    assert asked["tool_calls"][0]["function"]["name"] == "calc__subtract"
    assert told["content"] == "Error: Unknown tool: subtract"
    assert found["output"][-1]["content"][0]["text"] == "It is 5."
