"""What the first messages of a wake-up led to leaves before the others are looked at."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from protocol.version import PROTOCOL_VERSION
from protocol.wire import codec
from protocol.wire.endpoints import Endpoint
from protocol.wire.messages import Adjust, AuthCommand, Heartbeat, Renew, Settle, Settled
from protocol.wire.transport_io import EdgeTriggeredReader, TransportLimits
from protocol.wire.worker import Worker, WorkerSettings
from tests.fakes.echo_worker import RecordingHandler


async def test_a_reader_says_so_once_a_round_and_before_it_reads_on() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sender, socket = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    sender.bind("inproc://first")
    socket.connect("inproc://first")
    seen: list[str] = []
    is_drained = asyncio.Event()

    def on_frames(frames: list[bytes]) -> int:
        seen.append(frames[0].decode())
        return 1

    def on_drained() -> None:
        seen.append("drained")
        is_drained.set()

    reader = EdgeTriggeredReader(
        socket, on_frames, on_first=lambda: seen.append("first"), on_drained=on_drained
    )
    for name in ("a", "b", "c"):
        sender.send(name.encode())
    reader.start(asyncio.get_running_loop())
    await asyncio.wait_for(is_drained.wait(), 60)
    reader.stop()
    assert seen == ["a", "first", "b", "c", "drained"]
    sender.close(linger=0)
    socket.close(linger=0)
    context.term()


async def test_a_wake_up_that_finds_one_message_reads_nothing_in_vain() -> None:
    """What is read in vain ends in an exception, which costs more than the rest of a wake-up."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sender = context.socket(zmq.PAIR)
    num_in_vain = 0

    class Socket(zmq.Socket[bytes]):
        def recv(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal num_in_vain
            try:
                return super().recv(*args, **kwargs)
            except zmq.Again:
                num_in_vain += 1
                raise

    socket = Socket(context, zmq.PAIR)
    sender.bind("inproc://alone")
    socket.connect("inproc://alone")
    seen: list[bytes] = []
    is_drained = asyncio.Event()

    def on_frames(frames: list[bytes]) -> int:
        seen.extend(frames)
        return 1

    reader = EdgeTriggeredReader(socket, on_frames, on_drained=is_drained.set)
    reader.start(asyncio.get_running_loop())
    for number in range(3):
        await asyncio.wait_for(is_drained.wait(), 60)
        is_drained.clear()
        sender.send(b"%d" % number)
        while len(seen) <= number:
            await asyncio.wait_for(is_drained.wait(), 60)
            is_drained.clear()
        reader.recheck()  # as after each use of the socket elsewhere
    await asyncio.wait_for(is_drained.wait(), 60)
    reader.stop()
    assert (seen, num_in_vain) == ([b"0", b"1", b"2"], 0)
    sender.close(linger=0)
    socket.close(linger=0)
    context.term()


@pytest.mark.parametrize("min_frames", [1, 2])
async def test_messages_of_more_frames_than_expected_are_read_whole(min_frames: int) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sender, socket = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    sender.bind("inproc://frames")
    socket.connect("inproc://frames")
    messages = [[b"a", b"b"], [b"c", b"d", b"e", b"f"], [b"g", b"h"]]
    seen: list[list[bytes]] = []
    has_all = asyncio.Event()

    def on_frames(frames: list[bytes]) -> int:
        seen.append(frames)
        if len(seen) == len(messages):
            has_all.set()
        return 1

    reader = EdgeTriggeredReader(socket, on_frames, min_frames=min_frames)
    reader.start(asyncio.get_running_loop())
    for message in messages:
        sender.send_multipart(message)
    await asyncio.wait_for(has_all.wait(), 60)
    reader.stop()
    assert seen == messages
    sender.close(linger=0)
    socket.close(linger=0)
    context.term()


@contextmanager
def a_worker_and_its_gateway(
    socket_dir: Path, answer: Callable[[Worker[AuthCommand], str, AuthCommand], None]
) -> Iterator[tuple[Callable[[bytes], None], RecordingHandler[AuthCommand], Callable[[], bool]]]:
    """A worker that knows its gateway: sends it a frame, what it handled, reads until a Settled."""
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
    handler.answer = lambda gateway_id, command: answer(worker, gateway_id, command)
    worker.start()
    identity, _ = socket.recv_multipart()

    def send(frame: bytes) -> None:
        socket.send_multipart([identity, frame])

    def read_settled() -> bool:
        decoder = codec.auth_event_decoder()
        while socket.poll(5_000):
            messages = decoder.decode_all(socket.recv_multipart()[1])
            if any(isinstance(message, Settled) for message in messages):
                return True
        return False

    heartbeat = Heartbeat(instance_id="gw", phase="ready", protocol_version=PROTOCOL_VERSION)
    for message in (heartbeat, ADJUST):
        send(codec.encode(message))
    handler.wait_until(lambda: len(handler.commands) == 1)
    is_over = threading.Event()
    worker.call_soon(is_over.set)  # the round in which these were read
    is_over.wait(10)
    yield send, handler, read_settled
    worker.stop()
    socket.close(linger=0)
    context.term()


ADJUST = Adjust(request_id="r", lease_id="l", prompt_tokens=1, completion_tokens=1)
SETTLE = Settle(lease_id="l", request_id="r", prompt_tokens=1, completion_tokens=1)


def test_a_worker_sends_its_first_answer_before_it_reads_the_next_command(
    socket_dir: Path,
) -> None:
    has_left = threading.Event()

    def answer(worker: Worker[AuthCommand], gateway_id: str, command: AuthCommand) -> None:
        if isinstance(command, Settle):
            (link,) = worker._io._links.values()
            connection = link.dealer._connection
            assert connection is not None
            assert connection._socket.poll(10_000)  # the next command waits already
            worker.send(gateway_id, Settled(lease_id=command.lease_id))
        elif isinstance(command, Renew):
            assert has_left.wait(60)

    with a_worker_and_its_gateway(socket_dir, answer) as (send, handler, read_settled):
        for command in (SETTLE, Renew(leases=())):
            send(codec.encode(command))
        assert read_settled()
        assert len(handler.commands) == 2
        has_left.set()
        handler.wait_until(lambda: len(handler.commands) == 3)


def test_answers_to_the_first_messages_of_a_frame_leave_before_the_others_are_handled(
    socket_dir: Path,
) -> None:
    together = TransportLimits().max_answered_together
    has_left = threading.Event()

    def answer(worker: Worker[AuthCommand], gateway_id: str, command: AuthCommand) -> None:
        if isinstance(command, Settle):
            worker.send(gateway_id, Settled(lease_id=command.lease_id))
        elif isinstance(command, Renew):
            assert has_left.wait(60)

    with a_worker_and_its_gateway(socket_dir, answer) as (send, handler, read_settled):
        send(codec.join([codec.encode(SETTLE)] * together + [codec.encode(Renew(leases=()))]))
        assert read_settled()
        has_left.set()
        handler.wait_until(lambda: len(handler.commands) == 2 + together)
