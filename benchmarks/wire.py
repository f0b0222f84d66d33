"""What one hop between a gateway and a worker costs, beside bare ZeroMQ.

    python -m benchmarks.wire [--seconds 4] [--outstanding 1 64] [--rounds 3]

Two real processes over one ipc socket. One asks (`RoleServer`, as a gateway does) and the other
answers in its handler (`Worker`), with an `Adjust` of 70 bytes and an `Adjusted` of 60. Bare is a
ROUTER and a DEALER of pyzmq that block and pass frames of the same sizes, and neither encode nor
look. So many questions are outstanding at any time. A message is a question or an answer.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop
import zmq

from protocol.wire import codec
from protocol.wire.endpoints import Endpoint
from protocol.wire.messages import (
    Adjust,
    Adjusted,
    AuthCommand,
    AuthEvent,
    AuthOffer,
    Credits,
    Load,
)
from protocol.wire.peers import Peer, PeerEvent
from protocol.wire.role_server import RoleServer
from protocol.wire.worker import Worker, WorkerSettings

_WARM_UP_S = 0.5


@dataclass(frozen=True)
class Figures:
    """Of one run; times in microseconds.

    Attributes:
        messages_per_s: Both ways together.
        p50_us: From a question to its answer.
        asking_cpu_us: Of the asking process, per message, libzmq's thread included.
        answering_cpu_us: Likewise of the other one.
    """

    messages_per_s: float
    p50_us: float
    asking_cpu_us: float
    answering_cpu_us: float


class Tally:
    """Counts answers between the end of the warm-up and the end, and times them."""

    def __init__(self, answering: psutil.Process, seconds: float) -> None:
        self._answering = answering
        self._begin_at = time.perf_counter() + _WARM_UP_S
        self._end_at = self._begin_at + seconds
        self._waits_s: list[float] = []
        self._cpu_s: tuple[float, float] | None = None

    def note(self, asked_at: float) -> bool:
        """An answer is here; whether the run goes on."""
        now = time.perf_counter()
        if now < self._begin_at:
            return True
        if self._cpu_s is None:
            self._begin_at, self._cpu_s = now, self._cpu_now()
        self._waits_s.append(now - asked_at)
        return now < self._end_at

    def figures(self) -> Figures:
        """What was found."""
        assert self._cpu_s is not None
        elapsed_s = time.perf_counter() - self._begin_at
        asking_s, answering_s = (
            (after - before) for before, after in zip(self._cpu_s, self._cpu_now(), strict=True)
        )
        num_messages = 2 * len(self._waits_s)
        return Figures(
            messages_per_s=num_messages / elapsed_s,
            p50_us=statistics.median(self._waits_s) * 1e6,
            asking_cpu_us=asking_s / num_messages * 1e6,
            answering_cpu_us=answering_s / num_messages * 1e6,
        )

    def _cpu_now(self) -> tuple[float, float]:
        return time.process_time(), sum(self._answering.cpu_times()[:2])


def question(number: int) -> Adjust:
    """The message that is asked."""
    return Adjust(request_id=f"{number}", lease_id="lease", prompt_tokens=1, completion_tokens=1)


class _EchoHandler:
    """Answers each `Adjust` at once."""

    worker: Worker[AuthCommand]

    def on_command(self, gateway_id: str, command: AuthCommand) -> None:
        if isinstance(command, Adjust):
            answer = Adjusted(request_id=command.request_id, lease_id=command.lease_id)
            self.worker.send(gateway_id, answer)

    def on_gateway_lost(self, gateway_id: str) -> None:
        os._exit(0)

    def on_drain(self, timeout_s: float) -> None:
        pass

    def num_unfinished(self) -> int:
        return 0

    def load(self) -> Load:
        return Load()

    def credits(self, gateway_id: str) -> Credits | None:
        return None

    def progress_counter(self) -> int:
        return 0


def answer_as_worker(endpoint: str) -> None:
    """The answering process with `Worker`."""
    handler = _EchoHandler()
    worker = handler.worker = Worker(
        role="auth",
        decoder=codec.auth_command_decoder(),
        handler=handler,
        endpoints=[Endpoint(endpoint)],
        settings=WorkerSettings(),
    )
    worker.start()
    worker.announce(AuthOffer(epoch=1))
    worker.wait()


def answer_bare(endpoint: str) -> None:
    """The answering process with pyzmq alone."""
    frame = codec.encode(Adjusted(request_id="1234567", lease_id="lease"))
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(endpoint)
    socket.send(frame)
    while True:
        socket.recv()
        socket.send(frame)


async def ask_worker(endpoint: str, outstanding: int, tally: Tally) -> None:
    """Ask through a `RoleServer` until the tally has enough."""
    asked_at: dict[str, float] = {}
    is_over = asyncio.Event()
    num_asked = 0

    def ask(peer: Peer) -> None:
        nonlocal num_asked
        num_asked += 1
        message = question(num_asked)
        asked_at[message.request_id] = time.perf_counter()
        server.send(peer, message)

    def on_event(peer: Peer, event: AuthEvent) -> None:
        if isinstance(event, Adjusted) and not is_over.is_set():
            if tally.note(asked_at.pop(event.request_id)):
                ask(peer)
            else:
                is_over.set()

    def on_peer(event: PeerEvent) -> None:
        if event.kind == "ready":
            for _ in range(outstanding):
                # Once the worker knows this gateway, which the first heartbeat tells it.
                loop.call_later(0.1, ask, event.peer)

    loop = asyncio.get_running_loop()
    server: RoleServer[AuthEvent] = RoleServer(
        "auth",
        endpoint,
        codec.auth_event_decoder(),
        instance_id="benchmark",
    )
    server.start(loop, on_event=on_event, on_peer=on_peer)
    await is_over.wait()
    server.close()


def ask_bare(endpoint: str, outstanding: int, tally: Tally) -> None:
    """Ask with pyzmq alone until the tally has enough."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(endpoint)
    frame = codec.encode(question(1_234_567))
    identity, _ = socket.recv_multipart()
    asked: list[float] = []
    for _ in range(outstanding):
        asked.append(time.perf_counter())
        socket.send_multipart([identity, frame])
    while True:
        socket.recv_multipart()
        if not tally.note(asked.pop(0)):
            break
        asked.append(time.perf_counter())
        socket.send_multipart([identity, frame])
    socket.close(linger=0)
    context.term()


def run_once(kind: str, outstanding: int, seconds: float) -> Figures:
    """One pair of processes."""
    with tempfile.TemporaryDirectory() as directory:
        endpoint = f"ipc://{directory}/wire"
        environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-m", "benchmarks.wire", "--answer", kind, endpoint]
        process = subprocess.Popen(command, env=environ)
        try:
            tally = Tally(psutil.Process(process.pid), seconds)
            if kind == "bare":
                ask_bare(endpoint, outstanding, tally)
            else:
                uvloop.run(ask_worker(endpoint, outstanding, tally))
            return tally.figures()
        finally:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Times one hop between gateway and worker.")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run")
    parser.add_argument("--outstanding", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=3, help="the median of each figure is shown")
    parser.add_argument("--answer", nargs=2, metavar=("KIND", "ENDPOINT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.answer is not None:
        kind, endpoint = options.answer
        answers: dict[str, Callable[[str], None]] = {
            "bare": answer_bare,
            "worker": answer_as_worker,
        }
        answers[kind](endpoint)
        return
    print("| | outstanding | messages/s | p50 µs | CPU µs a message: asking | answering |")
    print("|---|---|---|---|---|---|")
    for outstanding in options.outstanding:
        for kind in ("bare", "worker"):
            found = [run_once(kind, outstanding, options.seconds) for _ in range(options.rounds)]
            rate, p50, asking, answering = (
                statistics.median(getattr(figures, name) for figures in found)
                for name in ("messages_per_s", "p50_us", "asking_cpu_us", "answering_cpu_us")
            )
            print(
                f"| {kind} | {outstanding} | {rate:,.0f} | {p50:.0f} | {asking:.1f} "
                f"| {answering:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
