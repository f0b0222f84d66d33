"""Memory stays under a stated bound: random frames by the ten thousand, peers that don't read.

`FUZZ_FRAMES=1000000` sends a million frames instead.
"""

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import zmq

from protocol.version import PROTOCOL_VERSION
from protocol.wire import codec
from protocol.wire.endpoints import Endpoint
from protocol.wire.messages import (
    Abort,
    AuthCommand,
    AuthEvent,
    AuthOffer,
    Delta,
    EngineCommand,
    EngineEvent,
    Ready,
    StepOutput,
)
from protocol.wire.transport import TransportLimits
from protocol.wire.worker import Worker, WorkerSettings
from tests.fakes.echo_worker import RecordingHandler
from tests.fakes.recording_gateway import RecordingGateway

NUM_FRAMES = int(os.environ.get("FUZZ_FRAMES", "80000"))
MIB = 1024 * 1024
SETTINGS = WorkerSettings(heartbeat_interval_s=0.05, handle_signals=False)
SMALL = TransportLimits(max_queue_bytes=2 * MIB, send_high_water=16, receive_high_water=16)


def resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


async def flood(mode: str, address: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fakes.frame_flood", mode, address, str(NUM_FRAMES), "7"
    )
    assert await process.wait() == 0


@pytest.fixture
async def gateway(socket_dir: Path) -> AsyncIterator[RecordingGateway[EngineEvent]]:
    decoder = codec.engine_event_decoder()
    gateway = RecordingGateway("engine", f"ipc://{socket_dir}/e.sock", decoder, limits=SMALL)
    yield gateway
    gateway.server.close()


async def test_random_frames_cost_a_gateway_no_memory_and_no_worker(
    gateway: RecordingGateway[EngineEvent],
) -> None:
    endpoint = gateway.start()
    handler = RecordingHandler[EngineCommand]()
    decoder = codec.engine_command_decoder()
    worker = Worker(
        role="engine", decoder=decoder, handler=handler, endpoints=[endpoint], settings=SETTINGS
    )
    worker.start()
    await gateway.until(lambda: "joined" in gateway.kinds())
    before = resident_bytes()
    await flood("dial", endpoint.text)
    # What the flood sent last is read before a worker's answer that is sent after it.
    worker.send("gateway-1", StepOutput(progress_counter=1))
    await gateway.until(lambda: StepOutput(progress_counter=1) in gateway.events)
    assert gateway.server.num_malformed > NUM_FRAMES * 0.8
    assert resident_bytes() - before < 32 * MIB
    assert worker.instance_id in {peer.instance_id for peer in gateway.server.peers()}
    await asyncio.to_thread(worker.stop)


async def test_random_frames_cost_a_worker_no_memory(socket_dir: Path) -> None:
    address = f"ipc://{socket_dir}/a.sock"
    handler = RecordingHandler[AuthCommand]()
    real = RecordingGateway[AuthEvent](
        "auth", f"ipc://{socket_dir}/real.sock", codec.auth_event_decoder()
    )
    worker = Worker(
        role="auth",
        decoder=codec.auth_command_decoder(),
        handler=handler,
        endpoints=[Endpoint(address), real.start()],
        settings=SETTINGS,
    )
    worker.start()
    worker.announce(AuthOffer(epoch=1))
    await real.a_ready_peer()
    before = resident_bytes()
    await flood("bind", address)
    worker.announce(AuthOffer(epoch=2))
    await real.until(
        lambda: any(peer.auth == AuthOffer(epoch=2) for peer in real.server.peers()), 20.0
    )
    assert real.losses() == []
    assert resident_bytes() - before < 32 * MIB
    await asyncio.to_thread(worker.stop)
    real.server.close()


async def test_a_worker_that_stops_reading_is_given_up_and_costs_its_bound_only(
    gateway: RecordingGateway[EngineEvent],
) -> None:
    endpoint = gateway.start()
    context = zmq.Context()
    deaf = context.socket(zmq.DEALER)
    deaf.setsockopt(zmq.RCVHWM, 1)
    deaf.connect(endpoint.text)
    ready = Ready(role="engine", instance_id="deaf", protocol_version=PROTOCOL_VERSION, build="")
    deaf.send(codec.encode(ready))
    await gateway.until(lambda: "joined" in gateway.kinds())
    peer = gateway.server.peers()[0]
    before = resident_bytes()
    for number in range(20_000):
        gateway.server.send(peer, Abort(request_id=f"{number}" + "x" * 4000, attempt=0))
    await gateway.until(lambda: gateway.losses() == ["overflow"])
    assert resident_bytes() - before < 16 * MIB
    deaf.close(linger=0)
    context.term()


async def test_a_gateway_that_stops_reading_gets_merged_outputs_then_is_given_up(
    socket_dir: Path,
) -> None:
    context = zmq.Context()
    deaf = context.socket(zmq.ROUTER)
    deaf.setsockopt(zmq.RCVHWM, 1)
    address = f"ipc://{socket_dir}/e.sock"
    deaf.bind(address)
    handler = RecordingHandler[EngineCommand]()
    worker = Worker(
        role="engine",
        decoder=codec.engine_command_decoder(),
        handler=handler,
        endpoints=[Endpoint(address)],
        settings=SETTINGS,
        limits=SMALL,
    )
    worker.start()
    identity, _ = await asyncio.to_thread(deaf.recv_multipart)
    deaf.send_multipart(
        [identity, b"\x83\xa4type\xa9heartbeat\xabinstance_id\xa2gw\xa5phase\xa5ready"]
    )
    abort = Abort(request_id="the heartbeat was read before this", attempt=0)
    deaf.send_multipart([identity, codec.encode(abort)])
    await asyncio.to_thread(handler.wait_until, lambda: handler.commands == [("gw", abort)])
    before = resident_bytes()
    delta = Delta(request_id="r", choice=0, attempt=0, text="x" * 1000)
    for _ in range(20_000):
        worker.send("gw", StepOutput(deltas=(delta,)))
    await asyncio.to_thread(handler.wait_until, lambda: handler.lost == ["gw"])
    assert resident_bytes() - before < 48 * MIB
    await asyncio.to_thread(worker.stop)
    deaf.close(linger=0)
    context.term()
