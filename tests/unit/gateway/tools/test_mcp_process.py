"""What a process that asks MCP servers finds, against a real server on loopback."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.tools.mcp_client import McpClient, mirrored_parameters
from gateway.tools.mcp_http import McpError, Server
from gateway.tools.mcp_process import call_tool, list_tools, told_result, wanted_tools
from gateway.tools.toolbox import ToolBox
from tests.fakes.mcp_server import ADD, TOOLS, FakeMcpServer, mcp_server

FORMS = ["/modern/json", "/modern/sse", "/legacy/json", "/legacy/sse"]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeMcpServer]:
    with mcp_server() as found:
        yield found


def called(url: str, name: str = "add", **headers: str) -> dict[str, Any]:
    asked = {"url": url, "headers": headers}
    return call_tool(asked, name, {"a": 2, "b": 3}, ADD["inputSchema"], 1000)


@pytest.mark.parametrize("form", FORMS)
def test_tools_are_listed_and_called_in_every_version_and_form(
    server: FakeMcpServer, form: str
) -> None:
    listed = list_tools({"url": server.url(form)})
    # Those that are described wrongly are left out, and cost the others nothing.
    assert [tool["name"] for tool in listed["tools"]] == ["add", "fail", "secret"]
    assert listed["tools"][0] == {
        "name": "add",
        "description": "Adds two numbers.",
        "input_schema": ADD["inputSchema"],
        "annotations": {"readOnlyHint": True},
    }
    assert called(server.url(form)) == {"output": "5"}


def test_the_headers_of_the_newest_version_say_what_the_body_says(server: FakeMcpServer) -> None:
    called(server.url("/modern/json/headers"))
    asked = next(one for one in server.asked("tools/call") if one["path"].endswith("headers"))
    headers, params = asked["headers"], asked["question"]["params"]
    assert (headers["mcp-method"], headers["mcp-name"]) == ("tools/call", "add")
    assert headers["mcp-protocol-version"] == "2026-07-28"
    assert headers["mcp-param-first"] == "2"
    assert params["_meta"]["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"


def test_a_session_of_an_older_version_is_ended(server: FakeMcpServer) -> None:
    called(server.url("/legacy/json/session"))
    asked = [one for one in server.asked() if one["path"].endswith("session")]
    assert [one["method"] for one in asked] == [
        *("server/discover", "initialize", "notifications/initialized", "tools/call", "DELETE"),
    ]
    assert asked[3]["headers"]["mcp-session-id"] == "session-1"
    assert asked[3]["headers"]["mcp-protocol-version"] == "2025-06-18"


def test_pages_are_followed(server: FakeMcpServer) -> None:
    assert len(list_tools({"url": server.url("/modern/json/pages")})["tools"]) == 3


@pytest.mark.parametrize(
    ("behaviour", "kind", "words"),
    [
        ("garbage", "mcp_protocol_error", "no JSON-RPC response"),
        ("another_id", "mcp_protocol_error", "no JSON-RPC response"),
        ("cyclic", "mcp_protocol_error", "a cursor comes twice"),
        ("endless", "mcp_protocol_error", "more than 32 pages"),
        ("many", "mcp_protocol_error", "1000 tools, and 128 are accepted"),
        ("huge", "mcp_protocol_error", "more than 1048576 bytes"),
        ("no_list", "mcp_protocol_error", "no list"),
        ("dies", "http_error", "ended in the middle"),
        ("no_http", "http_error", "ended in the middle"),
        ("401", "http_error", "HTTP 401"),
        ("404", "http_error", "HTTP 404"),
        ("500", "http_error", "HTTP 500"),
    ],
)
@pytest.mark.parametrize("form", ["json", "sse"])
def test_what_a_server_does_wrong_is_an_error_that_says_so(
    server: FakeMcpServer, form: str, behaviour: str, kind: str, words: str
) -> None:
    found = list_tools({"url": server.url(f"/modern/{form}/{behaviour}")})
    assert found["error"]["type"] == kind
    assert words in found["error"]["message"]
    assert found["error"]["message"].isprintable()  # models and people read it


@pytest.mark.parametrize("form", ["json", "sse"])
async def test_a_tool_that_no_answer_can_hold_costs_only_itself(
    server: FakeMcpServer, form: str
) -> None:
    box = ToolBox(
        max_processes=1,
        timeout_s=60.0,
        environment=dict(os.environ),
        command=(sys.executable, "-m", "gateway.tools.mcp_process"),
    )
    url = server.url(f"/modern/{form}/odd_schemas")
    asked = {"url": url, "headers": {"Authorization": "Bearer token-of-the-client"}}
    try:
        found = await box.execute("list_tools", json.dumps({"server": asked}))
    finally:
        await box.close()
    assert found.error is None
    keys, add = found.result["tools"]
    assert add["input_schema"] == ADD["inputSchema"]
    assert list(keys["input_schema"]["properties"]) == ["caf?", "of ***"]


def test_tools_that_are_named_are_listed_out_of_a_thousand(server: FakeMcpServer) -> None:
    found = list_tools({"url": server.url("/modern/json/many")}, ["add7", "nothing"])
    assert [tool["name"] for tool in found["tools"]] == ["add7"]


def test_only_tools_that_change_nothing_are_listed_on_demand(server: FakeMcpServer) -> None:
    found = list_tools({"url": server.url()}, None, only_reading=True)
    assert [tool["name"] for tool in found["tools"]] == ["add"]


def test_a_connection_that_nobody_takes_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/mcp"
        assert list_tools({"url": url})["error"]["code"] == 502


def test_every_address_of_a_name_is_tried(server: FakeMcpServer) -> None:
    """As `localhost` is `::1` and `127.0.0.1`, of which a server listens on one."""
    url = server.url().replace("127.0.0.1", "localhost")

    def resolve(_host: str, port: int, **_: Any) -> list[Any]:
        kind = socket.AF_INET, socket.SOCK_STREAM, 6, ""
        return [(*kind, (address, port)) for address in ("127.0.0.2", "127.0.0.1")]

    client = McpClient(Server(url), resolve)
    client.open()
    assert "add" in [tool["name"] for tool in client.list_tools() if isinstance(tool, dict)]


@pytest.mark.parametrize(("name", "kind"), [("fail", "execution"), ("nothing", "protocol")])
def test_a_call_that_fails_is_an_error(server: FakeMcpServer, name: str, kind: str) -> None:
    error = called(server.url(), name)["error"]
    assert error["type"] == f"mcp_{'tool_' * (kind == 'execution')}{kind}_error"
    assert ("it broke" in str(error)) is (kind == "execution")


def test_long_answers_are_errors(server: FakeMcpServer) -> None:
    error = called(server.url("/modern/json/long_answers"))["error"]
    assert "PENSTOCK_MAX_TOOL_OUTPUT_BYTES" in error["message"]


def test_what_is_no_text_is_replaced(server: FakeMcpServer) -> None:
    assert called(server.url("/modern/json/half_characters")) == {"output": "a?b"}


def test_credentials_reach_their_server_and_nobody_else(server: FakeMcpServer) -> None:
    url = server.url("/modern/json/secrets")
    found = called(url, "secret", Authorization="Bearer token-of-the-client")
    asked = next(one for one in server.asked("tools/call") if one["path"].endswith("secrets"))
    assert asked["headers"]["authorization"] == "Bearer token-of-the-client"
    assert found == {"output": "you sent ***"}


def test_redirects_lead_to_listed_servers_only(server: FakeMcpServer) -> None:
    with mcp_server() as other:
        url = server.url(f"/modern/json/redirects?{other.url('/modern/json/there')}")
        refused = list_tools({"url": url})
        assert "PENSTOCK_MCP_SERVERS" in refused["error"]["message"]
        # Nor does a listed server make everything else listed that its host serves.
        elsewhere = list_tools({"url": url, "listed": (other.url("/modern/json"),)})
        assert "PENSTOCK_MCP_SERVERS" in elsewhere["error"]["message"]
        assert not other.asked()
        headers = {"Authorization": "Bearer token-of-the-client"}
        asked = {"url": url, "listed": (other.url("/modern/json/there"),), "headers": headers}
        assert len(list_tools(asked)["tools"]) == 3
        # What the client gave is for the first server alone.
        assert other.asked()
        assert all("authorization" not in one["headers"] for one in other.asked())
        assert "authorization" in server.asked()[-1]["headers"]


def test_a_server_may_redirect_within_its_own_origin(server: FakeMcpServer) -> None:
    url = server.url("/modern/json/redirects?/modern/json/within")
    headers = {"Authorization": "Bearer token-of-the-client"}
    assert len(list_tools({"url": url, "headers": headers})["tools"]) == 3
    asked = [one for one in server.asked() if one["path"] == "/modern/json/within"]
    assert asked
    assert all("authorization" in one["headers"] for one in asked)


def test_a_session_is_of_the_server_that_began_it(server: FakeMcpServer) -> None:
    with mcp_server() as other:
        url = other.url("/legacy/json/other")
        path = f"/modern/json/redirects?{url}"
        assert len(list_tools({"url": server.url(path), "listed": (url,)})["tools"]) == 3
        (listed,) = other.asked("tools/list")
        assert listed["headers"]["mcp-session-id"] == "session-1"
        first = [one for one in server.asked() if one["path"] == path]
        assert first
        assert not any("mcp-session-id" in one["headers"] for one in first)
        # And the other way round: a redirect in the middle doesn't take a session along.
        target = other.url("/modern/json/later")
        path = f"/legacy/json/moves?{target}"
        asked = {"url": server.url(path), "listed": (target,)}
        assert len(list_tools(asked)["tools"]) == 3
        later = [one for one in other.asked() if one["path"].endswith("later")]
        assert later
        assert not any("mcp-session-id" in one["headers"] for one in later)


def test_redirects_that_never_end_are_an_error(server: FakeMcpServer) -> None:
    error = list_tools({"url": server.url("/modern/json/circles")})["error"]
    assert (error["type"], error["code"]) == ("http_error", 508)


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1"])
def test_names_that_lead_inside_are_refused_unless_listed(address: str) -> None:
    def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        return [(0, 0, 0, "", (address, port))]

    client = McpClient(Server("http://tools.example:1/mcp"), resolve)
    with pytest.raises(McpError, match="no public address"):
        client.open()


def test_listed_networks_are_connected_to(server: FakeMcpServer) -> None:
    def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    url = f"http://tools.example:{server.port}/modern/json"
    client = McpClient(Server(url, networks=("127.0.0.0/8",)), resolve)
    client.open()
    assert client.list_tools() == json.loads(json.dumps(TOOLS))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "x-mcp-header": "A"},
        {"properties": {"a": {"type": "number", "x-mcp-header": "A"}}},
        {"properties": {"a": {"type": "string", "x-mcp-header": "A\r\nB"}}},
        {"properties": {"a": {"items": {"type": "string", "x-mcp-header": "A"}}}},
        {"properties": {name: {"type": "string", "x-mcp-header": name} for name in ("a", "A")}},
    ],
)
def test_parameters_that_may_not_travel_in_headers_spoil_their_tool(schema: Any) -> None:
    with pytest.raises(ValueError, match="x-mcp-header"):
        mirrored_parameters(schema)
    assert wanted_tools([{"name": "t", "inputSchema": schema}], None, only_reading=False) == []


def test_a_schema_beyond_measure_spoils_its_tool() -> None:
    deep: Any = {"type": "object"}
    for _ in range(100):
        deep = {"properties": {"a": deep}}
    long = {"type": "object", "description": "x" * 100_000}
    described = [{"name": "a", "inputSchema": deep}, {"name": "b", "inputSchema": long}]
    assert wanted_tools(described, None, only_reading=False) == []


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ({"content": [], "structuredContent": {"a": "ä"}}, '{"a": "ä"}'),
        ({"content": [{"type": "resource", "resource": {"text": "r"}}]}, "r"),
        (
            {"content": [{"type": "image", "data": "AA=="}]},
            "[image left out: models here read text]",
        ),
    ],
)
def test_results_are_told_as_text(result: Any, text: str) -> None:
    assert told_result(result, 1000) == {"output": text}


@pytest.mark.parametrize("result", [{"content": "a"}, {"content": [{"type": "smell"}]}])
def test_results_that_are_none_are_errors(result: Any) -> None:
    with pytest.raises(McpError):
        told_result(result, 1000)
