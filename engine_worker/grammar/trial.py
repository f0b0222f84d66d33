"""Reads, compiles and tries a grammar in a process first, because only that can be cut off.

The compiler has limits, but some grammars make it run for minutes before it meets one. The process
has a low priority, so that steps go first.
"""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import msgspec
import psutil

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.trial_process import Setup, TrialResult
from engine_worker.grammar.vocabulary import GrammarVocabulary
from protocol.wire.messages import Grammar

MAX_MEMORY_BYTES: Final = 2**31
"""Address space of the process."""
_MODULE: Final = "engine_worker.grammar.trial_process"
_PACKAGES: Final = str(Path(__file__).parents[2])
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

    def check(self, grammar: Grammar) -> TrialResult:
        """Read, compile and try a grammar, there.

        Raises:
            UnsupportedGrammarError: It is wrong, or takes more time or memory than there is.
        """
        connection = self._connection or self._start()
        try:
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
            raise UnsupportedGrammarError(
                "The grammar is too complex: it takes too much memory to compile."
            ) from error
        result = msgspec.json.decode(answer, type=TrialResult)
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
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())]
            path = [_PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            )
            connection = Connection(ours.detach())
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
        return connection
