"""One choice of a request at an engine: its attempt, its lease, its output and its one end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.admission import EngineHandle, Seat
from gateway.errors import GatewayError, WorkerLostError
from gateway.workers.engines import EngineLink
from protocol.errors import ErrorCode
from protocol.messages import (
    Abort,
    Delta,
    Extend,
    Failure,
    Finished,
    Generate,
    Grammar,
    Prepared,
    SamplingParams,
    Usage,
)

MAX_RETRIES = 4
_RETRYABLE = frozenset(
    {
        ErrorCode.WORKER_LOST,
        ErrorCode.WORKER_UNAVAILABLE,
        ErrorCode.CREDIT_EXCEEDED,
        ErrorCode.OVERLOADED,
    }
)


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
        """It can't go on; `may_retry` says whether another engine may try."""
        ...


@dataclass(frozen=True, slots=True)
class ChoicePlan:
    """What every choice of one prompt has in common.

    Attributes:
        request_id: Of the prompt on the wire.
        max_output_tokens: What context and client allow.
    """

    request_id: str
    prepared: Prepared
    sampling: SamplingParams
    max_output_tokens: int
    tenant: str
    priority: int
    keep_special_tokens: tuple[str, ...]
    grammar: Grammar | None


class EngineChoice:
    """One choice; it holds a seat exactly as long as an engine works on it.

    Args:
        engines: The link to the engines.
        plan: Shared by the choices of one prompt.
        index: Of the answer; `number` is the index within the prompt.
        lease_tokens: Output tokens that are reserved at first.
        owner: Is told what happens.
        release: Gives a seat back.
    """

    def __init__(
        self,
        engines: EngineLink,
        plan: ChoicePlan,
        *,
        index: int,
        number: int,
        lease_tokens: int,
        owner: ChoiceOwner,
        release: Callable[[Seat], None],
    ) -> None:
        self.plan = plan
        self.index = index
        self.attempt = 0
        self.lease_tokens = lease_tokens
        self.num_output_tokens = 0
        self.was_started = False
        self.is_lease_final = False
        self.is_extending = False
        self.is_done = False
        self.finish_reason = ""
        self.stop_reason: str | int | None = None
        self._engines = engines
        self._number = number
        self._owner = owner
        self._release = release
        self._seat: Seat | None = None
        self._is_aborted = False
        self._usage: Usage | None = None

    @property
    def is_at_engine(self) -> bool:
        """Whether an engine works on it, or may still."""
        return self._seat is not None

    @property
    def may_retry(self) -> bool:
        """Whether another attempt would repeat nothing that the client has seen."""
        return self.num_output_tokens == 0 and self.attempt < MAX_RETRIES and not self._is_aborted

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
        )

    def start(self, seat: Seat, deadline_s: float) -> None:
        """Begin, or begin again, at the engine of a seat, which now belongs to this choice.

        Args:
            seat: From admission.
            deadline_s: Seconds that the request has left.
        """
        plan = self.plan
        self._seat = seat
        self.attempt += 1
        self.was_started = True
        generate = Generate(
            request_id=plan.request_id,
            choice=self._number,
            attempt=self.attempt,
            prompt_token_ids=plan.prepared.prompt_token_ids,
            sampling=plan.sampling,
            lease_tokens=self.lease_tokens,
            deadline_s=deadline_s,
            keep_special_tokens=plan.keep_special_tokens,
            grammar=plan.grammar,
            priority=plan.priority,
            tenant=plan.tenant,
            template_time=plan.prepared.template_time,
            block_hashes=plan.prepared.block_hashes,
            want_token_ids=True,
        )
        try:
            self._engines.generate(seat.engine, generate, self)
        except WorkerLostError as error:
            self.on_failure(error, None)

    def extend(self, lease_tokens: int) -> None:
        """The lease grew to so many output tokens in all."""
        self.lease_tokens = lease_tokens
        if self._seat is not None:
            self._engines.extend(
                self._seat.engine,
                Extend(
                    request_id=self.plan.request_id,
                    choice=self._number,
                    attempt=self.attempt,
                    lease_tokens=lease_tokens,
                ),
            )

    def abort(self) -> None:
        """Stop, without another word to the client; `on_choice_aborted` follows."""
        self._is_aborted = True
        if self._seat is not None:
            self._send_abort(self._seat.engine)

    def cut(self) -> None:
        """Stop here with what there is: the regular end follows."""
        if self._seat is not None:
            self._send_abort(self._seat.engine)

    def give_up(self) -> None:
        """No end came after an abort: take what arrived for the usage."""
        if self._seat is not None:
            self._engines.forget(self._seat.engine, self.plan.request_id, self._number)
            self._free_seat()

    def on_delta(self, delta: Delta) -> None:
        """New output of the current attempt."""
        self.num_output_tokens += len(delta.token_ids)
        if not self._is_aborted:
            self._owner.on_choice_text(self, delta)

    def on_finished(self, finished: Finished) -> None:
        """The engine's end of the current attempt."""
        self._usage = finished.usage
        self._free_seat()
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
        self._free_seat()
        if self._is_aborted:
            self._owner.on_choice_aborted(self)
        else:
            self._owner.on_choice_failed(self, error)

    def _send_abort(self, engine: EngineHandle) -> None:
        self._engines.abort(
            engine,
            Abort(request_id=self.plan.request_id, attempt=self.attempt, choice=self._number),
        )

    def _free_seat(self) -> None:
        seat, self._seat = self._seat, None
        if seat is not None:
            self._release(seat)


def is_retryable(error: GatewayError) -> bool:
    """Whether another engine, or the same one later, may do better."""
    return error.code in _RETRYABLE
