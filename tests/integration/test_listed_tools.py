"""Lists of the tools of MCP servers: which of an earlier response hold, and which tools are
offered."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.request.kinds.generation import GenerationWork
from protocol.errors import ErrorCode
from protocol.wire.messages import Failure, OpenParse
from tests.fakes.fake_workers import FakeParser
from tests.fakes.hosted_harness import CALL, Harness, kinds, opened
from tests.fakes.mcp_server import FakeMcpServer, mcp_server

ALL = ["calc__add", "calc__fail", "calc__secret"]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeMcpServer]:
    with mcp_server() as found:
        yield found


@pytest.fixture
async def harness(socket_dir: Path, server: FakeMcpServer) -> AsyncIterator[Harness]:
    async with opened(socket_dir, server) as harness:
        yield harness


@pytest.mark.parametrize("allowed", [["add"], {"read_only": True}])
async def test_what_an_earlier_request_did_not_allow_is_listed_when_a_later_one_does(
    harness: Harness, allowed: Any
) -> None:
    limited = [harness.tool(allowed_tools=allowed)]
    first = await harness.post(tools=limited)
    follow = {"input": "And now?", "previous_response_id": first["id"]}
    assert kinds(await harness.post(tools=limited, **follow)) == ["message"]
    count = "/v1/responses/input_tokens"
    asked = {"model": "demo", "tools": [harness.tool()], **follow}
    counted = await harness.gateway.client.post(count, json=asked)
    assert counted.headers["x-penstock-ignored-fields"] == "tools[0]"
    whole = await harness.post(**follow)
    assert kinds(whole) == ["mcp_list_tools", "message"]
    assert harness.tools(-1) == ALL
    # All of them are among those of a list that was not limited.
    follow["previous_response_id"] = whole["id"]
    only = [harness.tool(allowed_tools=["fail", "add"])]
    assert kinds(await harness.post(tools=only, **follow)) == ["message"]
    assert harness.tools(-1) == ["calc__add", "calc__fail"]


def refuse_schema_of(parser: FakeParser, name: str) -> None:
    """Parsers take no schema of this tool, as they find no sense in it."""
    answer = parser.answer

    def refusing(command: Any) -> None:
        tools = json.loads(command.tools_json or "[]") if isinstance(command, OpenParse) else []
        names = [tool["function"]["name"] for tool in tools]
        if name not in names:
            answer(command)
            return
        failure = Failure(
            request_id=command.request_id,
            attempt=command.attempt,
            code=ErrorCode.INVALID_REQUEST,
            message="The parameters are no valid JSON schema.",
            param=f"tools[{names.index(name)}].function.parameters",
        )
        parser.send(failure)

    parser.answer = refusing  # type: ignore[method-assign]


def parser_of(harness: Harness) -> FakeParser:
    (parser,) = [one for one in harness.gateway.workers if isinstance(one, FakeParser)]
    return parser


async def test_a_tool_whose_schema_is_none_is_left_out_and_told(harness: Harness) -> None:
    refuse_schema_of(parser_of(harness), "calc__fail")
    harness.engine.script = [CALL]
    asked = {"model": "demo", "input": "2 + 3?", "tools": [harness.tool()]}
    answer = await harness.gateway.client.post("/v1/responses", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-penstock-ignored-fields"] == "calc.fail"
    assert kinds(answer.json()) == ["mcp_list_tools", "mcp_call", "message"]
    assert answer.json()["output"][1]["output"] == "5"
    assert harness.tools(-1) == ["calc__add", "calc__secret"]


async def test_a_function_of_the_client_whose_schema_is_none_is_refused(harness: Harness) -> None:
    refuse_schema_of(parser_of(harness), "f")
    function = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    error = await harness.post(status=400, tools=[harness.tool(), function])
    assert "no valid JSON schema" in error["error"]["message"]
    assert error["error"]["param"] == "tools[1].parameters"


HOSTED: dict[str, Any] = {"type": "web_search"}
SCHEMA: dict[str, Any] = {"type": "object"}


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA}}


def allowing(name: str) -> dict[str, Any]:
    allowed = [{"type": "function", "function": {"name": name}}]
    return {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": allowed}}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "/v1/responses",
            {
                "input": "hi",
                "tools": [HOSTED, {"type": "function", "name": "f", "parameters": SCHEMA}],
            },
            "tools[1].parameters",
        ),
        (
            "/v1/messages",
            {
                "max_tokens": 9,
                "tools": [
                    {"type": "web_search_20250305", "name": "web_search"},
                    {"name": "f", "input_schema": SCHEMA},
                ],
            },
            "tools[1].input_schema",
        ),
        (
            "/v1/chat/completions",
            {"tools": [function("a"), function("f")], "tool_choice": allowing("f")},
            "tools[1].function.parameters",
        ),
        (
            "/v1/chat/completions",
            {"functions": [{"name": "a"}, {"name": "f", "parameters": SCHEMA}]},
            "functions[1].parameters",
        ),
    ],
)
async def test_a_wrong_schema_is_named_where_its_client_wrote_it(
    harness: Harness, path: str, body: dict[str, Any], param: str
) -> None:
    refuse_schema_of(parser_of(harness), "f")
    said = [] if "input" in body else [{"role": "user", "content": "hi"}]
    asked = {"model": "demo", **({"messages": said} if said else {}), **body}
    answer = await harness.gateway.client.post(path, json=asked)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith(f"Invalid `{param}`: ")
    assert error.get("param", param) == param  # Anthropic's errors have no such field


async def test_a_stream_with_such_tools_tells_what_no_grammar_enforces(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GenerationWork, "unenforced", property(lambda _work: ("/uniqueItems",)))
    asked = {"model": "demo", "input": "hi", "tools": [harness.tool()], "stream": True}
    answer = await harness.gateway.client.post("/v1/responses", json=asked)
    assert answer.headers["x-penstock-unenforced"] == "/uniqueItems"
