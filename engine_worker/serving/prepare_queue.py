"""Prompts that wait to be tokenised and tokens to become text: fair, bounded, dropped in time."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from engine_worker.core.scheduling.turn_queue import TurnQueue
from engine_worker.core.score_task import ScoreTask
from engine_worker.errors import DeadlineError, UnsupportedParameterError
from protocol.errors import ErrorCode, PenstockError
from protocol.runtime import logs
from protocol.runtime.tracing import tell_step
from protocol.wire.messages import (
    Detokenize,
    Detokenized,
    Failure,
    Message,
    Prepare,
    Prepared,
    Score,
)

MAX_PLACES: Final = 1024
"""What may wait in all; beyond it the engine says that it is overloaded."""
MAX_TENANT_PLACES: Final = 256
"""Of one tenant: one request may have 128 prompts, and many are sent by one tenant at once."""
NUM_THREADS: Final = 2
COSTLY_SIZE: Final = 256 * 1024
"""Bytes of text, or token ids, beyond which it has a thread of its own, one at a time.

So much takes about a tenth of a second. It is also how much text takes one place.
"""
_TOKEN_ID_BYTES: Final = 8
"""Of one token id while it waits."""
_RETRY_AFTER_S: Final = 1.0

PrepareCommand = Prepare | Detokenize | Score
Execute = Callable[[Callable[[], None]], object]
"""Runs a function soon, in another thread."""
Answer = Callable[[Prepare | Detokenize, Callable[[], bool]], Prepared | Detokenized]
"""Does the work of a command, unless the function says that nobody waits for it any more; raises
PenstockError for what is wrong."""
ScoreTokeniser = Callable[[str, Score, float], ScoreTask]
"""Makes what is to be computed of a gateway's Score that came at some time on the engine's clock;
raises PenstockError for what is wrong with it."""

_log = logging.getLogger("penstock.engine")


@dataclass(slots=True, eq=False)
class _Waiting:
    """A command of a gateway; both times in monotonic seconds."""

    gateway_id: str
    command: PrepareCommand
    received_at: float
    deadline: float
    is_costly: bool


class PrepareQueue:
    """Answers Prepare and Detokenize in the threads of two executors, each exactly once.

    Scores are tokenised here as well, and handed on to where they are computed.

    What is costly never takes a thread from the rest: it waits for one of its own.

    What nobody waits for any more, because it was cancelled or its gateway is gone, is dropped
    when it has not begun, and left unanswered when it has.

    Args:
        answer: See `Answer`.
        send: Takes an answer to a gateway; thread-safe.
        execute: In one of `NUM_THREADS` threads, or more.
        execute_costly: In a thread for what is larger than `COSTLY_SIZE`.
        clock: Monotonic seconds.
        tokenise_score: Tokenises Scores; None refuses them.
        take_score: Takes a Score that was tokenised; thread-safe.
    """

    def __init__(
        self,
        answer: Answer,
        send: Callable[[str, Message], None],
        *,
        execute: Execute,
        execute_costly: Execute,
        clock: Callable[[], float] = time.monotonic,
        tokenise_score: ScoreTokeniser | None = None,
        take_score: Callable[[ScoreTask], None] | None = None,
    ) -> None:
        self._tokenise_score = tokenise_score
        self._take_score = take_score
        self._answer = answer
        self._send = send
        # By whether it is for costly commands: who runs workers, how many at most, how many do.
        self._execute = {False: execute, True: execute_costly}
        self._max_workers = {False: NUM_THREADS, True: 1}
        self._num_workers = {False: 0, True: 0}
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting = TurnQueue[_Waiting](MAX_PLACES, MAX_TENANT_PLACES)
        # What somebody still waits for, begun or not.
        self._wanted: set[_Waiting] = set()
        self._is_closed = False

    @property
    def num_unfinished(self) -> int:
        """Commands that somebody waits for."""
        return len(self._wanted)

    def submit(self, gateway_id: str, command: PrepareCommand) -> None:
        """Queue a command, or refuse it at once as overloaded."""
        size_bytes, num_token_ids = _size(command)
        is_costly = max(size_bytes, num_token_ids) > COSTLY_SIZE or (
            # What a strange template does may take long, and make any text of a few words.
            isinstance(command, Prepare) and command.chat_template is not None
        )
        received_at = self._clock()
        deadline = received_at + command.deadline_s
        waiting = _Waiting(gateway_id, command, received_at, deadline, is_costly)
        num_places = 1 + (size_bytes + num_token_ids * _TOKEN_ID_BYTES) // COSTLY_SIZE
        with self._lock:
            if self._is_closed:
                return
            is_taken = self._waiting.push(command.tenant, waiting, num_places)
            needs_worker = is_taken and self._num_workers[is_costly] < self._max_workers[is_costly]
            if is_taken:
                self._wanted.add(waiting)
            self._num_workers[is_costly] += needs_worker
        if needs_worker:
            self._execute[is_costly](partial(self._work, is_costly))
        if not is_taken:
            self._send(gateway_id, _overloaded(command))

    def cancel(self, gateway_id: str, request_id: str) -> None:
        """Nobody waits for the answers to this request any more; unknown ones are fine."""
        self._drop(
            lambda waiting: (
                waiting.command.request_id == request_id and waiting.gateway_id == gateway_id
            )
        )

    def forget_gateway(self, gateway_id: str) -> None:
        """A gateway is gone, and whoever waited there."""
        self._drop(lambda waiting: waiting.gateway_id == gateway_id)

    def close(self) -> None:
        """Drop all that waits, and answer nothing any more."""
        with self._lock:
            self._is_closed = True
        self._drop(lambda waiting: True)

    def _drop(self, is_unwanted: Callable[[_Waiting], bool]) -> None:
        with self._lock:
            self._waiting.drop(is_unwanted)
            self._wanted = {waiting for waiting in self._wanted if not is_unwanted(waiting)}

    def _work(self, is_costly: bool) -> None:
        """Runs in a thread, until nothing of its kind is left."""
        while (waiting := self._begin_next(is_costly)) is not None:
            try:
                command, began_at = waiting.command, time.monotonic()
                with logs.about(command.request_id, command.trace_id):
                    self._finish(waiting, self._answered(waiting))
                if isinstance(command, Prepare):
                    now = time.monotonic()
                    tell_step(command.traceparent, "engine.tokenize", began_at, now)
            except BaseException:
                with self._lock:
                    self._num_workers[is_costly] -= 1
                raise

    def _begin_next(self, is_costly: bool) -> _Waiting | None:
        with self._lock:
            waiting = self._waiting.take(lambda next_: next_.is_costly is is_costly)
            self._num_workers[is_costly] -= waiting is None
            return waiting

    def _answered(self, waiting: _Waiting) -> Message | ScoreTask:
        """The answer, whatever happens, or what is to be computed for it."""
        command = waiting.command
        try:
            if self._clock() >= waiting.deadline:
                raise DeadlineError("The request's time ran out before its prompt was tokenised.")
            if not isinstance(command, Score):
                return self._answer(command, lambda: waiting in self._wanted)
            if self._tokenise_score is None:
                raise UnsupportedParameterError("This engine scores no labels.")
            return self._tokenise_score(waiting.gateway_id, command, waiting.received_at)
        except PenstockError as error:
            return _failure(command, error.code, error.message, error.param)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:  # noqa: BLE001 - a panic of a native library is no Exception
            _log.exception("a prompt could not be prepared")
            return _failure(
                command, ErrorCode.INTERNAL_ERROR, "The engine failed to prepare the prompt."
            )

    def _finish(self, waiting: _Waiting, answer: Message | ScoreTask) -> None:
        with self._lock:
            is_wanted = waiting in self._wanted
            if is_wanted and isinstance(answer, ScoreTask) and self._take_score is not None:
                # Under the lock: whoever is cancelled is dropped here, or handed on before.
                self._take_score(answer)
        if is_wanted:
            if not isinstance(answer, ScoreTask):
                self._send(waiting.gateway_id, answer)
            # Only now: a drain ends when nothing is unfinished, and then sends what was sent.
            with self._lock:
                self._wanted.discard(waiting)


def _size(command: PrepareCommand) -> tuple[int, int]:
    """Bytes of text, exact up to `COSTLY_SIZE` and at least that beyond, and token ids."""
    if isinstance(command, Detokenize):
        return 0, len(command.token_ids)
    if isinstance(command, Score):
        questions = sum(_num_bytes(question.text) for question in command.questions)
        return _num_bytes(command.messages_json) + questions, 0
    texts = (
        command.prompt,
        command.messages_json,
        command.tools_json,
        command.template_kwargs_json,
        command.chat_template,
        command.suffix,
    )
    size_bytes = sum(_num_bytes(text) for text in texts if text is not None)
    return size_bytes, len(command.prompt_token_ids or ())


def _num_bytes(text: str) -> int:
    # Spelling a longer text out would take the I/O thread a while, and it is costly in any case.
    if text.isascii() or len(text) > COSTLY_SIZE:
        return len(text)
    return len(text.encode(errors="surrogatepass"))


def _overloaded(command: PrepareCommand) -> Failure:
    return Failure(
        request_id=command.request_id,
        code=ErrorCode.OVERLOADED,
        message="Too many prompts are waiting to be tokenised.",
        retry_after_s=_RETRY_AFTER_S,
    )


def _failure(
    command: PrepareCommand, code: ErrorCode, message: str, param: str | None = None
) -> Failure:
    return Failure(request_id=command.request_id, code=code, message=message, param=param)
