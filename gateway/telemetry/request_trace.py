"""The trace of an HTTP request: begun when it arrives, told when its answer is out."""

from collections.abc import Iterable
from typing import Final

from gateway.telemetry.access_log import AccessRecord
from protocol.runtime import tracing
from protocol.runtime.tracing import (
    Span,
    TraceContext,
    Value,
    context_of,
    is_declined,
    is_sampled,
    new_trace,
)

UNTRACED: Final = frozenset(("/live", "/ping", "/ready", "/health", "/metrics", "/load"))
"""Asked every few seconds, by machines."""
_HEADER: Final = b"traceparent"
_MAX_HEADER_BYTES: Final = 64


class RequestTrace:
    """The trace of one request that is told.

    Args:
        context: Of the request.
        parent_id: The client's span; 0 where the trace begins here.
        link: What the client called its own trace; None for nothing.
    """

    def __init__(self, context: TraceContext, parent_id: int, link: TraceContext | None) -> None:
        self.context = context
        self._parent_id = parent_id
        self._link = link

    def tell(self, record: AccessRecord, now: float) -> None:
        """The answer is out, or nobody reads it any more; `now` in monotonic seconds."""
        if record.route in UNTRACED:
            return
        attributes: dict[str, Value] = {
            "http.request.method": record.method,
            "http.route": record.route,
            "penstock.request_id": record.request_id,
        }
        if record.status:
            attributes["http.response.status_code"] = record.status
        if record.key_id:
            attributes["penstock.key_id"] = record.key_id
        if record.error_code:
            attributes["error.type"] = record.error_code
        is_ours = record.status >= 500 or not record.status
        tracing.tell(
            Span(
                f"{record.method} {record.route}",
                self.context,
                self._parent_id,
                record.started_at,
                now,
                attributes,
                kind="server",
                error=(record.error_code or "no_answer") if is_ours else "",
                link=self._link,
            )
        )


class RequestTraces:
    """Begins the traces of a gateway's requests.

    What a client says of its own trace never makes a request be told that wouldn't be: which ones
    are is decided by `ratio` alone.

    Args:
        ratio: Of all requests, those that are told.
        clients: What becomes of a client's `traceparent`: `link`, `parent` or `ignore`.
    """

    def __init__(self, ratio: float, clients: str) -> None:
        self._ratio = ratio
        self._clients = clients

    def begin(self, headers: Iterable[tuple[bytes, bytes]]) -> RequestTrace | None:
        """The trace of a request that has arrived; None when it isn't told."""
        if not tracing.is_on() or self._ratio <= 0:
            return None
        said = "" if self._clients == "ignore" else _traceparent(headers)
        theirs = context_of(said)
        if self._clients == "parent":
            if is_declined(said):
                return None
            if theirs is not None:
                if not is_sampled(theirs.trace_id, self._ratio):
                    return None
                return RequestTrace(theirs.child(), theirs.span_id, None)
        ours = new_trace()
        return RequestTrace(ours, 0, theirs) if is_sampled(ours.trace_id, self._ratio) else None


def _traceparent(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The one header; empty for none, and for several, which contradict each other."""
    found = [value for name, value in headers if name == _HEADER]
    if len(found) != 1 or len(found[0]) > _MAX_HEADER_BYTES:
        return ""
    return found[0].decode("latin-1")
