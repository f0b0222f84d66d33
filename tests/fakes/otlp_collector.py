"""A collector of traces on loopback HTTP, which keeps what it is sent."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class ToldSpan:
    """A span as it arrived; ids in hexadecimal digits."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    is_error: bool
    seconds: float
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, Any] = field(hash=False)


class Collector:
    """What arrived so far."""

    def __init__(self) -> None:
        self.spans: list[ToldSpan] = []
        self.raw = b""
        self.url = ""
        self._changed = threading.Condition()

    def take(self, body: bytes) -> None:
        # Imported by the one process of a run that collects traces.
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.raw += body
            for resource in request.resource_spans:
                names = {one.key: one.value.string_value for one in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self.spans += [_told(names["service.name"], span) for span in scope.spans]
            self._changed.notify_all()

    def named(self, name: str) -> list[ToldSpan]:
        with self._changed:
            return [span for span in self.spans if span.name == name]

    def until(self, *names: str, timeout_s: float = 60.0) -> None:
        """Wait until a span of each name is there; blocks its thread."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not set(names) <= {span.name for span in self.spans}:
                left_s = deadline - time.monotonic()
                assert left_s > 0, {span.name for span in self.spans}
                self._changed.wait(left_s)


def _told(service: str, span: Any) -> ToldSpan:
    return ToldSpan(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind,
        span.status.code == 2,
        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        {one.key: _value(one.value) for one in span.attributes},
    )


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def otlp_collector() -> Iterator[Collector]:
    """A collector for a while."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")  # an ExportTraceServiceResponse without fields
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
