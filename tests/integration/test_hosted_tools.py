"""Responses whose tools this server runs: MCP servers that are real processes, and its own
tools."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect

from gateway.http.errands import Errands
from gateway.request.callers.caller import Caller
from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize, Generate, Settle
from tests.fakes.hosted_harness import CALL, EVENT, SUM, Harness, kinds, opened
from tests.fakes.mcp_server import FakeMcpServer, mcp_server
from tests.fakes.running_gateway import named_events_of, running_gateway


@pytest.fixture(scope="module")
def server() -> Iterator[FakeMcpServer]:
    with mcp_server() as found:
        yield found


@pytest.fixture
async def harness(socket_dir: Path, server: FakeMcpServer) -> AsyncIterator[Harness]:
    async with opened(socket_dir, server) as harness:
        yield harness


@pytest.fixture
async def hasty(socket_dir: Path, server: FakeMcpServer) -> AsyncIterator[Harness]:
    """A deployment whose tools have three seconds."""
    async with opened(socket_dir, server, tool_timeout_s=3.0) as harness:
        yield harness


@pytest.mark.parametrize("label", ["calc", "old"])
async def test_a_call_is_made_and_its_result_is_answered(harness: Harness, label: str) -> None:
    harness.engine.script = [(f"<call:{label}__add>", *CALL[1:])]
    found = await harness.post(tools=[harness.tool(server_label=label)])
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "message"]
    listed, call, message = found["output"]
    assert [tool["name"] for tool in listed["tools"]] == ["add", "fail", "secret"]
    assert listed["tools"][0]["input_schema"]["required"] == ["a", "b"]
    assert (call["name"], call["server_label"], call["output"]) == ("add", label, "5")
    assert json.loads(call["arguments"]) == {"a": 2, "b": 3}
    assert (call["status"], call["error"]) == ("completed", None)
    assert message["content"][0]["text"] == "It is 5."
    assert found["status"] == "completed"
    # The second turn has read the call and its result.
    *_, asked, told = harness.messages(1)
    assert asked["tool_calls"][0]["function"]["name"] == f"{label}__add"
    assert (told["role"], told["content"]) == ("tool", "5")
    assert told["tool_call_id"] == asked["tool_calls"][0]["id"]


async def test_each_turn_is_a_request_and_their_usage_is_added_up(harness: Harness) -> None:
    harness.engine.script = [CALL]
    found = await harness.post()
    usage = found["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (10, 5)
    await harness.gateway.until(lambda: len(harness.auth.settled()) == 2)
    ids = [one.request_id for one in harness.engine.of(Generate)]
    assert len(set(ids)) == 2
    asked = [(one.endpoint, one.scope) for one in harness.auth.of(Authorize)]
    assert asked.count(("/v1/responses", "responses")) >= 2
    # A list and a call.
    assert asked.count(("/v1/tools/execute", "tools.execute")) == 2
    seeds = [one.sampling.seed for one in harness.engine.of(Generate)]
    assert seeds[1] == (seeds[0] + 1) & (2**63 - 1)


async def test_the_events_of_a_stream_come_in_order(harness: Harness) -> None:
    harness.engine.script = [CALL]
    events = await harness.stream()
    told = [event["type"].removeprefix("response.") for event in events]
    # How many deltas a text comes in is nobody's promise.
    assert [one for one, _ in groupby(told)] == [
        *("created", "in_progress"),
        *("output_item.added", "mcp_list_tools.in_progress", "mcp_list_tools.completed"),
        "output_item.done",
        *("output_item.added", "mcp_call_arguments.delta"),
        *("mcp_call_arguments.done", "mcp_call.in_progress", "mcp_call.completed"),
        "output_item.done",
        *("output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.done", "content_part.done"),
        *("output_item.done", "completed"),
    ]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done
    assert done[1]["output"] == "5"
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1, 2]
    assert (added[1]["item"]["arguments"], added[1]["item"]["status"]) == ("", "in_progress")
    calls = [event for event in events if "mcp_call" in event["type"]]
    assert {event["item_id"] for event in calls} == {done[1]["id"]}
    client, path = harness.gateway.client, f"/v1/responses/{events[-1]['response']['id']}"
    assert (await client.get(path)).json() == events[-1]["response"]
    # Told again from the store, it is the same.
    *again, _ = named_events_of((await client.get(path, params={"stream": "true"})).text)
    assert [one for one, _ in groupby(event["type"] for event in again)] == [
        one for one, _ in groupby(event["type"] for event in events)
    ]
    again_added = [event for event in again if event["type"] == "response.output_item.added"]
    assert again_added == [{**event, "sequence_number": ANY} for event in added]


async def test_several_calls_of_a_turn_are_made_one_after_another(harness: Harness) -> None:
    harness.engine.script = [
        ("<call:calc__add>", '{"a": 1, "b": 1}', "<call:calc__fail>", "{}", "<call:f>", "{}")
    ]
    function = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    events = await harness.stream(tools=[harness.tool(), function])
    found = events[-1]["response"]
    # The last one is the client's to make, so the response ends with it.
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "mcp_call", "function_call"]
    _, first, second, _ = found["output"]
    assert (first["output"], second["output"]) == ("2", None)
    assert second["status"] == "failed"
    assert second["error"] == {
        "type": "mcp_tool_execution_error",
        "content": [{"type": "text", "text": "it broke"}],
    }
    running = [event for event in events if event["type"].startswith("response.mcp_call.")]
    assert [event["type"].rsplit(".")[-1] for event in running] == [
        *("in_progress", "completed", "in_progress", "failed"),
    ]
    assert [event["output_index"] for event in running] == [1, 1, 2, 2]
    assert len(harness.engine.of(Generate)) == 1


async def test_lists_are_not_asked_for_again_and_calls_are_read_later(harness: Harness) -> None:
    harness.engine.script = [CALL]
    first = await harness.post()
    num_lists = len(harness.server.asked("tools/list"))
    second = await harness.post(input="And now?", previous_response_id=first["id"])
    assert kinds(second) == ["message"]
    assert len(harness.server.asked("tools/list")) == num_lists
    assert harness.tools(2) == ["calc__add", "calc__fail", "calc__secret"]
    roles = [message["role"] for message in harness.messages(2)]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]
    # Sent back instead of named, it is the same.
    items = [{"role": "user", "content": "2 + 3?"}, *first["output"]]
    await harness.post(input=[*items, {"role": "user", "content": "And now?"}], store=False)
    assert harness.messages(3) == harness.messages(2)


async def test_tools_that_change_things_are_hidden_in_a_later_turn_too(harness: Harness) -> None:
    first = await harness.post()
    only = harness.tool(allowed_tools={"read_only": True})
    await harness.post(input="And now?", previous_response_id=first["id"], tools=[only])
    assert harness.tools(1) == ["calc__add"]


async def test_a_label_that_means_another_server_is_listed_again(harness: Harness) -> None:
    harness.engine.script = [("<call:s__add>", *CALL[1:])]
    url, other = harness.server.url("/modern/json"), harness.server.url("/legacy/sse")
    mine = {"server_label": "s", "require_approval": "always"}
    tools = [harness.tool(**mine, server_url=url)]
    first = await harness.post(tools=tools)
    assert kinds(first) == ["mcp_list_tools", "mcp_approval_request"]
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": first["output"][1]["id"],
        "approve": True,
    }
    follow: dict[str, Any] = {"input": [answer], "previous_response_id": first["id"]}
    num_calls = len(harness.server.asked("tools/call"))
    second = await harness.post(tools=[harness.tool(**mine, server_url=other)], **follow)
    # The tools of the other server are its own, and nobody has approved a call of them.
    assert kinds(second) == ["mcp_list_tools", "mcp_call", "message"]
    assert harness.server.asked("tools/list")[-1]["path"] == "/legacy/sse"
    assert "another server" in second["output"][1]["error"]["message"]
    assert len(harness.server.asked("tools/call")) == num_calls
    third = await harness.post(tools=tools, **follow)
    assert kinds(third) == ["mcp_call", "message"]
    assert third["output"][0]["output"] == "5"
    assert url not in json.dumps([first["output"], second["output"]])


async def test_a_call_waits_for_its_approval(harness: Harness) -> None:
    harness.engine.script = [CALL]
    num_calls = len(harness.server.asked("tools/call"))
    first = await harness.post(tools=[harness.tool(require_approval="always")])
    assert kinds(first) == ["mcp_list_tools", "mcp_approval_request"]
    asked = first["output"][1]
    assert (asked["name"], json.loads(asked["arguments"])) == ("add", {"a": 2, "b": 3})
    assert len(harness.server.asked("tools/call")) == num_calls
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": asked["id"],
        "approve": True,
    }
    second = await harness.post(
        tools=[harness.tool(require_approval="always")],
        input=[answer],
        previous_response_id=first["id"],
    )
    assert kinds(second) == ["mcp_call", "message"]
    call = second["output"][0]
    assert (call["output"], call["approval_request_id"]) == ("5", asked["id"])
    # It was made; going on from there doesn't make it again.
    third = await harness.post(input="Thanks", previous_response_id=second["id"])
    assert kinds(third) == ["message"]
    assert len(harness.server.asked("tools/call")) == num_calls + 1


async def test_a_call_that_is_not_approved_is_not_made(harness: Harness) -> None:
    harness.engine.script = [CALL]
    tools = [harness.tool(require_approval="always")]
    first = await harness.post(tools=tools)
    num_calls = len(harness.server.asked("tools/call"))
    answer = {
        "type": "mcp_approval_response",
        "approval_request_id": first["output"][1]["id"],
        "approve": False,
    }
    second = await harness.post(tools=tools, input=[answer], previous_response_id=first["id"])
    assert kinds(second) == ["message"]
    assert "not approve" in harness.messages(1)[-1]["content"]
    assert len(harness.server.asked("tools/call")) == num_calls
    wrong = {**answer, "approval_request_id": "mcpr_nothing"}
    error = await harness.post(status=400, input=[wrong], tools=tools)
    assert "mcp_approval_request" in error["error"]["message"]


@pytest.mark.parametrize(
    ("approval", "kind"),
    [
        ({"never": {"tool_names": ["add"]}}, "mcp_call"),
        ({"never": {"read_only": True}}, "mcp_call"),
        ({"never": {"tool_names": ["fail"]}}, "mcp_approval_request"),
        ({"always": {"tool_names": ["add"]}, "never": {"read_only": True}}, "mcp_approval_request"),
        (None, "mcp_approval_request"),
    ],
)
async def test_approvals_go_by_tool(harness: Harness, approval: Any, kind: str) -> None:
    harness.engine.script = [CALL]
    found = await harness.post(tools=[harness.tool(require_approval=approval)])
    assert kinds(found)[1] == kind


async def test_only_allowed_tools_are_shown_to_the_model(harness: Harness) -> None:
    await harness.post(tools=[harness.tool(allowed_tools=["add"])])
    assert harness.tools(0) == ["calc__add"]
    await harness.post(tools=[harness.tool(allowed_tools={"read_only": True})])
    assert harness.tools(1) == ["calc__add"]
    choice = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "mcp", "server_label": "calc", "name": "fail"}],
    }
    await harness.post(tool_choice=choice)
    assert harness.tools(2) == ["calc__fail"]


async def test_a_forced_call_is_forced_once(harness: Harness) -> None:
    harness.engine.script = [CALL]
    choice = {"type": "mcp", "server_label": "calc", "name": "add"}
    found = await harness.post(tool_choice=choice)
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "message"]
    assert found["tool_choice"] == choice
    error = await harness.post(status=400, tool_choice={**choice, "name": "nothing"})
    assert error["error"]["param"] == "tool_choice"


async def test_calls_are_bounded_and_then_the_model_has_no_tools(harness: Harness) -> None:
    harness.engine.script = [("<call:calc__add>", '{"a": 1, "b": 1}', *CALL)]
    found = await harness.post(max_tool_calls=1)
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "mcp_call", "message"]
    _, first, second, _ = found["output"]
    assert (first["output"], second["status"]) == ("2", "failed")
    assert "1 calls" in second["error"]["message"]
    assert harness.tools(1) == []
    assert found["max_tool_calls"] == 1


async def test_output_tokens_are_those_of_all_turns(harness: Harness) -> None:
    harness.engine.script = [CALL]
    found = await harness.post(max_output_tokens=3)
    # The first turn has used them up: the call is made, and nothing is said of it.
    assert kinds(found) == ["mcp_list_tools", "mcp_call"]
    assert (found["status"], found["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    harness.engine.script = [CALL]
    await harness.post(max_output_tokens=100)
    assert harness.engine.of(Generate)[-1].sampling.max_tokens == 97


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("broken", "no JSON-RPC response"),
        ("slow", "PENSTOCK_TOOL_TIMEOUT_S"),
        ("many", "allowed_tools"),
        ("away", "PENSTOCK_MCP_SERVERS"),
    ],
)
async def test_a_server_that_lists_nothing_good_costs_its_tools_only(
    hasty: Harness, label: str, words: str
) -> None:
    events = await hasty.stream(tools=[hasty.tool(server_label=label), hasty.tool()])
    found = events[-1]["response"]
    assert kinds(found) == ["mcp_list_tools", "mcp_list_tools", "message"]
    assert words in found["output"][0]["error"]
    assert found["output"][0]["tools"] == []
    assert "response.mcp_list_tools.failed" in [event["type"] for event in events]
    assert hasty.tools(0) == ["calc__add", "calc__fail", "calc__secret"]


async def test_a_call_that_hangs_ends_in_time(hasty: Harness) -> None:
    hasty.engine.script = [("<call:later__add>", *CALL[1:])]
    found = await hasty.post(tools=[hasty.tool(server_label="later")])
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "message"]
    assert found["output"][1]["error"]["code"] == 504
    assert hasty.messages(1)[-1]["content"].startswith("Error: ")


async def test_arguments_that_are_none_are_an_error_of_the_call(harness: Harness) -> None:
    harness.engine.script = [("<call:calc__add>", "[1, 2")]
    found = await harness.post()
    assert found["output"][1]["error"]["code"] == -32602


async def test_arguments_that_are_none_count_as_a_call(harness: Harness) -> None:
    harness.engine.script = [("<call:calc__add>", "[1, 2")] * 2
    found = await harness.post(max_tool_calls=2)
    assert kinds(found) == ["mcp_list_tools", "mcp_call", "mcp_call", "message"]
    # From then on the model has no tools.
    assert [bool(harness.tools(number)) for number in range(3)] == [True, True, False]


async def test_what_the_client_gives_for_a_server_is_told_nobody_else(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.engine.script = [("<call:calc__secret>", "{}")]
    given = harness.tool(
        authorization="token-of-the-client", headers={"X-Team": "team-of-a-client"}
    )
    found = await harness.post(tools=[given])
    assert found["output"][1]["output"] == "you sent ***"
    stored = await harness.gateway.client.get(f"/v1/responses/{found['id']}")
    told = json.dumps(found) + stored.text + caplog.text
    assert "token-of-the-client" not in told
    assert "team-of-a-client" not in told
    headers = harness.server.asked("tools/call")[-1]["headers"]
    assert headers["authorization"] == "Bearer token-of-the-client"
    assert headers["x-team"] == "team-of-a-client"
    data = harness.gateway.directory / "data"
    files = [path for path in data.rglob("*") if path.is_file()]
    assert files
    assert not any(b"token-of-the-client" in path.read_bytes() for path in files)
    prompts = json.dumps([harness.messages(number) for number in (0, 1)])
    assert "token-of-the-client" not in prompts


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"server_label": "unknown"}, "tools[0].server_label"),
        ({"server_url": "http://127.0.0.1:1/mcp"}, "tools[0].server_url"),
        ({"server_url": "http://169.254.169.254/latest"}, "tools[0].server_url"),
        ({"server_label": 7}, "tools[0].server_label"),
        ({"connector_id": "connector_gmail"}, "tools[0].connector_id"),
        ({"headers": {"Host": "other"}}, "tools[0].headers"),
        ({"headers": {"A": "b\r\nC: d"}}, "tools[0].headers"),
        ({"authorization": "a b"}, "tools[0].authorization"),
        ({"require_approval": "sometimes"}, "tools[0].require_approval"),
        ({"allowed_tools": {"names": []}}, "tools[0].allowed_tools"),
    ],
)
async def test_what_may_not_be_is_a_400_that_names_the_field(
    harness: Harness, fields: dict[str, Any], param: str
) -> None:
    error = await harness.post(status=400, tools=[harness.tool(**fields)])
    assert error["error"]["param"] == param
    assert "a b" not in error["error"]["message"]
    assert not harness.engine.of(Generate)


async def test_a_url_that_is_listed_goes_under_the_clients_label(harness: Harness) -> None:
    harness.engine.script = [("<call:mine__add>", *CALL[1:])]
    url = harness.server.url("/modern/json")
    found = await harness.post(tools=[harness.tool(server_label="mine", server_url=url)])
    assert found["output"][1]["server_label"] == "mine"
    assert found["output"][1]["output"] == "5"
    assert found["tools"][0]["server_url"] == url


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("field", ["server_label", "server_url"])
async def test_who_may_use_no_tools_is_not_told_which_servers_there_are(
    harness: Harness, field: str, background: bool
) -> None:
    tools = [harness.tool(**{field: "unknown"})]
    harness.auth.denied_endpoints = ("/v1/tools/execute",)
    error = await harness.post(status=403, tools=tools, background=background)
    assert "calc" not in error["error"]["message"]
    harness.auth.denied_endpoints = ()
    error = await harness.post(status=400, tools=tools, background=background)
    assert "known are calc" in error["error"]["message"]


async def test_a_key_that_may_use_no_tools_gets_none(harness: Harness) -> None:
    harness.auth.denied_endpoints = ("/v1/tools/execute",)
    error = await harness.post(status=403)
    assert error["error"]["code"] == "permission_denied"
    assert not harness.engine.of(Generate)


async def test_a_failure_after_a_call_is_told_with_the_call(harness: Harness) -> None:
    harness.engine.script = [CALL]
    harness.engine.fails_after_script = ErrorCode.INTERNAL_ERROR
    found = await harness.post()
    assert (found["status"], kinds(found)) == ("failed", ["mcp_list_tools", "mcp_call"])
    assert (found["output"][1]["status"], found["output"][1]["output"]) == ("completed", "5")
    # What was spent is told as it is booked.
    await harness.gateway.until(lambda: len(harness.auth.settled()) == 2)
    booked = harness.auth.settled()
    assert (found["usage"]["input_tokens"], found["usage"]["output_tokens"]) == (
        sum(one.prompt_tokens for one in booked),
        sum(one.completion_tokens for one in booked),
    )
    assert found["usage"]["output_tokens"] == 3
    stored = (await harness.gateway.client.get(f"/v1/responses/{found['id']}")).json()
    assert stored == found


async def test_a_client_that_leaves_ends_the_call(harness: Harness) -> None:
    harness.engine.script = [("<call:later__add>", *CALL[1:])]
    body = {
        "model": "demo",
        "input": "hi",
        "stream": True,
        "tools": [harness.tool(server_label="later")],
    }
    async with harness.gateway.client.stream("POST", "/v1/responses", json=body) as stream:
        async for line in stream.aiter_lines():
            if "response.mcp_call.in_progress" in line:
                break
    parts = harness.gateway.application
    await harness.gateway.until(lambda: not len(parts.sessions))
    assert len(harness.engine.of(Generate)) == 1


async def test_a_connection_goes_on_with_calls(harness: Harness) -> None:
    url = f"ws://127.0.0.1:{harness.gateway.client.base_url.port}/v1/responses"
    harness.engine.script = [CALL]
    async with connect(url, proxy=None) as socket:
        first = await turn(socket, tools=[harness.tool()], store=False)
        assert kinds(first) == ["mcp_list_tools", "mcp_call", "message"]
        assert first["output"][1]["output"] == "5"
        previous = {"previous_response_id": first["id"], "store": False}
        second = await turn(socket, tools=[harness.tool()], **previous)
        assert kinds(second) == ["message"]
        assert [one["role"] for one in harness.messages(2)] == [
            *("user", "assistant", "tool", "assistant", "user"),
        ]


async def turn(socket: ClientConnection, **fields: Any) -> dict[str, Any]:
    body = {"type": "response.create", "model": "demo", "input": "hi", **fields}
    await socket.send(json.dumps(body))
    async with asyncio.timeout(60):
        while True:
            event = json.loads(await socket.recv())
            EVENT.validate_python(event)
            if event["type"] in ("response.completed", "response.failed"):
                found: dict[str, Any] = event["response"]
                return found


async def test_a_line_of_a_batch_runs_no_tools(harness: Harness) -> None:
    """It is booked once, whatever is asked for it, and turns are several requests."""

    class Line:
        priority = 1

        def on_granted(self, lease_id: str) -> None: ...

        def put(self, settle: Settle) -> None: ...

    app = harness.gateway.application.parts.errand_app
    body = {"model": "demo", "input": "hi", "tools": [harness.tool()]}
    caller = Caller(None, "127.0.0.1", errand=Line())
    answer = await Errands(lambda: app).ask("/v1/responses", orjson.dumps(body), caller)
    assert (answer.status, orjson.loads(answer.body)["error"]["param"]) == (400, "tools")
    assert not harness.engine.of(Generate)


async def test_a_drain_lets_all_turns_finish(harness: Harness) -> None:
    harness.engine.script, harness.engine.text = [], None
    asked = asyncio.create_task(harness.post())
    await harness.engine.until(lambda: len(harness.engine.of(Generate)) == 1)
    drained = asyncio.create_task(harness.gateway.application.drain(30.0))
    await harness.gateway.until(lambda: harness.gateway.application.requests.is_draining)
    harness.engine.text = SUM
    (first,) = harness.engine.of(Generate)
    harness.engine.emit(first, "".join(CALL))
    harness.engine.finish(first)
    found = await asked
    assert (found["status"], kinds(found)[1:]) == ("completed", ["mcp_call", "message"])
    assert found["output"][1]["output"] == "5"
    await drained


async def test_tools_of_this_server_have_a_label_of_their_own(
    socket_dir: Path, plugin: Path
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.parser()
        engine = await gateway.engine(text=SUM, tool_format="hermes")
        with mcp_server() as server:
            harness = Harness(gateway, auth, engine, server)
        engine.script = [("<call:penstock__add>", *CALL[1:]), ("<call:penstock__crash>", "{}")]
        found = await harness.post(tools=[harness.tool(server_label="penstock")])
        assert kinds(found) == ["mcp_list_tools", "mcp_call", "mcp_call", "message"]
        assert found["output"][1]["output"] == "5"
        assert "process_died" in json.dumps(found["output"][2]["error"])
        engine.script = [("<call:penstock__add>", '{"a": "x", "b": 1}')]
        found = await harness.post(tools=[harness.tool(server_label="penstock")])
        assert found["output"][1]["error"]["code"] == -32602


async def test_a_server_with_nothing_to_run_says_so(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        tool = {"type": "mcp", "server_label": "calc"}
        body = {"model": "demo", "input": "hi", "tools": [tool]}
        answer = await gateway.client.post("/v1/responses", json=body)
        assert answer.status_code == 400
        assert "PENSTOCK_MCP_SERVERS" in answer.json()["error"]["message"]
