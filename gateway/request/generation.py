"""One client request from its authorisation to its settlement: the ten steps, and one end."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec import structs

from gateway.errors import (
    DeadlineExceededError,
    GatewayError,
    ModelNotFoundError,
    ShuttingDownError,
    WorkerUnavailableError,
)
from gateway.request.budget import TokenBudget
from gateway.request.caller import Caller
from gateway.request.choice import ChoicePlan, EngineChoice, is_retryable
from gateway.request.event_queue import EventQueue
from gateway.request.events import (
    ChoiceFinished,
    ContentText,
    GenerationEvent,
    UsageTold,
    total_usage,
)
from gateway.request.job import GenerationJob
from gateway.request.launcher import Launcher, tokens_of
from gateway.request.lease import Outcome, RequestLease
from gateway.request.lease_watch import LeaseWatch
from gateway.request.parsing import ParseSession, parse_opening
from gateway.request.prompt_gate import PromptGate
from gateway.request.services import Services
from gateway.telemetry.metrics import GenerationRecord
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Authorize,
    Delta,
    EngineOffer,
    Finished,
    LeaseReport,
    LimitState,
    OpenParse,
    ParseOpened,
    Prepared,
    StreamUsage,
    Usage,
)

_logger = logging.getLogger("penstock.gateway.generation")

ABORT_PATIENCE_S = 10.0
"""How long the settlement of an aborted request waits for the engine's own count."""


class Generation:
    """A request: `start`, then `next_events` until None, and `close` whatever happens.

    Args:
        services: The parts of the gateway.
        job: What is asked for.
        caller: Who asks.
        request_id: Made by the gateway.
    """

    def __init__(
        self, services: Services, job: GenerationJob, caller: Caller, request_id: str
    ) -> None:
        self.job = job
        self.request_id = request_id
        self.offer: EngineOffer | None = None
        self._services = services
        self._caller = caller
        self._arrived_at = services.clock()
        self._first_output_at: float | None = None
        self._lease = RequestLease(services.auth, request_id)
        self._lease_watch = LeaseWatch(
            self._lease, services.settings.lease_slice_tokens, self._spawn
        )
        self._budget = TokenBudget(job, services.settings.lease_slice_tokens)
        self._launcher = Launcher(services, job, request_id, self._lease, self._remaining_s)
        self._choices: list[EngineChoice] = []
        self._finals: list[Usage | None] = []
        self._parse: ParseSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._events = EventQueue()
        self._emit: Callable[[GenerationEvent], None] = self._events.put
        self._gate: PromptGate | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._num_open = 0
        self._outcome: Outcome | None = None
        self._is_settled = False

    @property
    def limits(self) -> LimitState:
        """Where the caller stands, as last reported."""
        return self._lease.limits

    # For the routes.

    async def start(self) -> None:
        """Steps 2 to 7: everything before the first output, and before any header.

        Raises:
            GatewayError: The request ends here; whatever was reserved is given back.
        """
        self._services.metrics.in_flight.inc()
        self._services.sessions.add(self)
        try:
            async with asyncio.timeout(self._services.settings.request_timeout_s):
                await self._start()
        except TimeoutError:
            self.close("failed")
            raise self._too_late() from None
        except GatewayError:
            self.close("failed")
            raise
        except BaseException:
            self.close("aborted")
            raise

    async def next_events(self, timeout_s: float) -> list[GenerationEvent] | None:
        """What has happened since the last call, as soon as there is something.

        Args:
            timeout_s: An empty list comes when nothing happened for so long.

        Returns:
            None after the last event.

        Raises:
            GatewayError: The request failed; events that came before were returned before.
        """
        return await self._events.take(timeout_s)

    def usage(self) -> Usage:
        """What was used so far; final after the last event."""
        usages = [
            final or choice.usage for final, choice in zip(self._finals, self._choices, strict=True)
        ]
        return total_usage(usages, self.job.num_choices)

    def fail(self, error: GatewayError) -> None:
        """End the request with an error, unless it has ended already."""
        self._events.close(error)
        self.close("failed")

    def close(self, outcome: Outcome = "aborted") -> None:
        """End the request; whatever still runs is stopped, and what was used is settled.

        Idempotent: the first outcome counts. Called from every exit path of the consumer.
        """
        if self._outcome is not None:
            return
        self._outcome = outcome
        for task in self._tasks:
            task.cancel()
        if self._deadline is not None:
            self._deadline.cancel()
        for choice in self._choices:
            if choice.is_at_engine:
                choice.abort()
        if self._parse is not None:
            self._parse.close()
        self._events.close()
        if any(choice.is_at_engine for choice in self._choices):
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(ABORT_PATIENCE_S, self._give_up)
        self._settle_when_ended()

    def lease_report(self) -> LeaseReport | None:
        """What the lease has used so far, for the auth worker."""
        streams: tuple[StreamUsage, ...] = ()
        if len(self._choices) > 1:
            streams = tuple(choice.stream_usage() for choice in self._choices)
        return self._lease.report(self.usage(), streams)

    # The steps.

    async def _start(self) -> None:
        services = self._services
        if services.is_draining:
            raise ShuttingDownError()
        services.outbox.check_room()
        prompt_tokens, completion_tokens = self._budget.first_reservation(
            services.engines.offer(self.job.model)
        )
        await self._lease.reserve(
            Authorize(
                request_id=self.request_id,
                key_digest=self._caller.key_digest,
                endpoint=self.job.endpoint,
                model=self.job.model,
                address=self._caller.address,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
            )
        )
        self.offer = self._find_offer()
        opening = parse_opening(self.job, self.offer, self.request_id)
        seat, prepared = await self._launcher.prepare(self._budget, self.offer)
        try:
            await self._lease.correct(*self._budget.reservation(prepared))
            self._prepare_events(prepared)
            self._make_choices(prepared, await self._open_parse(opening, prepared))
        except BaseException:
            services.admission.release(seat)
            raise
        self._deadline = asyncio.get_running_loop().call_later(
            self._remaining_s(), lambda: self.fail(self._too_late())
        )
        services.admission.resize(seat, tokens_of(self._choices[0]))
        first, *others = self._choices
        for choice in others:
            self._spawn(self._launcher.launch(choice))
        self._launcher.route(first, seat)
        first.start(seat, self._remaining_s())

    def _find_offer(self) -> EngineOffer:
        model, services = self.job.model, self._services
        offer = services.engines.offer(model)
        if offer is not None:
            return offer
        if model in services.settings.models:
            raise WorkerUnavailableError(f"The model `{model}` is still starting.")
        known = {*services.engines.models(), *services.settings.models}
        raise ModelNotFoundError(model, tuple(sorted(known)))

    async def _open_parse(
        self, opening: OpenParse | None, prepared: list[Prepared]
    ) -> ParseOpened | None:
        if opening is None:
            return None
        self._parse = ParseSession(
            self._services.parsers,
            structs.replace(opening, prompt_tail=prepared[0].prompt_tail),
            emit=self._emit,
            on_choice_done=self._finish_choice,
            on_failed=self.fail,
        )
        return await self._parse.open()

    def _prepare_events(self, prepared: list[Prepared]) -> None:
        if self.job.options.continuous_usage:
            self._emit = self._emit_with_usage
        if self.job.options.shows_prompt:
            self._gate = PromptGate(
                self._emit,
                prepared,
                num_choices=self.job.num_choices,
                needs_logprobs=self.job.sampling.prompt_logprobs is not None,
            )
            self._emit = self._gate.put

    def _emit_with_usage(self, event: GenerationEvent) -> None:
        self._events.put(UsageTold(event.choice, self.usage()))
        self._events.put(event)

    def _make_choices(self, prepared: list[Prepared], opened: ParseOpened | None) -> None:
        limits = self._budget.output_limits(prepared)
        for number, (prompt, limit) in enumerate(zip(prepared, limits, strict=True)):
            plan = ChoicePlan(
                request_id=self._launcher.wire_id(number),
                lease_id=self._lease.lease_id,
                prepared=prompt,
                sampling=self.job.sampling,
                max_output_tokens=limit,
                tenant=self._lease.tenant,
                priority=self._lease.priority,
                keep_special_tokens=() if opened is None else opened.keep_special_tokens,
                grammar=self.job.response_grammar if opened is None else opened.grammar,
                num_choices=self.job.num_choices,
                is_streaming=self.job.options.is_streaming,
            )
            for choice in range(self.job.num_choices):
                self._choices.append(
                    EngineChoice(
                        self._services.engines,
                        plan,
                        index=number * self.job.num_choices + choice,
                        number=choice,
                        lease_tokens=self._budget.slice_of(limit),
                        owner=self,
                        admission=self._services.admission,
                        suspicion=self._launcher.suspicion(),
                    )
                )
        self._finals = [None] * len(self._choices)
        self._num_open = len(self._choices)

    # What choices report.

    def on_choice_text(self, choice: EngineChoice, delta: Delta) -> None:
        """New output: to the parser, or to the client."""
        if self._first_output_at is None:
            self._first_output_at = self._services.clock()
        if self._gate is not None and choice.is_first and choice.has_prompt_logprobs:
            self._gate.open(choice.index, choice.prompt_logprobs)
        if not self.job.discards_output:
            self._take_output(choice, delta)
        self._lease_watch.look_at(choice)

    def _take_output(self, choice: EngineChoice, delta: Delta) -> None:
        token_ids = delta.token_ids if self.job.options.shows_token_ids else ()
        if self._parse is not None:
            if token_ids:
                self._emit(ContentText(choice.index, "", token_ids=token_ids))
            self._parse.feed(choice.index, delta)
        elif delta.text or token_ids or delta.logprobs:
            self._emit(
                ContentText(choice.index, delta.text, delta.logprobs, delta.token_ends, token_ids)
            )

    def on_choice_ended(self, choice: EngineChoice, finished: Finished) -> None:
        """The engine is done with a choice; its last text may still be at the parser."""
        reason = "stop" if finished.finish_reason == "stop" else "length"
        self._end_choice(choice, reason, finished.stop_reason)

    def _end_choice(
        self, choice: EngineChoice, finish_reason: str, stop_reason: str | int | None
    ) -> None:
        choice.finish_reason = finish_reason
        choice.stop_reason = stop_reason
        if self.job.discards_output:
            choice.finish_reason, choice.stop_reason = "length", None
        if self._parse is not None:
            self._parse.finish(choice.index)
        else:
            self._finish_choice(choice.index)

    def on_choice_aborted(self, choice: EngineChoice) -> None:
        """A choice that was stopped has its final usage."""
        self._settle_when_ended()

    def on_choice_failed(self, choice: EngineChoice, error: GatewayError) -> None:
        """Another engine goes on with the choice if that may help; otherwise the request ends."""
        if choice.is_at_lease_end:
            self._end_choice(choice, "length", None)
        elif choice.may_go_on and is_retryable(error):
            self._spawn(self._launcher.relaunch(choice, error))
        else:
            if error.code is ErrorCode.UNSUPPORTED_GRAMMAR and error.param is None:
                # An engine doesn't know where its grammar came from.
                error.param = self.job.grammar_param
            self.fail(error)

    def _finish_choice(self, index: int) -> None:
        choice = self._choices[index]
        if self._outcome is not None or choice.is_done:
            return
        choice.is_done = True
        if self._gate is not None and choice.is_first:
            # An engine that told less than it was asked for must not hold the others up.
            self._gate.open(index, choice.prompt_logprobs)
        usage, reason = choice.usage, choice.finish_reason
        if self._parse is not None:
            usage = structs.replace(usage, reasoning_tokens=self._parse.num_reasoning_tokens(index))
            if (
                reason == "stop"
                and self._parse.num_completed_calls(index)
                and self.job.tool_choice != "named"
            ):
                reason = "tool_calls"
        if self.job.discards_output:
            usage = structs.replace(usage, completion_tokens=0)
        self._finals[index] = usage
        self._emit(ChoiceFinished(index, reason, usage, choice.stop_reason))
        self._num_open -= 1
        if self._num_open == 0:
            self.close("finished")

    # The end.

    def _settle_when_ended(self) -> None:
        """Settle once: when the request has its outcome and no engine works on it any more."""
        if self._outcome is None or self._is_settled:
            return
        if any(choice.is_at_engine for choice in self._choices):
            return
        self._is_settled = True
        if self._patience is not None:
            self._patience.cancel()
        self._services.sessions.discard(self)
        usage = self.usage()
        self._measure(usage, self._outcome)
        self._lease.settle(self._services.outbox, usage, self._outcome)

    def _give_up(self) -> None:
        for choice in self._choices:
            choice.give_up()
        self._settle_when_ended()

    def _measure(self, usage: Usage, outcome: Outcome) -> None:
        metrics = self._services.metrics
        metrics.in_flight.dec()
        _logger.info(
            "request %s %s: %d prompt and %d completion tokens",
            self.request_id,
            outcome,
            usage.prompt_tokens,
            usage.completion_tokens,
        )
        if self.offer is None:
            return  # a name that no engine serves must not become a label
        first_at = self._first_output_at
        metrics.observe_generation(
            GenerationRecord(
                model=self.job.model,
                outcome=outcome,
                usage=usage,
                duration_s=self._services.clock() - self._arrived_at,
                first_output_s=None if first_at is None else first_at - self._arrived_at,
                longest_choice=max((one.num_output_tokens for one in self._choices), default=0),
                num_malformed=0 if self._parse is None else self._parse.num_malformed,
                num_resumed=sum(max(0, choice.attempt - 1) for choice in self._choices),
                num_replayed=0 if self._parse is None else self._parse.num_replayed,
            )
        )

    # Small parts.

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, GatewayError):
            self.fail(error)
        elif error is not None:
            _logger.error("request %s failed", self.request_id, exc_info=error)
            self.fail(GatewayError("Something went wrong in this server."))

    def _remaining_s(self) -> float:
        passed_s = self._services.clock() - self._arrived_at
        return max(0.0, self._services.settings.request_timeout_s - passed_s)

    def _too_late(self) -> GatewayError:
        limit_s = self._services.settings.request_timeout_s
        if not self._services.engines.engines(self.job.model):
            return WorkerUnavailableError(
                f"No engine of the model `{self.job.model}` came back within the {limit_s:g} "
                "seconds that a request may take; please try again."
            )
        return DeadlineExceededError(f"The request took longer than {limit_s:g} seconds.")
