"""Parsing a text and running tools over HTTP, with tools in real processes."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gateway.tools.toolbox import ToolBox
from protocol.errors import ErrorCode
from protocol.wire.messages import Authorize, OpenParse
from tests.fakes.raw_http import connected, post
from tests.fakes.running_gateway import RunningGateway, running_gateway

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def execute(gateway: RunningGateway, name: str, **arguments: Any) -> Any:
    answer = await gateway.client.post(
        "/v1/tools/execute", json={"name": name, "arguments": arguments}
    )
    return answer.status_code, answer.json()


async def test_registered_tools_are_listed_and_run(socket_dir: Path, plugin: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        listed = (await gateway.client.get("/v1/tools")).json()
        names = [tool["function"]["name"] for tool in listed["data"]]
        assert names == ["add", "crash", "sleep", "long", "environment", "read"]
        assert listed["data"][0]["function"]["description"] == "Adds two numbers."
        assert await execute(gateway, "add", a=1, b=2.5) == (
            200,
            {
                "object": "tool.result",
                "name": "add",
                "is_error": False,
                "result": 3.5,
                "error": None,
            },
        )
        as_text = {"name": "add", "arguments": '{"a": 1, "b": 1}'}
        answer = await gateway.client.post("/v1/tools/execute", json=as_text)
        assert answer.json()["result"] == 2


async def test_wrong_calls_are_refused_with_the_fields_name(socket_dir: Path, plugin: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        for body, status, param in (
            ({"name": "add", "arguments": {"a": "1", "b": 2}}, 400, "arguments"),
            ({"name": "add", "arguments": "[1]"}, 400, "arguments"),
            ({"name": "add", "arguments": "{"}, 400, "arguments"),
            ({"name": "subtract"}, 404, "name"),
            ({"arguments": {}}, 400, "name"),
            ({"name": "add", "argument": {}}, 400, "argument"),
        ):
            answer = await gateway.client.post("/v1/tools/execute", json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_what_tools_do_to_their_process_is_a_result(socket_dir: Path, plugin: Path) -> None:
    async with running_gateway(socket_dir, tool_timeout_s=1.0, max_tool_processes=1) as gateway:
        await gateway.auth()
        for name, kind in (("crash", "process_died"), ("long", "too_long"), ("sleep", "timeout")):
            status, answer = await execute(gateway, name)
            assert (status, answer["is_error"], answer["error"]["type"]) == (200, True, kind)
        assert (await execute(gateway, "read"))[1]["result"] == ""
        _, answer = await execute(gateway, "environment")
        assert "PYTHONPATH" in answer["result"]
        assert "PATH" in answer["result"]
        assert not set(answer["result"]) & {"PENSTOCK_ADMIN_KEY", "HF_TOKEN", "OTHER"}
        answers = await asyncio.gather(*(execute(gateway, "add", a=n, b=0) for n in range(8)))
        assert [answer["result"] for _, answer in answers] == list(range(8))


async def test_tools_see_the_variables_that_are_named_for_them(
    socket_dir: Path, plugin: Path
) -> None:
    async with running_gateway(socket_dir, tool_env=("OTHER", "NOT_SET")) as gateway:
        await gateway.auth()
        _, answer = await execute(gateway, "environment")
        assert "OTHER" in answer["result"]
        assert not set(answer["result"]) & {"PENSTOCK_ADMIN_KEY", "HF_TOKEN", "NOT_SET"}


async def test_a_process_that_died_while_it_was_idle_is_nothing_to_the_next_caller(
    socket_dir: Path, plugin: Path
) -> None:
    async with running_gateway(socket_dir, max_tool_processes=1) as gateway:
        await gateway.auth()
        toolbox = gateway.application.toolbox
        assert toolbox is not None
        for is_noticed in (True, False):
            assert (await execute(gateway, "add", a=1, b=2))[1]["result"] == 3
            (idle,) = toolbox._idle
            os.killpg(idle._process.pid, signal.SIGKILL)
            if is_noticed:
                await idle._process.wait()
            assert (await execute(gateway, "add", a=1, b=2))[1]["result"] == 3
        # A call that ends its process is not made again.
        assert (await execute(gateway, "crash"))[1]["error"]["type"] == "process_died"


async def test_a_client_that_leaves_ends_its_tool(socket_dir: Path, plugin: Path) -> None:
    async with running_gateway(socket_dir, max_tool_processes=1) as gateway:
        auth = await gateway.auth()
        toolbox = gateway.application.toolbox
        assert toolbox is not None
        await toolbox.tools()
        async with connected(gateway) as leaving:
            leaving.writer.write(post(b'{"name":"sleep"}', path="/v1/tools/execute"))
            await gateway.until(lambda: bool(toolbox._busy))
        await gateway.until(lambda: not toolbox._busy)
        await gateway.until(lambda: len(gateway.application.sessions) == 0)
        assert (await execute(gateway, "add", a=1, b=2))[1]["result"] == 3
        assert all(one.is_metered for one in auth.of(Authorize))


async def test_tools_that_cannot_be_loaded_are_an_error_of_the_server(
    socket_dir: Path, plugin: Path
) -> None:
    (plugin / "some_tools_plugin.py").write_text("raise RuntimeError('oops')")
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        status, answer = await execute(gateway, "add", a=1, b=2)
        assert (status, answer["error"]["code"]) == (500, "internal_error")


async def test_a_box_without_room_refuses_calls(plugin: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gateway.tools.toolbox.MAX_WAITING", 0)
    box = ToolBox(max_processes=1, timeout_s=1.0, environment={})
    with pytest.raises(Exception, match="Too many") as caught:
        await box.tools()
    assert getattr(caught.value, "code", None) is ErrorCode.OVERLOADED


async def test_without_registered_tools_there_is_nothing_to_run(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        status, answer = await execute(gateway, "add")
        assert (status, answer["error"]["code"]) == (501, "not_implemented")
        assert (await gateway.client.get("/v1/tools")).json()["data"] == []


async def test_tool_calling_can_be_switched_off(socket_dir: Path, plugin: Path) -> None:
    async with running_gateway(socket_dir, tools=False) as gateway:
        await gateway.auth()
        await gateway.engine()
        await gateway.parser()
        status, answer = await execute(gateway, "add", a=1, b=2)
        assert (status, "switched off" in answer["error"]["message"]) == (501, True)
        listed = (await gateway.client.get("/v1/tools")).json()
        assert (listed["enabled"], listed["data"]) == (False, [])
        refused = await gateway.chat(tools=[TOOL])
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
        assert (await gateway.chat()).status_code == 200


async def test_formats_and_who_uses_them_are_listed(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        await gateway.parser(tool_formats=("hermes", "qwen"))
        listed = (await gateway.client.get("/v1/tools")).json()
        assert listed["tool_formats"] == ["hermes", "qwen"]
        assert listed["reasoning_formats"] == ["think"]
        assert [model["id"] for model in listed["models"]] == ["demo"]
        assert listed["enabled"] is True


async def test_a_text_is_parsed_by_a_parser(socket_dir: Path) -> None:
    text = "<think>hm</think>" + "word " * 10_000 + '<call>{"x": 1}'
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        parser = await gateway.parser()
        body = {"text": text, "format": "hermes", "reasoning_format": "think", "tools": [TOOL]}
        answer = (await gateway.client.post("/v1/parse", json=body)).json()
        assert answer["content"] == "word " * 10_000
        assert answer["reasoning"] == "hm"
        assert answer["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
        assert (answer["format"], answer["reasoning_format"]) == ("hermes", "think")
        await gateway.until(lambda: parser.num_closed() == 1)


async def test_what_tools_have_beside_is_listed_or_refused_when_a_text_is_parsed(
    socket_dir: Path,
) -> None:
    body = {"text": "x", "format": "hermes", "tools": [{**TOOL, "strict": True}]}
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.parser()
        answer = await gateway.client.post("/v1/parse", json=body)
        assert (answer.status_code, answer.json()["content"]) == (200, "x")
        assert answer.headers["x-penstock-ignored-fields"] == "tools[0].strict"
    async with running_gateway(socket_dir, strict_fields=True) as gateway:
        await gateway.auth()
        await gateway.parser()
        answer = await gateway.client.post("/v1/parse", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools[0].strict")


async def test_a_models_formats_stand_in_for_those_not_named(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(tool_format="hermes")
        await gateway.parser()
        body = {"text": "x", "model": "demo"}
        answer = (await gateway.client.post("/v1/parse", json=body)).json()
        assert answer["format"] == "hermes"
        assert answer["content"] == "x"


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"text": "x"}, 400, "format", "name a"),
        ({"text": "x", "format": "hermess"}, 400, "format", "Did you mean `hermes`"),
        ({"text": "x", "reasoning_format": "no"}, 400, "reasoning_format", "No format"),
        ({"text": "x", "model": "nobody"}, 404, "model", "does not exist"),
        ({"text": 1, "format": "hermes"}, 400, "text", "Invalid"),
        ({"text": "x", "format": "hermes", "tools": []}, 400, "tools", "Invalid"),
        ({"text": "x", "format": "hermes", "tool": []}, 400, "tool", "Unknown field"),
    ],
)
async def test_wrong_texts_and_formats_are_refused(
    socket_dir: Path, body: dict[str, Any], status: int, param: str, words: str
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.parser()
        answer = await gateway.client.post("/v1/parse", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, param)
        assert words in error["message"]


async def test_parsing_ends_in_an_error_when_the_parser_cannot_go_on(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, request_timeout_s=1.0) as gateway:
        await gateway.auth()
        body = {"text": "x", "format": "hermes"}
        assert (await gateway.client.post("/v1/parse", json=body)).status_code == 503
        parser = await gateway.parser()
        parser.open_failure = ErrorCode.INVALID_REQUEST
        assert (await gateway.client.post("/v1/parse", json=body)).status_code == 400
        parser.open_failure = None
        parser.is_mute = True
        assert (await gateway.client.post("/v1/parse", json=body)).status_code == 504
        waiting = asyncio.ensure_future(gateway.client.post("/v1/parse", json=body))
        await gateway.until(lambda: len(parser.of(OpenParse)) == 3)
        await gateway.crash(parser)
        assert (await waiting).status_code == 503
