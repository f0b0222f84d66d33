"""Slow and many bodies: each caller holds up itself alone."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from gateway.http.bodies import reading as bodies
from protocol.wire.messages import Authorize
from tests.fakes.raw_http import BODY, answers, connected, post
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway

LARGE = [{"role": "user", "content": "x" * 2 * bodies.SMALL_BYTES}]
SLOW = b"Authorization: Bearer psk-slow\r\n"
QUICK = {"Authorization": "Bearer psk-quick"}


async def with_keys(gateway: RunningGateway) -> None:
    auth = await gateway.auth(allow_anonymous=False)
    auth.good_keys = ("psk-slow", "psk-quick")
    await gateway.engine()


async def test_slow_large_bodies_of_one_key_leave_the_places_of_others(socket_dir: Path) -> None:
    size = 4 * bodies.SMALL_BYTES
    async with (
        running_gateway(socket_dir, require_keys=True, max_bodies_per_caller=2) as gateway,
        AsyncExitStack() as stack,
    ):
        await with_keys(gateway)
        gateway.client.headers.update(QUICK)
        for _ in range(80):
            one = await stack.enter_async_context(connected(gateway))
            one.writer.write(post(b"x" * (size // 2), SLOW, length=size))
        turns = gateway.application.parts.bodies._large
        await gateway.until(lambda: sum(map(len, turns._waiting.values())) == 78)
        for messages in (MESSAGES, LARGE):
            assert (await gateway.chat(messages=messages)).status_code == 200


async def test_two_hundred_bodies_that_come_byte_by_byte_hold_up_nobody(socket_dir: Path) -> None:
    async with (
        running_gateway(socket_dir, require_keys=True) as gateway,
        AsyncExitStack() as stack,
    ):
        await with_keys(gateway)
        gateway.client.headers.update(QUICK)
        slow = [await stack.enter_async_context(connected(gateway)) for _ in range(200)]
        head = SLOW + b"Connection: close\r\n"
        for one in slow:
            one.writer.write(post(b"", head, length=len(BODY)))
        for index in range(len(BODY)):
            for one in slow:
                one.writer.write(BODY[index : index + 1])
            if index % 20 == 0:
                for messages in (MESSAGES, LARGE):
                    assert (await gateway.chat(messages=messages)).status_code == 200
        # They are slow, and no strangers: each gets its answer in the end.
        for data in await asyncio.gather(*(one.until_closed() for one in slow)):
            assert [status for status, _ in answers(data)] == [200]


async def test_large_bodies_of_many_callers_are_parsed_in_turn(socket_dir: Path) -> None:
    huge = [{"role": "user", "content": "x" * 2 * bodies.OFF_LOOP_BYTES}]
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        await with_keys(gateway)
        slow = {"Authorization": "Bearer psk-slow"}
        asked = [
            asyncio.ensure_future(
                gateway.client.post(
                    "/v1/chat/completions",
                    json={"model": "demo", "messages": huge},
                    headers=headers,
                )
            )
            for headers in (*[slow] * 6, QUICK)
        ]
        done = [(await one).status_code for one in asked]
        assert done == [200] * 7
        pool = gateway.application._body_pool
        # One place of two is all that a caller gets at a time.
        assert len(pool._idle) <= 2
        assert not pool._turns._held


async def test_every_route_that_costs_an_engine_counts_against_limits(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine(
            tool_format="hermes", capabilities=("chat", "completions", "embeddings")
        )
        await gateway.parser()
        client = gateway.client
        await gateway.chat()
        await client.post("/v1/completions", json={"model": "demo", "prompt": "x"})
        await client.post("/tokenize", json={"model": "demo", "prompt": "x"})
        await client.post("/detokenize", json={"model": "demo", "tokens": [1]})
        await client.post("/v1/parse", json={"format": "hermes", "text": "x"})
        asked = auth.of(Authorize)
        assert [one.endpoint for one in asked] == [
            "/v1/chat/completions",
            "/v1/completions",
            "/tokenize",
            "/detokenize",
            "/v1/parse",
        ]
        assert all(one.is_metered for one in asked)
