"""Bare ZeroMQ: what the messages of one request cost when nobody looks into them.

    python -m benchmarks.gateway_peers.zmq_round_trips answer --endpoint ipc:///…   # a DEALER
    python -m benchmarks.gateway_peers.zmq_round_trips ask --endpoint ipc:///…      # a ROUTER

`ask` stands for a gateway and reads orders from standard input as the load client does:
`{"num_requests", "num_at_a_time", "pids"}`. A request waits twice, as those of a caller that is
known do: authorize beside prepare, then generate, whose answer is one message; a last word, settle,
comes behind it. The sizes are those of the real messages. `answer` is all workers in one. Both end
when `ask` loses its standard input.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import islice

import psutil
import zmq

NUM_TOKENS = 16
QUESTIONS = ((276, 225), (290, 250), (320, 502), (206, 60))
"""Bytes of a question and of its answer: authorize, prepare, generate, settle."""
_GENERATE, _SETTLE = 2, 3
_QUIT = b"q"


def answer(endpoint: str) -> None:
    """Answer each question with the messages that its first byte asks for."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        socket.send(b"hello")
        answers = [bytes(size - 4) for _, size in QUESTIONS]
        while True:
            frame = socket.recv()
            if frame == _QUIT:
                return
            socket.send(frame[:4] + answers[frame[0]])


class Asker:
    """Plays requests, so many at a time.

    Args:
        socket: A ROUTER.
        peer: The identity of who answers.
    """

    def __init__(self, socket: "zmq.Socket[bytes]", peer: bytes) -> None:
        self._socket = socket
        self._peer = peer
        self._frames = [bytes(size - 4) for size, _ in QUESTIONS]

    def play(self, num_requests: int, num_at_a_time: int) -> list[float]:
        """The seconds that each request took from its first question to its answer."""
        waiting = iter(range(num_requests))
        started: dict[int, float] = {}
        half_ready: set[int] = set()
        times: list[float] = []
        num_settled = 0
        for number in islice(waiting, num_at_a_time):
            self._begin(number, started)
        while num_settled < num_requests:
            frame = self._socket.recv_multipart()[1]
            step, number = frame[0], int.from_bytes(frame[1:4], "little")
            if step == _SETTLE:
                num_settled += 1
            elif step == _GENERATE:
                times.append(time.perf_counter() - started.pop(number))
                self._ask(_SETTLE, number)
                for following in islice(waiting, 1):
                    self._begin(following, started)
            elif number in half_ready:
                half_ready.remove(number)
                self._ask(_GENERATE, number)
            else:
                half_ready.add(number)
        return times

    def end(self) -> None:
        """Tell who answers that this is all."""
        self._socket.send_multipart([self._peer, _QUIT])

    def _begin(self, number: int, started: dict[int, float]) -> None:
        started[number] = time.perf_counter()
        for step in range(_GENERATE):
            self._ask(step, number)

    def _ask(self, step: int, number: int) -> None:
        head = bytes((step,)) + number.to_bytes(3, "little")
        self._socket.send_multipart([self._peer, head + self._frames[step]])


def ask(endpoint: str) -> None:
    """Obey orders until standard input ends."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 500
        socket.bind(endpoint)
        asker = Asker(socket, socket.recv_multipart()[0])
        print("{}", flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            processes = [psutil.Process(pid) for pid in order["pids"]]
            before = [sum(process.cpu_times()[:2]) for process in processes]
            started = time.perf_counter()
            times = asker.play(order["num_requests"], order["num_at_a_time"])
            seconds = time.perf_counter() - started
            after = [sum(process.cpu_times()[:2]) for process in processes]
            report = {
                "seconds": seconds,
                "cpu_s": [b - a for a, b in zip(before, after, strict=True)],
                "latencies_s": sorted(times),
            }
            print(json.dumps(report), flush=True)
        asker.end()


def main(arguments: Sequence[str] | None = None) -> None:
    """Be one of the two ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("end", choices=("answer", "ask"))
    parser.add_argument("--endpoint", required=True)
    args = parser.parse_args(arguments)
    (answer if args.end == "answer" else ask)(args.endpoint)


if __name__ == "__main__":
    main()
