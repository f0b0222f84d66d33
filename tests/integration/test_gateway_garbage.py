"""A request that is over leaves nothing that only the garbage collector finds."""

import asyncio
import gc
from pathlib import Path

import pytest

from tests.fakes.running_gateway import running_gateway


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_leave_no_circles_of_references(socket_dir: Path, stream: bool) -> None:
    """Collecting them stops every stream: it took 15 % of the gateway's processor time."""
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        for _ in range(3):
            await gateway.chat(stream=stream)
        await auth.until(lambda: len(auth.settled()) == 3)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(5):
                assert (await gateway.chat(stream=stream)).status_code == 200
            await auth.until(lambda: len(auth.settled()) == 8)
            await asyncio.sleep(0)
            gc.collect()
            left = [one for one in gc.garbage if type(one).__module__.startswith("gateway.")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert [type(one).__name__ for one in left] == []
