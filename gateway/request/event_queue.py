"""The way of events from whoever makes them to the one consumer who renders them."""

import asyncio

from gateway.errors import GatewayError
from gateway.request.events import GenerationEvent


class EventQueue:
    """Events gather until the consumer takes them all; its end comes after the last of them."""

    def __init__(self) -> None:
        self._events: list[GenerationEvent] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: GatewayError | None = None
        self._is_closed = False

    def put(self, event: GenerationEvent) -> None:
        """One more event."""
        self._events.append(event)
        self._wake()

    def close(self, error: GatewayError | None = None) -> None:
        """No more events; with an error the consumer gets it after them. The first call counts."""
        if not self._is_closed:
            self._is_closed = True
            self._error = error
            self._wake()

    async def take(self, timeout_s: float) -> list[GenerationEvent] | None:
        """What has come since the last call, as soon as there is something.

        Args:
            timeout_s: An empty list comes when nothing happened for so long.

        Returns:
            None after the last event.

        Raises:
            GatewayError: The queue was closed with it; earlier events were returned before.
        """
        if not self._events and not self._is_closed:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(timeout_s, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        if self._events:
            events, self._events = self._events, []
            return events
        if self._error is not None:
            raise self._error
        return None if self._is_closed else []

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
