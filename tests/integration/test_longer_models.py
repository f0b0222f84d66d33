"""Responses whose prompt is too long for their model, and that a fallback with a longer context
answers: in turns, over a WebSocket, and in the background."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from protocol.wire.messages import Generate, Prepare
from tests.fakes.fake_workers import FakeEngine
from tests.fakes.hosted_harness import CALL, SUM, Harness, kinds, listing
from tests.fakes.mcp_server import FakeMcpServer, mcp_server
from tests.fakes.running_gateway import running_gateway
from tests.integration.test_hard_cases_of_compaction import ShortEngine

pytestmark = pytest.mark.asyncio
QUESTION = "2 + 3?"


@pytest.fixture(scope="module")
def server() -> Iterator[FakeMcpServer]:
    with mcp_server() as found:
        yield found


class Models(Harness):
    """`demo`, which takes a prompt of a few words, and its fallback `long`, which takes any."""

    long: FakeEngine

    @property
    def num_made(self) -> tuple[int, int]:
        """Turns that each of them has begun."""
        return len(self.engine.of(Generate)), len(self.long.of(Generate))

    async def until_booked(self, num_tokens: int) -> None:
        """Each turn once, and no tokens of those that were too long."""

        def booked() -> int:
            return sum(one.completion_tokens for one in self.auth.settled())

        await self.gateway.until(lambda: booked() == num_tokens)


@asynccontextmanager
async def opened(socket_dir: Path, server: FakeMcpServer, context: int) -> AsyncIterator[Models]:
    settings: dict[str, Any] = {
        "mcp_servers": listing(server, calc="/modern/json"),
        "model_fallbacks": ("demo=long",),
    }
    async with running_gateway(socket_dir, **settings) as gateway:
        await gateway.parser()
        short = ShortEngine(socket_dir, text=SUM, tool_format="hermes", max_model_len=64)
        short.context = context
        gateway.workers.append(short)
        short.start()
        long = await gateway.engine(
            model="long", text=SUM, tool_format="hermes", max_model_len=4096
        )
        await gateway.until(lambda: gateway.is_known(short) and bool(short.worker.gateway_ids()))
        models = Models(gateway, await gateway.auth(), short, server)
        models.long = long
        yield models


async def ended(models: Models, response_id: str) -> dict[str, Any]:
    while True:
        path = f"/v1/responses/{response_id}"
        found: dict[str, Any] = (await models.gateway.client.get(path)).json()
        if found["status"] not in ("queued", "in_progress"):
            return found
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("background", [False, True])
async def test_a_loop_of_calls_that_grows_too_long_goes_on_with_a_longer_model(
    socket_dir: Path, server: FakeMcpServer, background: bool
) -> None:
    async with opened(socket_dir, server, context=4) as models:  # the question fits, no more
        models.engine.script = [CALL]
        found = await models.post(input=QUESTION, background=background)
        if background:
            found = await ended(models, found["id"])
        assert (found["status"], found["error"]) == ("completed", None)
        assert kinds(found) == ["mcp_list_tools", "mcp_call", "message"]
        assert found["output"][-1]["content"][0]["text"] == "".join(SUM)
        assert models.num_made == (1, 1)
        await models.until_booked(5)


@pytest.mark.parametrize("background", [False, True])
async def test_whether_a_context_is_long_is_said_by_the_model_that_answers(
    socket_dir: Path, server: FakeMcpServer, background: bool
) -> None:
    async with opened(socket_dir, server, context=4) as models:
        models.long.script = [CALL]
        found = await models.post(
            input="2 + 3? " + "so " * 45,  # much of the context of `demo`, and little of `long`'s
            context_management=[{"type": "compaction"}],
            background=background,
        )
        if background:
            found = await ended(models, found["id"])
        assert (found["status"], found["model"]) == ("completed", "long")
        assert kinds(found) == ["mcp_list_tools", "mcp_call", "message"]
        counted = [one for one in models.long.of(Prepare) if one.kind == "count"]
        assert len(counted) == 1


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("fields", [{}, {"truncation": "auto"}])
async def test_the_first_turn_may_need_it(
    socket_dir: Path, server: FakeMcpServer, background: bool, fields: dict[str, Any]
) -> None:
    async with opened(socket_dir, server, context=2) as models:
        found = await models.post(input=QUESTION, background=background, **fields)
        plain = await models.post(input=QUESTION, background=background, tools=[], **fields)
        if background:
            found, plain = await ended(models, found["id"]), await ended(models, plain["id"])
        for response in (found, plain):
            assert (response["status"], response["error"]) == ("completed", None)
            assert response["model"] == "long"
        assert models.num_made == (0, 2)
        await models.until_booked(4)


async def test_a_turn_of_a_socket_goes_to_a_longer_model(
    socket_dir: Path, server: FakeMcpServer
) -> None:
    async with opened(socket_dir, server, context=2) as models:
        url = f"ws://127.0.0.1:{models.gateway.client.base_url.port}/v1/responses"
        async with connect(url, proxy=None) as socket:
            for tools in ([], [models.tool()]):
                asked = {"model": "demo", "input": QUESTION, "tools": tools}
                await socket.send(json.dumps({"type": "response.create", **asked}))
                told: dict[str, Any] = {}
                while told.get("type") not in ("response.completed", "error"):
                    told = json.loads(await asyncio.wait_for(socket.recv(), 60))
                assert told["type"] == "response.completed", told
                assert told["response"]["model"] == "long"
        assert models.num_made == (0, 2)


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("background", [False, True])
async def test_a_fallback_that_the_key_may_not_use_is_not_told(
    socket_dir: Path, server: FakeMcpServer, tools: bool, background: bool
) -> None:
    async with opened(socket_dir, server, context=2) as models:
        models.auth.denied_models = ("long",)
        asked: dict[str, Any] = {"input": QUESTION, **({} if tools else {"tools": []})}
        if background:
            queued = await models.post(background=True, **asked)
            error = (await ended(models, queued["id"]))["error"]
            assert error["code"] == "invalid_prompt"
        else:
            error = (await models.post(status=400, **asked))["error"]
            assert error["code"] == "context_length_exceeded"
        assert error["message"] == "too long"
        # It is no way out either where the oldest items may be left out.
        items = [{"role": "user", "content": "word " * 40}, {"role": "user", "content": "5?"}]
        shorter = {**asked, "input": items, "truncation": "auto"}
        assert (await models.post(**shorter))["model"] == "demo"
