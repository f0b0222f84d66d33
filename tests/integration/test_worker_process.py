"""A worker as a process: signals drain it, kill -9 is noticed, and it dies with its supervisor."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.wire import codec
from protocol.wire.messages import AuthEvent
from tests.fakes.recording_gateway import RecordingGateway

pytestmark = pytest.mark.process
Gateway = RecordingGateway[AuthEvent]


@pytest.fixture
async def gateway(socket_dir: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway("auth", f"ipc://{socket_dir}/a.sock", codec.auth_event_decoder())
    gateway.start()
    yield gateway
    gateway.server.close()


async def start(socket_dir: Path, mode: str = "wait", **environ: str) -> asyncio.subprocess.Process:
    endpoint = f"ipc://{socket_dir}/a.sock"
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.fakes.worker_process",
        mode,
        env={**os.environ, "PENSTOCK_AUTH_ENDPOINT": endpoint, **environ},
        stderr=asyncio.subprocess.DEVNULL,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_a_worker_and_it_exits_with_zero(
    gateway: Gateway, socket_dir: Path, number: signal.Signals
) -> None:
    process = await start(socket_dir)
    await gateway.a_ready_peer()
    process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), 10) == 0
    await gateway.until(lambda: gateway.losses() == ["goodbye"])


async def test_a_second_signal_of_the_same_kind_ends_a_drain_at_once(
    gateway: Gateway, socket_dir: Path
) -> None:
    process = await start(socket_dir, FAKE_UNFINISHED="1")
    peer = await gateway.a_ready_peer()
    process.terminate()
    await gateway.until(lambda: peer.phase == "draining")
    process.send_signal(signal.SIGINT)  # another kind: Ctrl-C before a supervisor's SIGTERM
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 3) == 128 + signal.SIGTERM


async def test_a_main_thread_that_sits_in_c_code_neither_stops_heartbeats_nor_the_end(
    gateway: Gateway, socket_dir: Path
) -> None:
    process = await start(socket_dir, "busy")
    peer = await gateway.a_ready_peer()
    assert not peer.is_silent
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 10) == 0
    await gateway.until(lambda: gateway.losses() == ["goodbye"])


async def test_kill_nine_is_noticed_at_once(gateway: Gateway, socket_dir: Path) -> None:
    process = await start(socket_dir)
    await gateway.a_ready_peer()
    process.kill()
    await gateway.until(lambda: gateway.losses() == ["disconnected"], 2.0)
    await process.wait()


@pytest.mark.parametrize("mode", ["wait", "busy"])
async def test_a_worker_ends_without_a_drain_when_its_supervisor_was_killed(
    gateway: Gateway, socket_dir: Path, mode: str
) -> None:
    run_dir = socket_dir / "run"
    run_dir.mkdir()
    code = (
        "import os, subprocess, sys, time;"
        "os.environ['PENSTOCK_PARENT_PID'] = str(os.getpid());"
        "subprocess.Popen([sys.executable, '-m', "
        f"'tests.fakes.worker_process', '{mode}']);"
        "time.sleep(600)"
    )
    endpoint = f"ipc://{socket_dir}/a.sock"
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        env={
            **os.environ,
            "PENSTOCK_AUTH_ENDPOINT": endpoint,
            "PENSTOCK_RUN_DIR": str(run_dir),
            "FAKE_UNFINISHED": "1",
            "FAKE_DRAIN_TIMEOUT_S": "600",
        },
        stderr=asyncio.subprocess.DEVNULL,
    )
    await gateway.a_ready_peer()
    supervisor.kill()
    await gateway.until(lambda: gateway.losses() == ["goodbye"])
    await supervisor.wait()
    assert not run_dir.exists()
