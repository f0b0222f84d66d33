"""One choice of a request, from engine to engine: its attempts, its output and its one end."""

from typing import Protocol

from msgspec import Struct

from gateway import bridge
from gateway.dispatch.admission import Admission
from gateway.dispatch.quarantine import Suspicion
from gateway.dispatch.slots import EngineHandle, Share, Slot
from gateway.errors import GatewayError, WorkerLostError
from gateway.request.jobs.thoughts import ThoughtLimit
from gateway.workers.engines import EngineLink
from protocol.wire.messages import (
    Delta,
    Failure,
    Finished,
    Grammar,
    Prepared,
    SamplingParams,
    StreamUsage,
    TokenLogprobs,
    Usage,
)

_MAX_PAUSE_S = 1.0
_FIRST_PAUSE_S = 0.05


class ChoiceOwner(Protocol):
    """What a choice tells its request; every method returns at once."""

    def on_choice_text(self, choice: "EngineChoice", delta: Delta) -> None:
        """New text, or only tokens."""
        ...

    def on_choice_ended(self, choice: "EngineChoice", finished: Finished) -> None:
        """The engine's regular end."""
        ...

    def on_choice_aborted(self, choice: "EngineChoice") -> None:
        """The end after `abort`: its usage is final."""
        ...

    def on_choice_failed(self, choice: "EngineChoice", error: GatewayError) -> None:
        """It can't go on; `may_go_on` says whether another engine may try."""
        ...

    def on_choice_broken(self, error: GatewayError) -> None:
        """Something of ours raised while output was handled: the request ends."""
        ...


class ChoicePlan(Struct, frozen=True):
    """What every choice of one prompt has in common.

    Attributes:
        request_id: Of the prompt on the wire.
        max_output_tokens: What context and client allow.
        lease_id: What the output is charged to.
        num_choices: Of the prompt.
        is_streaming: Whether the answer travels as it comes.
        trace_id: The client's `X-Request-ID`.
        limit: Of its reasoning.
        cache_salt: Keeps its cached blocks apart from others of its tenant.
        traceparent: Where in a trace it belongs; empty when it isn't traced.
    """

    request_id: str
    lease_id: str
    prepared: Prepared
    sampling: SamplingParams
    max_output_tokens: int
    tenant: str
    priority: int
    keep_special_tokens: tuple[str, ...]
    grammar: Grammar | None
    num_choices: int
    is_streaming: bool
    trace_id: str
    limit: ThoughtLimit | None = None
    cache_salt: str = ""
    traceparent: str = ""


class EngineChoice:
    """One choice; it holds a slot exactly as long as an engine works on it.

    It is long because launcher, lease and answer ask and tell it things, each by a method.

    It keeps what an engine needs to go on where another one stopped: the tokens that came, and how
    many characters of their text.

    Args:
        engines: The link to the engines.
        plan: Shared by the choices of one prompt.
        index: Of the answer; `number` is the index within the prompt.
        reserved_tokens: Output tokens that are reserved at first.
        lease_tokens: Of these, what its engine may make before it is told more.
        owner: Is told what happens.
        admission: Takes slots back.
        suspicion: What speaks against it.

    Attributes:
        slot: At the engine that works on it, or may still; None at other times.
        is_first: Whether it is its prompt's first choice, whose engine tells of the prompt.
        num_output_tokens: Tokens that arrived, from all engines together.
        was_started: Whether an engine computed anything for it.
        share: Of the queue, which pays for each of its slots; None before the first.
    """

    def __init__(
        self,
        engines: EngineLink,
        plan: ChoicePlan,
        *,
        index: int,
        number: int,
        reserved_tokens: int,
        lease_tokens: int,
        owner: ChoiceOwner,
        admission: Admission,
        suspicion: Suspicion,
    ) -> None:
        self.plan = plan
        self.index = index
        self.is_first = number == 0
        self.slot: Slot | None = None
        self.share: Share | None = None
        self.num_output_tokens = 0
        self.attempt = 0
        self.resume_version = 0
        self.reserved_tokens = reserved_tokens
        self.lease_tokens = lease_tokens
        self.suspicion = suspicion
        self.was_started = False
        self._was_started_before = False
        self.is_lease_final = False
        self.is_extending = False
        self.is_done = False
        self.finish_reason = ""
        self.stop_reason: str | int | None = None
        self.prompt_logprobs: list[TokenLogprobs] = []
        self._engines = engines
        self._number = number
        self._owner = owner
        self._admission = admission
        self._token_ids: list[int] = []
        self._num_characters = 0
        self._num_cached_tokens = 0
        self._num_fruitless = 0
        self._is_aborted = False
        self._usage: Usage | None = None
        self._num_paid_tokens = 0

    @property
    def has_output(self) -> bool:
        """Whether anything arrived that an engine has to go on from."""
        return bool(self._token_ids) or self._num_characters > 0

    @property
    def may_go_on(self) -> bool:
        """Whether another engine can go on without repeating or losing anything.

        Text without token ids comes from an engine that doesn't send them.
        """
        return not self._is_aborted and (bool(self._token_ids) or self._num_characters == 0)

    @property
    def is_at_lease_end(self) -> bool:
        """Whether nothing more is paid for, or will be."""
        return self.is_lease_final and self.num_output_tokens >= self.lease_tokens

    @property
    def bound_tokens(self) -> int:
        """Upper bound of its prompt and output, as far as its engine may go."""
        return len(self.plan.prepared.prompt_token_ids) + self.lease_tokens

    @property
    def context_tokens(self) -> int:
        """The context that an engine needs: for the prompt, and for all that its client named.

        Of a client that named nothing any engine's context will do that has room for one more
        token: how much one holds is a matter of its memory.
        """
        wanted = self.num_output_tokens + 1
        if self.plan.sampling.max_tokens is not None:
            wanted = max(wanted, self.plan.max_output_tokens)
        return len(self.plan.prepared.prompt_token_ids) + wanted

    @property
    def pause_s(self) -> float:
        """How long to wait before the next attempt: not at all unless several brought nothing."""
        if self._num_fruitless < 2:
            return 0.0
        return float(min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._num_fruitless - 2)))

    @property
    def usage(self) -> Usage:
        """What the engine reported at its end, and until then what arrived."""
        if self._usage is not None:
            return self._usage
        if not self.was_started:
            return Usage()
        return Usage(
            prompt_tokens=len(self.plan.prepared.prompt_token_ids),
            completion_tokens=self.num_output_tokens,
            cached_tokens=self._num_cached_tokens,
        )

    def reported_usage(self) -> StreamUsage:
        """Its part of the lease, named as an engine names it that reports to the auth worker."""
        return bridge.choice_usage(self.plan.request_id, self._number, self.usage)

    def start(self, slot: Slot, deadline_s: float) -> None:
        """Begin, or go on, at the engine of a slot, which now belongs to this choice.

        Args:
            slot: From admission.
            deadline_s: Seconds that the request has left.
        """
        plan = self.plan
        self._was_started_before = self.was_started
        self.slot, self.share = slot, slot.share
        self._usage = None
        self._num_cached_tokens = 0
        self._num_fruitless += 1
        self.attempt += 1
        self.resume_version = slot.engine.offer.resume_version
        self.suspicion.on_attempt()
        generate = bridge.generate(
            plan.request_id,
            self._number,
            plan.prepared,
            self._sampling(),
            attempt=self.attempt,
            lease_id=plan.lease_id,
            lease_tokens=self.lease_tokens,
            deadline_s=deadline_s,
            tenant=plan.tenant,
            trace_id=plan.trace_id,
            traceparent=plan.traceparent,
            priority=plan.priority,
            keep_special_tokens=plan.keep_special_tokens,
            grammar=plan.grammar,
            output_token_ids=self._token_ids,
            num_sent_characters=self._num_characters,
            num_choices=plan.num_choices,
            is_streaming=plan.is_streaming,
            is_alone=slot.is_alone,
            thought=None if plan.limit is None else plan.limit.thought,
            max_thought_tokens=0 if plan.limit is None else plan.limit.max_tokens,
            cache_salt=plan.cache_salt,
        )
        try:
            self._engines.generate(slot.engine, generate, self)
            self.was_started = True
        except WorkerLostError as error:  # it went away unasked
            self.on_failure(error, None)
        if self.is_at_lease_end:
            self.cut()  # the lease ended while no engine worked on it; nothing else would end this

    def extend(self, lease_tokens: int) -> None:
        """The lease grew to so many output tokens in all."""
        self.lease_tokens = lease_tokens
        if self.slot is not None:
            self._admission.resize(self.slot, self.bound_tokens)
            self._engines.extend(
                self.slot.engine,
                bridge.extend(self.plan.request_id, self._number, self.attempt, lease_tokens),
            )

    def abort(self) -> None:
        """Stop, without another word to the client; `on_choice_aborted` follows."""
        self._is_aborted = True
        if self.slot is not None:
            self._send_abort(self.slot.engine)

    def cut(self) -> None:
        """Stop here with what there is: the regular end follows."""
        if self.slot is not None:
            self._send_abort(self.slot.engine)

    def release(self) -> None:
        """Its end was told: nothing more is; a choice that is done keeps nobody alive."""
        self._owner = _NOBODY

    def give_up(self) -> None:
        """No end came after an abort: take what arrived for the usage."""
        if self.slot is not None:
            self._engines.forget(self.slot.engine, self.plan.request_id, self._number)
            self._free_slot()

    @property
    def has_prompt_logprobs(self) -> bool:
        """Whether all log probabilities of the prompt have come, from the second token on."""
        return len(self.prompt_logprobs) >= len(self.plan.prepared.prompt_token_ids) - 1

    def _sampling(self) -> SamplingParams:
        """The parameters for the next attempt: it tells of the prompt what is still missing."""
        sampling = self.plan.sampling
        if sampling.prompt_logprobs is None:
            return sampling
        if self.is_first and not self.has_prompt_logprobs:
            self.prompt_logprobs.clear()
            return sampling
        return bridge.without_prompt_logprobs(sampling)

    def on_delta(self, delta: Delta) -> None:
        """New output of the current attempt."""
        self._token_ids += delta.token_ids
        self.num_output_tokens += len(delta.token_ids)
        self._num_characters += len(delta.text)
        if delta.cached_tokens:
            self._num_cached_tokens = delta.cached_tokens
        self._num_fruitless = 0
        if self.suspicion.on_tokens(len(delta.token_ids)) and self.slot is not None:
            self._admission.share(self.slot)
        self.prompt_logprobs.extend(delta.prompt_logprobs)
        if not self._is_aborted:
            self._owner.on_choice_text(self, delta)

    def on_finished(self, finished: Finished) -> None:
        """The engine's end of the current attempt."""
        self._usage = finished.usage
        self._free_slot()
        if self._is_aborted:
            self._owner.on_choice_aborted(self)
        elif finished.finish_reason == "abort" and not self.is_lease_final:
            stopped = WorkerLostError("The engine stopped this request; please try again.")
            self._owner.on_choice_failed(self, stopped)
        else:
            self._owner.on_choice_ended(self, finished)

    def on_failure(self, error: GatewayError, failure: Failure | None) -> None:
        """The current attempt failed."""
        if failure is not None and failure.usage is not None:
            self._usage = failure.usage
        elif failure is not None and not self.has_output:
            self.was_started = self._was_started_before  # whoever refuses has computed nothing
        error = self.suspicion.on_failure(error, self.slot)
        self._free_slot()
        if self._is_aborted:
            self._owner.on_choice_aborted(self)
        else:
            self._owner.on_choice_failed(self, error)

    def on_broken(self, error: GatewayError) -> None:
        """What its output led to here raised; its engine is told to stop, and nobody listens."""
        if self.slot is not None:
            self._send_abort(self.slot.engine)
            self._free_slot()
        self._owner.on_choice_broken(error)

    def _send_abort(self, engine: EngineHandle) -> None:
        self._engines.abort(engine, bridge.abort(self.plan.request_id, self._number, self.attempt))

    def _free_slot(self) -> None:
        """Give the slot back; the share pays for what was computed, whatever was lost, once."""
        slot, self.slot = self.slot, None
        if slot is None:
            return
        num_tokens = 0
        if self.was_started:
            num_tokens = len(self.plan.prepared.prompt_token_ids) + self.num_output_tokens
        self._admission.release(slot, num_tokens - self._num_paid_tokens or None)
        self._num_paid_tokens = num_tokens


class _Nobody:
    """The owner of a choice whose end was told."""

    def on_choice_text(self, choice: EngineChoice, delta: Delta) -> None:
        """Not listened to."""

    def on_choice_ended(self, choice: EngineChoice, finished: Finished) -> None:
        """Not listened to."""

    def on_choice_aborted(self, choice: EngineChoice) -> None:
        """Not listened to."""

    def on_choice_failed(self, choice: EngineChoice, error: GatewayError) -> None:
        """Not listened to."""

    def on_choice_broken(self, error: GatewayError) -> None:
        """Not listened to."""


_NOBODY = _Nobody()
