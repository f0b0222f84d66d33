"""What every HTTP request passes before any route: ids, hosts, sizes, headers; pure ASGI."""

import itertools
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import GatewayError, RequestTooLargeError
from gateway.http.entry.host_guard import HostGuard
from gateway.http.errors.error_shape import is_anthropic, raised_answer
from gateway.telemetry.access_log import AccessLog, AccessRecord
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.request_trace import RequestTraces
from protocol.runtime import logs

_TRACE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_MAX_LENGTH_DIGITS = 15
_SAFE_HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class RequestScopeMiddleware:
    """Gives each request an id, sets safe headers, counts the answer and logs it.

    The gateway's `request_id` goes into `scope["state"]` and the header `X-Penstock-Request-ID`.
    A client's `X-Request-ID` is its `trace_id`: echoed, on log lines of every process, never a key;
    without one the header shows the gateway's.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        access_log: AccessLog,
        traces: RequestTraces,
        clock: Callable[[], float] = time.monotonic,
        server_header: str = "",
    ) -> None:
        self._headers = _SAFE_HEADERS
        if server_header:
            self._headers += ((b"server", server_header.encode("ascii")),)
        self._app = app
        self._metrics = metrics
        self._traces = traces
        self._access_log = access_log
        self._clock = clock
        # Unique among all processes, and in order within one; an id is a name, never a key.
        self._id_prefix = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"{self._id_prefix}{next(self._numbers):016x}"
        trace_id = _trace_id(scope["headers"])
        client = scope.get("client")
        record = AccessRecord(
            request_id,
            trace_id,
            scope["method"],
            self._clock(),
            address="" if client is None else client[0],
        )
        state = scope.setdefault("state", {})
        state["request_id"], state["trace_id"], state["log"] = request_id, trace_id, record
        trace = state["trace"] = self._traces.begin(scope["headers"])
        logs.request_id.set(request_id)
        logs.trace_id.set(trace_id)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                headers.append((b"x-request-id", (trace_id or request_id).encode("ascii")))
                headers.append((b"x-penstock-request-id", request_id.encode("ascii")))
                if is_anthropic(scope):
                    headers.append((b"request-id", (trace_id or request_id).encode("ascii")))
                headers.extend(self._headers)
                record.route = getattr(scope.get("route"), "path", "unknown")
                record.status = message["status"]
                self._metrics.on_http_answer(record.route, record.status)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            now = self._clock()
            self._access_log.write(record, now)
            if trace is not None:
                trace.tell(record, now)


class HostGuardMiddleware:
    """Keeps web pages out of a server that asks for no key; see `host_guard`."""

    def __init__(self, app: ASGIApp, guard: HostGuard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            error = self._guard.refusal(Headers(scope=scope))
            if error is not None:
                await send_error(scope, send, error)
                return
        await self._app(scope, receive, send)


class BodySizeMiddleware:
    """Refuses bodies over a limit by their declared length.

    Args:
        app: Behind it.
        max_body_bytes: Of every route.
        others: Of the routes that differ, by path.
    """

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, others: Mapping[str, int] | None = None
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._others = others or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        error = None
        if scope["type"] == "http":
            most = self._others.get(scope["path"], self._max_body_bytes)
            error = self._refusal(scope["headers"], most)
        if error is None:
            await self._app(scope, receive, send)
        else:
            await send_error(scope, send, error)

    def _refusal(self, headers: Iterable[tuple[bytes, bytes]], most: int) -> GatewayError | None:
        # The parser has refused a second one.
        value = dict(headers).get(b"content-length", b"")
        # No int() of a text of any length: longer numbers than this are too large anyway.
        if len(value) > _MAX_LENGTH_DIGITS or (value.isdigit() and int(value) > most):
            return RequestTooLargeError(f"The request body is over the limit of {most} bytes.")
        return None


async def send_error(scope: Scope, send: Send, error: GatewayError) -> None:
    """Answer with an error where no route has begun."""
    status, body, extra = raised_answer(scope, error)
    record = scope.get("state", {}).get("log")
    if record is not None:
        record.error_code = str(error.code)
    headers = MutableHeaders(headers={"content-type": "application/json", **extra})
    headers["content-length"] = str(len(body))
    # The body, if there is one, will not be read.
    headers["connection"] = "close"
    await send({"type": "http.response.start", "status": status, "headers": headers.raw})
    await send({"type": "http.response.body", "body": body})


def _trace_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own id of its request, if it is one that may stand in a log."""
    if b"x-request-id" not in dict(headers):
        return ""
    for name, value in headers:
        if name == b"x-request-id" and _TRACE_ID.fullmatch(value):
            return value.decode("ascii")
    return ""
