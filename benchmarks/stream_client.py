"""Streams completions of an OpenAI-compatible server with little work of its own.

A client in Python that parses every event takes more of two cores than some servers do, and takes
it from the server under test. This one reads bytes from plain sockets in one thread, looks for the
first text and for the usage at the end, and parses nothing else.
"""

import json
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_READ_BYTES = 1 << 16
_TAIL_BYTES = 1 << 12
"""The last event with text, that of the usage, and `[DONE]` fit into so much."""


@dataclass(slots=True)
class Answer:
    """One request.

    Attributes:
        num_tokens: Of the output, as the server counted them.
        first_s: From the start of all requests to the first event.
        last_s: To its end.
    """

    num_tokens: int = 0
    first_s: float = 0.0
    last_s: float = 0.0


class _Stream:
    """A request on its socket."""

    def __init__(self, url: str, path: str, body: Mapping[str, Any]) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self._request = head.encode() + data
        self._tail = b""
        self._is_open = True
        self._has_text = False
        self.answer = Answer()

    def send(self) -> None:
        """Ask."""
        self.socket.sendall(self._request)

    def read(self, started: float) -> bool:
        """Takes what is there; False at the end.

        Raises:
            RuntimeError: The server refused, or ended without a usage.
        """
        data = self.socket.recv(_READ_BYTES)
        now = time.perf_counter() - started
        if not self._has_text and b"data: {" in data:
            self._has_text = True
            self.answer.first_s = now
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if data and b"data: [DONE]" not in self._tail:
            return True
        self.answer.last_s = now
        self.answer.num_tokens = _completion_tokens(self._tail)
        return False


def _completion_tokens(tail: bytes) -> int:
    at = tail.rfind(b'"completion_tokens":')
    if at < 0:
        raise RuntimeError(f"a request failed: {tail.decode(errors='replace')}")
    digits = tail[at:].split(b":", 1)[1].lstrip()
    return int(digits[: next(i for i, byte in enumerate(digits) if not 48 <= byte <= 57)])


def stream_all(url: str, bodies: Sequence[Mapping[str, Any]], path: str) -> list[Answer]:
    """Sends all requests at once and reads their answers to the end.

    Args:
        url: Of the server, `http://host:port`.
        bodies: Of the requests; each has to ask for a stream with its usage.
        path: Of the endpoint.
    """
    with ExitStack() as stack:
        streams = [_Stream(url, path, body) for body in bodies]
        for stream in streams:
            stack.enter_context(stream.socket)
        selector = stack.enter_context(selectors.DefaultSelector())
        started = time.perf_counter()
        for stream in streams:
            selector.register(stream.socket, selectors.EVENT_READ, stream)
            stream.send()
        while selector.get_map():
            for key, _ in selector.select():
                if not key.data.read(started):
                    selector.unregister(key.data.socket)
    return [stream.answer for stream in streams]
