"""The process that reads, compiles and tries a grammar first: it may be killed meanwhile.

It is run as a module, and ends when its parent does.
"""

import os
import random
import resource
import sys
import time
import traceback
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
    while True:
        grammar = msgspec.json.decode(connection.recv_bytes(), type=Grammar)
        connection.send_bytes(msgspec.json.encode(trial.check(grammar)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
