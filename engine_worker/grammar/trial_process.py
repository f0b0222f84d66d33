"""The process that reads, compiles and tries a grammar first: it may be killed meanwhile.

It is run as a module, and ends when its parent does.
"""

import random
import resource
import sys
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

import msgspec
from llguidance import LLMatcher, LLTokenizer

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.limits import (
    BROAD_ROW_ITEMS,
    CALM_LEXER_STATES,
    LIMITS,
    ROW_ITEMS,
    TRIED_ROW_ITEMS,
    parser_limits,
)
from engine_worker.grammar.messages import ROW_LIMIT, TOO_SLOW, one_line
from engine_worker.grammar.source import lark_source
from engine_worker.grammar.special_tokens import SpecialTokens
from protocol.wire.messages import Grammar

TOO_MUCH_MEMORY: Final = "The grammar is too complex: it takes too much memory to compile."
_WALK_TOKENS: Final = 400
_WALK_S: Final = 0.25
_SECOND_WALK_S: Final = 0.75
"""Where the first met a limit: how much later a higher one is met has to be seen."""
_NUM_WALKS: Final = 2
_SLOW_STEP_S: Final = 0.02
"""CPU time of one mask and one token; what every stream's step waits for."""
_MAX_SLOW_STEPS: Final = 4
"""A walk may have so many: what is computed for the first time takes longer."""
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
        max_row_items: Limit of its outputs, see `ROW_ITEMS`.
    """

    refusal: str = ""
    source: str = ""
    unenforced: tuple[str, ...] = ()
    is_calm: bool = True
    max_row_items: int = ROW_ITEMS
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
        failed: _Failure | None = None
        for max_states in (CALM_LEXER_STATES, LIMITS["max_lexer_states"]):
            max_items = BROAD_ROW_ITEMS
            if grammar.kind == "lark":
                max_items, failed = self._fewest_row_items(source.text, max_states)
            else:
                failed = self._failure_of(source.text, max_items, max_states)
            if failed is None:
                is_calm = max_states == CALM_LEXER_STATES
                return TrialResult("", source.text, source.unenforced, is_calm, max_items)
        assert failed is not None
        reason = one_line(failed.message, is_own=grammar.kind in ("lark", "regex"))
        return TrialResult(refusal=f"The grammar is not supported: {reason}")

    def _fewest_row_items(self, source: str, max_states: int) -> tuple[int, "_Failure | None"]:
        """The limit of a grammar's outputs, and what goes wrong with it.

        A broad grammar meets several limits at one place. One that meets each of them at another
        place is read in more ways the longer its text is, and would meet any.
        """
        failures: list[_Failure] = []
        for max_items in TRIED_ROW_ITEMS:
            walk_s = _WALK_S if not failures else _SECOND_WALK_S
            failed = self._failure_of(source, max_items, max_states, walk_s)
            if failed is None or not failed.is_of_row:
                return ROW_ITEMS, failed
            failures.append(failed)
        if len({failed.place for failed in failures}) == len(failures):
            return ROW_ITEMS, failures[-1]
        return BROAD_ROW_ITEMS, self._failure_of(source, BROAD_ROW_ITEMS, max_states)

    def _failure_of(
        self, source: str, max_items: int, max_states: int, walk_s: float = _WALK_S
    ) -> "_Failure | None":
        """What goes wrong when a grammar is compiled, or in long outputs; None for nothing."""
        limits = parser_limits(max_items_in_row=max_items, max_lexer_states=max_states)
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        until = time.process_time() + walk_s
        place = (0, 0)
        for seed in range(_NUM_WALKS):
            if matcher.is_error():
                break
            num_tokens = self._walk(matcher, random.Random(seed), until)  # noqa: S311 - no secret
            place = (seed, num_tokens)
            if num_tokens < 0:
                return _Failure(TOO_SLOW, place)
            if matcher.is_error():
                break
            matcher.reset()
        return _Failure(matcher.get_error(), place) if matcher.is_error() else None

    def _walk(self, matcher: LLMatcher, rng: random.Random, until: float) -> int:
        """Write a long output; how many tokens it has, or -1 if they cost too much.

        It may end in an error of the matcher.
        """
        num_slow = 0
        for num_tokens in range(_WALK_TOKENS):
            begun = time.process_time()
            if matcher.is_stopped() or begun >= until:
                return num_tokens
            bits = int.from_bytes(matcher.compute_bitmask(), "little")
            spent = time.process_time() - begun
            for token_id in self._special.eos_token_ids:
                bits &= ~(1 << token_id)
            common: list[int] = []
            while bits and len(common) < _COMMON:
                lowest = bits & -bits
                common.append(lowest.bit_length() - 1)
                bits ^= lowest
            if not common or matcher.is_error():
                return num_tokens
            # What the tokenizer spells with a special token can't always be taken: it is no fault.
            begun = time.process_time()
            if not matcher.try_consume_tokens([rng.choice(common)]):
                return num_tokens
            num_slow += spent + time.process_time() - begun > _SLOW_STEP_S
            if num_slow > _MAX_SLOW_STEPS:
                return -1
        return _WALK_TOKENS


class _Failure(NamedTuple):
    """What goes wrong with a grammar.

    Attributes:
        message: As llguidance says it.
        place: Which walk, and how many tokens it had.
    """

    message: str
    place: tuple[int, int]

    @property
    def is_of_row(self) -> bool:
        """Whether there were too many ways to go on at one place."""
        return ROW_LIMIT in self.message


def main(file_descriptor: int) -> None:
    """Until the parent closes the connection."""
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
