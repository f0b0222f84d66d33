"""The choices of one generation and what becomes of their output: events, usage, one end."""

import time
from collections.abc import Callable

from gateway import bridge
from gateway.errors import GatewayError
from gateway.request.choices.choice import ChoicePlan, EngineChoice
from gateway.request.choices.launcher import EnginePool, Launcher
from gateway.request.choices.lease_watch import LeaseWatch
from gateway.request.delivery.events import ChoiceFinished, ContentText, total_usage
from gateway.request.delivery.pipeline import Pipeline
from gateway.request.jobs.job import GenerationJob
from gateway.request.jobs.thoughts import ThoughtLimit
from gateway.request.leases.budget import TokenBudget
from gateway.request.leases.work_bound import Admitted
from gateway.request.lifecycle.work import Owner
from gateway.request.parsers.parsing import ParseSession
from gateway.request.preparation.engine_asker import is_retryable
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Delta,
    Finished,
    ParseOpened,
    Prepared,
    SamplingParams,
    StreamUsage,
    Usage,
)
from protocol.wire.sampling_ranges import MAX_STOP_TOKEN_IDS


class Answer:
    """All choices of a request on their way from engines to events (`ChoiceOwner`).

    It is long because it hears each way in which a choice can go on or end.

    Args:
        job: What is asked for.
        owner: The request, which ends with the last choice or the first failure.
        pool: The engines.
        launcher: Starts choices, and moves them when an engine is lost.
        budget: What each choice may use.
        lease_watch: Grows the lease as choices go on.
        pipeline: Takes the events.
        clock: Monotonic seconds.

    Attributes:
        first_output_at: When the first output came; None before.
        finish_reasons: How choices ended, those that did.
        unenforced: Keywords of the output's schemas that its engine leaves to the model; known
            before the first event.
    """

    def __init__(
        self,
        job: GenerationJob,
        *,
        owner: Owner,
        pool: EnginePool,
        launcher: Launcher,
        budget: TokenBudget,
        lease_watch: LeaseWatch,
        pipeline: Pipeline,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.first_output_at: float | None = None
        self.unenforced: tuple[str, ...] = ()
        self._job = job
        self._tells_of_prompts = job.sampling.prompt_logprobs is not None
        self._owner = owner
        self._pool = pool
        self._launcher = launcher
        self._budget = budget
        self._lease_watch = lease_watch
        self._pipeline = pipeline
        self._clock = clock
        self._choices: list[EngineChoice] = []
        self.finish_reasons: list[str] = []
        self._finals: list[Usage | None] = []
        self._parse: ParseSession | None = None
        self._num_open = 0

    def start(
        self,
        prompts: list[tuple[Prepared, int]],
        admitted: Admitted,
        parse: ParseSession | None,
        opened: ParseOpened | None,
        limit: ThoughtLimit | None = None,
    ) -> None:
        """Start every choice: the first at the slot that prepared the prompts.

        Args:
            prompts: Each with the output tokens at most of its choices.
            admitted: Whose request it is.
            parse: What the text passes, if anything.
            opened: What that said.
            limit: Of the reasoning of each choice.
        """
        self._parse = parse
        self._make_choices(prompts, admitted, opened, limit)
        first, *others = self._choices
        for choice in others:
            self._owner.background.spawn(self._launcher.launch(choice))
        self._launcher.start(first, self._launcher.take_slot(first))

    def abort(self) -> None:
        """Stop every choice that an engine works on."""
        for choice in self._choices:
            if choice.slot is not None:
                choice.abort()

    def give_up(self) -> None:
        """No end came after `abort`: what arrived counts."""
        for choice in self._choices:
            choice.give_up()

    @property
    def has_begun(self) -> bool:
        """Whether a choice was started."""
        # Mostly one, and this is asked for several times a request: a generator takes longer.
        for choice in self._choices:  # noqa: SIM110
            if choice.was_started:
                return True
        return False

    @property
    def is_at_worker(self) -> bool:
        """Whether an engine may still report what it used."""
        for choice in self._choices:  # noqa: SIM110
            if choice.slot is not None:
                return True
        return False

    @property
    def num_resumed(self) -> int:
        """How often choices went on at another engine."""
        return sum([max(0, choice.attempt - 1) for choice in self._choices])

    @property
    def longest_choice(self) -> int:
        """Output tokens of the choice that has most."""
        return max([choice.num_output_tokens for choice in self._choices], default=0)

    def usage(self) -> Usage:
        """What was used so far; final after the last event."""
        if len(self._choices) == 1:
            return self._finals[0] or self._choices[0].usage
        usages = [
            final or choice.usage for final, choice in zip(self._finals, self._choices, strict=True)
        ]
        return total_usage(usages, self._job.options.num_choices)

    def choice_usages(self) -> tuple[StreamUsage, ...]:
        """The same by choice, where there are several."""
        if len(self._choices) < 2:
            return ()
        return tuple(choice.reported_usage() for choice in self._choices)

    # What choices report.

    def on_choice_text(self, choice: EngineChoice, delta: Delta) -> None:
        """New output: to the parser, or to the client."""
        if delta.unenforced:
            self.unenforced = delta.unenforced
            if not (delta.text or delta.token_ids or delta.logprobs or delta.prompt_logprobs):
                return
        if self.first_output_at is None:
            self.first_output_at = self._clock()
        if self._tells_of_prompts and choice.is_first and choice.has_prompt_logprobs:
            self._pipeline.on_prompt_logprobs(choice.index, choice.prompt_logprobs)
        if not self._job.discards_output:
            self._take_output(choice, delta)
        self._lease_watch.look_at(choice)

    def on_choice_ended(self, choice: EngineChoice, finished: Finished) -> None:
        """The engine is done with a choice; its last text may still be at the parser."""
        reason = "stop" if finished.finish_reason == "stop" else "length"
        self._end_choice(choice, reason, finished.stop_reason)

    def on_choice_aborted(self, choice: EngineChoice) -> None:
        """A choice that was stopped has its final usage."""
        choice.release()
        self._owner.on_idle()

    def on_choice_failed(self, choice: EngineChoice, error: GatewayError) -> None:
        """Another engine goes on with the choice if that may help; otherwise the request ends."""
        if choice.is_at_lease_end:
            self._end_choice(choice, "length", None)
        elif choice.may_go_on and is_retryable(error):
            self._owner.background.spawn(self._launcher.relaunch(choice, error))
        else:
            if error.code is ErrorCode.UNSUPPORTED_GRAMMAR and error.param is None:
                # An engine doesn't know where its grammar came from.
                error.param = self._job.grammar_param
            self._owner.end("failed", error)

    def on_choice_broken(self, error: GatewayError) -> None:
        """Something of ours raised: the request ends, and no other one does."""
        self._owner.end("failed", error)
        self._owner.on_idle()

    # Small parts.

    def _make_choices(
        self,
        prompts: list[tuple[Prepared, int]],
        admitted: Admitted,
        opened: ParseOpened | None,
        thought_limit: ThoughtLimit | None,
    ) -> None:
        num_choices = self._job.options.num_choices
        for number, (prompt, limit) in enumerate(prompts):
            plan = ChoicePlan(
                request_id=self._launcher.wire_id(number),
                lease_id=admitted.lease_id,
                prepared=prompt,
                sampling=_ended_by(self._job.sampling_of(number), prompt.stop_token_ids),
                max_output_tokens=limit,
                tenant=admitted.tenant,
                priority=admitted.priority,
                keep_special_tokens=() if opened is None else opened.keep_special_tokens,
                grammar=self._job.response_grammar if opened is None else opened.grammar,
                num_choices=num_choices,
                is_streaming=self._job.options.is_streaming,
                trace_id=self._owner.trace_id,
                limit=thought_limit,
                cache_salt=self._job.prepares[number].cache_salt,
                traceparent=self._owner.traceparent,
            )
            reserved = self._budget.slice_of(limit)
            for choice in range(num_choices):
                self._choices.append(
                    EngineChoice(
                        self._pool.link,
                        plan,
                        index=number * num_choices + choice,
                        number=choice,
                        reserved_tokens=reserved,
                        lease_tokens=self._budget.released(reserved),
                        owner=self,
                        admission=self._pool.admission,
                        suspicion=self._launcher.suspicion(),
                    )
                )
        self._finals = [None] * len(self._choices)
        self._num_open = len(self._choices)

    def _take_output(self, choice: EngineChoice, delta: Delta) -> None:
        token_ids = delta.token_ids if self._job.options.shows_token_ids else ()
        if self._parse is not None:
            if token_ids:
                self._pipeline.put(ContentText(choice.index, "", token_ids=token_ids))
            self._parse.feed(choice.index, delta)
        elif delta.text or token_ids or delta.logprobs:
            self._pipeline.put(
                ContentText(choice.index, delta.text, delta.logprobs, delta.token_ends, token_ids)
            )

    def _end_choice(
        self, choice: EngineChoice, finish_reason: str, stop_reason: str | int | None
    ) -> None:
        choice.finish_reason = finish_reason
        choice.stop_reason = stop_reason
        if self._job.discards_output:
            choice.finish_reason, choice.stop_reason = "length", None
        if self._parse is not None:
            self._parse.finish(choice.index)
        else:
            self.on_choice_done(choice.index)

    def on_choice_done(self, index: int) -> None:
        """All text of a choice is out: told by the parser, or by its end where there is none."""
        choice = self._choices[index]
        if choice.is_done:
            return
        choice.is_done = True
        if self._tells_of_prompts and choice.is_first:
            # An engine that told less than it was asked for must not hold the others up.
            self._pipeline.on_prompt_logprobs(index, choice.prompt_logprobs)
        usage, reason, is_call_cut = choice.usage, choice.finish_reason, False
        if self._parse is not None:
            is_call_cut = self._parse.is_call_cut(index)
            usage = bridge.with_reasoning(usage, self._parse.num_reasoning_tokens(index))
            if (
                reason == "stop"
                and self._parse.num_completed_calls(index)
                and self._job.tool_choice != "named"
            ):
                reason = "tool_calls"
        if self._job.discards_output:
            usage = bridge.without_completion(usage)
        self._finals[index] = usage
        choice.release()
        self.finish_reasons.append(reason)
        self._pipeline.put(ChoiceFinished(index, reason, usage, choice.stop_reason, is_call_cut))
        self._num_open -= 1
        if self._num_open == 0:
            self._owner.end("finished")


def _ended_by(sampling: SamplingParams, token_ids: tuple[int, ...]) -> SamplingParams:
    """The parameters with what ends this prompt's output besides."""
    if not token_ids or sampling.ignore_eos:
        return sampling
    every = tuple(dict.fromkeys((*sampling.stop_token_ids, *token_ids)))[:MAX_STOP_TOKEN_IDS]
    return bridge.with_stop_token_ids(sampling, every)
