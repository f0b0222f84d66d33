"""`penstock fake-engine` as a process at a real gateway: known text, and trouble on request."""

import os
import sys
from asyncio import create_subprocess_exec, gather
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.fake_engine.script import Script, encode
from tests.fakes.running_gateway import RunningGateway, events_of, running_gateway, stream_text

pytestmark = pytest.mark.process


@asynccontextmanager
async def fake_engine(gateway: RunningGateway, *options: str) -> AsyncIterator[Process]:
    """The process, once the gateway gives it work."""
    endpoint = f"ipc://{gateway.directory}/engine"
    process = await create_subprocess_exec(
        sys.executable,
        *("-m", "penstock", "fake-engine", "--model", "demo", *options),
        env={**os.environ, "PENSTOCK_ENGINE_ENDPOINT": endpoint},
        stderr=PIPE,
    )
    try:
        await gateway.until(lambda: gateway.application.directory.offer("demo") is not None, 60)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def test_it_says_the_script_of_the_prompt_and_leaves_on_sigterm(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        async with fake_engine(gateway, "--tokens-per-s", "0", "--output-tokens", "9") as process:
            reply = await gateway.chat(seed=5, stream=True)
            whole = await gateway.chat(seed=5)
        expected = Script(encode("user: hi\n"), 5, 0).text(9)
        assert stream_text(events_of(reply.text)) == expected
        assert whole.json()["choices"][0]["message"]["content"] == expected
        assert whole.json()["usage"]["completion_tokens"] == 9
        assert process.returncode == 0


async def test_it_plays_other_weights_at_a_rate(socket_dir: Path) -> None:
    options = ("--fingerprint", "new", "--tokens-per-s", "500", "--prefill-tokens-per-s", "1000")
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        async with fake_engine(gateway, *options):
            offer = gateway.application.directory.offer("demo")
            assert offer is not None
            assert offer.fingerprint == "new"
            replies = await gather(*(gateway.chat(seed=seed, max_tokens=9) for seed in range(3)))
    for seed, reply in enumerate(replies):
        expected = Script(encode("user: hi\n"), seed, 0, "new").text(9)
        assert reply.json()["choices"][0]["message"]["content"] == expected


async def test_a_crash_on_request_takes_the_process_down(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, request_timeout_s=3.0) as gateway:
        await gateway.auth()
        async with fake_engine(gateway, "--tokens-per-s", "20") as process:
            messages = [{"role": "user", "content": "[[crash@2]]"}]
            reply = await gateway.chat(messages=messages, stream=True)
            assert await process.wait() == -9
        # Nobody is left to go on: one clear end.
        assert "error" in events_of(reply.text)[-2]
