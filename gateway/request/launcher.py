"""Finds engines for one request: for its prompts, for each choice, and again after a loss."""

import asyncio
import logging
from collections.abc import Callable

from msgspec import structs

from gateway.dispatch.quarantine import Suspicion
from gateway.dispatch.seats import EngineHandle, Seat
from gateway.errors import GatewayError, RemoteFailureError, WorkerLostError
from gateway.request.budget import TokenBudget
from gateway.request.choice import EngineChoice, is_retryable
from gateway.request.job import GenerationJob, prompt_fingerprint
from gateway.request.lease import RequestLease
from gateway.request.services import Services
from protocol.wire.messages import EngineOffer, Prepare, Prepared

_logger = logging.getLogger("penstock.gateway.launcher")

_MAX_REFUSED_PREPARES = 3


class Launcher:
    """The engines' side of one request.

    Args:
        services: The parts of the gateway.
        job: What is asked for.
        request_id: Made by the gateway.
        lease: Whose tenant and priority count.
        remaining_s: Seconds that the request has left.
    """

    def __init__(
        self,
        services: Services,
        job: GenerationJob,
        request_id: str,
        lease: RequestLease,
        remaining_s: Callable[[], float],
    ) -> None:
        self._admission = services.admission
        self._engines = services.engines
        self._metrics = services.metrics
        self._routes_by_prefix = services.settings.routing == "prefix"
        self._quarantine = services.quarantine
        self._job = job
        self._request_id = request_id
        self._lease = lease
        self._remaining_s = remaining_s
        self._fingerprint = prompt_fingerprint(job)
        self._suspicion = Suspicion(services.quarantine, self._fingerprint)
        self._offer: EngineOffer | None = None

    async def prepare(self, budget: TokenBudget, offer: EngineOffer) -> tuple[Seat, list[Prepared]]:
        """Find a first seat and have every prompt tokenised there; elsewhere if that engine dies.

        Args:
            budget: Knows how much a choice may need.
            offer: What the engines serve.

        Returns:
            The seat, for the first choice, and the prompts.

        Raises:
            PoisonRequestError: Engines die of it, or died of it a while ago.
            OverloadedError: The queue is full.
            WorkerUnavailableError: No engine is there to begin with.
            RemoteFailureError: A prompt is wrong or too long, or the engines are full.
        """
        self._quarantine.check(self._fingerprint)
        seat = await self._acquire(budget.upper_bound(offer), is_extra=False)
        num_refused = 0
        while True:
            try:
                prepared = await self._engines.prepare_all(seat.engine, self._questions())
            except (WorkerLostError, RemoteFailureError) as error:
                self._admission.release(seat)
                found = self._suspicion.on_failure(error, seat)
                num_refused += not isinstance(error, WorkerLostError)
                if not is_retryable(found) or num_refused > _MAX_REFUSED_PREPARES:
                    raise found from None
            except BaseException:
                self._admission.release(seat)
                raise
            else:
                self._offer = seat.engine.offer
                return seat, prepared
            seat = await self._admission.acquire_again(
                self._job.model,
                tokens=seat.tokens,
                accepts=_any_engine,
                is_alone=self._suspicion.needs_isolation,
            )

    def suspicion(self) -> Suspicion:
        """What speaks against a new choice of this request so far."""
        return self._suspicion.copy()

    async def launch(self, choice: EngineChoice) -> None:
        """Wait for a seat and start a further choice.

        Raises:
            GatewayError: It can't be.
        """
        seat = await self._acquire(tokens_of(choice), is_extra=True)
        if self._can_go_on(choice, seat.engine):
            self.route(choice, seat)
            choice.start(seat, self._remaining_s())
        else:
            self._admission.release(seat)
            await self._start_again(choice, is_patient=True)

    def route(self, choice: EngineChoice, seat: Seat) -> None:
        """Move a choice's seat to the engine that has most of its prompt computed already.

        Args:
            choice: Not started yet.
            seat: Its own, for as many tokens as it may need.
        """
        block_hashes = choice.plan.prepared.block_hashes
        if not self._routes_by_prefix or not block_hashes or seat.is_alone:
            return
        model = self._job.model
        router = self._engines.prefixes
        route = router.choose(
            self._engines.engines(model),
            seat.engine,
            block_hashes,
            seat.tokens,
            lambda engine: self._can_go_on(choice, engine),
        )
        self._admission.move(seat, route.engine)
        router.expect(route.engine, block_hashes)
        self._metrics.routed_choices.labels(model, route.outcome).inc()

    async def relaunch(self, choice: EngineChoice, error: GatewayError) -> None:
        """Let a choice whose attempt failed go on at another engine, however long it takes.

        Args:
            choice: Not at an engine.
            error: How its attempt failed.

        Raises:
            WorkerLostError: Its engine left in good order, and those that are there can't go on.
        """
        _logger.info("request %s goes to another engine: %s", self._request_id, error.code)
        if choice.pause_s:
            await asyncio.sleep(choice.pause_s)
        has_left = isinstance(error, WorkerLostError) and error.reason == "goodbye"
        await self._start_again(choice, is_patient=not has_left)

    async def _start_again(self, choice: EngineChoice, *, is_patient: bool) -> None:
        seat = await self._admission.acquire_again(
            self._job.model,
            tokens=tokens_of(choice),
            accepts=lambda engine: self._can_go_on(choice, engine),
            is_alone=choice.suspicion.needs_isolation,
            is_patient=is_patient,
        )
        choice.start(seat, self._remaining_s())

    def _can_go_on(self, choice: EngineChoice, engine: EngineHandle) -> bool:
        """Whether an engine reads the prompt's tokens alike, and continues an output alike."""
        begun, offer = self._offer, engine.offer
        return begun is None or (
            offer.fingerprint == begun.fingerprint
            and (not choice.has_output or offer.resume_version == choice.resume_version)
        )

    def _questions(self) -> list[Prepare]:
        return [
            structs.replace(
                prepare,
                request_id=self.wire_id(number),
                deadline_s=self._remaining_s(),
                tenant=self._lease.tenant,
            )
            for number, prepare in enumerate(self._job.prepares)
        ]

    def wire_id(self, number: int) -> str:
        """The id of a prompt on the wire; a request with one prompt gives it its own."""
        alone = len(self._job.prepares) == 1
        return self._request_id if alone else f"{self._request_id}-{number}"

    async def _acquire(self, tokens: int, *, is_extra: bool) -> Seat:
        return await self._admission.acquire(
            self._job.model,
            tenant=self._lease.tenant,
            priority=self._lease.priority,
            tokens=tokens,
            is_extra=is_extra,
        )


def tokens_of(choice: EngineChoice) -> int:
    """Upper bound of a choice's prompt and output."""
    return len(choice.plan.prepared.prompt_token_ids) + choice.lease_tokens


def _any_engine(_engine: EngineHandle) -> bool:
    return True
