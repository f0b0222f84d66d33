"""The bare messages of a request, beside which `benchmarks.gateway` measures a gateway."""

import threading
from pathlib import Path

import pytest
import zmq

from benchmarks.gateway_peers.zmq_round_trips import QUESTIONS, Asker, answer


@pytest.mark.parametrize("num_at_a_time", [1, 3])
def test_every_request_waits_twice_and_is_settled(socket_dir: Path, num_at_a_time: int) -> None:
    endpoint = f"ipc://{socket_dir}/bare"
    asked: list[int] = []

    class Watched(Asker):
        def _ask(self, step: int, number: int) -> None:
            asked.append(step)
            super()._ask(step, number)

    thread = threading.Thread(target=answer, args=(endpoint,), daemon=True)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 1000
        socket.bind(endpoint)
        thread.start()
        asker = Watched(socket, socket.recv_multipart()[0])
        times = asker.play(7, num_at_a_time)
        asker.end()
        thread.join(60)
    assert not thread.is_alive()
    assert len(times) == 7
    assert [asked.count(step) for step in range(len(QUESTIONS))] == [7] * 4
    # Of the first request: two questions beside each other, then the one that needs both answers.
    assert asked[: 2 * num_at_a_time] == [0, 1] * num_at_a_time
    assert min(times) > 0
