"""Finds engines for one generation: for its prompts, for each choice, and again after a loss."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway import bridge
from gateway.dispatch.admission import Admission
from gateway.dispatch.quarantine import Quarantine, Suspicion
from gateway.dispatch.routing import PrefixRouter
from gateway.dispatch.slots import EngineHandle, Share, Slot
from gateway.errors import GatewayError, WorkerLostError
from gateway.request.choices.choice import EngineChoice
from gateway.request.jobs.job import GenerationJob, JobFingerprint
from gateway.request.leases.work_bound import Admitted
from gateway.request.lifecycle.work import Owner
from gateway.request.preparation.engine_asker import EngineAsker
from gateway.request.preparation.prompts import PromptBatch
from gateway.workers.engine_directory import EngineDirectory
from gateway.workers.engines import EngineLink
from protocol.wire.messages import EngineOffer, Prepare, Prepared

_logger = logging.getLogger("penstock.gateway.launcher")


@dataclass(frozen=True, slots=True)
class EnginePool:
    """The engines as a generation needs them.

    Attributes:
        link: Messages to them.
        directory: Who is there.
        admission: Slots.
        prefixes: What they have cached; None when nothing is routed by it.
        quarantine: What they died of.
        on_routed: Called with model and outcome of each routed choice, for the metrics.
    """

    link: EngineLink
    directory: EngineDirectory
    admission: Admission
    prefixes: PrefixRouter | None
    quarantine: Quarantine
    on_routed: Callable[[str, str], None]


class Launcher:
    """The engines' side of one generation.

    It is long because each step to an engine, for the first time and again, is a method.

    Args:
        pool: The engines.
        job: What is asked for.
        owner: The request.

    Attributes:
        offer: Of the engine that tokenised the prompts, whose like all choices stay with; None
            before.
        slot: For the first choice, until that takes it.
    """

    def __init__(self, pool: EnginePool, job: GenerationJob, owner: Owner) -> None:
        self._pool = pool
        self._job = job
        self._owner = owner
        self._request_id = job.attempt_id(owner.request_id)
        self._admitted = Admitted()
        self._fingerprint = JobFingerprint(job)
        self._suspicion = Suspicion(pool.quarantine, self._fingerprint)
        self._asker = EngineAsker(pool.admission, self._suspicion, job.model)
        self._begun: tuple[Slot, PromptBatch] | None = None
        self._num_withdrawn = 0
        self.offer: EngineOffer | None = None
        self.slot: Slot | None = None

    def begin(self, admitted: Admitted, tokens: int) -> None:
        """Send the prompts ahead of the grant, if there is a free slot."""
        self._admitted = admitted
        self._fingerprint.tenant = admitted.tenant
        if not self._pool.quarantine.is_empty:
            return
        slot = self._pool.admission.take_now(
            self._job.model, tenant=admitted.tenant, priority=admitted.priority, tokens=tokens
        )
        if slot is None:
            return
        batch = PromptBatch(self._pool.link, slot.engine, self._questions())
        self._begun = (slot, batch)
        try:
            batch.send()
        except WorkerLostError:
            self.withdraw()

    def withdraw(self) -> None:
        """Take back what `begin` did; idempotent."""
        if self._begun is not None:
            slot, batch = self._begun
            self._begun = None
            self._num_withdrawn += 1
            batch.close()
            self._pool.admission.release(slot)

    async def prepare(
        self, admitted: Admitted, tokens: int, check: Callable[[Sequence[Prepared]], object]
    ) -> list[Prepared]:
        """Have every prompt tokenised where a slot is; elsewhere if that engine dies.

        Args:
            admitted: Whose request it is.
            tokens: What a choice may need.
            check: Raises if by the prompts that are there the others aren't worth it.

        Returns:
            The prompts; `slot` is the slot for the first choice.

        Raises:
            PoisonRequestError: Engines die of it, or died of it a while ago.
            OverloadedError: The queue is full.
            WorkerUnavailableError: No engine is there to begin with.
            RemoteFailureError: A prompt is wrong or too long, or the engines are full.
        """
        self._admitted = admitted
        self._fingerprint.tenant = admitted.tenant
        if not self._pool.quarantine.is_empty:
            self._pool.quarantine.check(self._fingerprint())
        begun, self._begun = self._begun, None
        if begun is None:
            slot = await self._acquire(tokens, is_extra=False)
        else:
            slot = begun[0]
        batches = [] if begun is None else [begun[1]]

        async def ask(slot: Slot) -> list[Prepared]:
            batch = (
                batches.pop()
                if batches
                else PromptBatch(self._pool.link, slot.engine, self._questions())
            )
            return await batch.wait(check)

        self.slot, prepared = await self._asker.ask(slot, ask)
        self.offer = self.slot.engine.offer
        return prepared

    def release(self) -> None:
        """Give the first slot back if no choice has taken it; idempotent."""
        self.withdraw()
        slot, self.slot = self.slot, None
        if slot is not None:
            self._pool.admission.release(slot)

    def take_slot(self, choice: EngineChoice) -> Slot:
        """The first slot, for the first choice, which now owns it."""
        slot, self.slot = self.slot, None
        assert slot is not None, "prepare() found one"
        self._pool.admission.resize(slot, choice.bound_tokens)
        return slot

    def suspicion(self) -> Suspicion:
        """What speaks against a new choice of this request so far."""
        return self._suspicion.copy()

    def wire_id(self, number: int) -> str:
        """The id of a prompt on the wire; a request with one prompt gives it its own.

        After `withdraw` it is another one: an answer to what was withdrawn may be on its way.
        """
        request_id = self._request_id
        if self._num_withdrawn:
            request_id += f"-again{self._num_withdrawn}"
        return request_id if len(self._job.prepares) == 1 else f"{request_id}-{number}"

    async def launch(self, choice: EngineChoice) -> None:
        """Wait for a slot and start a further choice.

        Raises:
            GatewayError: It can't be, or its weights are served no more.
        """
        slot = await self._acquire(choice.bound_tokens, is_extra=True)
        if self._can_go_on(choice, slot.engine):
            self.start(choice, slot)
        else:
            self._pool.admission.release(slot)
            await self._start_again(choice, slot.share)

    def start(self, choice: EngineChoice, slot: Slot) -> None:
        """Start a choice at the engine that has most of its prompt computed already.

        Args:
            choice: Not started yet.
            slot: Its own, for as many tokens as it may need.
        """
        self._route(choice, slot)
        choice.start(slot, self._owner.remaining_s())

    async def relaunch(self, choice: EngineChoice, error: GatewayError) -> None:
        """Let a choice whose attempt failed go on at another engine, however long it takes.

        Args:
            choice: Not at an engine.
            error: How its attempt failed.

        Raises:
            WorkerLostError: Those that are there can't go on, and the last that could has left.
        """
        _logger.info("request %s goes to another engine: %s", self._owner.request_id, error.code)
        if choice.pause_s:
            await asyncio.sleep(choice.pause_s)
        await self._start_again(choice, choice.share)

    def _route(self, choice: EngineChoice, slot: Slot) -> None:
        block_hashes = choice.plan.prepared.block_hashes
        router = self._pool.prefixes
        if router is None or not block_hashes or slot.is_alone:
            return
        model = self._job.model
        route = router.choose(
            self._pool.directory.engines(model),
            slot.engine,
            block_hashes,
            slot.tokens,
            lambda engine: self._can_go_on(choice, engine),
        )
        self._pool.admission.move(slot, route.engine)
        router.expect(route.engine, block_hashes)
        self._pool.on_routed(model, route.outcome)

    async def _start_again(self, choice: EngineChoice, share: Share | None) -> None:
        model = self._job.model

        def accepts(engine: EngineHandle) -> bool:
            return self._can_go_on(choice, engine)

        slot = await self._pool.admission.acquire_again(
            model,
            tokens=choice.bound_tokens,
            accepts=accepts,
            is_alone=choice.suspicion.needs_isolation,
            may_come=lambda: self._pool.directory.may_return(model, accepts),
            share=share,
        )
        # Its lease may have grown while it waited.
        self._pool.admission.resize(slot, choice.bound_tokens)
        choice.start(slot, self._owner.remaining_s())

    def _can_go_on(self, choice: EngineChoice, engine: EngineHandle) -> bool:
        """Whether an engine reads the prompt's tokens and continues an output alike, and has room.

        Engines of one fingerprint may hold contexts of different lengths; that of the engine that
        read the prompt will do.
        """
        begun, offer = self.offer, engine.offer
        return begun is None or (
            offer.fingerprint == begun.fingerprint
            and (not choice.has_output or offer.resume_version == choice.resume_version)
            and (
                begun.max_model_len <= offer.max_model_len
                or choice.context_tokens <= offer.max_model_len
            )
        )

    def _questions(self) -> list[Prepare]:
        return [
            bridge.addressed(
                prepare,
                self.wire_id(number),
                deadline_s=self._owner.remaining_s(),
                tenant=self._admitted.tenant,
                priority=self._admitted.priority,
                trace_id=self._owner.trace_id,
                traceparent=self._owner.traceparent,
            )
            for number, prepare in enumerate(self._job.prepares)
        ]

    async def _acquire(self, tokens: int, *, is_extra: bool) -> Slot:
        with self._owner.step("queue"):
            return await self._pool.admission.acquire(
                self._job.model,
                tenant=self._admitted.tenant,
                priority=self._admitted.priority,
                tokens=tokens,
                is_extra=is_extra,
            )
