"""An MCP server that hangs costs its own callers, and none of the other servers'."""

import asyncio
from typing import Any, cast

import pytest

from gateway.errors import DeniedError
from gateway.tools import toolbox
from gateway.tools.tool_servers import LIST_TOOLS, NamedServer, ToolServers
from gateway.tools.toolbox import ToolBox, ToolResult


class Box:
    """So many places, which questions to one server never leave."""

    def __init__(self, num_places: int) -> None:
        self.begun = asyncio.Semaphore(0)
        self.freed = asyncio.Event()
        self._places = asyncio.Semaphore(num_places)

    async def execute(self, name: str, arguments_json: str, caller: bytes = b"") -> ToolResult:
        async with self._places:
            self.begun.release()
            if '"url":"http://hangs' in arguments_json:
                await self.freed.wait()
            return ToolResult({"tools": []})


def servers(box: Box, num_places: int) -> ToolServers:
    return ToolServers(
        urls={"bad": "http://hangs.example/mcp", "good": "http://good.example/mcp"},
        networks=(),
        mcp=cast(ToolBox, box),
        own=None,
        max_output_bytes=100,
        max_calls=num_places,
    )


async def ask(found: ToolServers, label: str, caller: bytes = b"a") -> Any:
    server = found.find(NamedServer(label), "tools[0]")
    return (await server.runner.execute(LIST_TOOLS, server.listing(), caller)).result


async def test_others_are_asked_while_one_hangs_whoever_asks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toolbox, "MAX_WAITING", 6)
    box = Box(2)
    found = servers(box, 2)
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(ask(found, "bad")) for _ in range(4)]
        await box.begun.acquire()
        with pytest.raises(DeniedError, match="waiting for their turn"):
            await ask(found, "bad")
        waiting.append(group.create_task(ask(found, "bad", b"another caller")))
        async with asyncio.timeout(60):
            assert await ask(found, "good") == {"tools": []}
        left = waiting.pop(3)
        left.cancel()
        box.freed.set()
    assert [task.result() for task in waiting] == [{"tools": []}] * 4
    assert left.cancelled()
    assert await ask(found, "bad") == {"tools": []}


async def test_one_server_alone_has_all_places() -> None:
    box = Box(2)
    found = ToolServers(
        urls={"bad": "http://hangs.example/mcp"},
        networks=(),
        mcp=cast(ToolBox, box),
        own=None,
        max_output_bytes=100,
        max_calls=2,
    )
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(ask(found, "bad"))
        await box.begun.acquire()
        await box.begun.acquire()
        box.freed.set()
