"""A request that is over leaves nothing that only the garbage collector finds.

Collecting it stops every stream: it took 15 % of the gateway's processor time. And what waits for
the collector may hold bodies of megabytes meanwhile.
"""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from protocol.wire.messages import Abort, Generate, Prepare
from tests.fakes.raw_http import connected
from tests.fakes.running_gateway import MESSAGES, running_gateway

LARGE_BODY = json.dumps(
    {"model": "demo", "messages": [{"role": "user", "content": "x" * 200_000}]}
).encode()


async def left_behind(once: Callable[[], Awaitable[None]], times: int) -> list[str]:
    """The types of the gateway's objects that are in circles after something was done."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(times):
            await once()
        await asyncio.sleep(0)
        gc.collect()
        kinds = [type(one) for one in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    return [kind.__name__ for kind in kinds if kind.__module__.startswith("gateway.")]


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_leave_no_circles_of_references(socket_dir: Path, stream: bool) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        num_asked = 0

        async def once() -> None:
            nonlocal num_asked
            num_asked += 1
            assert (await gateway.chat(stream=stream)).status_code == 200
            await auth.until(lambda: len(auth.settled()) == num_asked)

        for _ in range(3):
            await once()
        assert await left_behind(once, 5) == []


async def test_questions_leave_no_circles_of_references(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()

        async def once() -> None:
            body = {"model": "demo", "messages": MESSAGES}
            assert (await gateway.client.post("/tokenize", json=body)).status_code == 200

        await once()
        assert await left_behind(once, 3) == []


async def test_refused_requests_leave_no_circles_of_references(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()

        async def once() -> None:
            assert (await gateway.chat(model="none")).status_code == 404

        await once()
        assert await left_behind(once, 3) == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
async def test_clients_that_leave_leave_no_circles_of_references(
    socket_dir: Path, path: str
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        is_chat = path != "/tokenize"
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(LARGE_BODY)}\r\n\r\n"
        )
        num_asked = 0

        async def once() -> None:
            nonlocal num_asked
            num_asked += 1
            async with connected(gateway) as connection:
                connection.writer.write(head.encode() + LARGE_BODY)
                await engine.until(
                    lambda: len(engine.of(Generate if is_chat else Prepare)) == num_asked
                )
            if is_chat:
                await engine.until(lambda: len(engine.of(Abort)) == num_asked)
            async with asyncio.timeout(60):
                while len(gateway.application.sessions):
                    await gateway.client.get("/live")
            await gateway.client.get("/live")  # the connection's end has been seen

        await once()
        assert await left_behind(once, 3) == []
