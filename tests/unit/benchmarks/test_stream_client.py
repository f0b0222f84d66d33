"""The client of benchmarks reads streams to their end and takes the server's count."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.stream_client import stream_all

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
BODY = {"stream": True}


@contextmanager
def server(*parts: bytes) -> Iterator[str]:
    """Answers every connection with the same bytes, piece by piece; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    for part in parts:
                        connection.sendall(part)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_tokens_are_those_of_the_usage_wherever_the_pieces_are_cut() -> None:
    text = b'data: {"choices": [{"text": "a"}]}\n\n'
    usage = b'data: {"choices": [], "usage": {"completion_tokens": 128, "prompt_tokens": 7}}\n\n'
    done = b"data: [DONE]\n\n"
    with server(HEAD, text, usage[:50], usage[50:] + done[:9], done[9:]) as url:
        answers = stream_all(url, [BODY, BODY], "/v1/completions")
    assert [answer.num_tokens for answer in answers] == [128, 128]
    assert all(0 < answer.first_s <= answer.last_s for answer in answers)


def test_an_answer_without_a_usage_is_no_measurement() -> None:
    refusal = b"HTTP/1.1 503 Service Unavailable\r\n\r\nbusy"
    with server(refusal) as url, pytest.raises(RuntimeError, match="(?s)request failed: .*busy"):
        stream_all(url, [BODY, BODY], "/v1/completions")
