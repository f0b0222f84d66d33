"""Who makes the requests of the turns of one response, and which model answers them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from gateway import bridge
from gateway.errors import GatewayError
from gateway.request.callers.caller import Caller
from gateway.request.factory import RequestFactory
from gateway.request.jobs.job import GenerationJob
from gateway.request.kinds.generation import GenerationWork
from gateway.request.lifecycle.request import Request
from protocol.errors import ErrorCode

_SEED_MASK: Final = 2**63 - 1


class LongerModels:
    """The fallback that answers one response once a prompt of it was too long for its model.

    Args:
        requests: Knows the fallbacks.
        name: The model that the client asked for.

    Attributes:
        chosen: Who answers from now on; None as long as nothing was too long.
    """

    def __init__(self, requests: RequestFactory, name: str) -> None:
        self.chosen: str | None = None
        self._requests = requests
        self._name = name
        self._before: str | None = None
        self._too_long: GatewayError | None = None
        self._are_allowed = True

    def after(self, error: GatewayError, tried: str) -> str | None:
        """Who may answer what has failed with an error; None where nobody may.

        Args:
            error: Of the request.
            tried: Its model.
        """
        if error.code is not ErrorCode.CONTEXT_LENGTH_EXCEEDED or not self._are_allowed:
            return None
        return self._requests.longer_model(self._name, tried)

    def take(self, error: GatewayError, tried: str) -> bool:
        """Have such a model answer from now on; whether there is one. The arguments are as above.

        Nothing was told yet, and what was reserved is settled.
        """
        longer = self.after(error, tried)
        if longer is not None:
            self._before, self.chosen, self._too_long = self.chosen, longer, error
        return longer is not None

    def told(self, error: GatewayError) -> GatewayError:
        """The error that a caller is told: of a model that it may not use it need not hear."""
        too_long = self._too_long
        if too_long is None or error.code is not ErrorCode.PERMISSION_DENIED:
            return error
        self.chosen, self._too_long, self._are_allowed = self._before, None, False
        return too_long

    def begun(self) -> None:
        """Whoever was chosen has taken the prompt."""
        self._too_long = None


class TurnMaker(Protocol):
    """Makes the request of a turn."""

    @property
    def models(self) -> LongerModels:
        """Who answers where the first model's context is too short."""
        ...

    def model_of(self, job: GenerationJob) -> str:
        """Who would answer a turn that begins now."""
        ...

    def begin(self, job: GenerationJob, number: int) -> tuple[Request, GenerationWork]:
        """The request of a turn, the first one being 0; it is not started."""
        ...

    async def forget(self, request: Request) -> None:
        """It was too long, nothing was computed, and a shorter one takes its place."""
        ...

    async def note_blank_summary(self) -> None:
        """A turn should have summed the context up, and nothing came: nobody is told of it."""
        ...


class PlainTurns:
    """Turns of a response that somebody waits for.

    Args:
        requests: Makes them.
        caller: Who asks.
        request_id: Of the first turn; those of others are made of it.
        models: Who answers what is too long for `model`.
        model: Who answers; None is whom the names choose.

    Attributes:
        models: See above.
    """

    def __init__(
        self,
        requests: RequestFactory,
        caller: Caller,
        request_id: str,
        models: LongerModels,
        model: str | None = None,
    ) -> None:
        self.models = models
        self._requests = requests
        self._caller = caller
        self._request_id = request_id
        self._model = model

    def begin(self, job: GenerationJob, number: int) -> tuple[Request, GenerationWork]:
        """The request of a turn."""
        request_id = turn_id(self._request_id, number)
        return self._requests.generation(
            job, self._caller, request_id, model=self.model_of(job), is_continued=number > 0
        )

    def model_of(self, job: GenerationJob) -> str:
        """The longer model that was chosen, the given one, or whom the names choose."""
        return self.models.chosen or self._model or self._requests.model_of(job)

    async def forget(self, request: Request) -> None:
        """It was settled as unused when it failed."""

    async def note_blank_summary(self) -> None:
        """Nobody takes the response up again."""


def turn_id(request_id: str, number: int) -> str:
    """The id of a turn's request."""
    return request_id if number == 0 else f"{request_id}t{number}"


def seeded(job: GenerationJob, seed: int, number: int) -> GenerationJob:
    """A turn with a seed of its own, which follows from that of its response."""
    return job.changed(sampling=bridge.with_seed(job.sampling, (seed + number) & _SEED_MASK))


@dataclass(frozen=True, slots=True)
class BackgroundTurns:
    """Turns of a response that nobody waits for.

    Attributes:
        models: Who answers where the first model's context is too short; `make` goes by it.
        make: Makes the request of a turn.
        answers: Says who would answer one that begins now.
        forget_lease: Takes back that of the turn under way.
        note_blank: Sees to it that the turn is made and booked once.
    """

    models: LongerModels
    make: Callable[[GenerationJob, int], tuple[Request, GenerationWork]]
    answers: Callable[[GenerationJob], str]
    forget_lease: Callable[[], Awaitable[None]]
    note_blank: Callable[[], Awaitable[None]]

    def begin(self, job: GenerationJob, number: int) -> tuple[Request, GenerationWork]:
        """The request of a turn."""
        return self.make(job, number)

    def model_of(self, job: GenerationJob) -> str:
        """Who would answer."""
        return self.answers(job)

    async def forget(self, request: Request) -> None:
        """Take its lease back."""
        await self.forget_lease()

    async def note_blank_summary(self) -> None:
        """Write it down: no event tells the next attempt of it."""
        await self.note_blank()
