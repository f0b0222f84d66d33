"""A worker as a process: signals drain it, kill -9 is noticed, and it dies with its supervisor."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.wire import codec
from protocol.wire.messages import AuthEvent, Authorize, Granted
from protocol.wire.peers import PeerLimits
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
    assert await asyncio.wait_for(process.wait(), 60) == 0
    await gateway.until(lambda: gateway.losses() == ["goodbye"])


async def test_a_second_signal_of_the_same_kind_ends_a_drain_at_once(
    gateway: Gateway, socket_dir: Path
) -> None:
    process = await start(socket_dir, FAKE_UNFINISHED="1", FAKE_DRAIN_TIMEOUT_S="200")
    peer = await gateway.a_ready_peer()
    process.terminate()
    await gateway.until(lambda: peer.phase == "draining")
    process.send_signal(signal.SIGINT)  # another kind: Ctrl-C before a supervisor's SIGTERM
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 60) == 128 + signal.SIGTERM


async def test_a_main_thread_that_sits_in_c_code_neither_stops_heartbeats_nor_the_end(
    gateway: Gateway, socket_dir: Path
) -> None:
    process = await start(socket_dir, "busy")
    peer = await gateway.a_ready_peer()
    assert not peer.is_silent
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 60) == 0
    await gateway.until(lambda: gateway.losses() == ["goodbye"])


async def test_kill_nine_is_noticed_at_once(gateway: Gateway, socket_dir: Path) -> None:
    process = await start(socket_dir)
    await gateway.a_ready_peer()
    process.kill()
    await gateway.until(lambda: gateway.losses() == ["disconnected"])
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


async def test_what_was_asked_of_a_stopped_worker_is_known_to_be_old_when_it_goes_on(
    socket_dir: Path,
) -> None:
    # Seconds after which a stopped worker is seen to be silent: the least that its stop lasts.
    limits = PeerLimits(silent_s=0.6)
    decoder = codec.auth_event_decoder()
    gateway = Gateway("auth", f"ipc://{socket_dir}/a.sock", decoder, peer_limits=limits)
    gateway.start()
    process = await start(socket_dir)
    peer = await gateway.a_ready_peer()
    process.send_signal(signal.SIGSTOP)
    await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    num_asked = 300  # more than libzmq reads ahead, so that the kernel holds some too
    for number in range(num_asked):
        question = Authorize(request_id=str(number), key_digest=None, endpoint="/v1/models")
        gateway.server.send(peer, question)
    await gateway.until(lambda: peer.is_silent)
    process.send_signal(signal.SIGCONT)
    await gateway.until(lambda: len(gateway.events) == num_asked)
    ages_s = [event.expires_s for event in gateway.events if isinstance(event, Granted)]
    assert len(ages_s) == num_asked
    assert min(ages_s) > 0.3
    gateway.server.close()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 60) == 0
