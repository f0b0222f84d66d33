"""The floor under a hop to another process: round trips in which nobody looks into the messages.

    python -m benchmarks.round_trips [--steps 150] [--interval-ms 10] [--bytes 4178 6419]

Two processes that sleep in between, as those of a server do at the pace of an engine's steps. A
pair of Unix sockets needs two wake-ups, one a direction. Bare ZeroMQ needs six: each direction
wakes the sender's I/O thread, the receiver's, and the receiver. Both block; no event loop, no
encoding.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import zmq

_WARM_UP_STEPS = 10


def sockets(num_asked: int, num_answered: int, num_steps: int, interval_s: float) -> list[float]:
    """Seconds of each round trip over a pair of Unix sockets, sorted.

    Args:
        num_asked: Bytes of a question.
        num_answered: Bytes of its answer.
        num_steps: How many round trips.
        interval_s: From the beginning of one to that of the next.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs, _answering("sockets", theirs.fileno(), num_asked, num_answered):
        question = bytes(num_asked)

        def ask() -> None:
            ours.sendall(question)
            _receive(ours, num_answered)

        return _times(ask, num_steps, interval_s)


def zeromq(num_asked: int, num_answered: int, num_steps: int, interval_s: float) -> list[float]:
    """The same over a ROUTER and a DEALER on an ipc socket, as a gateway and a worker are."""
    with (
        tempfile.TemporaryDirectory() as directory,
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
    ):
        router.linger = 0
        endpoint = f"ipc://{directory}/z"
        router.bind(endpoint)
        with _answering("zeromq", endpoint, num_asked, num_answered):
            peer = router.recv_multipart()[0]
            question = [peer, bytes(num_asked)]

            def ask() -> None:
                router.send_multipart(question)
                router.recv_multipart()

            return _times(ask, num_steps, interval_s)


def answer_sockets(descriptor: str, num_asked: int, num_answered: int) -> None:
    """The other end of `sockets`."""
    with socket.socket(fileno=int(descriptor)) as theirs:
        answer = bytes(num_answered)
        while _receive(theirs, num_asked):
            theirs.sendall(answer)


def answer_zeromq(endpoint: str, num_answered: int) -> None:
    """The other end of `zeromq`."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(endpoint)
        dealer.send(b"hello")
        answer = bytes(num_answered)
        while True:
            dealer.recv()
            dealer.send(answer)


def _times(ask: Callable[[], None], num_steps: int, interval_s: float) -> list[float]:
    times: list[float] = []
    for _ in range(num_steps + _WARM_UP_STEPS):
        began = time.perf_counter()
        ask()
        times.append(time.perf_counter() - began)
        time.sleep(max(0.0, began + interval_s - time.perf_counter()))
    return sorted(times[_WARM_UP_STEPS:])


def _receive(end: socket.socket, num_bytes: int) -> bool:
    """Read a whole message; False when the other end is closed."""
    while num_bytes > 0:
        data = end.recv(num_bytes)
        if not data:
            return False
        num_bytes -= len(data)
    return True


@contextmanager
def _answering(kind: str, where: int | str, num_asked: int, num_answered: int) -> Iterator[None]:
    module = f"{__package__}.{Path(__file__).stem}"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", module, "--answer", kind, str(where)),
            *("--bytes", str(num_asked), str(num_answered)),
        ],
        pass_fds=(where,) if isinstance(where, int) else (),
        cwd=Path(__file__).parents[1],
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both and print their medians, or be the other end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--interval-ms", type=float, default=10.0, help="between two round trips")
    parser.add_argument("--bytes", type=int, nargs=2, default=[4178, 6419])
    parser.add_argument("--answer", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.answer is not None:
        kind, where = options.answer
        num_asked, num_answered = options.bytes
        if kind == "sockets":
            answer_sockets(where, num_asked, num_answered)
        else:
            answer_zeromq(where, num_answered)
        return
    print("| | p50 ms | p99 ms |\n|---|---|---|")
    num_asked, num_answered = options.bytes
    for name, measure in (("Unix sockets", sockets), ("bare ZeroMQ", zeromq)):
        found = measure(num_asked, num_answered, options.steps, options.interval_ms / 1e3)
        p50, p99 = (found[int(len(found) * share)] * 1e3 for share in (0.5, 0.99))
        print(f"| {name} | {p50:.3f} | {p99:.3f} |")


if __name__ == "__main__":
    main()
