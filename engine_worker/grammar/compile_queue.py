"""Compiles the grammars of choices in threads of their own, so that no step waits for one."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from engine_worker.core.scheduling.turn_queue import TurnQueue
from engine_worker.errors import DeadlineError, EngineError
from engine_worker.grammar.compiler import GrammarCompiler
from engine_worker.grammar.constraint import Constraint
from protocol.errors import PenstockError
from protocol.runtime import logs
from protocol.runtime.threads import WatchedPool
from protocol.wire.messages import ALL_CHOICES, Abort, Extend, Generate

MAX_WAITING: Final = 1024
"""Choices that wait for their grammar; beyond them the engine says that it is overloaded."""
MAX_TENANT_WAITING: Final = 256
_NUM_THREADS: Final = 2

_log = logging.getLogger("penstock.engine")


@dataclass(slots=True, eq=False)
class WaitingGrammar:
    """A choice whose grammar is to be compiled.

    Attributes:
        received_at: Monotonic seconds, when it came.
        is_abandoned: Its gateway is gone.
    """

    gateway_id: str
    command: Generate
    received_at: float
    is_abandoned: bool = False


class CompileQueue:
    """Choices that wait for their grammars, fair between tenants; filled by the I/O thread.

    What nobody waits for any more is handed on at once and, unless it has begun, never compiled.
    A tenant has one thread at a time: its slow grammars hold up nobody else's.

    Args:
        grammars: Compiles.
        hand_on: Called once for each choice, in any thread, with its constraint, with what is
            wrong with its grammar, or with None for one that was aborted or abandoned. Also for a
            suspect: its grammar was tried, but it is compiled once it is alone, by the step loop.
        clock: Monotonic seconds, as of `received_at`.
    """

    def __init__(
        self,
        grammars: GrammarCompiler,
        hand_on: Callable[[WaitingGrammar, Constraint | PenstockError | None], None],
        clock: Callable[[], float],
    ) -> None:
        self._grammars = grammars
        self._hand_on = hand_on
        self._clock = clock
        self._threads = WatchedPool(_NUM_THREADS, thread_name_prefix="grammar")
        self._lock = threading.Lock()
        self._waiting = TurnQueue[WaitingGrammar](MAX_WAITING, MAX_TENANT_WAITING)
        # In order of arrival: what wasn't handed on yet, begun or not.
        self._pending: dict[WaitingGrammar, None] = {}
        # Tenants that have a thread.
        self._compiling: set[str] = set()

    def submit(self, gateway_id: str, command: Generate, received_at: float) -> bool:
        """Queue a choice that has a grammar; False when too many wait already."""
        waiting = WaitingGrammar(gateway_id, command, received_at)
        with self._lock:
            if not self._waiting.push(command.tenant, waiting):
                return False
            self._pending[waiting] = None
        self._threads.submit(self._compile_next)
        return True

    def extend(self, gateway_id: str, command: Extend) -> None:
        """Raise the lease of a choice that waits; the step loop doesn't know it yet."""
        identity = (gateway_id, command.request_id, command.choice, command.attempt)
        with self._lock:
            for waiting in self._pending:
                generate = waiting.command
                if identity == (
                    waiting.gateway_id,
                    generate.request_id,
                    generate.choice,
                    generate.attempt,
                ):
                    lease_tokens = max(generate.lease_tokens, command.lease_tokens)
                    waiting.command = structs.replace(generate, lease_tokens=lease_tokens)

    def abort(self, gateway_id: str, command: Abort) -> None:
        """Hand on what an abort is about, to whoever knows of the abort and ends it."""
        self._drop(
            lambda waiting: (
                waiting.gateway_id == gateway_id
                and waiting.command.request_id == command.request_id
                and command.choice in (ALL_CHOICES, waiting.command.choice)
                and waiting.command.attempt <= command.attempt
            )
        )

    def forget_gateway(self, gateway_id: str) -> None:
        """Hand on what a gateway wanted, as abandoned.

        What is handed on unmarked was handed on before this returned.
        """

        def is_theirs(waiting: WaitingGrammar) -> bool:
            return waiting.gateway_id == gateway_id

        with self._lock:
            for waiting in self._pending:
                waiting.is_abandoned = waiting.is_abandoned or is_theirs(waiting)
        self._drop(is_theirs)

    def close(self) -> None:
        """End the threads; choices that still wait are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._grammars.close()

    def _drop(self, is_unwanted: Callable[[WaitingGrammar], bool]) -> None:
        with self._lock:
            self._waiting.drop(is_unwanted)
            for waiting in [waiting for waiting in self._pending if is_unwanted(waiting)]:
                del self._pending[waiting]
                self._hand_on(waiting, None)

    def _compile_next(self) -> None:
        """Runs in a thread, at least once for each choice, for whichever is next."""
        while (waiting := self._take()) is not None:
            with logs.about(waiting.command.request_id, waiting.command.trace_id):
                result = self._compiled(waiting)
            with self._lock:
                self._compiling.discard(waiting.command.tenant)
                if waiting in self._pending:
                    del self._pending[waiting]
                    self._hand_on(waiting, result)

    def _take(self) -> WaitingGrammar | None:
        """The next choice; None when no more wait, or only those of tenants that have a thread.

        The thread that one of these has looks again when it is done.
        """
        with self._lock:
            waiting = self._waiting.take(lambda one: one.command.tenant not in self._compiling)
            if waiting is not None:
                self._compiling.add(waiting.command.tenant)
            return waiting

    def _compiled(self, waiting: WaitingGrammar) -> Constraint | PenstockError | None:
        command = waiting.command
        assert command.grammar is not None
        try:
            if self._clock() >= waiting.received_at + command.deadline_s:
                raise DeadlineError("The request's time ran out before its grammar was compiled.")
            if command.is_alone:
                self._grammars.try_out(command.grammar)
                return None
            return self._grammars.start(command.grammar, command.sampling)
        except PenstockError as error:
            return error
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:  # noqa: BLE001 - a panic of a native library is no Exception
            _log.exception("a grammar could not be compiled")
            return EngineError("The engine failed to compile the grammar.")
