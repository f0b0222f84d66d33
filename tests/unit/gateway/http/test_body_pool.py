"""Processes that parse bodies: some can't be started, some die while they are idle."""

import asyncio
import os
import signal
import sys

import orjson
import pytest

from gateway.errors import OverloadedError
from gateway.http.body_pool import BodyPool
from gateway.http.parsers import CHAT, ParseContext
from protocol.runtime.child_environment import child_environment

MESSAGES = [{"role": "user", "content": "x" * 300_000}]
BODY = orjson.dumps({"model": "m", "messages": MESSAGES})


async def parse(pool: BodyPool) -> object:
    return await pool.parse(BODY, b"caller", CHAT, ParseContext({}))


async def test_without_a_process_it_is_an_overload() -> None:
    pool = BodyPool(child_environment(os.environ), command=("/nonexistent",))
    with pytest.raises(OverloadedError):
        await parse(pool)


async def test_a_process_that_was_killed_while_it_was_idle_is_nothing_to_the_next_body() -> None:
    pool = BodyPool(child_environment(os.environ))
    try:
        await parse(pool)
        os.killpg(pool._idle[0].pid, signal.SIGKILL)
        # Before asyncio has learnt of it.
        assert pool._idle[0].returncode is None
        await parse(pool)
    finally:
        await pool.close()


async def test_a_new_process_that_dies_is_an_overload_and_not_tried_for_ever() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    pool = BodyPool(child_environment(os.environ), command=(sys.executable, "-c", code))
    async with asyncio.timeout(60):
        with pytest.raises(OverloadedError):
            await parse(pool)
