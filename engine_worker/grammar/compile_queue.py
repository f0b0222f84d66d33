"""Compiles the grammars of requests in threads of their own, so that no step waits for one."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from engine_worker.errors import EngineError
from engine_worker.grammar.compiler import GrammarCompiler
from engine_worker.grammar.constraint import Constraint
from protocol.errors import PenstockError
from protocol.wire.messages import Extend, Generate

MAX_WAITING: Final = 256
"""Requests that wait for their grammar; beyond them the engine says that it is overloaded."""
_NUM_THREADS: Final = 2

_log = logging.getLogger("penstock.engine")


@dataclass(slots=True, eq=False)
class WaitingGrammar:
    """A request whose grammar is being compiled.

    Attributes:
        received_at: Monotonic seconds, when it came.
        is_abandoned: Its gateway is gone.
    """

    gateway_id: str
    command: Generate
    received_at: float
    is_abandoned: bool = False


class CompileQueue:
    """Requests that wait for their grammars; filled by the I/O thread.

    Args:
        grammars: Compiles.
        hand_on: Called once for each request, in a thread of the queue, with its constraint or
            with what is wrong with its grammar.
    """

    def __init__(
        self,
        grammars: GrammarCompiler,
        hand_on: Callable[[WaitingGrammar, Constraint | PenstockError], None],
    ) -> None:
        self._grammars = grammars
        self._hand_on = hand_on
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammar")
        self._lock = threading.Lock()
        self._waiting: set[WaitingGrammar] = set()

    def submit(self, gateway_id: str, command: Generate, received_at: float) -> bool:
        """Queue a request that has a grammar; False when too many wait already."""
        waiting = WaitingGrammar(gateway_id, command, received_at)
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                return False
            self._waiting.add(waiting)
        self._threads.submit(self._compile, waiting)
        return True

    def extend(self, gateway_id: str, command: Extend) -> None:
        """Raise the lease of a request that waits; the step loop doesn't know it yet."""
        identity = (gateway_id, command.request_id, command.choice, command.attempt)
        with self._lock:
            for waiting in self._waiting:
                generate = waiting.command
                if identity == (
                    waiting.gateway_id,
                    generate.request_id,
                    generate.choice,
                    generate.attempt,
                ):
                    lease_tokens = max(generate.lease_tokens, command.lease_tokens)
                    waiting.command = structs.replace(generate, lease_tokens=lease_tokens)

    def forget_gateway(self, gateway_id: str) -> None:
        """Mark what a gateway wanted; it is handed on all the same, as abandoned.

        What is handed on unmarked was handed on before this returned.
        """
        with self._lock:
            for waiting in self._waiting:
                if waiting.gateway_id == gateway_id:
                    waiting.is_abandoned = True

    def close(self) -> None:
        """End the threads; requests that still wait are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._grammars.close()

    def _compile(self, waiting: WaitingGrammar) -> None:
        command = waiting.command
        assert command.grammar is not None
        result: Constraint | PenstockError
        try:
            result = self._grammars.start(command.grammar, command.sampling)
        except PenstockError as error:
            result = error
        except Exception:  # noqa: BLE001 - a bug here must not cost the request its answer
            _log.exception("a grammar could not be compiled")
            result = EngineError("The engine failed to compile the grammar.")
        with self._lock:
            self._waiting.remove(waiting)
            self._hand_on(waiting, result)
