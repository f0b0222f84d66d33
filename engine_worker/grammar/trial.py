"""Reads, compiles and tries a grammar in a process first, because only that can be cut off.

The compiler has limits, but some grammars make it run for minutes before it meets one. The process
has a low priority, so that steps go first.
"""

import logging
import subprocess
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

import msgspec
import psutil

from engine_worker.errors import HelperLostError, UnsupportedGrammarError
from engine_worker.grammar.trial_process import TOO_MUCH_MEMORY, Setup, TrialResult
from engine_worker.grammar.vocabulary import GrammarVocabulary
from protocol.errors import ErrorCode
from protocol.runtime.helper_process import died_of_its_work, start_helper
from protocol.wire.messages import Grammar

MAX_MEMORY_BYTES: Final = 2**31
"""Address space of the process."""
_MODULE: Final = "engine_worker.grammar.trial_process"
_log = logging.getLogger("penstock.engine")
_NUM_TRIES: Final = 2
_STOP_TIMEOUT_S: Final = 5.0
_BUSY_SHARE: Final = 0.5
"""Who computed for so much of its time has used it; who computed less was kept from it."""
_MAX_TURNS: Final = 20
"""How many times its CPU time a process gets in wall-clock time, on a busy machine."""


class GrammarTrial:
    """One such process, started at the first grammar; used by one thread at a time.

    Args:
        vocabulary: Of the model.
        timeout_s: A grammar that takes longer is refused, and the process is replaced. A machine
            that is busy with other work gives more of the clock.
    """

    def __init__(self, vocabulary: GrammarVocabulary, *, timeout_s: float) -> None:
        self._vocabulary = vocabulary
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def is_alive(self) -> bool:
        """Whether its process was started, and runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Have a process that is ready; one that can't be started is tried again when needed."""
        with suppress(HelperLostError):
            self._ready()

    def check(self, grammar: Grammar) -> TrialResult:
        """Read, compile and try a grammar, there.

        A grammar that a process dies of is tried in a fresh one: the process may have been killed,
        or other grammars left it little memory.

        Raises:
            UnsupportedGrammarError: It is wrong, or takes more time or memory than there is.
            HelperLostError: There is no process that tries it, whatever it is.
        """
        ended = None
        for _ in range(_NUM_TRIES):
            connection = self._ready()
            try:
                connection.send_bytes(msgspec.json.encode(grammar))
                self._await_answer(connection)
                answer = connection.recv_bytes()
            except (EOFError, OSError):
                ended = self._end()
                _log.warning("the process that tries grammars ended with %s", ended)
            else:
                return _told(answer)
        if died_of_its_work(ended):
            raise UnsupportedGrammarError(TOO_MUCH_MEMORY)
        # No overload: a gateway would ask again and again, and each time processes would be killed.
        raise HelperLostError(
            "The process that compiles grammars was killed twice; the machine may be short of"
            " memory.",
            code=ErrorCode.INTERNAL_ERROR,
        )

    def close(self) -> None:
        """End the process, whatever it is doing; the next grammar starts another."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_TIMEOUT_S)
        self._connection = self._process = None

    def _end(self) -> int | None:
        """Close a process that is ending; how it ended."""
        process = self._process
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
        self.close()
        return None if process is None else process.returncode

    def _await_answer(self, connection: Connection) -> None:
        """Until there is something to receive, an end of the connection included."""
        begun_s = self._computed_s()
        for _ in range(_MAX_TURNS):
            if connection.poll(self._timeout_s):
                return
            if self._computed_s() - begun_s >= _BUSY_SHARE * self._timeout_s:
                self.close()
                raise UnsupportedGrammarError(
                    f"The grammar is too complex: it takes more than {self._timeout_s:g} s to"
                    " compile."
                )
        self.close()
        raise HelperLostError(
            "The machine is too busy to compile the grammar; please try again later."
        )

    def _computed_s(self) -> float:
        """CPU seconds of the process so far."""
        assert self._process is not None
        with suppress(psutil.Error):  # it died: the connection says so
            times = psutil.Process(self._process.pid).cpu_times()
            return float(times.user + times.system)
        return 0.0

    def _ready(self) -> Connection:
        """The connection to a process that runs."""
        if self._connection is not None and self.is_alive:
            return self._connection
        self.close()
        try:
            return self._start()
        except (EOFError, OSError) as error:
            _log.warning("the process that tries grammars does not start: %r", error)
            self.close()
            raise HelperLostError(
                "The engine can't start the process that compiles grammars; please try again later."
            ) from error

    def _start(self) -> Connection:
        self._process, connection = start_helper(_MODULE)
        self._connection = connection
        vocabulary = self._vocabulary
        setup = Setup(
            tokenizer=vocabulary.serialized,
            num_tokens=vocabulary.num_tokens,
            special=vocabulary.special.ids,
            eos_token_ids=sorted(vocabulary.special.eos_token_ids),
            max_memory_bytes=MAX_MEMORY_BYTES,
        )
        connection.send_bytes(msgspec.json.encode(setup))
        connection.recv_bytes()  # it is ready
        return connection


def _told(answer: bytes) -> TrialResult:
    """What an answer says.

    Raises:
        UnsupportedGrammarError: The grammar is refused.
    """
    result = msgspec.json.decode(answer, type=TrialResult)
    if result.fault:
        _log.error("a fault of the engine's on a grammar, which is refused: %s", result.fault)
    if result.refusal:
        raise UnsupportedGrammarError(result.refusal)
    return result
