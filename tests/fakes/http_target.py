"""A small HTTP server on loopback, in threads of its own, that does what the test says."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, bytes, dict[str, str]]


@dataclass
class Received:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class HttpTarget:
    """Where it listens, what came, and what it answers."""

    url: str = ""
    answer: Callable[[Received], Reply] = lambda received: (200, b"{}", {})
    received: list[Received] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, number: int, timeout_s: float = 60.0) -> list[Received]:
        """Until so many requests came."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.received) >= number, timeout_s), (
                f"{len(self.received)} of {number} requests came"
            )
            return list(self.received)


@contextmanager
def http_target() -> Iterator[HttpTarget]:
    """Listen on a free port of the loopback address."""
    target = HttpTarget()

    class Handler(BaseHTTPRequestHandler):
        def _take(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            names = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.command, self.path, names, body)
            with target.arrived:
                target.received.append(received)
                target.arrived.notify_all()
            status, content, headers = target.answer(received)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _take  # noqa: N815 - the names that http.server asks for

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    target.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield target
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
