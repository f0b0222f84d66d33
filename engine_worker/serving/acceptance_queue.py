"""Choices whose acceptance takes a while, accepted in threads of their own: the steps go on."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from msgspec import structs

from engine_worker.core.choice_output import ChoiceOutput
from engine_worker.core.scheduling.turn_queue import TurnQueue
from engine_worker.errors import DeadlineError, EngineError
from engine_worker.grammar.constraint import Constraint
from protocol.errors import PenstockError
from protocol.runtime import logs
from protocol.runtime.threads import WatchedPool
from protocol.wire.messages import ALL_CHOICES, Abort, Extend, Generate

MAX_WAITING: Final = 4096
"""Choices that wait; beyond them the engine says that it is overloaded."""
MAX_TENANT_WAITING: Final = 2048
"""Of one tenant: when an engine dies, all that it had comes to another one at once."""
QUICK_PROMPT_TOKENS: Final = 4096
"""A longer prompt is checked and named block by block in a thread, too."""
QUICK_STOP_CHARACTERS: Final = 256
"""Longer stop strings take longer to prepare than a step should wait."""
QUICK_TOKEN_IDS: Final = 1024
"""Of `allowed_token_ids`: a mask of hundreds of thousands takes over ten milliseconds."""
_NUM_THREADS: Final = 2

_log = logging.getLogger("penstock.engine")

Accepted = ChoiceOutput | PenstockError | None
"""A choice, what is wrong with it, or None for one that was aborted or abandoned."""


def is_quick(command: Generate) -> bool:
    """Whether the engine's own thread may accept a choice: in well below a millisecond."""
    sampling = command.sampling
    return not (
        command.grammar is not None
        or command.output_token_ids
        or sampling.bad_words
        or len(command.prompt_token_ids) > QUICK_PROMPT_TOKENS
        or sum(map(len, sampling.stop)) > QUICK_STOP_CHARACTERS
        or len(sampling.allowed_token_ids or ()) > QUICK_TOKEN_IDS
    )


class Acceptor(Protocol):
    """`ChoiceAcceptor`, or a test's."""

    def accept(
        self,
        gateway_id: str,
        command: Generate,
        *,
        received_at: float,
        constraint: Constraint | None,
    ) -> ChoiceOutput:
        """The choice, ready to be scheduled; raises PenstockError."""
        ...


@dataclass(slots=True, eq=False)
class WaitingChoice:
    """A choice that is to be accepted.

    Attributes:
        received_at: Monotonic seconds, when it came.
        constraint: Of its grammar.
        is_abandoned: Its gateway is gone.
    """

    gateway_id: str
    command: Generate
    received_at: float
    constraint: Constraint | None
    is_abandoned: bool = False


class AcceptanceQueue:
    """Choices that wait to be accepted, fair between tenants; `submit` may be called in any thread.

    What nobody waits for any more is handed on at once, and left undone unless it has begun.

    Args:
        acceptor: Does the work.
        hand_on: Called once for each choice, in any thread, with what became of it. The command
            has the newest lease.
        clock: Monotonic seconds, as of `received_at`.
    """

    def __init__(
        self,
        acceptor: Acceptor,
        hand_on: Callable[[WaitingChoice, Accepted], None],
        clock: Callable[[], float],
    ) -> None:
        self._acceptor = acceptor
        self._hand_on = hand_on
        self._clock = clock
        self._threads = WatchedPool(_NUM_THREADS, thread_name_prefix="accept")
        self._lock = threading.Lock()
        self._waiting = TurnQueue[WaitingChoice](MAX_WAITING, MAX_TENANT_WAITING)
        # What wasn't handed on yet, begun or not, by request.
        self._pending: dict[tuple[str, str], list[WaitingChoice]] = {}
        self._is_closed = False

    def submit(self, gateway_id: str, command: Generate, received_at: float) -> bool:
        """Queue a choice without a grammar; False when too many wait already."""
        waiting = WaitingChoice(gateway_id, command, received_at, None)
        with self._lock:
            if not self._waiting.push(command.tenant, waiting):
                return False
            self._begin(waiting)
        return True

    def submit_compiled(
        self, gateway_id: str, command: Generate, received_at: float, constraint: Constraint
    ) -> None:
        """Queue a choice whose grammar was compiled: it has waited its turn and takes no place."""
        waiting = WaitingChoice(gateway_id, command, received_at, constraint)
        with self._lock:
            self._waiting.let_in(command.tenant, waiting)
            self._begin(waiting)

    def extend(self, gateway_id: str, command: Extend) -> None:
        """Raise the lease of a choice that waits; the step loop doesn't know it yet."""
        with self._lock:
            for waiting in self._pending.get((gateway_id, command.request_id), ()):
                generate = waiting.command
                if (generate.choice, generate.attempt) == (command.choice, command.attempt):
                    lease_tokens = max(generate.lease_tokens, command.lease_tokens)
                    waiting.command = structs.replace(generate, lease_tokens=lease_tokens)

    def abort(self, gateway_id: str, command: Abort) -> None:
        """Hand on what an abort is about, to whoever knows of the abort and ends it."""
        with self._lock:
            self._drop(
                [
                    waiting
                    for waiting in self._pending.get((gateway_id, command.request_id), ())
                    if command.choice in (ALL_CHOICES, waiting.command.choice)
                    and waiting.command.attempt <= command.attempt
                ]
            )

    def forget_gateway(self, gateway_id: str) -> None:
        """Hand on what a gateway wanted, as abandoned.

        What is handed on unmarked was handed on before this returned.
        """
        with self._lock:
            theirs = [
                waiting
                for (owner, _), choices in self._pending.items()
                if owner == gateway_id
                for waiting in choices
            ]
            for waiting in theirs:
                waiting.is_abandoned = True
            self._drop(theirs)

    def close(self) -> None:
        """End the threads; choices that wait, or come still, are dropped."""
        with self._lock:
            self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, waiting: WaitingChoice) -> None:
        if self._is_closed:  # a grammar may be ready only now
            return
        key = (waiting.gateway_id, waiting.command.request_id)
        self._pending.setdefault(key, []).append(waiting)
        self._threads.submit(self._accept_next)

    def _drop(self, unwanted: Sequence[WaitingChoice]) -> None:
        """Hand on some that are pending, looking once through what waits, however many they are."""
        if unwanted:
            known = set(map(id, unwanted))
            self._waiting.drop(lambda waiting: id(waiting) in known)
        for waiting in unwanted:
            self._end(waiting, None)

    def _end(self, waiting: WaitingChoice, accepted: Accepted) -> None:
        """Hand on a choice that is pending; under the lock, so that leases are never lost."""
        key = (waiting.gateway_id, waiting.command.request_id)
        siblings = self._pending[key]
        siblings.remove(waiting)
        if not siblings:
            del self._pending[key]
        self._hand_on(waiting, accepted)

    def _accept_next(self) -> None:
        """Runs in a thread, once for each choice, for whichever is next; some were dropped."""
        with self._lock:
            waiting = self._waiting.take()
        if waiting is None:
            return
        with logs.about(waiting.command.request_id, waiting.command.trace_id):
            accepted = self._accepted(waiting)
        with self._lock:
            key = (waiting.gateway_id, waiting.command.request_id)
            if waiting in self._pending.get(key, ()):
                self._end(waiting, accepted)

    def _accepted(self, waiting: WaitingChoice) -> Accepted:
        command = waiting.command
        try:
            if self._clock() >= waiting.received_at + command.deadline_s:
                raise DeadlineError("The request's time ran out before it could begin.")
            return self._acceptor.accept(
                waiting.gateway_id,
                command,
                received_at=waiting.received_at,
                constraint=waiting.constraint,
            )
        except PenstockError as error:
            return error
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:  # noqa: BLE001 - a panic of a native library is no Exception
            _log.exception("a request could not be taken")
            return EngineError("The engine failed to take this request.")
