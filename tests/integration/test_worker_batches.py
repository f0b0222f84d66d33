"""Frames on the socket: batches for peers that read them, and questions taken back in time."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import pytest
import zmq

from protocol.errors import ErrorCode
from protocol.version import PROTOCOL_VERSION, ProtocolVersion
from protocol.wire import codec
from protocol.wire.endpoints import Endpoint
from protocol.wire.messages import (
    Abort,
    AuthCommand,
    Detokenize,
    EngineEvent,
    Failure,
    Heartbeat,
    Message,
    Ready,
    Renew,
)
from protocol.wire.peers import Peer
from protocol.wire.transport import TransportLimits
from protocol.wire.worker import Worker, WorkerSettings
from tests.fakes.echo_worker import RecordingHandler
from tests.fakes.recording_gateway import RecordingGateway

OLD = ProtocolVersion(1, 1)
LIMITS = TransportLimits(send_high_water=1, receive_high_water=1)
Gateway = RecordingGateway[EngineEvent]
ItemT = TypeVar("ItemT")


class RawWorker:
    """A DEALER that reads when it is told to, frame by frame, with the plain MessagePack
    library."""

    def __init__(self, endpoint: Endpoint, version: ProtocolVersion) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.RCVHWM, 1)
        self._socket.connect(endpoint.text)
        self.send(Ready(role="engine", instance_id="raw", protocol_version=version, build=""))

    def send(self, *messages: Message) -> None:
        self._socket.send(codec.join([codec.encode(message) for message in messages]))

    def send_frame(self, frame: bytes) -> None:
        self._socket.send(frame)

    def frames_until(self, request_id: str) -> list[list[dict[str, Any]]]:
        """The messages of each frame but heartbeats, up to the frame with this request's
        message."""
        frames: list[list[dict[str, Any]]] = []
        while not frames or request_id not in {message.get("request_id") for message in frames[-1]}:
            assert self._socket.poll(10_000)
            content = msgpack.unpackb(self._socket.recv())
            messages = content if isinstance(content, list) else [content]
            frames.append([message for message in messages if message["type"] != "heartbeat"])
        return [frame for frame in frames if frame]

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


def flat(frames: list[list[ItemT]]) -> list[ItemT]:
    return list(chain.from_iterable(frames))


@pytest.fixture
async def gateway(socket_dir: Path) -> AsyncIterator[Gateway]:
    decoder = codec.engine_event_decoder()
    gateway = Gateway("engine", f"ipc://{socket_dir}/e.sock", decoder, limits=LIMITS)
    yield gateway
    gateway.server.close()


@pytest.fixture
def raw_workers() -> Iterator[list[RawWorker]]:
    workers: list[RawWorker] = []
    yield workers
    for worker in workers:
        worker.close()


async def connect(
    gateway: Gateway, raw_workers: list[RawWorker], version: ProtocolVersion = PROTOCOL_VERSION
) -> tuple[RawWorker, Peer]:
    worker = RawWorker(gateway.start(), version)
    raw_workers.append(worker)
    await gateway.until(lambda: "joined" in gateway.kinds())
    return worker, gateway.server.peers()[0]


def abort(request_id: str) -> Abort:
    return Abort(request_id=request_id, attempt=0)


def failure(request_id: str) -> Failure:
    return Failure(request_id=request_id, code=ErrorCode.INTERNAL_ERROR, message="")


def detokenize(request_id: str) -> Detokenize:
    return Detokenize(request_id=request_id, token_ids=(1,), deadline_s=1.0)


async def test_what_is_sent_in_one_turn_arrives_in_one_frame(
    gateway: Gateway, raw_workers: list[RawWorker]
) -> None:
    worker, peer = await connect(gateway, raw_workers)
    for number in range(50):
        gateway.server.send(peer, abort(str(number)))
    frames = await asyncio.to_thread(worker.frames_until, "49")
    assert [message["request_id"] for message in flat(frames)] == [str(n) for n in range(50)]
    assert len(frames) == 1


async def test_an_older_worker_gets_a_frame_for_each_message(
    gateway: Gateway, raw_workers: list[RawWorker]
) -> None:
    worker, peer = await connect(gateway, raw_workers, OLD)
    for number in range(20):
        gateway.server.send(peer, abort(str(number)))
    frames = await asyncio.to_thread(worker.frames_until, "19")
    assert [[message["request_id"] for message in frame] for frame in frames] == [
        [str(number)] for number in range(20)
    ]


async def test_a_gateway_reads_batches_and_counts_bad_messages_one_by_one(
    gateway: Gateway, raw_workers: list[RawWorker]
) -> None:
    worker, _ = await connect(gateway, raw_workers)
    frames = [codec.encode(failure(name)) for name in "012"]
    worker.send_frame(codec.join([frames[0], b"\xc0", frames[1], b"\xc0", frames[2]]))
    await gateway.until(lambda: len(gateway.events) == 3)
    assert gateway.events == [failure(name) for name in "012"]
    assert gateway.server.num_malformed == 2


async def test_a_callback_that_fails_costs_the_other_messages_of_the_batch_nothing(
    gateway: Gateway, raw_workers: list[RawWorker]
) -> None:
    worker, _ = await connect(gateway, raw_workers)
    note = gateway.server._on_event

    def fail_once(peer: Peer, event: EngineEvent) -> None:
        gateway.server._on_event = note
        raise RuntimeError("boom")

    gateway.server._on_event = fail_once
    worker.send(failure("a"), failure("b"))
    await gateway.until(lambda: len(gateway.events) == 1)
    assert gateway.events == [failure("b")]


async def fill(gateway: Gateway, peer: Peer) -> None:
    """Send until the peer's queue here is not empty: whatever comes next waits in it."""
    number = 0
    while not gateway.server._router.num_queued_bytes(peer.identity):
        gateway.server.send(peer, abort(f"{number}" + "x" * 100_000))
        number += 1
        await asyncio.sleep(0)


async def test_a_question_that_waits_for_a_slow_engine_is_taken_back(
    gateway: Gateway, raw_workers: list[RawWorker]
) -> None:
    worker, peer = await connect(gateway, raw_workers)
    await fill(gateway, peer)
    gateway.server.send(peer, detokenize("gone"))
    gateway.server.send(peer, detokenize("kept"))
    assert gateway.server.cancel(peer, "gone")
    gateway.server.send(peer, abort("end"))
    frames = await asyncio.to_thread(worker.frames_until, "end")
    found = [(message["type"], message["request_id"]) for message in flat(frames)]
    assert found[-2:] == [("detokenize", "kept"), ("abort", "end")]
    assert {kind for kind, _ in found[:-2]} == {"abort"}


@pytest.mark.parametrize(("version", "is_told"), [(PROTOCOL_VERSION, True), (OLD, False)])
async def test_a_question_that_has_left_is_cancelled_at_an_engine_that_knows_how(
    gateway: Gateway, raw_workers: list[RawWorker], version: ProtocolVersion, is_told: bool
) -> None:
    worker, peer = await connect(gateway, raw_workers, version)
    gateway.server.send(peer, detokenize("gone"))
    assert await asyncio.to_thread(worker.frames_until, "gone")
    assert not gateway.server.cancel(peer, "gone")
    gateway.server.send(peer, abort("end"))
    frames = await asyncio.to_thread(worker.frames_until, "end")
    found = [message["type"] for message in flat(frames)]
    assert found == (["cancel", "abort"] if is_told else ["abort"])


async def test_nothing_is_sent_for_a_question_to_an_engine_that_is_gone(
    gateway: Gateway, raw_workers: list[RawWorker]
) -> None:
    worker, peer = await connect(gateway, raw_workers)
    worker.close()
    raw_workers.clear()
    await gateway.until(lambda: gateway.losses() == ["disconnected"])
    assert not gateway.server.cancel(peer, "gone")


@pytest.mark.parametrize(("version", "num_frames"), [(PROTOCOL_VERSION, 1), (None, 40)])
async def test_a_worker_batches_its_answers_for_gateways_that_read_batches(
    socket_dir: Path, version: ProtocolVersion | None, num_frames: int
) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    address = f"ipc://{socket_dir}/a.sock"
    socket.bind(address)
    handler = RecordingHandler[AuthCommand]()
    worker = Worker(
        role="auth",
        decoder=codec.auth_command_decoder(),
        handler=handler,
        endpoints=[Endpoint(address)],
        settings=WorkerSettings(handle_signals=False),
    )
    worker.start()
    identity, _ = await asyncio.to_thread(socket.recv_multipart)
    heartbeat = Heartbeat(instance_id="gw", phase="ready", protocol_version=version)
    socket.send_multipart([identity, codec.encode(heartbeat)])
    decoder = codec.auth_event_decoder()

    def send_all() -> None:
        for number in range(40):
            worker.send("gw", failure(str(number)))

    def read_all() -> list[list[str]]:
        found: list[list[str]] = []
        while sum(len(ids) for ids in found) < 40:
            assert socket.poll(10_000)
            messages = decoder.decode_all(socket.recv_multipart()[1])
            found.append([m.request_id for m in messages if isinstance(m, Failure)])
        return [ids for ids in found if ids]

    socket.send_multipart([identity, codec.encode(Renew(leases=()))])
    await asyncio.to_thread(handler.wait_until, lambda: len(handler.commands) == 1)
    worker.call_soon(send_all)
    found = await asyncio.to_thread(read_all)
    assert flat(found) == [str(number) for number in range(40)]
    assert len(found) == num_frames
    await asyncio.to_thread(worker.stop)
    socket.close(linger=0)
    context.term()
