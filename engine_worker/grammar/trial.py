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

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.trial_process import TOO_MUCH_MEMORY, Setup, TrialResult
from engine_worker.grammar.vocabulary import GrammarVocabulary
from protocol.runtime.helper_process import start_helper
from protocol.wire.messages import Grammar

MAX_MEMORY_BYTES: Final = 2**31
"""Address space of the process."""
_MODULE: Final = "engine_worker.grammar.trial_process"
_log = logging.getLogger("penstock.engine")
_STOP_TIMEOUT_S: Final = 5.0
_MAX_MESSAGE_CHARACTERS: Final = 300
_BUSY_SHARE: Final = 0.5
"""Who computed for so much of its time has used it; who computed less was kept from it."""
_MAX_TURNS: Final = 20
"""How many times its time a process gets by the clock, on a machine that lets it compute little."""


_LIMIT_MESSAGES: Final = ("fuel", "too many items", "Current row has", "too complex")
"""Parts of llguidance's messages about the work of one step."""


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
        """Whether its process was started, and not replaced since."""
        return self._connection is not None

    def start(self) -> None:
        """Have a process that is ready; one that can't be started is tried again when needed."""
        if self._connection is None:
            try:
                self._start()
            except (EOFError, OSError) as error:
                _log.warning("the process that tries grammars does not start: %r", error)
                self.close()

    def check(self, grammar: Grammar) -> TrialResult:
        """Read, compile and try a grammar, there.

        Raises:
            UnsupportedGrammarError: It is wrong, or takes more time or memory than there is.
        """
        try:
            connection = self._connection or self._start()
            connection.send_bytes(msgspec.json.encode(grammar))
            if not self._has_answer(connection):
                self.close()
                raise UnsupportedGrammarError(
                    f"The grammar is too complex: it takes more than {self._timeout_s:g} s to"
                    " compile."
                )
            answer = connection.recv_bytes()
        except (EOFError, OSError) as error:
            self.close()
            raise UnsupportedGrammarError(TOO_MUCH_MEMORY) from error
        result = msgspec.json.decode(answer, type=TrialResult)
        if result.fault:
            _log.error("a fault of the engine's on a grammar, which is refused: %s", result.fault)
        if result.refusal:
            raise UnsupportedGrammarError(result.refusal)
        return result

    def close(self) -> None:
        """End the process, whatever it is doing; the next grammar starts another."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_TIMEOUT_S)
        self._connection = self._process = None

    def _has_answer(self, connection: Connection) -> bool:
        begun_s = self._computed_s()
        for _ in range(_MAX_TURNS):
            if connection.poll(self._timeout_s):
                return True
            if self._computed_s() - begun_s >= _BUSY_SHARE * self._timeout_s:
                break
        return False

    def _computed_s(self) -> float:
        """CPU seconds of the process so far."""
        assert self._process is not None
        with suppress(psutil.Error):  # it died: the connection says so
            times = psutil.Process(self._process.pid).cpu_times()
            return float(times.user + times.system)
        return 0.0

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
