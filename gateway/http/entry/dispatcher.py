"""From a request to its route, and from what that raises to an answer."""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


class Dispatcher:
    """FastAPI's router with a short way for paths without parameters, and one layer for errors.

    FastAPI's own stack has layers for telemetry, body limits and dependencies, none of which these
    routes have.

    Args:
        app: With all routes.
        handlers: The answer to each kind of error; the first kind that fits counts.
        on_bug: The answer to any other one, which then goes on to the server's log.
    """

    def __init__(
        self,
        app: FastAPI,
        handlers: Mapping[type[Exception], ErrorHandler],
        on_bug: ErrorHandler,
    ) -> None:
        self._app = app
        self._handlers = tuple(handlers.items())
        self._on_bug = on_bug
        self._exact = {
            (route.path, method): route
            for route in app.router.routes
            if isinstance(route, APIRoute) and not route.param_convertors
            for method in route.methods or ()
        }
        # What such a path answers, whatever templates with parameters would take it for, too.
        self._of_path: dict[str, tuple[APIRoute, set[str]]] = {}
        for (path, method), route in self._exact.items():
            self._of_path.setdefault(path, (route, set()))[1].update(_answered(method))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        scope["app"] = self._app
        try:
            route = self._exact.get((scope["path"], scope["method"]))
            if route is None:
                known = self._of_path.get(scope["path"])
                if known is not None and scope["method"] not in known[1]:
                    scope["route"] = known[0]
                    raise HTTPException(405)
                await self._app.router(scope, receive, send)
            else:
                scope["route"] = route
                scope["path_params"] = {}
                await route.handle(scope, receive, send)
        except Exception as error:
            if scope["state"]["log"].status:
                raise  # an answer has begun; the server ends the connection
            handler = self._handler(error)
            response = await handler(Request(scope, receive), error)
            await response(scope, receive, send)
            if handler is self._on_bug:
                raise
            _forget_frames(error)

    def _handler(self, error: Exception) -> ErrorHandler:
        for kind, handler in self._handlers:
            if isinstance(error, kind):
                return handler
        return self._on_bug


def _answered(method: str) -> tuple[str, ...]:
    """A method, and HEAD beside GET."""
    return (method, "HEAD") if method == "GET" else (method,)


def _forget_frames(error: BaseException | None) -> None:
    """Release the frames that an answered error went through.

    Whoever still knows the error, a future in one of those frames for instance, would keep them
    alive in a circle, and with them a body of megabytes until the garbage collector comes.
    """
    while error is not None:
        before = error.__cause__ or error.__context__
        error.__traceback__ = error.__cause__ = error.__context__ = None
        error = before
