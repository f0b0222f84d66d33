"""Who makes the requests of the turns of one response."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.request.callers.caller import Caller
from gateway.request.factory import RequestFactory
from gateway.request.jobs.job import GenerationJob
from gateway.request.kinds.generation import GenerationWork
from gateway.request.lifecycle.request import Request


class TurnMaker(Protocol):
    """Makes the request of a turn."""

    def begin(self, job: GenerationJob, number: int) -> tuple[Request, GenerationWork]:
        """The request of a turn, the first one being 0; it is not started."""
        ...

    async def forget(self, request: Request) -> None:
        """It was too long, nothing was computed, and a shorter one takes its place."""
        ...


class PlainTurns:
    """Turns of a response that somebody waits for.

    Args:
        requests: Makes them.
        caller: Who asks.
        request_id: Of the first turn; those of others are made of it.
        model: Who answers; None is whom the names choose.
    """

    def __init__(
        self, requests: RequestFactory, caller: Caller, request_id: str, model: str | None = None
    ) -> None:
        self._requests = requests
        self._caller = caller
        self._request_id = request_id
        self._model = model

    def begin(self, job: GenerationJob, number: int) -> tuple[Request, GenerationWork]:
        """The request of a turn."""
        request_id = turn_id(self._request_id, number)
        return self._requests.generation(
            job, self._caller, request_id, model=self._model, is_continued=number > 0
        )

    async def forget(self, request: Request) -> None:
        """It was settled as unused when it failed."""


def turn_id(request_id: str, number: int) -> str:
    """The id of a turn's request."""
    return request_id if number == 0 else f"{request_id}t{number}"


@dataclass(frozen=True, slots=True)
class BackgroundTurns:
    """Turns of a response that nobody waits for.

    Attributes:
        make: Makes the request of a turn.
        forget_lease: Takes back that of the turn under way.
    """

    make: Callable[[GenerationJob, int], tuple[Request, GenerationWork]]
    forget_lease: Callable[[], Awaitable[None]]

    def begin(self, job: GenerationJob, number: int) -> tuple[Request, GenerationWork]:
        """The request of a turn."""
        return self.make(job, number)

    async def forget(self, request: Request) -> None:
        """Take its lease back."""
        await self.forget_lease()
