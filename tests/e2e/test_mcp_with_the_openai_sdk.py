"""Tools of an MCP server made with its SDK, run by the server for OpenAI's client."""

import json
from typing import Any

import pytest
from openai.lib.responses_tool_runner import ResponsesToolRunner

MODEL = "penstock-demo"
QUESTION = "What is the weather in Paris?"
CHOICE: Any = {"type": "mcp", "server_label": "weather", "name": "get_weather"}


def tool(**fields: Any) -> Any:
    return {"type": "mcp", "server_label": "weather", "require_approval": "never", **fields}


def wanted(*tools: Any) -> dict[str, Any]:
    return {"model": MODEL, "tools": list(tools), "tool_choice": CHOICE, "temperature": 0}


def test_the_client_sees_the_list_the_call_and_the_answer(client: Any, mcp_url: str) -> None:
    found = client.responses.create(
        input=QUESTION, **wanted(tool(server_url=mcp_url, allowed_tools=["get_weather"]))
    )
    listed, call, *_, message = found.output
    assert (listed.type, call.type, message.type) == ("mcp_list_tools", "mcp_call", "message")
    assert [one.name for one in listed.tools] == ["get_weather"]
    city = json.loads(call.arguments)["city"]
    assert json.loads(call.output) == {"temperature": 10 + len(city), "condition": "sunny"}
    assert (call.status, call.error, found.status) == ("completed", None, "completed")
    assert client.responses.retrieve(found.id).output == found.output
    # Going on from there, the list and the call are known.
    again = {"model": MODEL, "input": "Thanks!", "temperature": 0}
    second = client.responses.create(
        tools=[tool(allowed_tools=["get_weather"])], previous_response_id=found.id, **again
    )
    assert "mcp_list_tools" not in [item.type for item in second.output]
    # A request that allows more has all of it listed.
    third = client.responses.create(tools=[tool()], previous_response_id=found.id, **again)
    assert third.output[0].type == "mcp_list_tools"


def test_a_stream_tells_the_same(client: Any) -> None:
    with client.responses.stream(input=QUESTION, **wanted(tool())) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_response()
    assert [item.type for item in final.output][:2] == ["mcp_list_tools", "mcp_call"]
    order = [
        "response.mcp_list_tools.in_progress",
        "response.mcp_list_tools.completed",
        "response.mcp_call_arguments.done",
        "response.mcp_call.in_progress",
        "response.mcp_call.completed",
        "response.completed",
    ]
    assert [event for event in events if event in order] == order


def test_a_call_is_approved_by_the_client(client: Any) -> None:
    asks = tool(require_approval="always")
    first = client.responses.create(input=QUESTION, **wanted(asks))
    request = first.output[-1]
    assert (request.type, request.name) == ("mcp_approval_request", "get_weather")
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": request.id,
        "approve": True,
    }
    second = client.responses.create(
        model=MODEL,
        input=[answer],
        tools=[asks],
        tool_choice="none",
        previous_response_id=first.id,
        temperature=0,
    )
    call = second.output[0]
    assert (call.type, call.approval_request_id) == ("mcp_call", request.id)
    assert "sunny" in call.output
    assert second.output[-1].type == "message"


@pytest.mark.parametrize("stream", [False, True])
def test_the_clients_own_runner_of_tools_approves_a_call(client: Any, stream: bool) -> None:
    """It sends its choice with the approval, too, and holds each item to what was asked for."""
    asked: list[str] = []

    def approve(request: Any) -> bool:
        asked.append(request.name)
        return True

    params: Any = {"input": QUESTION, **wanted(tool(require_approval="always"))}
    runner = ResponsesToolRunner()
    found = runner.run(client, params, stream=stream, approve_mcp=approve, max_steps=3)
    assert asked == ["get_weather"]
    assert [item.type for item in found.output] == ["mcp_call", "message"]


def test_it_runs_in_the_background(client: Any) -> None:
    made = client.responses.create(input=QUESTION, background=True, **wanted(tool()))
    with client.responses.retrieve(made.id, stream=True) as stream:
        last = list(stream)[-1]
    assert last.type == "response.completed"
    assert "sunny" in next(item for item in last.response.output if item.type == "mcp_call").output
