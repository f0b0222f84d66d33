"""The way of events from whoever makes them to the one consumer who renders them."""

import asyncio
from collections.abc import Callable

from gateway.errors import GatewayError
from gateway.request.delivery.events import GenerationEvent

MAX_UNREAD = 128
"""Events that may wait before the request's leases stop growing."""


class EventQueue:
    """Events gather until the consumer takes them all; its end comes after the last of them.

    Attributes:
        on_caught_up: Called once when the consumer takes what there is, after it had lagged.
    """

    def __init__(self) -> None:
        self.on_caught_up: Callable[[], None] | None = None
        self._events: list[GenerationEvent] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: GatewayError | None = None
        self._is_closed = False

    @property
    def is_lagging(self) -> bool:
        """Whether the consumer has much left to take."""
        return len(self._events) >= MAX_UNREAD

    def put(self, event: GenerationEvent) -> None:
        """One more event; after `close` nobody wants it."""
        if not self._is_closed:
            self._events.append(event)
            self._wake()

    def close(self, error: GatewayError | None = None) -> None:
        """No more events; with an error the consumer gets it after them. The first call counts."""
        if not self._is_closed:
            self._is_closed = True
            self._error = error
            self.on_caught_up = None
            self._wake()

    async def take(self, timeout_s: float | None) -> list[GenerationEvent] | None:
        """What has come since the last call, as soon as there is something.

        Args:
            timeout_s: An empty list comes when nothing happened for so long; None waits.

        Returns:
            None after the last event.

        Raises:
            GatewayError: The queue was closed with it; earlier events were returned before. It
                is raised once.
        """
        if not self._events and not self._is_closed:
            await self._wait(timeout_s)
        if self._events:
            events, self._events = self._events, []
            if self.on_caught_up is not None:
                told, self.on_caught_up = self.on_caught_up, None
                told()
            return events
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # it knows the frames of its readers, and they know us
        return None if self._is_closed else []

    async def _wait(self, timeout_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
