"""When a worker's file says that it is ready: real workers, real gateways' sockets."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from protocol.__main__ import EXIT_NO_ANSWER, EXIT_OK
from protocol.version import PROTOCOL_VERSION, ProtocolVersion
from protocol.wire import codec
from protocol.wire.endpoints import Endpoint
from protocol.wire.messages import (
    AuthCommand,
    AuthEvent,
    AuthOffer,
    Drain,
    Heartbeat,
    Message,
    Ready,
    Renew,
)
from protocol.wire.worker import Worker, WorkerSettings
from tests.fakes.echo_worker import RecordingHandler
from tests.fakes.recording_gateway import RecordingGateway

Gateway = RecordingGateway[AuthEvent]


@pytest.fixture
async def gateway(socket_dir: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway("auth", f"ipc://{socket_dir}/a.sock", codec.auth_event_decoder())
    yield gateway
    gateway.server.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ready"


async def ready_command(path: Path) -> int:
    """What a health check finds."""
    command = (sys.executable, "-m", "protocol", "ready", str(path))
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait()


async def until(fact: Callable[[], bool]) -> None:
    """Wait for a fact about a file."""
    async with asyncio.timeout(60):
        while not fact():  # noqa: ASYNC110 - no event tells of a file
            await asyncio.sleep(0.01)


@pytest.mark.process
async def test_a_worker_process_is_ready_from_the_first_work_it_is_given_to_its_drain(
    gateway: Gateway, socket_dir: Path, path: Path
) -> None:
    await asyncio.to_thread(path.write_text, "1\n")  # of an earlier life
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.fakes.worker_process",
        "load",
        env={
            **os.environ,
            "PENSTOCK_AUTH_ENDPOINT": f"ipc://{socket_dir}/a.sock",
            "PENSTOCK_READY_FILE": str(path),
            "FAKE_UNFINISHED": "1",
        },
        stderr=asyncio.subprocess.DEVNULL,
    )
    gateway.start()
    await gateway.until(lambda: any(peer.phase == "loading" for peer in gateway.server.peers()))
    peer = gateway.server.peers()[0]
    assert await ready_command(path) == EXIT_NO_ANSWER
    process.send_signal(signal.SIGUSR1)  # loaded
    await gateway.a_ready_peer()
    await until(path.exists)
    assert await ready_command(path) == EXIT_OK
    gateway.server.send(peer, Drain(timeout_s=5.0))
    await gateway.until(lambda: peer.phase == "draining")
    assert await ready_command(path) == EXIT_NO_ANSWER
    process.kill()
    await process.wait()


@pytest.mark.process
async def test_the_file_of_a_killed_worker_does_not_count(
    gateway: Gateway, socket_dir: Path, path: Path
) -> None:
    environ = {"PENSTOCK_AUTH_ENDPOINT": f"ipc://{socket_dir}/a.sock"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.fakes.worker_process",
        "wait",
        env={**os.environ, **environ, "PENSTOCK_READY_FILE": str(path)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    gateway.start()
    await until(path.exists)
    assert await ready_command(path) == EXIT_OK
    process.kill()
    await process.wait()
    await until(path.exists)
    assert await ready_command(path) == EXIT_NO_ANSWER


class ScriptedGateway:
    """A ROUTER that says to one worker what the test wants."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(address)
        self._identity = b""

    def wait_for(self, kind: type[Message]) -> None:
        """Read up to a message of this kind."""
        decoder = codec.auth_event_decoder()
        while True:
            assert self._socket.poll(10_000)
            self._identity, frame = self._socket.recv_multipart()
            if any(isinstance(message, kind) for message in decoder.decode_all(frame)):
                return

    def send(self, *messages: Message) -> None:
        self._socket.send_multipart(
            [self._identity, codec.join([codec.encode(message) for message in messages])]
        )

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


class Pair:
    """A worker and the scripted gateways that it has dialled."""

    def __init__(self, socket_dir: Path, path: Path, num_gateways: int) -> None:
        addresses = [f"ipc://{socket_dir}/{number}.sock" for number in range(num_gateways)]
        self.gateways = [ScriptedGateway(address) for address in addresses]
        self.handler = RecordingHandler[AuthCommand]()
        self.path = path
        self.worker = Worker(
            role="auth",
            decoder=codec.auth_command_decoder(),
            handler=self.handler,
            endpoints=[Endpoint(address) for address in addresses],
            settings=WorkerSettings(heartbeat_interval_s=0.05, handle_signals=False),
            ready_file=path,
        )
        self.worker.start()
        for gateway in self.gateways:
            gateway.wait_for(Ready)

    def is_ready_after(self, number: int, **heartbeat: Any) -> bool:
        """Whether the file is there once a gateway's heartbeat was handled."""
        fields = {"phase": "ready", "protocol_version": PROTOCOL_VERSION, **heartbeat}
        num_before = len(self.handler.commands)
        # The command behind the heartbeat is read after it.
        self.gateways[number].send(
            Heartbeat(instance_id=f"gateway-{number}", **fields), Renew(leases=())
        )
        self.handler.wait_until(lambda: len(self.handler.commands) > num_before)
        return self.path.exists()

    def close(self) -> None:
        self.worker.stop()
        for gateway in self.gateways:
            gateway.close()


@pytest.fixture
def make_pair(socket_dir: Path, path: Path) -> Iterator[Callable[[int], Pair]]:
    pairs: list[Pair] = []

    def make(num_gateways: int) -> Pair:
        pairs.append(Pair(socket_dir, path, num_gateways))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


def test_a_worker_is_ready_while_a_gateway_says_that_it_gives_work(
    make_pair: Callable[[int], Pair],
) -> None:
    pair = make_pair(1)
    assert not pair.is_ready_after(0, takes_work=True)  # it still starts
    pair.worker.announce(AuthOffer(epoch=1))
    pair.gateways[0].wait_for(Ready)
    assert not pair.is_ready_after(0, takes_work=False)
    assert pair.is_ready_after(0, takes_work=True)
    assert not pair.is_ready_after(0, takes_work=False)


def test_a_worker_that_stands_by_is_ready_while_a_gateway_knows_it_though_it_gets_no_work(
    make_pair: Callable[[int], Pair],
) -> None:
    pair = make_pair(1)
    pair.worker.stand_by("standing by: epoch 3 is active")
    assert pair.is_ready_after(0, takes_work=False)
    pair.worker.announce(AuthOffer(epoch=4))
    pair.gateways[0].wait_for(Ready)
    assert not pair.is_ready_after(0, takes_work=False)
    assert pair.is_ready_after(0, takes_work=True)


def test_any_gateway_that_gives_work_is_enough(make_pair: Callable[[int], Pair]) -> None:
    pair = make_pair(2)
    pair.worker.announce(AuthOffer(epoch=1))
    assert not pair.is_ready_after(0, takes_work=False)
    assert pair.is_ready_after(1, takes_work=True)
    assert pair.is_ready_after(0, takes_work=False)
    assert not pair.is_ready_after(1, takes_work=False)


def test_a_heartbeat_of_an_older_gateway_counts_once_the_worker_is_ready(
    make_pair: Callable[[int], Pair],
) -> None:
    pair = make_pair(1)
    assert not pair.is_ready_after(0, protocol_version=ProtocolVersion(1, 1))
    pair.worker.announce(AuthOffer(epoch=1))
    pair.gateways[0].wait_for(Ready)
    assert pair.is_ready_after(0, protocol_version=None)


def test_a_worker_is_not_ready_any_more_when_its_last_gateway_is_gone_or_it_ends(
    make_pair: Callable[[int], Pair],
) -> None:
    pair = make_pair(2)
    pair.worker.announce(AuthOffer(epoch=1))
    assert pair.is_ready_after(0, takes_work=True)
    pair.gateways[0].close()
    pair.handler.wait_until(lambda: pair.handler.lost == ["gateway-0"])
    assert not pair.path.exists()
    assert pair.is_ready_after(1, takes_work=True)
    pair.worker.stop()
    assert not pair.path.exists()


async def test_a_gateway_says_to_each_worker_whether_it_gives_it_work(
    gateway: Gateway, path: Path
) -> None:
    worker = Worker(
        role="auth",
        decoder=codec.auth_command_decoder(),
        handler=RecordingHandler[AuthCommand](),
        endpoints=[gateway.start()],
        settings=WorkerSettings(heartbeat_interval_s=0.05, handle_signals=False),
        ready_file=path,
    )
    worker.start()
    worker.announce(AuthOffer(epoch=1))
    await until(path.exists)
    gateway.server.set_phase("draining")
    await until(lambda: not path.exists())
    gateway.server.set_phase("ready")
    await until(path.exists)
    worker.set_phase("compiling")
    await until(lambda: not path.exists())
    await asyncio.to_thread(worker.stop)
