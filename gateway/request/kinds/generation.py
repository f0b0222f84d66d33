"""Chat and completions as a kind of work: prompts, choices, a parser, and the events they make."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from gateway import bridge
from gateway.bridge import Outcome
from gateway.errors import GatewayError, InvalidRequestError
from gateway.request.choices.answer import Answer
from gateway.request.choices.launcher import EnginePool, Launcher
from gateway.request.choices.lease_watch import LeaseWatch
from gateway.request.delivery.events import GenerationEvent
from gateway.request.delivery.pipeline import EventQueue, Pipeline
from gateway.request.jobs.job import GenerationJob
from gateway.request.jobs.model_limits import (
    check_answer_size,
    check_prompts,
    check_served,
    check_template,
    find_offer,
    unread_fields,
)
from gateway.request.jobs.thoughts import check_budget, thought_limit
from gateway.request.leases.budget import TokenBudget
from gateway.request.leases.work_bound import Admitted, Bound
from gateway.request.lifecycle.work import Owner
from gateway.request.lifecycle.work_trace import generation_attributes
from gateway.request.parsers.parsing import ParseSession, parse_opening
from gateway.telemetry.metrics import GenerationRecord, Metrics
from gateway.workers.parsers import ParserLink
from protocol.runtime.tracing import Attributes
from protocol.version import ProtocolVersion
from protocol.wire.messages import (
    EngineOffer,
    OpenParse,
    ParseOpened,
    Prepared,
    StreamUsage,
    Usage,
)

_OF_SCHEMA: Final = re.compile(r"tools\[(\d{1,4})\]\.function\.parameters")
"""Where in the tools that it was given a parser finds a wrong schema."""
BACKGROUND_PRIORITY = 1
"""That of keys with `low`."""


class GenerationWork:
    """One generation: after `Request.start`, `next_events` until None.

    It is long because it is a kind of work, whose every method `Request` calls, and a reader's
    view of it.

    Args:
        job: What is asked for.
        asked_model: What the client calls its model.
        pool: The engines.
        parsers: The parser workers.
        metrics: Where it is counted.
        configured_models: Names that are served sooner or later.
        slice_tokens: What a choice reserves at a time when the client set no limit.
        max_answer_bytes: Answers estimated larger are refused.
        thinking_budgets: Tokens of reasoning by effort.
        allows_templates: Whether requests may bring a chat template.
        clock: Monotonic seconds.
    """

    _owner: Owner
    _launcher: Launcher
    _lease_watch: LeaseWatch
    _answer: Answer
    _version: ProtocolVersion

    def __init__(
        self,
        job: GenerationJob,
        *,
        asked_model: str,
        pool: EnginePool,
        parsers: ParserLink,
        metrics: Metrics,
        configured_models: tuple[str, ...],
        slice_tokens: int,
        max_answer_bytes: int,
        thinking_budgets: Mapping[str, int],
        allows_templates: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job = job
        self.endpoint = job.endpoint
        self.model = job.model
        self._asked_model = asked_model
        self.is_served = False
        self.offer: EngineOffer | None = None
        self._first_offer: EngineOffer | None = None
        self._pool = pool
        self._parsers = parsers
        self._metrics = metrics
        self._configured_models = configured_models
        self._max_answer_bytes = max_answer_bytes
        self._thinking_budgets = thinking_budgets
        self._allows_templates = allows_templates
        self._clock = clock
        self._arrived_at = clock()
        self._budget = TokenBudget(job, slice_tokens)
        self._parse: ParseSession | None = None
        self._opening: OpenParse | None = None
        self._prepared: list[Prepared] = []
        self._output_limits: list[int] = []
        self._admitted = Admitted()
        self._queue = EventQueue()
        self._pipeline = Pipeline(self._queue, job.options)

    def attach(self, owner: Owner) -> None:
        """Whose work it is."""
        self._owner = owner
        self._launcher = Launcher(self._pool, self.job, owner)
        self._lease_watch = LeaseWatch(
            owner.lease,
            self._budget.slice_tokens,
            self._queue,
            owner.background,
        )
        self._answer = Answer(
            self.job,
            owner=owner,
            pool=self._pool,
            launcher=self._launcher,
            budget=self._budget,
            lease_watch=self._lease_watch,
            pipeline=self._pipeline,
            clock=self._clock,
        )

    # For the routes.

    async def next_events(self, timeout_s: float | None) -> list[GenerationEvent] | None:
        """What has happened since the last call, as soon as there is something.

        Args:
            timeout_s: An empty list comes when nothing happened for so long; None waits.

        Returns:
            None after the last event.

        Raises:
            GatewayError: The request failed; events that came before were returned before.
        """
        return await self._queue.take(timeout_s)

    def usage(self) -> Usage:
        """What was used so far; final after the last event."""
        return self._answer.usage()

    def choice_usages(self) -> tuple[StreamUsage, ...]:
        """The same by choice, where there are several."""
        return self._answer.choice_usages()

    @property
    def unenforced(self) -> tuple[str, ...]:
        """Keywords of the output's schemas that are left to the model."""
        return self._answer.unenforced

    @property
    def unread(self) -> tuple[str, ...]:
        """Fields of the request that its model's template never reads."""
        if self.offer is None or not self.job.verbosity_param:
            return ()
        return unread_fields(self.job, self.offer)

    # The stages of a request.

    def bound(self) -> Bound:
        """The prompt by its bytes and a first slice of output for every choice."""
        offer = self._first_offer = self._pool.directory.offer(self.model)
        prompt_tokens, completion_tokens = self._budget.first_reservation(offer)
        return Bound(
            prompt_tokens,
            completion_tokens,
            asked_tokens=self._budget.asked_tokens,
            is_streaming=self.job.options.is_streaming,
            uses_tools=self.job.tools_json is not None,
            end_user=self.job.end_user,
        )

    def begin(self, admitted: Admitted) -> None:
        """Send the prompts ahead of the grant, if there is a free slot; at once after `bound`."""
        offer = self._first_offer
        if offer is not None and self._may_fit(offer):
            self._launcher.begin(self._placed(admitted), self._budget.upper_bound(offer))

    def _placed(self, admitted: Admitted) -> Admitted:
        """Where the request stands in the queue: never before its key's place."""
        if not self.job.is_background:
            return admitted
        return admitted.at(max(admitted.priority, BACKGROUND_PRIORITY))

    def withdraw(self) -> None:
        """Take back what `begin` did."""
        self._launcher.withdraw()

    def check(self) -> None:
        """Refuse what the model's engines can't do.

        Raises:
            GatewayError: No such model, or a parameter that it doesn't support.
        """
        check_template(self.job.prepares[0], is_allowed=self._allows_templates)
        offer = find_offer(self._pool.directory, self.model, self._configured_models)
        self.is_served = True
        self._go_by(offer)

    async def prepare(self, admitted: Admitted) -> tuple[int, int] | None:
        """Have the prompts tokenised; what the request then reserves.

        Raises:
            GatewayError: A prompt is wrong or too long, the answer would be too large, or no engine
                can take it.
        """
        assert self.offer is not None, "check() found it"
        admitted = self._admitted = self._placed(admitted)
        self._budget.cap(admitted.max_completion_tokens)
        try:
            prepared = await self._launcher.prepare(
                admitted, self._budget.upper_bound(self.offer), self._checked_sizes
            )
        except GatewayError as error:
            if error.param == "messages":  # an engine doesn't know where its messages came from
                error.param = self.job.prompt_param
            raise
        self._prepared = prepared
        served = self._launcher.offer
        if served is not None and served.fingerprint != self.offer.fingerprint:
            self._go_by(served)  # the other one of two that serve the model at the moment
        prompt_tokens, limits = self._checked_sizes(prepared)
        self._output_limits = limits
        return self._budget.reservation(prompt_tokens, limits)

    def _checked_sizes(self, prepared: Sequence[Prepared]) -> tuple[list[int], list[int]]:
        """Tokens of the prompts so far, and the most that may answer each."""
        prompt_tokens = [len(one.prompt_token_ids) for one in prepared]
        limits = self._budget.output_limits(prepared)
        check_answer_size(self.job, prompt_tokens, limits, self._max_answer_bytes)
        return prompt_tokens, limits

    async def run(self) -> None:
        """Open the parser, if one is needed, and start the choices.

        Raises:
            GatewayError: No parser is there, or it refused; or the reasoning can't be ended.
        """
        self._pipeline.open(
            self._prepared,
            self.usage,
            needs_logprobs=self.job.sampling.prompt_logprobs is not None,
        )
        opened = await self._open_parse()
        limit = thought_limit(self.job, self._thinking_budgets, opened, self._version)
        prompts = list(zip(self._prepared, self._output_limits, strict=True))
        self._answer.start(prompts, self._admitted, self._parse, opened, limit)

    def abort(self, error: GatewayError | None) -> None:
        """Stop the choices and the parser; the reader gets the error after the events so far."""
        try:
            self._launcher.release()
            self._answer.abort()
            if self._parse is not None:
                self._parse.close()
        finally:
            self._queue.close(error)  # whatever raised above: its reader must not wait forever

    def give_up(self) -> None:
        """No end came after an abort: what arrived counts."""
        self._answer.give_up()

    def trace_attributes(self) -> Attributes:
        """What was asked for, and how its choices ended."""
        return generation_attributes(self.job, self._asked_model, self._answer.finish_reasons)

    @property
    def has_begun(self) -> bool:
        """Whether a choice was started."""
        return self._answer.has_begun

    @property
    def is_at_worker(self) -> bool:
        """Whether an engine may still report what it used."""
        return self._answer.is_at_worker

    @property
    def first_output_at(self) -> float | None:
        """When the first output of any choice came."""
        return self._answer.first_output_at

    def observe(self, outcome: Outcome, duration_s: float) -> None:
        """Count it."""
        if self.offer is None:
            return  # a name that no engine serves must not become a label
        first_at = self._answer.first_output_at
        self._metrics.observe_generation(
            GenerationRecord(
                model=self.model,
                outcome=outcome,
                usage=self.usage(),
                duration_s=duration_s,
                first_output_s=None if first_at is None else first_at - self._arrived_at,
                longest_choice=self._answer.longest_choice,
                num_malformed=0 if self._parse is None else self._parse.num_malformed,
                num_resumed=self._answer.num_resumed,
                num_replayed=0 if self._parse is None else self._parse.num_replayed,
            )
        )

    # Small parts.

    def _go_by(self, offer: EngineOffer) -> None:
        """Take an offer as what the model can do, and how its text is to be read."""
        self.offer = offer
        version = self._version = self._pool.directory.version(self.model)
        check_served(self.job, offer, version)
        check_budget(self.job, offer, version)
        self._opening = parse_opening(
            self.job,
            offer,
            self._owner.request_id,
            self._owner.trace_id,
            self._owner.traceparent,
        )

    def _may_fit(self, offer: EngineOffer) -> bool:
        try:
            check_prompts(self.job.prepares, offer)
        except InvalidRequestError:
            return False  # `check` says so, once the caller is known
        return True

    async def _open_parse(self) -> ParseOpened | None:
        if self._opening is None:
            return None
        self._parse = ParseSession(
            self._parsers,
            bridge.with_prompt_tail(self._opening, self._prepared[0].prompt_tail),
            emit=self._pipeline.put,
            on_choice_done=self._answer.on_choice_done,
            on_failed=lambda error: self._owner.end("failed", error),
            spawn=self._owner.background.spawn,
        )
        try:
            return await self._parse.open()
        except GatewayError as error:
            # A parser doesn't know where its tools came from.
            place = _OF_SCHEMA.fullmatch(error.param or "")
            for param in self.job.tool_params[int(place[1]) :][:1] if place else ():
                error.param, error.message = param, f"Invalid `{param}`: {error.message}"
            raise
