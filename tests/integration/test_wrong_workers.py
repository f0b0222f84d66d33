"""Workers that can't be worked with: one clear line in both logs, and nothing half-started."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.version import PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages import Generate
from tests.fakes.fake_workers import FakeEngine
from tests.fakes.running_gateway import MESSAGES, events_of, running_gateway, stream_text

EXAMPLES = Path(__file__).parents[2] / "examples"


def errors(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """Who logged an error with this text."""
    return sorted(
        record.name
        for record in caplog.records
        if record.levelname == "ERROR" and text in record.getMessage()
    )


async def test_a_worker_of_another_major_version_is_refused_and_both_sides_say_why(
    socket_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        next_major = ProtocolVersion(PROTOCOL_VERSION.major + 1, 0)
        monkeypatch.setattr("protocol.wire.worker_loop.PROTOCOL_VERSION", next_major)
        other = FakeEngine(socket_dir)
        other.start()
        assert await asyncio.to_thread(other.worker.wait) == 1
        monkeypatch.undo()
        assert errors(caplog, f"speaks protocol {PROTOCOL_VERSION}, the worker {next_major}") == [
            "penstock.peers",
            "penstock.worker",
        ]
        assert (await gateway.chat()).status_code == 200
        assert other.commands == []


async def test_a_second_worker_with_the_id_of_another_is_refused_and_the_first_works_on(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine(text=None)
        asking = asyncio.create_task(gateway.chat(stream=True))
        await engine.until(lambda: len(engine.of(Generate)) == 1)
        (generate,) = engine.of(Generate)
        engine.emit(generate, "one ")
        twin = FakeEngine(socket_dir, instance_id=engine.worker.instance_id)
        twin.start()
        assert await asyncio.to_thread(twin.worker.wait) == 1
        why = f"Another worker is here as `{engine.worker.instance_id}`"
        assert errors(caplog, why) == ["penstock.peers", "penstock.worker"]
        engine.emit(generate, "answer")
        engine.finish(generate)
        assert stream_text(events_of((await asking).text)) == "one answer"
        assert twin.commands == []


@contextmanager
def foreign_engine(directory: Path) -> Iterator[None]:
    """The example in plain MessagePack, which speaks version 1.0 and knows no later field."""
    environment = {**os.environ, "PENSTOCK_ENGINE_ENDPOINT": f"ipc://{directory}/engine"}
    script = str(EXAMPLES / "foreign_engine_worker.py")
    process = subprocess.Popen([sys.executable, script], env=environment)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.process
async def test_an_engine_of_an_older_minor_goes_on_with_a_newer_ones_answer(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        newer = await gateway.engine(model="echo", fingerprint="echo-1", text=None)
        asking = asyncio.create_task(
            gateway.client.post(
                "/v1/chat/completions",
                json={"model": "echo", "messages": MESSAGES, "stream": True, "max_tokens": 5},
            )
        )
        await newer.until(lambda: len(newer.of(Generate)) == 1)
        (generate,) = newer.of(Generate)
        # The older one answers with the prompt's tokens backwards, one a character.
        newer.emit(generate, "\x05\x04", token_ids=(5, 4))
        with foreign_engine(socket_dir):
            engines = gateway.application.directory
            await gateway.until(lambda: len(engines.engines("echo")) == 2)
            (older,) = [
                one for one in engines.engines("echo") if one.peer.build == "foreign-example"
            ]
            assert older.peer.protocol_version < PROTOCOL_VERSION
            await gateway.crash(newer)
            response = await asking
        assert stream_text(events_of(response.text)) == "\x05\x04\x03\x02\x01"
