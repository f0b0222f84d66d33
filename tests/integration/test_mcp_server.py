"""This server as an MCP server: the official client, and what no good client sends."""

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize, Prepare, Settle
from tests.fakes.late import mcp
from tests.fakes.raw_http import connected, post
from tests.fakes.running_gateway import RunningGateway, running_gateway

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
PAGE = Path(__file__).parents[2] / "docs" / "mcp.md"
TOOLS = ["add", "crash", "sleep", "long", "environment", "read"]
MODES = ["legacy", "auto"]


def url_of(gateway: RunningGateway) -> str:
    return f"{gateway.client.base_url}/mcp"


async def said(gateway: RunningGateway, body: Any, **headers: str) -> tuple[int, Any]:
    """Status and answer; underscores of header names stand for hyphens."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named.setdefault("Content-Type", "application/json")
    answer = await gateway.client.post("/mcp", content=content, headers=named)
    return answer.status_code, answer.json() if answer.content else None


def asked(method: str, number: Any = 1, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


async def modern(gateway: RunningGateway, method: str, **params: Any) -> tuple[int, Any]:
    headers = {"MCP_Protocol_Version": "2026-07-28", "Mcp_Method": method}
    if "name" in params:
        headers["Mcp_Name"] = params["name"]
    return await said(gateway, asked(method, _meta=META, **params), **headers)


@pytest.mark.parametrize("mode", MODES)
async def test_the_official_client_lists_and_calls_tools_in_either_kind_of_version(
    socket_dir: Path, plugin: Path, mode: Any
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        async with mcp.Client(url_of(gateway), mode=mode) as client:
            listed = (await client.list_tools()).tools
            assert [tool.name for tool in listed] == [*TOOLS, "generate"]
            assert listed[0].description == "Adds two numbers."
            assert listed[1].input_schema["type"] == "object"
            sums = await client.call_tool("add", {"a": 1, "b": 2.5})
            assert (sums.content[0].text, sums.is_error) == ("3.5", False)
            names = await client.call_tool("environment", {})
            assert "PENSTOCK_ADMIN_KEY" not in names.content[0].text
            with pytest.raises(mcp.MCPError, match="no tool named `nothing`"):
                await client.call_tool("nothing", {})
            wrong = await client.call_tool("add", {"a": 1})
            assert wrong.is_error
            assert "'b' is a required property" in wrong.content[0].text
            crashed = await client.call_tool("crash", {})
            assert crashed.is_error
            assert crashed.content[0].text.startswith("process_died")


@pytest.mark.parametrize("mode", MODES)
async def test_the_official_client_asks_a_model(socket_dir: Path, mode: Any) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine()
        async with mcp.Client(url_of(gateway), mode=mode) as client:
            (tool,) = (await client.list_tools()).tools
            assert tool.input_schema["properties"]["model"]["enum"] == ["demo"]
            assert tool.input_schema["required"] == ["prompt"]
            arguments = {"prompt": "Hi!", "system": "Be short.", "max_tokens": 9, "zzz": None}
            found = await client.call_tool("generate", arguments)
        assert found.content[0].text == "Hello, world"
        assert found.meta is not None
        assert found.meta["penstock/model"] == "demo"
        assert found.meta["penstock/usage"]["output_tokens"] == 2
        prepare = engine.of(Prepare)[-1]
        assert json.loads(prepare.messages_json or "") == [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Hi!"},
        ]
        await gateway.until(lambda: len(auth.of(Settle)) == 1)
        asked_for = auth.of(Authorize)[-1]
        assert (asked_for.endpoint, asked_for.model) == ("/v1/chat/completions", "demo")


async def test_the_curl_lines_of_the_page_list_the_tools_and_ask_a_model(socket_dir: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (block,) = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    commands = re.findall(r"^curl .*?\}'$", block, re.MULTILINE | re.DOTALL)
    assert "".join(f"{command}\n" for command in commands) == block
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        answers = []
        for command in commands:
            here = command.replace("http://127.0.0.1:8000", str(gateway.client.base_url))
            done = await asyncio.to_thread(
                subprocess.run, ["bash", "-c", here], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            answers.append(json.loads(done.stdout)["result"])
    listed, called = answers
    assert [tool["name"] for tool in listed["tools"]] == ["generate"]
    assert called["content"][0]["text"] == "Hello, world"


async def test_one_model_with_a_further_name_needn_t_be_named(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, model_aliases=("small=demo",)) as gateway:
        await gateway.auth()
        await gateway.engine()
        async with mcp.Client(url_of(gateway), mode="auto") as client:
            (tool,) = (await client.list_tools()).tools
            assert tool.input_schema["properties"]["model"]["enum"] == ["demo", "small"]
            assert tool.input_schema["required"] == ["prompt"]
            found = await client.call_tool("generate", {"prompt": "Hi!"})
        assert found.meta is not None
        assert found.meta["penstock/model"] == "demo"


async def test_wrong_arguments_for_a_model_are_told_to_the_model_that_called(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        for arguments, words in (
            ({}, "Missing required field: `prompt`"),
            ({"prompt": 7}, "Invalid `prompt`"),
            ({"prompt": "x", "modell": "demo"}, "Unknown argument: `modell`"),
            ({"prompt": "x", "model": "other"}, "`other`"),
            ({"prompt": "x", "max_tokens": 0}, "Invalid `max_tokens`"),
        ):
            status, answer = await modern(
                gateway, "tools/call", name="generate", arguments=arguments
            )
            assert (status, answer["result"]["isError"]) == (200, True)
            assert words in answer["result"]["content"][0]["text"]
        await gateway.engine(model="second")
        call = {"name": "generate", "arguments": {"prompt": "x"}}
        _, answer = await modern(gateway, "tools/call", **call)
        assert "one of demo, second" in answer["result"]["content"][0]["text"]


async def test_a_key_sees_and_uses_what_its_scopes_allow(socket_dir: Path, plugin: Path) -> None:
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        auth = await gateway.auth(allow_anonymous=False)
        auth.good_keys = ("psk-good",)
        await gateway.engine()
        key = {"Authorization": "Bearer psk-good"}
        status, answer = await said(gateway, asked("tools/list"))
        assert (status, answer["error"]["data"]["code"]) == (401, "invalid_api_key")
        assert (answer["jsonrpc"], answer["id"]) == ("2.0", None)

        async def names() -> list[str]:
            _, answer = await said(gateway, asked("tools/list"), **key)
            return [tool["name"] for tool in answer["result"]["tools"]]

        assert await names() == [*TOOLS, "generate"]
        gateway.application.identities.clear()
        auth.denied_endpoints = ("/v1/tools/execute",)
        assert await names() == ["generate"]
        for name in ("add", "nothing"):
            call = asked("tools/call", 7, name=name, arguments={"a": 1, "b": 2})
            status, answer = await said(gateway, call, **key)
            assert (status, answer["id"], answer["error"]["code"]) == (403, 7, -32000)
        gateway.application.identities.clear()
        auth.denied_endpoints = ("/v1/chat/completions",)
        assert await names() == TOOLS
        call = asked("tools/call", name="generate", arguments={"prompt": "x", "model": "demo"})
        assert (await said(gateway, call, **key))[0] == 403


async def test_limits_have_their_status_and_a_repeatable_error(
    socket_dir: Path, plugin: Path
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        call = asked("tools/call", "a", name="add", arguments={"a": 1, "b": 2})
        assert (await said(gateway, call))[0] == 200
        auth.denial, auth.retry_after_s = ErrorCode.RATE_LIMIT_EXCEEDED, 7.0
        answer = await gateway.client.post("/mcp", json=call)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
        told = answer.json()
        assert (told["id"], told["error"]["data"]["code"]) == ("a", "rate_limit_exceeded")


async def test_headers_and_versions_are_checked(socket_dir: Path, plugin: Path) -> None:
    version, method = {"MCP_Protocol_Version": "2026-07-28"}, {"Mcp_Method": "tools/list"}
    listing = asked("tools/list", _meta=META)
    call = asked("tools/call", _meta=META, name="add", arguments={"a": 1, "b": 2})
    calls = {**version, "Mcp_Method": "tools/call"}
    no_capabilities = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
    future = {**META, "io.modelcontextprotocol/protocolVersion": "2099-01-01"}
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        for body, headers, status, code in (
            (listing, {**version, **method}, 200, None),
            (listing, {**version, "mcp_method": "tools/list"}, 200, None),
            (listing, {**version, "Mcp_Method": "TOOLS/LIST"}, 400, -32020),
            (listing, version, 400, -32020),
            (listing, method, 400, -32020),
            (listing, {"MCP_Protocol_Version": "2025-11-25", **method}, 400, -32020),
            (asked("tools/list"), {**version, **method}, 400, -32602),
            (asked("tools/list", _meta=no_capabilities), {**version, **method}, 400, -32602),
            (call, {**calls, "Mcp_Name": "add"}, 200, None),
            (call, {**calls, "Mcp_Name": "=?base64?YWRk?="}, 200, None),
            (call, {**calls, "Mcp_Name": "=?base64?YWR?="}, 400, -32020),
            (call, {**calls, "Mcp_Name": "read"}, 400, -32020),
            (call, calls, 400, -32020),
            (asked("tools/list"), {"MCP_Protocol_Version": "2025-06-18"}, 200, None),
            (asked("tools/list"), {"MCP_Protocol_Version": "2024-11-05"}, 400, -32022),
            (
                asked("tools/list", _meta=future),
                {"MCP_Protocol_Version": "2099-01-01", **method},
                400,
                -32022,
            ),
        ):
            found, answer = await said(gateway, body, **headers)
            assert (found, answer.get("error", {}).get("code")) == (status, code), (body, headers)
            assert answer["id"] == 1
        assert answer["error"]["data"]["requested"] == "2099-01-01"
        assert answer["error"]["data"]["supported"] == ["2026-07-28", "2025-11-25", "2025-06-18"]


async def test_each_version_has_its_methods(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        status, answer = await modern(gateway, "server/discover")
        result = answer["result"]
        assert status == 200
        assert result["supportedVersions"] == ["2026-07-28", "2025-11-25", "2025-06-18"]
        assert (result["resultType"], result["cacheScope"]) == ("complete", "private")
        assert result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "penstock"
        for method in ("initialize", "ping", "logging/setLevel", "resources/list", "nothing"):
            status, answer = await modern(gateway, method)
            assert (status, answer["error"]["code"]) == (404, -32601)
        for proposed, spoken in (
            ("2025-06-18", "2025-06-18"),
            ("2025-11-25", "2025-11-25"),
            ("2024-11-05", "2025-11-25"),
        ):
            body = asked("initialize", protocolVersion=proposed, capabilities={})
            status, answer = await said(gateway, body)
            assert (status, answer["result"]["protocolVersion"]) == (200, spoken)
            assert answer["result"]["capabilities"] == {"tools": {}}
        assert await said(gateway, asked("ping", "p")) == (
            200,
            {"jsonrpc": "2.0", "id": "p", "result": {}},
        )
        status, answer = await said(gateway, asked("resources/list"))
        assert (status, answer["error"]["code"]) == (200, -32601)
        note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert await said(gateway, note) == (202, None)
        assert await said(gateway, {"jsonrpc": "2.0", "id": 1, "result": {}}) == (202, None)
        for verb in ("GET", "DELETE"):
            answer = await gateway.client.request(verb, "/mcp")
            assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
            assert answer.json()["jsonrpc"] == "2.0"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"\xff", -32700),
        (b"[]", -32600),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', -32600),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": null, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": true, "method": "ping"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 7}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}', -32600),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, -32700),
    ],
)
async def test_what_is_no_message_is_refused(socket_dir: Path, body: bytes, code: int) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        status, answer = await said(gateway, body)
        assert (status, answer["error"]["code"], answer["id"]) == (400, code, None)


async def test_what_a_tool_answers_is_bounded(socket_dir: Path, plugin: Path) -> None:
    async with running_gateway(
        socket_dir, max_tool_output_bytes=20, tool_timeout_s=1.0, max_body_bytes=10_000
    ) as gateway:
        await gateway.auth()
        for name, words in (
            ("long", "too_long"),
            ("environment", "more than 20 bytes"),
            ("sleep", "timeout"),
        ):
            _, answer = await said(gateway, asked("tools/call", name=name, arguments={}))
            assert answer["result"]["isError"]
            assert words in answer["result"]["content"][0]["text"]
        status, answer = await said(gateway, asked("ping", "x" * 20_000))
        assert (status, answer["error"]["data"]["code"]) == (413, "request_too_large")


async def test_a_client_that_leaves_ends_its_call(socket_dir: Path, plugin: Path) -> None:
    async with running_gateway(socket_dir, max_tool_processes=1) as gateway:
        await gateway.auth()
        body = json.dumps(asked("tools/call", name="sleep", arguments={})).encode()
        toolbox = gateway.application.toolbox
        assert toolbox is not None
        async with connected(gateway) as leaving:
            leaving.writer.write(post(body, path="/mcp"))
            await gateway.until(lambda: len(toolbox._busy) == 1)
        await gateway.until(lambda: not toolbox._busy)
        call = asked("tools/call", name="add", arguments={"a": 1, "b": 1})
        async with asyncio.timeout(60):
            assert (await said(gateway, call))[1]["result"]["content"][0]["text"] == "2"


async def test_headers_that_mirror_arguments_are_checked(
    socket_dir: Path, plugin: Path, tmp_path: Path
) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "x-mcp-header": "First"}, "b": {"type": "integer"}},
    }
    (tmp_path / "some_tools_plugin.py").write_text(
        f"TOOLS = {{'name': 't', 'parameters': {schema!r}, 'call': lambda a='', b=0: {{'a': a}}}}\n"
    )
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        headers = {"MCP_Protocol_Version": "2026-07-28"}
        headers |= {"Mcp_Method": "tools/call", "Mcp_Name": "t"}
        for value, told, status in (
            ("x", {"Mcp_Param_First": "x"}, 200),
            ("ä", {"Mcp_Param_First": "=?base64?w6Q=?="}, 200),
            ("x", {}, 400),
            ("x", {"Mcp_Param_First": "y"}, 400),
            ("ä", {"Mcp_Param_First": "=?base64?w6Q?="}, 400),
            (None, {"Mcp_Param_First": "y"}, 400),
        ):
            arguments = {} if value is None else {"a": value}
            body = asked("tools/call", _meta=META, name="t", arguments=arguments)
            found, answer = await said(gateway, body, **headers, **told)
            assert found == status, (value, told)
            if status == 200:
                assert answer["result"]["structuredContent"] == {"a": value}
            else:
                assert answer["error"]["code"] == -32020
        # Before 2026-07-28 there are no such headers.
        old = asked("tools/call", name="t", arguments={"a": "x"})
        assert (await said(gateway, old))[0] == 200
