"""The gateway as a process: its port, its exit codes, its way to end."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from protocol.wire.messages import Generate, Settle
from tests.fakes.fake_workers import FakeAuth, FakeEngine
from tests.fakes.running_gateway import MESSAGES, events_of, stream_text

pytestmark = pytest.mark.process


def environment(directory: Path, **settings: str) -> dict[str, str]:
    return {
        **os.environ,
        "PENSTOCK_ENGINE_ENDPOINT": f"ipc://{directory}/engine",
        "PENSTOCK_AUTH_ENDPOINT": f"ipc://{directory}/auth",
        "PENSTOCK_TOOLPARSER_ENDPOINT": f"ipc://{directory}/toolparser",
        "PENSTOCK_DATA_DIR": str(directory / "data"),
        "PENSTOCK_PORT": "0",
        "PENSTOCK_PORT_FILE": str(directory / "port"),
        "PENSTOCK_LOG_FORMAT": "json",
        **settings,
    }


async def start(environ: dict[str, str]) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", env=environ, stdout=PIPE, stderr=PIPE
    )


async def outcome(process: Process) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def eventually(fact: Callable[[], bool]) -> None:
    """Wait for what another process does without telling."""
    async with asyncio.timeout(60):
        while not fact():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def is_draining(client: httpx.AsyncClient) -> None:
    """Wait until the gateway says that it drains."""
    async with asyncio.timeout(60):
        while (await client.get("/ready")).json()["status"] != "draining":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(directory: Path, **settings: str) -> AsyncIterator[tuple[Process, str]]:
    """A gateway process and its URL."""
    process = await start(environment(directory, **settings))
    port_file = directory / "port"
    try:
        await eventually(lambda: port_file.exists() or process.returncode is not None)
        yield process, f"http://127.0.0.1:{port_file.read_text().strip()}"
    finally:
        port_file.unlink(missing_ok=True)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ready_workers(directory: Path) -> tuple[FakeAuth, FakeEngine]:
    auth, engine = FakeAuth(directory), FakeEngine(directory, text=None)
    auth.start()
    engine.start()
    return auth, engine


async def begun_stream(client: httpx.AsyncClient, engine: FakeEngine) -> httpx.Response:
    """A stream with one piece of text; asks again until the workers are known."""
    body = {"model": "demo", "messages": MESSAGES, "stream": True}
    sending: asyncio.Task[httpx.Response] | None = None
    async with asyncio.timeout(60):
        while not engine.of(Generate):
            if sending is None or sending.done():
                request = client.build_request("POST", "/v1/chat/completions", json=body)
                sending = asyncio.create_task(client.send(request, stream=True))
            await asyncio.sleep(0.02)
    engine.emit(engine.of(Generate)[0], "begun")
    assert sending is not None
    return await sending


async def test_sigterm_lets_a_running_stream_finish_and_exits_clean(socket_dir: Path) -> None:
    async with running(socket_dir) as (process, url):
        auth, engine = await ready_workers(socket_dir)
        async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False) as client:
            response = await begun_stream(client, engine)
            process.send_signal(signal.SIGTERM)
            await is_draining(client)
            engine.emit(engine.of(Generate)[0], " and done")
            engine.finish(engine.of(Generate)[0])
            await response.aread()
        assert stream_text(events_of(response.text)) == "begun and done"
        code, out, _ = await outcome(process)
        assert (code, out) == (0, "")
        assert len(auth.settled()) == 1
        assert not (socket_dir / "engine").exists()
        await auth.stop()
        await engine.stop()


async def test_a_settlement_survives_kill_9(socket_dir: Path) -> None:
    async with running(socket_dir) as (process, url):
        auth, engine = await ready_workers(socket_dir)
        auth.acknowledges = False
        async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False) as client:
            response = await begun_stream(client, engine)
            engine.finish(engine.of(Generate)[0])
            await response.aread()
        outbox = socket_dir / "data" / "gateway-outbox.jsonl"
        await eventually(lambda: b"settle" in outbox.read_bytes())
        process.kill()
        await process.wait()
        await auth.stop()
    async with running(socket_dir):
        fresh = FakeAuth(socket_dir)
        fresh.start()
        await fresh.until(lambda: bool(fresh.settled()))
        # Told again until it is acknowledged, so perhaps more than once; a lease is booked once.
        settled = fresh.settled()
        assert all(isinstance(settle, Settle) for settle in settled)
        assert {settle.lease_id for settle in settled} == {auth.settled()[0].lease_id}
        await fresh.stop()
        await engine.stop()


async def test_a_port_in_use_is_one_clear_line_and_exit_code_1(socket_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = await start(environment(socket_dir, PENSTOCK_PORT=port))
        code, out, err = await outcome(process)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert f"127.0.0.1:{port}" in err
    assert "Traceback" not in err


async def test_a_bad_setting_is_one_clear_line_and_exit_code_2(socket_dir: Path) -> None:
    process = await start(environment(socket_dir, PENSTOCK_MAX_QUEUE="many"))
    code, out, err = await outcome(process)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "PENSTOCK_MAX_QUEUE" in err


async def test_the_same_signal_twice_ends_at_once(socket_dir: Path) -> None:
    async with running(socket_dir) as (process, url):
        auth, engine = await ready_workers(socket_dir)
        async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False) as client:
            response = await begun_stream(client, engine)
            process.send_signal(signal.SIGTERM)
            await is_draining(client)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                code, _, err = await outcome(process)
            assert code == 0
            assert "Traceback" not in err
            await response.aclose()
        await auth.stop()
        await engine.stop()


HANGING = """
import asyncio, sys, threading
from gateway import __main__ as main
from gateway.application import Application

close = Application.close

async def hang(self):
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    await close(self)

Application.close = hang
main.END_GRACE_S = 0.5
sys.exit(main.main())
"""
"""A gateway one of whose threads never comes back."""


async def test_a_thread_that_hangs_keeps_no_gateway_from_its_end(socket_dir: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HANGING, env=environment(socket_dir), stdout=PIPE, stderr=PIPE
    )
    await eventually(lambda: (socket_dir / "port").exists() or process.returncode is not None)
    process.send_signal(signal.SIGTERM)
    code, _, err = await outcome(process)
    assert code == 1
    assert "hangs" in err
