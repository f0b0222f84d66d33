"""Compiles a grammar in a process of its own first, because only a process can be cut off.

The compiler has limits, but some grammars make it run for minutes before it meets one.
"""

import json
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import psutil

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.limits import LIMITS
from engine_worker.grammar.vocabulary import GrammarVocabulary

MAX_MEMORY_BYTES: Final = 2**31
"""Address space of the process."""
_PROCESS_FILE: Final = Path(__file__).with_name("trial_process.py")
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

    def check(self, source: str) -> None:
        """Compile a grammar, there.

        Args:
            source: Lark text.

        Raises:
            UnsupportedGrammarError: It is wrong, or takes more time or memory than there is.
        """
        connection = self._connection or self._start()
        try:
            connection.send_bytes(source.encode())
            if not self._has_answer(connection):
                self.close()
                raise UnsupportedGrammarError(
                    f"The grammar is too complex: it takes more than {self._timeout_s:g} s to"
                    " compile."
                )
            message = connection.recv_bytes().decode()
        except (EOFError, OSError) as error:
            self.close()
            raise UnsupportedGrammarError(
                "The grammar is too complex: it takes too much memory to compile."
            ) from error
        if message:
            raise UnsupportedGrammarError(f"The grammar is not supported: {one_line(message)}")

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
            command = [sys.executable, "-P", str(_PROCESS_FILE), str(theirs.fileno())]
            self._process = subprocess.Popen(  # noqa: S603 - our own file, no shell
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
            connection = Connection(ours.detach())
        self._connection = connection
        special = self._vocabulary.special
        setup = {
            "num_tokens": self._vocabulary.num_tokens,
            "special": {token_id: text for text, token_id in special.ids.items()},
            "eos_token_ids": sorted(special.eos_token_ids),
            "limits": LIMITS,
            "max_memory_bytes": MAX_MEMORY_BYTES,
        }
        connection.send_bytes(json.dumps(setup).encode())
        return connection


def one_line(message: str) -> str:
    """A compiler's message as one bounded line."""
    if message.startswith("NoExtension"):
        return "no text satisfies it."
    if "too many states" in message:
        return "it needs more states than the engine keeps for one grammar."
    if any(limit in message for limit in _LIMIT_MESSAGES):
        return "one step of it takes more work than the engine allows."
    message = message.removesuffix("<non-verbose/>")
    return " ".join(message.split())[:_MAX_MESSAGE_CHARACTERS]
