"""What stands before all routes where it is set: a proxy's path, other origins, a metrics port."""

import re
from collections.abc import Sequence
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.edge_settings import ANY_ORIGIN
from gateway.errors import NotOnThisPortError
from gateway.http.entry.middleware import send_error

_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_MAX_AGE_S: Final = b"600"
_NAMES: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}(\s*,\s*[A-Za-z0-9_-]{1,64}){0,63}")
_EXPOSED: Final = b", ".join(
    (
        *(b"retry-after", b"x-should-retry", b"idempotent-replayed"),
        *(b"x-request-id", b"x-penstock-request-id", b"request-id"),
        *(b"x-penstock-model", b"x-penstock-label-mass", b"x-penstock-risk-score"),
        *(b"x-penstock-ignored-fields", b"x-penstock-unenforced", b"x-penstock-budget-warning"),
        *(b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests"),
        *(b"x-ratelimit-reset-requests", b"x-ratelimit-limit-tokens"),
        *(b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
        *(b"anthropic-ratelimit-requests-limit", b"anthropic-ratelimit-requests-remaining"),
        *(b"anthropic-ratelimit-requests-reset", b"anthropic-ratelimit-tokens-limit"),
        *(b"anthropic-ratelimit-tokens-remaining", b"anthropic-ratelimit-tokens-reset"),
    )
)


_OF_METRICS_PORT: Final = ("/metrics", "/load", "/version", "/live", "/ping", "/ready", "/health")


class MetricsPortMiddleware:
    """Serves nothing but what monitoring asks for on the port that is for that.

    Whoever opens that port to the network of his monitoring opens nothing else there.

    Args:
        app: Behind it.
        port: Of the metrics.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        server = scope.get("server")  # a Unix socket has a path and no port
        is_there = server is not None and server[1] == self._port
        if is_there and scope["type"] == "http" and scope["path"] not in _OF_METRICS_PORT:
            await send_error(scope, send, NotOnThisPortError(_OF_METRICS_PORT))
        else:
            await self._app(scope, receive, send)


class RootPathMiddleware:
    """Serves every path also below another one, for proxies that don't take it off.

    Args:
        app: Behind it.
        root_path: Begins with a slash and doesn't end with one.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            path: str = scope["path"]
            if path.startswith(f"{self._root_path}/"):
                scope = {**scope, "path": path[len(self._root_path) :]}
                raw: bytes = scope.get("raw_path") or b""
                prefix = self._root_path.encode("ascii")
                if raw.startswith(prefix + b"/"):
                    scope["raw_path"] = raw[len(prefix) :]
        await self._app(scope, receive, send)


class CorsMiddleware:
    """Lets web pages of some origins call the API (https://fetch.spec.whatwg.org/#http-cors-protocol).

    Keys travel in headers, which a page has to be given; cookies are none of ours, so credentials
    are never allowed. What a browser asks before a request is answered here, without a key.

    Args:
        app: Behind it.
        origins: In lower case; `*` is every one.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._any = ANY_ORIGIN in origins
        self._origins = frozenset(origin.encode("ascii") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        origin = headers.get(b"origin")
        if origin is None or not (self._any or origin.lower() in self._origins):
            await self._app(scope, receive, send)
            return
        allowed = [(b"access-control-allow-origin", b"*" if self._any else origin)]
        if not self._any:
            allowed.append((b"vary", b"Origin"))
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            asked = headers.get(b"access-control-request-headers", b"")
            if _NAMES.fullmatch(asked):
                allowed.append((b"access-control-allow-headers", asked))
            allowed.append((b"access-control-allow-methods", _METHODS))
            allowed.append((b"access-control-max-age", _MAX_AGE_S))
            await send({"type": "http.response.start", "status": 204, "headers": allowed})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                shown = (b"access-control-expose-headers", _EXPOSED)
                message.setdefault("headers", []).extend((*allowed, shown))
            await send(message)

        await self._app(scope, receive, send_allowed)
