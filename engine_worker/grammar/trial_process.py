"""The process that reads, compiles and tries a grammar first: it may be killed meanwhile.

It is run as a module, and ends when its parent does.
"""

import os
import random
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

import msgspec
from llguidance import LLMatcher, LLTokenizer

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.limits import CALM_LEXER_STATES, parser_limits
from engine_worker.grammar.messages import one_line
from engine_worker.grammar.source import lark_source
from engine_worker.grammar.special_tokens import SpecialTokens
from protocol.wire.messages import Grammar

TOO_MUCH_MEMORY: Final = "The grammar is too complex: it takes too much memory to compile."
_NICENESS: Final = 5
_COSTLY_NICENESS: Final = 10
_COSTLY_S: Final = 0.3
"""Of CPU time; a grammar that takes more goes on with less priority. An ordinary one takes a few
milliseconds, a schema with hundreds of properties a sixth of a second."""
_IDLE_LOOKS: Final = 10
"""So often, each after `_COSTLY_S`, the process looks for work before it waits to be woken."""
_WALK_TOKENS: Final = 400
_WALK_S: Final = 0.25
_NUM_WALKS: Final = 2
_COMMON: Final = 64
"""Of the tokens that may come next, how many a walk chooses from: the most common ones."""


class Setup(msgspec.Struct, frozen=True):
    """What the process is told once.

    Attributes:
        tokenizer: The model's, as JSON text.
        num_tokens: Of its vocabulary.
        special: Ids of the tokens that no text spells.
        eos_token_ids: Those that end an output.
        max_memory_bytes: Address space of the process.
    """

    tokenizer: str
    num_tokens: int
    special: dict[str, int]
    eos_token_ids: list[int]
    max_memory_bytes: int


class TrialResult(msgspec.Struct, frozen=True):
    """What became of a grammar.

    Attributes:
        refusal: Why it can't be used; empty when it can.
        fault: What a fault of ours raised on it, for the log; empty for none.
        source: Lark text.
        unenforced: Keywords of its schemas that are left to the model.
        is_calm: Whether long outputs need few states, so that outputs may share them.
    """

    refusal: str = ""
    source: str = ""
    unenforced: tuple[str, ...] = ()
    is_calm: bool = True
    fault: str = ""


class Trial:
    """Tries grammars for one tokenizer.

    Args:
        setup: Of the process.
    """

    def __init__(self, setup: Setup) -> None:
        self._special = SpecialTokens(setup.special, frozenset(setup.eos_token_ids))
        self._tokenizer = LLTokenizer(
            setup.tokenizer, n_vocab=setup.num_tokens, eos_token=setup.eos_token_ids
        )

    def check(self, grammar: Grammar) -> TrialResult:
        """Read, compile and try a grammar.

        Whatever goes wrong is an answer: the process goes on with other grammars.
        """
        try:
            return self._checked(grammar)
        except UnsupportedGrammarError as error:
            return TrialResult(refusal=error.message)
        except MemoryError:
            return TrialResult(refusal=TOO_MUCH_MEMORY)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of a native library is no Exception
            where = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__} at {where.name}:{where.lineno}"
            return TrialResult(refusal="The grammar can't be read.", fault=fault)

    def _checked(self, grammar: Grammar) -> TrialResult:
        source = lark_source(grammar, self._special)
        is_calm = not self._failure_of(source.text, CALM_LEXER_STATES)
        failure = "" if is_calm else self._failure_of(source.text, None)
        if failure:
            reason = one_line(failure, is_own=grammar.kind in ("lark", "regex"))
            return TrialResult(refusal=f"The grammar is not supported: {reason}")
        return TrialResult("", source.text, source.unenforced, is_calm)

    def _failure_of(self, source: str, max_lexer_states: int | None) -> str:
        """What goes wrong when a grammar is compiled, or in long outputs; empty for nothing."""
        changes = {} if max_lexer_states is None else {"max_lexer_states": max_lexer_states}
        limits = parser_limits(**changes)
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        until = time.process_time() + _WALK_S
        for seed in range(_NUM_WALKS):
            if matcher.is_error():
                break
            failure = self._walk(matcher, random.Random(seed), until)  # noqa: S311 - no secret
            if failure:
                return failure
            matcher.reset()
        return matcher.get_error()

    def _walk(self, matcher: LLMatcher, rng: random.Random, until: float) -> str:
        """Write a long output; what went wrong, empty for nothing."""
        for _ in range(_WALK_TOKENS):
            if matcher.is_stopped() or time.process_time() >= until:
                break
            bits = int.from_bytes(matcher.compute_bitmask(), "little")
            for token_id in self._special.eos_token_ids:
                bits &= ~(1 << token_id)
            common: list[int] = []
            while bits and len(common) < _COMMON:
                lowest = bits & -bits
                common.append(lowest.bit_length() - 1)
                bits ^= lowest
            if not common or matcher.is_error():
                break
            # What the tokenizer spells with a special token can't always be taken: it is no fault.
            if not matcher.try_consume_tokens([rng.choice(common)]):
                break
        return matcher.get_error() if matcher.is_error() else ""


def main(file_descriptor: int) -> None:
    """Until the parent closes the connection."""
    os.nice(_NICENESS)
    with suppress(EOFError, ConnectionError):
        serve(Connection(file_descriptor))


def serve(connection: Connection) -> None:
    """Say when it is ready, then answer grammar after grammar."""
    setup = msgspec.json.decode(connection.recv_bytes(), type=Setup)
    max_bytes = setup.max_memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    trial = Trial(setup)
    connection.send_bytes(b"")
    answer_all(
        connection,
        lambda message: msgspec.json.encode(
            trial.check(msgspec.json.decode(message, type=Grammar))
        ),
    )


def answer_all(connection: Connection, answer: Callable[[bytes], bytes]) -> None:
    """Answer message after message; what takes long loses priority.

    Priority that a thread has lost never comes back, so the next message has another thread.

    Raises:
        EOFError: The parent has closed the connection.
        Exception: What `answer` raises.
    """
    while True:
        _Answering(connection, answer).run()


class _Answering:
    """A thread that answers until a message was costly, and the main thread, which watches it.

    Args:
        connection: Read by this thread alone.
        answer: From a message to its answer.
    """

    def __init__(self, connection: Connection, answer: Callable[[bytes], bytes]) -> None:
        self._connection = connection
        self._answer = answer
        self._changed = threading.Condition()
        self._begun_s: float | None = None
        # Whether the main thread waits to be woken; it otherwise looks now and then, because to be
        # woken by each message would cost that message the processor on a busy machine.
        self._sleeps = False
        self._is_lowered = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._answer_all, name="grammar", daemon=True)

    def run(self) -> None:
        """Until it has lost its priority."""
        self._thread.start()
        num_idle = 0
        with self._changed:
            while not self._is_lowered and self._error is None:
                num_idle = num_idle + 1 if self._begun_s is None else 0
                self._sleeps = num_idle > _IDLE_LOOKS
                self._changed.wait(None if self._sleeps else _COSTLY_S)
                if self._has_taken_long():
                    self._lower()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _has_taken_long(self) -> bool:
        # Nothing else computes in this process.
        return self._begun_s is not None and time.process_time() - self._begun_s >= _COSTLY_S

    def _lower(self) -> None:
        self._is_lowered = True
        assert self._thread.native_id is not None, "it was started"
        with suppress(OSError):  # this system has no priorities of threads
            os.setpriority(os.PRIO_PROCESS, self._thread.native_id, _COSTLY_NICENESS)

    def _answer_all(self) -> None:
        try:
            while not self._is_lowered:
                message = self._connection.recv_bytes()
                self._tell(time.process_time())
                self._connection.send_bytes(self._answer(message))
                self._tell(None)
        except BaseException as error:  # noqa: BLE001 - it ends the process, in the main thread
            with self._changed:
                self._error = error
                self._changed.notify()

    def _tell(self, begun_s: float | None) -> None:
        with self._changed:
            self._begun_s = begun_s
            if self._sleeps:
                self._changed.notify()


if __name__ == "__main__":
    main(int(sys.argv[1]))
