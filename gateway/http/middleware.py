"""What every HTTP request passes before any route: ids, hosts, sizes, headers; pure ASGI."""

import asyncio
import contextlib
import re
import secrets
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.config import LOOPBACK_NAMES
from gateway.errors import (
    ForbiddenOriginError,
    GatewayError,
    InvalidRequestError,
    OverloadedError,
    RequestTooLargeError,
)
from gateway.http.error_table import render_error
from gateway.telemetry.metrics import Metrics

_CLIENT_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_OPEN_CONTENT_TYPES = ("application/json",)
_DISCARD_FACTOR = 4
_DISCARD_S = 5.0
_BODY_TIMEOUT_S = 120.0
_MAX_HELD_BODIES = 32
"""So many bodies of the largest size may be in memory, of all requests under way together."""
_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class RequestScopeMiddleware:
    """Gives each request an id, echoes the client's, sets safe headers and counts the answer.

    The gateway's own `request_id` goes into `scope["state"]`; a client's `X-Request-ID` is an echo
    and a log field, never a key.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(16)
        echo = request_id
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                text = value.decode("latin-1")
                echo = text if _CLIENT_ID.fullmatch(text) else request_id
        scope.setdefault("state", {})["request_id"] = request_id
        scope["state"]["client_request_id"] = echo

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                headers.append((b"x-request-id", echo.encode("latin-1")))
                headers.append((b"x-content-type-options", b"nosniff"))
                headers.append((b"referrer-policy", b"no-referrer"))
                route = getattr(scope.get("route"), "path", "unknown")
                self._metrics.http_requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, send_with_headers)


class HostGuardMiddleware:
    """Keeps web pages out of a server that asks for no key.

    A page in a browser on this machine can reach loopback addresses: by DNS rebinding its requests
    carry a foreign `Host`, cross-site ones a foreign `Origin`, and without a preflight only other
    content types than JSON. All three are refused.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Iterable[str]) -> None:
        self._app = app
        self._allowed = LOOPBACK_NAMES | {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            error = self._refusal(scope["method"], Headers(scope=scope))
            if error is not None:
                await send_error(send, error)
                return
        await self._app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> GatewayError | None:
        host = _host_name("//" + headers.get("host", ""))
        if host not in self._allowed:
            return ForbiddenOriginError(
                f"The host {host!r} is not served. Use 127.0.0.1 or localhost, or name it in "
                "PENSTOCK_ALLOWED_HOSTS."
            )
        origin = headers.get("origin")
        if origin is not None and _host_name(origin) not in self._allowed:
            return ForbiddenOriginError(
                "Pages of other origins may not use this server without a key; name their host in "
                "PENSTOCK_ALLOWED_HOSTS to let them."
            )
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method in _METHODS_WITH_BODY and content_type not in _OPEN_CONTENT_TYPES:
            return InvalidRequestError("The Content-Type must be application/json.")
        return None


class BodyLimitMiddleware:
    """Refuses bodies over a limit, by their declared length or as soon as they pass it; or late.

    All bodies together have a bound too, so that many connections with a body each, sent slowly,
    don't fill the memory.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_held_bytes = _MAX_HELD_BODIES * max_body_bytes
        self._num_held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error = self._refusal(headers)
        if error is not None:
            # Who asks first (RFC 9110 §10.1.1) has not sent the body yet.
            if headers.get("expect", "").lower() != "100-continue":
                await self._discard(receive)
            await send_error(send, error)
            return
        num_bytes = 0
        has_body = False
        late_at = asyncio.get_running_loop().time() + _BODY_TIMEOUT_S

        async def receive_bounded() -> Message:
            nonlocal num_bytes, has_body
            try:
                async with asyncio.timeout_at(None if has_body else late_at):
                    message = await receive()
            except TimeoutError:
                raise InvalidRequestError(
                    f"The request body did not arrive within {_BODY_TIMEOUT_S:g} seconds."
                ) from None
            if message["type"] == "http.request":
                has_body = not message.get("more_body", False)
                num_bytes += len(message.get("body", b""))
                self._num_held_bytes += len(message.get("body", b""))
                if num_bytes > self._max_body_bytes:
                    if not has_body:
                        await self._discard(receive)
                    raise self._too_large()
                if self._num_held_bytes > self._max_held_bytes:
                    raise OverloadedError(
                        "Too many large requests are under way; please try again later."
                    )
            return message

        try:
            await self._app(scope, receive_bounded, send)
        finally:
            self._num_held_bytes -= num_bytes

    def _refusal(self, headers: Headers) -> GatewayError | None:
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            return self._too_large()
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            return InvalidRequestError(
                f"The Content-Encoding {encoding!r} is not supported; send the body as plain JSON."
            )
        return None

    async def _discard(self, receive: Receive) -> None:
        """Read on for a while, and throw it away.

        Closing with unread data would reset the connection, and the client would see that instead
        of the answer (RFC 9112 §9.6).
        """
        left = _DISCARD_FACTOR * self._max_body_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_S):
                while left > 0:
                    message = await receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
                    left -= len(message.get("body", b""))

    def _too_large(self) -> RequestTooLargeError:
        return RequestTooLargeError(
            f"The request body is over the limit of {self._max_body_bytes} bytes."
        )


async def send_error(send: Send, error: GatewayError) -> None:
    """Answer with an error where no route has begun."""
    status, body, extra = render_error(error)
    headers = MutableHeaders(headers={"content-type": "application/json", **extra})
    headers["content-length"] = str(len(body))
    # The body, if there is one, will not be read.
    headers["connection"] = "close"
    await send({"type": "http.response.start", "status": status, "headers": headers.raw})
    await send({"type": "http.response.body", "body": body})


def _host_name(url: str) -> str:
    """The lower-case host of a URL, without port and brackets; empty when there is none."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
