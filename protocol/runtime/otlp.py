"""Sends spans by OTLP over HTTP, through OpenTelemetry's SDK; imported only where traces are on."""

import logging
import re
import threading
import time
from collections.abc import Sequence
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from protocol.runtime.tracing import Span, TraceContext

MAX_QUEUED_SPANS: Final = 4096
"""Further ones are dropped while a collector is slow or away."""
MAX_BATCH_SPANS: Final = 512
SEND_INTERVAL_S: Final = 2.0
SEND_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 2.0
"""How long the end of a process waits for its last spans."""
MAX_TEXT_CHARACTERS: Final = 256
"""Of a text in a span; a name of a model may be a client's own words."""
_PATH: Final = "/v1/traces"
_KINDS: Final = {"internal": trace.SpanKind.INTERNAL, "server": trace.SpanKind.SERVER}
_logger = logging.getLogger("penstock.tracing")


class OtlpTracer:
    """Queues spans for a thread that sends them.

    Args:
        service: `gateway`, `engine`, `auth` or `toolparser`.
        endpoint: Of the collector, with or without the path of traces.
        build: Version of the code.
    """

    is_on = True

    def __init__(self, service: str, endpoint: str, build: str) -> None:
        # The SDK says of every batch what is said here once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._ids = _Ids()
        self._lock = threading.Lock()
        self._processor = BatchSpanProcessor(
            _Exporter(endpoint),
            max_queue_size=MAX_QUEUED_SPANS,
            schedule_delay_millis=SEND_INTERVAL_S * 1000,
            max_export_batch_size=MAX_BATCH_SPANS,
        )
        resource = {
            "service.name": f"penstock-{service}",
            "service.namespace": "penstock",
            "service.version": build,
        }
        provider = TracerProvider(
            sampler=ALWAYS_ON,
            id_generator=self._ids,
            resource=Resource.create(resource),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("penstock", build)

    def tell(self, span: Span) -> None:
        """Queue a span; dropped when the queue is full."""
        # What monotonic seconds are as Unix nanoseconds.
        begin_ns = time.time_ns() - int(time.monotonic() * 1e9)
        parent: trace.Span = trace.INVALID_SPAN
        if span.parent_id:
            parent = trace.NonRecordingSpan(_context(span.context.trace_id, span.parent_id))
        with self._lock:
            self._ids.place = span.context
            told = self._tracer.start_span(
                span.name[:MAX_TEXT_CHARACTERS],
                trace.set_span_in_context(parent),
                _KINDS[span.kind],
                {
                    name: value[:MAX_TEXT_CHARACTERS] if isinstance(value, str) else value
                    for name, value in span.attributes.items()
                },
                None if span.link is None else [trace.Link(_context(*span.link))],
                begin_ns + int(span.started_at * 1e9),
            )
        if span.error:
            told.set_status(trace.Status(trace.StatusCode.ERROR, span.error))
        told.end(begin_ns + int(span.ended_at * 1e9))

    def close(self) -> None:
        """Send what there is, within `CLOSE_TIMEOUT_S`; a collector that hangs keeps nobody."""
        ending = threading.Thread(target=self._processor.shutdown, name="otlp-close", daemon=True)
        ending.start()
        ending.join(CLOSE_TIMEOUT_S)


class _Ids(IdGenerator):
    """Gives ids that were made when a request came."""

    place = TraceContext(1, 1)

    def generate_span_id(self) -> int:
        """Of the span that is told."""
        return self.place.span_id

    def generate_trace_id(self) -> int:
        """Of its trace."""
        return self.place.trace_id


class _Exporter(OTLPSpanExporter):
    """Says once when its collector is away, and once when it is back."""

    def __init__(self, endpoint: str) -> None:
        url = endpoint if _PATH in endpoint else endpoint.rstrip("/") + _PATH
        super().__init__(url, timeout=SEND_TIMEOUT_S)
        self._shown = re.sub(r"//[^/@]*@", "//", endpoint)  # without a password
        self._is_away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; it is dropped when that fails."""
        result = super().export(spans)
        is_away = result is not SpanExportResult.SUCCESS
        if is_away != self._is_away:
            self._is_away = is_away
            if is_away:
                _logger.warning("the collector at %s takes no traces", self._shown)
            else:
                _logger.info("the collector at %s takes traces again", self._shown)
        return result


def _context(trace_id: int, span_id: int) -> trace.SpanContext:
    return trace.SpanContext(
        trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED)
    )
