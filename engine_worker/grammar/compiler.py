"""Compiles grammars for one model, each once, within bounds of time and memory; any thread."""

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from llguidance import LLMatcher, LLParserLimits

from engine_worker.errors import RequestError, UnsupportedGrammarError
from engine_worker.grammar.constraint import Constraint
from engine_worker.grammar.limits import LIMITS
from engine_worker.grammar.source import lark_source
from engine_worker.grammar.trial import GrammarTrial, one_line
from engine_worker.grammar.vocabulary import GrammarVocabulary
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import Grammar, SamplingParams

MAX_CACHED: Final = 64
"""Grammars that are kept compiled, refused ones included; the least recently used one goes."""
TRIAL_TIMEOUT_S: Final = 5.0
NUM_TRIALS: Final = 2
"""Grammars that are tried at a time."""


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar at its beginning, for any number of outputs.

    Attributes:
        matcher: Never advanced; every output gets a copy.
    """

    matcher: LLMatcher
    vocabulary: GrammarVocabulary

    def start(self, *, jumps: bool) -> Constraint:
        """The state of a new output; see `Constraint`."""
        return Constraint(self.matcher.deep_copy(), self.vocabulary, jumps=jumps)


class GrammarCompiler:
    """Turns grammars into constraints.

    Args:
        tokenizer: The model's.
        vocab_size: Token ids at or above it can't be drawn.
        trial_timeout_s: A grammar that takes longer to compile is refused.
        on_compiled: Told the seconds of each grammar that was not in the cache.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        *,
        trial_timeout_s: float = TRIAL_TIMEOUT_S,
        on_compiled: Callable[[float], None] = lambda duration_s: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._trial_timeout_s = trial_timeout_s
        self._on_compiled = on_compiled
        self._clock = clock
        self._lock = threading.Lock()
        self._vocabulary_lock = threading.Lock()
        self._vocabulary: GrammarVocabulary | None = None
        self._is_closed = False
        self._trials: queue.SimpleQueue[GrammarTrial | None] = queue.SimpleQueue()
        for _ in range(NUM_TRIALS):
            self._trials.put(None)
        # What is being compiled is in it too: whoever comes second waits for the first.
        self._cache: OrderedDict[Grammar, Future[CompiledGrammar]] = OrderedDict()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The grammar, compiled; blocks for as long as it takes, at most about the time limit.

        Raises:
            UnsupportedGrammarError: It is wrong or too costly; the message says which.
        """
        with self._lock:
            future = self._cache.get(grammar)
            is_first = future is None
            if future is None:
                future = self._cache[grammar] = Future()
                while len(self._cache) > MAX_CACHED:
                    self._cache.popitem(last=False)
            else:
                self._cache.move_to_end(grammar)
        if is_first:
            self._fulfil(future, grammar)
        return future.result()

    def start(self, grammar: Grammar, sampling: SamplingParams) -> Constraint:
        """The state of a new output; compiles its grammar first, see `compile`.

        Forced tokens are jumped over unless they have to go through sampling: for their log
        probabilities, or because the request allows some tokens only.

        Raises:
            UnsupportedGrammarError: As `compile`.
        """
        jumps = (
            sampling.logprobs is None
            and sampling.prompt_logprobs is None
            and sampling.allowed_token_ids is None
        )
        return self.compile(grammar).start(jumps=jumps)

    def close(self) -> None:
        """End the trial processes: the idle ones now, the others after their grammar."""
        self._is_closed = True
        idle: list[GrammarTrial | None] = []
        with suppress(queue.Empty):
            while True:
                idle.append(self._trials.get_nowait())
        for trial in idle:
            if trial is not None:
                trial.close()
            self._trials.put(trial)

    def _fulfil(self, future: Future[CompiledGrammar], grammar: Grammar) -> None:
        started = self._clock()
        try:
            compiled = self._compile(grammar)
        except RequestError as error:
            future.set_exception(error)
        except BaseException as error:  # noqa: BLE001 - whoever waits for it must hear of it
            # Not the grammar's fault: the next request tries again. A panic of the native library
            # is no Exception.
            with self._lock:
                self._cache.pop(grammar, None)
            future.set_exception(error)
        else:
            future.set_result(compiled)
        self._on_compiled(self._clock() - started)

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        vocabulary = self._get_vocabulary()
        source = lark_source(grammar, vocabulary.special)
        trial = self._trials.get() or GrammarTrial(vocabulary, timeout_s=self._trial_timeout_s)
        try:
            trial.check(source)
        finally:
            if self._is_closed:
                trial.close()
            self._trials.put(trial)
        limits = LLParserLimits(**_arguments(LIMITS))
        matcher = LLMatcher(vocabulary.ll_tokenizer, source, log_level=0, limits=limits)
        if not matcher.is_error():
            # The first mask builds much of the automaton, which all outputs then share.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise UnsupportedGrammarError(
                f"The grammar is not supported: {one_line(matcher.get_error())}"
            )
        return CompiledGrammar(matcher, vocabulary)

    def _get_vocabulary(self) -> GrammarVocabulary:
        # Made at the first grammar: it takes a second for a large vocabulary.
        with self._vocabulary_lock:
            if self._vocabulary is None:
                self._vocabulary = GrammarVocabulary(self._tokenizer, self._vocab_size)
            return self._vocabulary


def _arguments(limits: dict[str, int]) -> dict[str, Any]:
    """The limits as keyword arguments, which the library types one by one."""
    return dict(limits)
