"""Compiles grammars for one model, each once, within bounds of time and memory; any thread."""

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Final

from llguidance import LLMatcher

from engine_worker.errors import RequestError, UnsupportedGrammarError
from engine_worker.grammar.constraint import Constraint
from engine_worker.grammar.limits import parser_limits
from engine_worker.grammar.messages import one_line
from engine_worker.grammar.trial import GrammarTrial
from engine_worker.grammar.trial_process import TrialResult
from engine_worker.grammar.vocabulary import GrammarVocabulary
from engine_worker.text.tokenizer import Tokenizer
from protocol.errors import PenstockError
from protocol.wire.messages import Grammar, SamplingParams

_log = logging.getLogger("penstock.engine")
MAX_CACHED: Final = 64
"""Grammars that are kept compiled, refused ones included; the least recently used one goes."""
MAX_AWAKE: Final = 16
"""Of those, the ones that keep what outputs share, the most recently used; some have megabytes."""
MAX_SHARED: Final = 32
"""Outputs that share the states of one matcher, one after the other or at a time."""
TRIAL_TIMEOUT_S: Final = 5.0
REST_S: Final = 10.0
"""A grammar with which no output begins for so long, or twice that, keeps no states."""
NUM_TRIALS: Final = 2
"""Grammars that are tried at a time."""


class CompiledGrammar:
    """A grammar at its beginning, for any number of outputs.

    What is copied from one matcher shares the states of its lexer, and their limit. So outputs
    share a matcher only while their grammar needs few states, and only so many of them; the others
    get one that is compiled again.

    Args:
        result: What its trial said.
        vocabulary: Of the model.
    """

    def __init__(self, result: TrialResult, vocabulary: GrammarVocabulary) -> None:
        self._result = result
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._shared: LLMatcher | None = None
        self._has_compiled = False
        self._num_outputs = 0
        self._is_resting = False

    def compile(self) -> None:
        """Compile it in this process, once.

        Raises:
            UnsupportedGrammarError: It doesn't compile after all.
        """
        with self._lock:
            if not self._has_compiled:
                self._shared = self._compile()
                self._has_compiled = True

    def start(self, *, jumps: bool) -> Constraint:
        """The state of a new output; see `Constraint`. May compile, so no step may wait for it."""
        with self._lock:
            self._is_resting = False
            matcher = self._next_matcher()
        unenforced = self._result.unenforced
        return Constraint(matcher, self._vocabulary, jumps=jumps, unenforced=unenforced)

    def rest(self) -> None:
        """Release what outputs share, if none began since the last call; the next one compiles.

        That takes milliseconds, and some have megabytes.
        """
        with self._lock:
            if self._is_resting:
                self._shared = None
            self._is_resting = True

    def release(self) -> None:
        """Release what outputs share now, unless one begins at this moment."""
        if self._lock.acquire(blocking=False):
            self._shared = None
            self._lock.release()

    def _next_matcher(self) -> LLMatcher:
        matcher, self._shared = self._shared, None
        self._num_outputs += 1
        if matcher is None or self._num_outputs > MAX_SHARED:
            matcher, self._num_outputs = self._compile(), 1
        if self._result.is_calm:
            self._shared = matcher
            return matcher.deep_copy()
        return matcher

    def _compile(self) -> LLMatcher:
        matcher = LLMatcher(
            self._vocabulary.ll_tokenizer,
            self._result.source,
            log_level=0,
            limits=parser_limits(max_items_in_row=self._result.max_row_items),
        )
        if not matcher.is_error():
            # The first mask builds much of the automaton, which all outputs then share.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise UnsupportedGrammarError(
                f"The grammar is not supported: {one_line(matcher.get_error())}"
            )
        return matcher


def may_jump(sampling: SamplingParams) -> bool:
    """Whether tokens that are forced can be appended without sampling."""
    return (
        sampling.logprobs is None
        and sampling.prompt_logprobs is None
        and sampling.allowed_token_ids is None
    )


def _is_compiled(future: Future[CompiledGrammar]) -> bool:
    return future.done() and future.exception() is None


def _again(error: BaseException) -> BaseException:
    """The same refusal for another request.

    One that is raised gathers the frames that it passes, with all that these know: the requests.
    """
    if isinstance(error, PenstockError):
        return type(error)(error.message, code=error.code, param=error.param)
    return error


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
        self._closing = threading.Event()
        self._has_rest_thread = False
        self._has_spare = False
        # Those whose process runs come first: another one takes a second to start.
        self._trials: queue.PriorityQueue[tuple[bool, int]] = queue.PriorityQueue()
        self._trial_of: list[GrammarTrial | None] = [None] * NUM_TRIALS
        for number in range(NUM_TRIALS):
            self._trials.put((True, number))
        # What is being compiled is in it too: whoever comes second waits for the first.
        self._cache: OrderedDict[Grammar, Future[CompiledGrammar]] = OrderedDict()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The grammar, compiled; blocks for as long as it takes, at most about the time limit.

        Raises:
            UnsupportedGrammarError: It is wrong or too costly; the message says which.
            HelperLostError: It could not be tried now; the next one to ask tries again.
        """
        return self._get(grammar, compiles=True)

    def try_out(self, grammar: Grammar) -> None:
        """Have it tried in a process of its own, and do nothing of it in this one yet.

        Raises:
            PenstockError: As `compile`.
        """
        self._get(grammar, compiles=False)

    def _get(self, grammar: Grammar, *, compiles: bool) -> CompiledGrammar:
        with self._lock:
            future = self._cache.get(grammar)
            is_first = future is None
            if future is None:
                future = self._cache[grammar] = Future()
                while len(self._cache) > MAX_CACHED:
                    self._cache.popitem(last=False)
            else:
                self._cache.move_to_end(grammar)
            # One at most has just become too old, for one has become the newest.
            old = next(islice(reversed(self._cache.values()), MAX_AWAKE, None), None)
            needs_thread, self._has_rest_thread = not self._has_rest_thread, True
        if old is not None and _is_compiled(old):
            old.result().release()
        if needs_thread:
            threading.Thread(target=self._rest_in_turns, name="grammar-rest", daemon=True).start()
        if is_first:
            self._fulfil(future, grammar, compiles=compiles)
        if (error := future.exception()) is not None:
            raise _again(error)
        compiled = future.result()
        if compiles:
            compiled.compile()
        return compiled

    def start(self, grammar: Grammar, sampling: SamplingParams) -> Constraint:
        """The state of a new output; compiles its grammar first, see `compile`.

        Forced tokens are jumped over unless they have to go through sampling: for their log
        probabilities, or because the request allows some tokens only.

        Raises:
            UnsupportedGrammarError: As `compile`.
        """
        return self.compile(grammar).start(jumps=may_jump(sampling))

    def rest(self) -> None:
        """Release what no output needed since the last call."""
        with self._lock:
            futures = list(self._cache.values())
        for future in futures:
            if _is_compiled(future):
                future.result().rest()

    def close(self) -> None:
        """End the trial processes: the idle ones now, the others after their grammar."""
        self._closing.set()
        idle: list[int] = []
        with suppress(queue.Empty):
            while True:
                idle.append(self._trials.get_nowait()[1])
        for number in idle:
            trial = self._trial_of[number]
            if trial is not None:
                trial.close()
            self._trials.put((True, number))

    def _rest_in_turns(self) -> None:
        while not self._closing.wait(REST_S):
            try:
                self.rest()
            except BaseException:  # noqa: BLE001 - a panic of the native library is no Exception
                _log.exception("compiled grammars could not release their states")

    def _fulfil(self, future: Future[CompiledGrammar], grammar: Grammar, *, compiles: bool) -> None:
        started = self._clock()
        try:
            compiled = self._compile(grammar)
            if compiles:
                compiled.compile()
        except RequestError as error:
            # The cache keeps it: never the one that was raised, which knows the first request.
            future.set_exception(_again(error))
        except BaseException as error:  # noqa: BLE001 - whoever waits for it must hear of it
            # Not the grammar's fault: the next request tries again. A panic of the native library
            # is no Exception.
            with self._lock:
                self._cache.pop(grammar, None)
            future.set_exception(_again(error))
        else:
            future.set_result(compiled)
        self._on_compiled(self._clock() - started)

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        vocabulary = self._get_vocabulary()
        with self._use_trial(vocabulary) as trial:
            with self._lock:
                needs_spare, self._has_spare = not self._has_spare, True
            if needs_spare:
                threading.Thread(
                    target=self._start_spare, args=(vocabulary,), name="grammar-spare", daemon=True
                ).start()
            result = trial.check(grammar)
        return CompiledGrammar(result, vocabulary)

    @contextmanager
    def _use_trial(self, vocabulary: GrammarVocabulary) -> Iterator[GrammarTrial]:
        """One that nobody else uses meanwhile, given back with a process that runs.

        Whose grammar broke the process waits for the next one, not whoever comes then.
        """
        _, number = self._trials.get()
        trial = self._trial_of[number]
        if trial is None:
            trial = GrammarTrial(vocabulary, timeout_s=self._trial_timeout_s)
            self._trial_of[number] = trial
        try:
            try:
                yield trial
            finally:
                if not self._closing.is_set():
                    trial.start()
        finally:
            if self._closing.is_set():
                trial.close()
            self._trials.put((not trial.is_alive, number))

    def _start_spare(self, vocabulary: GrammarVocabulary) -> None:
        """The other processes as well: the next tenant's first grammar would wait for one."""
        with self._use_trial(vocabulary):
            pass

    def _get_vocabulary(self) -> GrammarVocabulary:
        # Made at the first grammar: it takes a second for a large vocabulary.
        with self._vocabulary_lock:
            if self._vocabulary is None:
                self._vocabulary = GrammarVocabulary(self._tokenizer, self._vocab_size)
            return self._vocabulary
