"""Tells a request that its client has left, at once and without a task of its own."""

import asyncio
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

from starlette.types import Receive

EXTENSION = "penstock.disconnect"
"""The ASGI extension by which this server's protocol offers a `Disconnects`."""


class Disconnects:
    """Who wants to know when the client of one HTTP request leaves."""

    __slots__ = ("_callbacks", "_has_left")

    def __init__(self) -> None:
        self._callbacks: list[Callable[[], None]] = []
        self._has_left = False

    def add(self, callback: Callable[[], None]) -> None:
        """Call somebody then; at once if it has left already."""
        if self._has_left:
            callback()
        else:
            self._callbacks.append(callback)

    def discard(self, callback: Callable[[], None]) -> None:
        """Somebody needs to know no more; idempotent."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def fire(self) -> None:
        """The client has left; idempotent."""
        if not self._has_left:
            self._has_left = True
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback()


def watch(
    scope: MutableMapping[str, Any], receive: Receive, callback: Callable[[], None]
) -> Callable[[], None]:
    """Call somebody when a client leaves.

    Args:
        scope: Of the request.
        receive: Of the request, whose body has been read; used where the server has no extension.
        callback: Called at most once.

    Returns:
        Ends the watch.

    A request with an `Idempotency-Key` is not watched: see `replaying`.
    """
    if scope.get("state", {}).get("replay") is not None:
        return lambda: None  # its client comes back for the answer
    extension = scope.get("extensions", {}).get(EXTENSION)
    if isinstance(extension, Disconnects):
        extension.add(callback)
        return partial(extension.discard, callback)
    task = asyncio.get_running_loop().create_task(_watch(receive, callback))
    return lambda: _cancel(task)


async def _watch(receive: Receive, callback: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    callback()


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
