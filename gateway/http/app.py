"""The ASGI application: routes, OpenAI's error shape for everything, and the middleware."""

import logging
import re
from functools import cache
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from gateway.errors import (
    ClientDisconnectedError,
    DeniedError,
    ModelNotFoundError,
    ModelUnnamedError,
)
from gateway.http.access.guard import GuardedRoute, caller_of, leaves_body_unread
from gateway.http.anthropic.errors import OFFERED
from gateway.http.bodies.multipart import MAX_FIELD_BYTES
from gateway.http.entry.dispatcher import Dispatcher, ErrorHandler
from gateway.http.entry.edge import CorsMiddleware, MetricsPortMiddleware, RootPathMiddleware
from gateway.http.entry.middleware import (
    BodySizeMiddleware,
    HostGuardMiddleware,
    RequestScopeMiddleware,
)
from gateway.http.errors.error_shape import error_answer, is_anthropic, raised_answer
from gateway.http.errors.error_table import ERROR_TABLE, METHOD_NOT_ALLOWED, ErrorRow
from gateway.http.openapi.document import describe
from gateway.http.parts import Api, HttpParts, parts_of
from gateway.http.routes import ROUTERS
from gateway.telemetry.access_log import AccessRecord
from gateway.telemetry.request_trace import RequestTraces
from protocol.errors import ErrorCode, PenstockError
from protocol.wire.endpoints import is_loopback

_MAX_SHOWN_CHARACTERS = 200
_logger = logging.getLogger("penstock.gateway.http")


def build_api(parts: HttpParts) -> Api:
    """The routes, without what stands around them."""
    # Documentation routes of our own stand behind the same guard as all others.
    app = Api(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.parts = parts
    app.state.methods = {}
    for router in ROUTERS:
        for route in router.routes:
            # The routers bring nothing but routes, which stand in the app as they are.
            app.router.routes.append(route)
            if isinstance(route, GuardedRoute):
                known = app.state.methods.setdefault(route.path, (route.path_regex, set()))
                known[1].update(route.answered_methods)

    @cache
    def document() -> dict[str, Any]:
        # Only when it is asked for: it takes longer than all else of a gateway's start.
        return describe(
            app,
            requires_keys=parts.settings.require_keys,
            is_local=is_loopback(parts.settings.host),
            title=parts.settings.api_title,
            root_path=parts.settings.root_path,
        )

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def build_app(parts: HttpParts) -> ASGIApp:
    """The whole application."""
    settings = parts.settings
    traces = RequestTraces(settings.trace_ratio, settings.trace_clients)
    dispatcher = Dispatcher(build_api(parts), _HANDLERS, _on_bug)
    parts.errand_app = RequestScopeMiddleware(dispatcher, parts.metrics, parts.access_log, traces)
    # A form is a little longer than its file.
    form_bytes = {"/v1/files": settings.max_file_bytes + 2 * MAX_FIELD_BYTES}
    app: ASGIApp = BodySizeMiddleware(dispatcher, settings.max_body_bytes, form_bytes)
    if not settings.require_keys:
        app = HostGuardMiddleware(app, parts.host_guard)
    if settings.metrics_port:
        app = MetricsPortMiddleware(app, settings.metrics_port)
    if settings.cors_origins:
        app = CorsMiddleware(app, settings.cors_origins)
    app = RequestScopeMiddleware(
        app, parts.metrics, parts.access_log, traces, server_header=settings.server_header
    )
    return RootPathMiddleware(app, settings.root_path) if settings.root_path else app


def _json(status: int, body: bytes, headers: dict[str, str]) -> Response:
    return Response(body, status, headers, "application/json")


async def _on_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, PenstockError):
        raise error
    if isinstance(error, ModelNotFoundError | ModelUnnamedError):
        error = _as_seen_by_caller(request, error)
    status, body, headers = raised_answer(request.scope, error)
    record: AccessRecord = request.state.log
    record.error_code = str(error.code)
    if isinstance(error, DeniedError) and error.key_id:
        record.key_id = error.key_id
    if leaves_body_unread(request):
        headers["Connection"] = "close"
    if status >= 500:
        _logger.warning("answered %d: %s", status, error.message)
    return _json(status, body, headers)


def _as_seen_by_caller(
    request: Request, error: ModelNotFoundError | ModelUnnamedError
) -> ModelNotFoundError | ModelUnnamedError:
    """The same error, naming only models that the caller may use; nobody known may use none."""
    parts = parts_of(request)
    identity = parts.identities.known(caller_of(request).key_digest)
    if identity is None and not parts.settings.require_keys:
        return error
    served = parts.names.served
    return error.seen_by(lambda name: identity is not None and identity.may_see(served(name)))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the router itself refuses: paths and methods that are not there."""
    if not isinstance(error, HTTPException):
        raise error
    # Not `request.url`, which is made with the client's own `Host` and may be no URL at all.
    full_path: str = request.scope["path"]
    where = f"{request.method} {full_path[:_MAX_SHOWN_CHARACTERS]}"
    headers = dict(error.headers or {})
    if error.status_code == 404:
        row = ERROR_TABLE[ErrorCode.NOT_FOUND]
        message = f"Invalid URL ({where})"
        if is_anthropic(request.scope):
            message += f": {OFFERED}"
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods_of(request, full_path)))
        row = METHOD_NOT_ALLOWED
        message = f"Not allowed to {where.replace(' ', ' on ', 1)}"
    else:
        row = ErrorRow(error.status_code, "invalid_request_error", "invalid_request")
        message = str(error.detail)
    request.state.log.error_code = row.code
    if leaves_body_unread(request):
        headers["Connection"] = "close"
    return _json(*error_answer(request.scope, message, row), headers)


def _methods_of(request: Request, full_path: str) -> set[str]:
    """What a path answers: all routes of its template, not only the first that fits."""
    by_path: dict[str, tuple[re.Pattern[str], set[str]]] = request.app.state.methods
    if full_path in by_path:
        return by_path[full_path][1]
    return {one for path, methods in by_path.values() if path.match(full_path) for one in methods}


async def _on_validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    row = ERROR_TABLE[ErrorCode.INVALID_REQUEST]
    return _json(*error_answer(request.scope, str(first["msg"]), row, param), {})


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # the client has left; nobody reads this


async def _on_bug(request: Request, _error: Exception) -> Response:
    """A bug of ours: the trace goes to the log, the client learns nothing from it."""
    row = ERROR_TABLE[ErrorCode.INTERNAL_ERROR]
    request.state.log.error_code = row.code
    answer = error_answer(request.scope, "Internal server error.", row)
    # The exception goes on to the server, which closes the connection: the client must know.
    return _json(*answer, {"Connection": "close"})


_HANDLERS: dict[type[Exception], ErrorHandler] = {
    ClientDisconnectedError: _on_disconnect,
    ClientDisconnect: _on_disconnect,
    PenstockError: _on_error,
    HTTPException: _on_http_exception,
    RequestValidationError: _on_validation_error,
}
"""The first that fits counts."""
