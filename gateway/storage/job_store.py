"""Background responses as the gateway uses them: queued, taken, put back, ended."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from gateway.errors import GatewayError
from gateway.storage import jobs
from gateway.storage.database import Database
from gateway.storage.jobs import CancelMaker
from gateway.storage.records import Bounds, ConversationItem, EventPiece, Job, StoredResponse

_MAX_PIECES: Final = 64
"""Of events, at a time."""


class JobStore:
    """Responses that are made in the background, by whichever gateway has taken them.

    Args:
        database: Where they are.
        owner: The id of this gateway.
        bounds: How much is kept.
        now_ms: Unix milliseconds.

    Attributes:
        is_failing: Whether the last beat could not be written; there is one every few seconds.
    """

    def __init__(
        self, database: Database, owner: str, bounds: Bounds, now_ms: Callable[[], int]
    ) -> None:
        self.is_failing = False
        self._database = database
        self._owner = owner
        self._bounds = bounds
        self._now_ms = now_ms

    async def enqueue(
        self, tenant: str, response: StoredResponse, request: bytes, events: EventPiece
    ) -> None:
        """Keep a response that is to be made.

        Raises:
            DeniedError: The tenant has too many waiting.
        """
        now_ms = self._now_ms()
        await self._database.run(
            lambda connection: jobs.enqueue(
                connection, tenant, response, request, events, self._bounds, now_ms
            )
        )

    async def beat(self) -> set[str]:
        """Say that this gateway lives; the responses that are still its own to make.

        Raises:
            GatewayError: The store can't be used.
        """
        now_ms = self._now_ms()
        try:
            ours = await self._database.run(
                lambda connection: jobs.beat(connection, self._owner, now_ms)
            )
        except GatewayError:
            self.is_failing = True
            raise
        self.is_failing = False
        return ours

    async def claim(self) -> Job | None:
        """Take the next job, if one is due."""
        now_ms = self._now_ms()
        return await self._database.run(
            lambda connection: jobs.claim(connection, self._owner, now_ms)
        )

    async def release(
        self, response_id: str, wait_s: float, leases: tuple[str, ...] | None = None
    ) -> None:
        """Put a job back for another gateway, or for later.

        Args:
            response_id: Of the job.
            wait_s: Before anybody takes it; a minute at most.
            leases: Of the takes that something was computed in; None leaves them as they were.
        """
        due_ms = jobs.due_at(self._now_ms(), wait_s)
        await self._database.run(
            lambda connection: jobs.release(connection, self._owner, response_id, due_ms, leases)
        )

    async def note_leases(
        self, response_id: str, leases: tuple[str, ...], request: bytes | None = None
    ) -> bool:
        """What a job is computed on, and made from; False when it is somebody else's by now."""
        noted = partial(jobs.note_leases, leases=leases, request=request)
        return await self._database.run(
            lambda connection: noted(connection, self._owner, response_id)
        )

    async def note_events(
        self,
        response_id: str,
        events: EventPiece,
        running: StoredResponse | None = None,
        model: str | None = None,
    ) -> bool:
        """More events of a job; False when it is somebody else's by now.

        Args:
            response_id: Of the job.
            events: Behind all others.
            running: What the response now says of itself; None when that hasn't changed.
            model: Whose output they tell; None when that hasn't changed.
        """
        now_ms = self._now_ms()
        return await self._database.run(
            lambda connection: jobs.note_events(
                connection, self._owner, response_id, events, running, model, now_ms
            )
        )

    async def take_back_events(self, response_id: str) -> bool:
        """Drop what was told of a job's output; False when somebody may have read it."""
        return await self._database.run(
            lambda connection: jobs.take_back_events(connection, self._owner, response_id)
        )

    async def told(self, response_id: str, number: int) -> list[EventPiece]:
        """Some pieces with events behind a number, for whoever makes the response."""
        return await self._database.run(
            lambda connection: jobs.told(connection, response_id, number, _MAX_PIECES)
        )

    async def finish(
        self,
        response: StoredResponse,
        events: EventPiece | None,
        items: Sequence[ConversationItem] = (),
    ) -> bool:
        """End a job; False when it is somebody else's by now, and nothing has changed.

        Raises:
            GatewayError: Its conversation can't take its items.
        """
        now_ms = self._now_ms()
        return await self._database.run(
            lambda connection: jobs.finish(
                connection, self._owner, response, events, items, self._bounds, now_ms
            )
        )

    async def cancel(self, tenant: str, response_id: str, make: CancelMaker) -> StoredResponse:
        """End a job, whoever makes it; what the response is then.

        Raises:
            StoredNotFoundError: This tenant has none of this id.
            InvalidRequestError: It was not made in the background.
        """
        now_ms = self._now_ms()
        return await self._database.run(
            lambda connection: jobs.cancel(connection, tenant, response_id, make, now_ms)
        )

    async def note_spent(self, tenant: str, response_id: str, make: CancelMaker) -> None:
        """Say what was spent on a cancelled response, unless it says so; others stay as they are.

        Args:
            tenant: Whose it is.
            response_id: Of the response.
            make: Makes it of the response and of the number of the event that says its end.
        """
        now_ms = self._now_ms()
        await self._database.run(
            lambda connection: jobs.note_spent(connection, tenant, response_id, make, now_ms)
        )

    async def events_after(
        self, tenant: str, response_id: str, number: int
    ) -> tuple[list[EventPiece], str]:
        """Some pieces with events behind a number, and the status of the response.

        From then on its events can't be taken back.

        Raises:
            StoredNotFoundError: This tenant has none of this id.
        """
        return await self._database.run(
            lambda connection: jobs.events_after(
                connection, tenant, response_id, number, _MAX_PIECES
            )
        )
