"""What runs beside one request, and ends with it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.errors import GatewayError

_logger = logging.getLogger("penstock.gateway.request")


def _nobody(_error: GatewayError) -> None:
    """The request has ended; its error was told."""


class Background:
    """Tasks of one request.

    Args:
        request_id: For the log.
        on_error: Called with the error that ended a task; the request ends with it.
    """

    def __init__(self, request_id: str, on_error: Callable[[GatewayError], None]) -> None:
        self._request_id = request_id
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something; once the request has ended it is not even begun."""
        if self._is_closed:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def close(self) -> None:
        """Cancel whatever runs; idempotent."""
        self._is_closed = True
        self._on_error = _nobody  # no circle of references outlives the request
        for task in self._tasks:
            task.cancel()

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, GatewayError):
            self._on_error(error)
        elif error is not None:
            _logger.error("request %s failed", self._request_id, exc_info=error)
            self._on_error(GatewayError("Internal server error."))
