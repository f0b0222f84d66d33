"""A request that kills engines, among others: it is found out, they finish, and engines live on."""

import asyncio
import os
import sys
from asyncio import create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.fake_engine.script import Script, encode
from tests.fakes.running_gateway import RunningGateway, events_of, running_gateway, stream_text

pytestmark = pytest.mark.process

NUM_TOKENS = 60


class Slot:
    """An engine process that is started again whenever it dies."""

    def __init__(self, directory: Path) -> None:
        self.num_deaths = 0
        self._directory = directory
        self._task = asyncio.create_task(self._keep_alive())

    async def _keep_alive(self) -> None:
        options = ("--tokens-per-s", "80", "--output-tokens", str(NUM_TOKENS))
        environment = {**os.environ, "PENSTOCK_ENGINE_ENDPOINT": f"ipc://{self._directory}/engine"}
        while True:
            process = await create_subprocess_exec(
                sys.executable,
                *("-m", "penstock", "fake-engine", "--model", "demo", *options),
                env=environment,
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                await process.wait()
                self.num_deaths += 1
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def two_slots(gateway: RunningGateway) -> AsyncIterator[list[Slot]]:
    slots = [Slot(gateway.directory) for _ in range(2)]
    try:
        await both_ready(gateway)
        yield slots
    finally:
        for slot in slots:
            await slot.stop()


async def both_ready(gateway: RunningGateway) -> None:
    engines = gateway.application.directory
    await gateway.until(lambda: len(engines.engines("demo")) == 2, 60)


def chat(gateway: RunningGateway, content: str, **fields: Any) -> "asyncio.Task[Any]":
    messages = [{"role": "user", "content": content}]
    return asyncio.create_task(gateway.chat(messages=messages, seed=5, **fields))


async def test_bystanders_finish_and_the_culprit_ends_as_500_and_stays_out(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, request_timeout_s=60.0) as gateway:
        await gateway.auth()
        async with two_slots(gateway) as slots:
            bystanders = [chat(gateway, f"number {n}", stream=True) for n in range(6)]
            culprit = chat(gateway, "[[crash@3]]")
            reply = await culprit
            assert reply.status_code == 500
            assert reply.json()["error"]["code"] == "poison_request"
            for number, bystander in enumerate(bystanders):
                expected = Script(encode(f"user: number {number}\n"), 5, 0).text(NUM_TOKENS)
                assert stream_text(events_of((await bystander).text)) == expected
            await both_ready(gateway)
            assert sum(slot.num_deaths for slot in slots) == 3
            # The same prompt costs no engine any more.
            again = await chat(gateway, "[[crash@3]]")
            assert again.json()["error"]["code"] == "poison_request"
            assert sum(slot.num_deaths for slot in slots) == 3
