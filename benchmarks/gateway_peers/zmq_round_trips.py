"""Bare ZeroMQ: what the messages of one request cost when nobody looks into them.

    python -m benchmarks.gateway_peers.zmq_round_trips answer --endpoint ipc:///…   # a DEALER
    python -m benchmarks.gateway_peers.zmq_round_trips ask --endpoint ipc:///…      # a ROUTER

`ask` stands for a gateway and reads orders from standard input as the load client does:
`{"num_requests", "num_at_a_time", "pids"}`. A request is three questions in turn and a last word:
authorize, prepare, generate with one answer a token, settle; the sizes are those of the real
messages. `answer` is all workers in one. Both end when `ask` loses its standard input.
"""

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Sequence

import psutil
import zmq

NUM_TOKENS = 16
QUESTIONS = ((200, 160, 1), (290, 250, 1), (320, 150, NUM_TOKENS), (120, 60, 1))
"""Bytes of a question, bytes of an answer, answers: authorize, prepare, generate, settle."""
_QUIT = b"q"


def answer(endpoint: str) -> None:
    """Answer each question with the messages that its first byte asks for."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        socket.send(b"hello")
        answers = [bytes(size) for _, size, _ in QUESTIONS]
        while True:
            frame = socket.recv()
            if frame == _QUIT:
                return
            step, name = frame[0], frame[:4]
            for _ in range(QUESTIONS[step][2]):
                socket.send(name + answers[step][4:])


class Asker:
    """Plays requests, so many at a time.

    Args:
        socket: A ROUTER.
        peer: The identity of who answers.
    """

    def __init__(self, socket: "zmq.Socket[bytes]", peer: bytes) -> None:
        self._socket = socket
        self._peer = peer
        self._frames = [bytes(size - 4) for size, _, _ in QUESTIONS]

    def play(self, num_requests: int, num_at_a_time: int) -> list[float]:
        """The seconds that each request took from its first question to its last token."""
        waiting = deque(range(num_requests))
        started: dict[int, float] = {}
        left: dict[int, int] = {}
        times: list[float] = []
        num_settled = 0
        for _ in range(min(num_at_a_time, num_requests)):
            number = waiting.popleft()
            started[number] = time.perf_counter()
            self._ask(0, number)
        while num_settled < num_requests:
            frame = self._socket.recv_multipart()[1]
            step, number = frame[0], int.from_bytes(frame[1:4], "little")
            if step == len(QUESTIONS) - 1:
                num_settled += 1
                continue
            left[number] = left.get(number, QUESTIONS[step][2]) - 1
            if left[number]:
                continue
            del left[number]
            self._ask(step + 1, number)
            if step + 1 == len(QUESTIONS) - 1:
                times.append(time.perf_counter() - started.pop(number))
                if waiting:
                    number = waiting.popleft()
                    started[number] = time.perf_counter()
                    self._ask(0, number)
        return times

    def end(self) -> None:
        """Tell who answers that this is all."""
        self._socket.send_multipart([self._peer, _QUIT])

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
