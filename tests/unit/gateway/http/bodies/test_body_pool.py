"""Processes that parse bodies: some can't be started, some die while they are idle."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest

from gateway.errors import GatewayError, InvalidRequestError, OverloadedError
from gateway.http.bodies import body_pool
from gateway.http.bodies.body_pool import BodyPool
from gateway.http.bodies.parsers import CHAT, COMPLETION, RESPONSES, ParseContext
from protocol.runtime.child_environment import child_environment
from protocol.runtime.child_process import ChildProcess

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


WITH_A_BUG = """
import sys
from dataclasses import replace
from gateway.http.bodies import body_process

def bug(body, context):
    raise TypeError("what the body says")

kinds = dict(body_process.KINDS)
kinds["completion"] = replace(kinds["completion"], parse=bug)
body_process.KINDS = kinds
sys.exit(body_process.main())
"""


async def test_a_bug_that_one_body_meets_is_nothing_to_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = BodyPool(child_environment(os.environ), command=(sys.executable, "-c", WITH_A_BUG))
    try:
        await parse(pool)
        process = pool._idle[0]
        with pytest.raises(GatewayError, match="Internal server error"):
            await pool.parse(BODY, b"caller", COMPLETION, ParseContext({}))
        await parse(pool)
        assert pool._idle == [process]
    finally:
        await pool.close()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "TypeError" in line
    assert "in bug" in line
    assert "what the body says" not in line  # a body belongs into no log


async def left(pool: BodyPool) -> None:
    """A body is being parsed, and its client leaves."""
    begun, ask_one = asyncio.Event(), pool._ask_one

    async def noticed(*args: Any) -> bytes:
        begun.set()
        return await ask_one(*args)

    pool._ask_one = noticed  # type: ignore[method-assign,assignment]
    parsing = asyncio.create_task(parse(pool))
    await begun.wait()
    parsing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await parsing


async def test_a_body_whose_client_left_leaves_its_process_to_the_next() -> None:
    pool = BodyPool(child_environment(os.environ))
    try:
        await parse(pool)
        process = pool._idle[0]
        await left(pool)
        # It is the caller's turn for as long.
        await parse(pool)
        assert pool._idle == [process]
        assert not pool._asking
    finally:
        await pool.close()


async def test_a_process_that_goes_on_for_a_client_that_left_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body_pool, "LEFT_GRACE_S", 0.0)
    code = "import sys; sys.stdin.buffer.read()"
    pool = BodyPool(child_environment(os.environ), command=(sys.executable, "-c", code))
    try:
        await left(pool)
        (asking,) = pool._asking
        await asyncio.wait((asking,))
        assert not pool._idle
        assert not pool._asking
    finally:
        await pool.close()


async def test_a_body_whose_client_left_holds_up_no_end_of_the_pool() -> None:
    code = "import sys; sys.stdin.buffer.read()"
    pool = BodyPool(child_environment(os.environ), command=(sys.executable, "-c", code))
    await left(pool)
    await pool.close()
    assert not pool._asking


class SlowStart:
    """Processes that never come to be; counts those that are awaited and those given up."""

    def __init__(self) -> None:
        self.num_awaited = self.num_given_up = 0
        self.has_begun = asyncio.Event()

    async def __call__(
        self, command: Sequence[str], environment: Mapping[str, str], *, limit: int
    ) -> ChildProcess:
        self.num_awaited += 1
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.num_awaited -= 1
            self.num_given_up += 1
        raise AssertionError


async def test_the_end_of_the_pool_waits_for_no_start() -> None:
    start = SlowStart()
    pool = BodyPool({}, max_processes=1, start=start)
    parsing, waiting = (asyncio.create_task(parse(pool)) for _ in range(2))
    await start.has_begun.wait()
    async with asyncio.timeout(60):
        await pool.close()
        for body in (parsing, waiting):
            with pytest.raises(OverloadedError):
                await body
    assert (start.num_awaited, start.num_given_up) == (0, 1)


async def test_a_client_that_leaves_gives_up_the_start_of_its_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body_pool, "LEFT_GRACE_S", 0.0)
    start = SlowStart()
    pool = BodyPool({}, max_processes=1, start=start)
    parsing = asyncio.create_task(parse(pool))
    await start.has_begun.wait()
    (asking,) = pool._asking
    parsing.cancel()
    await asyncio.wait((asking, parsing))
    assert (start.num_awaited, start.num_given_up) == (0, 1)
    await pool.close()


async def test_a_large_body_with_an_odd_type_is_wrong_as_a_small_one_is() -> None:
    pool = BodyPool(child_environment(os.environ))
    body = orjson.dumps({"model": "m", "input": [{"type": [], "text": "x" * 300_000}]})
    try:
        with pytest.raises(InvalidRequestError) as caught:
            await pool.parse(body, b"caller", RESPONSES, ParseContext({}))
        assert caught.value.param == "input[0].type"
        assert len(pool._idle) == 1
    finally:
        await pool.close()
