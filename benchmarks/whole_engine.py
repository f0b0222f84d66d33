"""The whole engine in this process, with random weights, as benchmarks drive it."""

import statistics
import time
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models, pre_tokenizers

from benchmarks.shapes import SHAPES
from benchmarks.steps import BLOCK_SIZE, AnyDecoder, row_blocks, time_decode
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.dtype import read_cpu_flags, resolve_dtype
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.runner.buckets import Bucket
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.runner.program_set import ProgramSet
from engine_worker.compute.runner.score_program import ScoreLayout
from engine_worker.core.choice.batch import RowSampling, RowWork
from engine_worker.core.engine import Engine
from engine_worker.text.detokenizer import byte_level_table
from engine_worker.text.tokenizer import Tokenizer
from engine_worker.text.tokenizer_files import TokenizerFiles
from protocol.wire.messages import Failure, Generate, SamplingParams

NUM_PROMPT_TOKENS = 128
NUM_NEW_TOKENS = 128


def wide_vocabulary(vocab_size: int) -> BackendTokenizer:
    """A byte-level tokenizer with as many tokens as the model has, so that any output is text."""
    vocabulary = byte_level_table()
    letters = list(vocabulary)
    merges = []
    stems = list(letters)
    for stem in stems:
        for letter in letters:
            if len(vocabulary) >= vocab_size:
                break
            if stem + letter not in vocabulary:
                merges.append((stem, letter))
                vocabulary[stem + letter] = len(vocabulary)
                stems.append(stem + letter)
    backend = BackendTokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def wide_tokenizer(vocab_size: int) -> Tokenizer:
    """`wide_vocabulary` as the engine has it."""
    return Tokenizer(TokenizerFiles(wide_vocabulary(vocab_size), {}, None), frozenset())


def served_dtype(shape: str) -> np.dtype[Any]:
    """The type that the engine would choose for a model of this shape here."""
    graph = declare(decoder_spec(SHAPES[shape]), "float32")
    choice = resolve_dtype(
        "auto", jax.default_backend(), lambda: graph.num_parameters, read_cpu_flags()
    )
    return choice.dtype


class TimedPrograms(ProgramSet):
    """Adds up the time inside compiled programs, results included."""

    program_s = 0.0

    def compile(self, key: Bucket | int | ScoreLayout) -> Any:
        program = super().compile(key)

        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            results = program(*arguments)
            for array in jax.tree.leaves(results):
                array.block_until_ready()
            self.program_s += time.perf_counter() - started
            return results

        return call


class TimedRunner(JaxModelRunner):
    """A runner of timed programs."""

    program_set = TimedPrograms

    @property
    def program_s(self) -> float:
        """Seconds in programs so far."""
        programs = self._programs
        assert isinstance(programs, TimedPrograms)
        return programs.program_s


class WholeEngine:
    """An engine of one shape without sockets, with prompts of random tokens.

    Args:
        weights: Of the shape.
        max_concurrency: The most requests at once.
        num_prompt_tokens: Of each request.
        num_new_tokens: The most of each request.
    """

    def __init__(
        self,
        weights: AnyDecoder,
        max_concurrency: int,
        num_prompt_tokens: int = NUM_PROMPT_TOKENS,
        num_new_tokens: int = NUM_NEW_TOKENS,
    ) -> None:
        self.weights = weights
        self._num_prompt_tokens = num_prompt_tokens
        self.num_new_tokens = num_new_tokens
        self._max_model_len = num_prompt_tokens + num_new_tokens + 1
        self.runner = TimedRunner.create(
            self.weights,
            num_blocks=(max_concurrency + 1) * -(-self._max_model_len // BLOCK_SIZE),
            max_model_len=self._max_model_len,
            block_size=BLOCK_SIZE,
            max_num_seqs=max_concurrency,
        )
        self.runner.warm_up(lambda done, text: None)
        self.runner.finish_warm_up()
        self._vocab_size = self.runner.backend.spec.vocab_size
        self._tokenizer = wide_tokenizer(self._vocab_size)
        self.engine = self.make_engine()
        self._generator = np.random.default_rng(0)
        self._num_requests = 0

    def make_engine(self, **options: Any) -> Engine:
        """Another engine on the same runner, to be put into `engine` while nothing runs."""
        return Engine(
            self.runner,
            self._tokenizer,
            vocab_size=self._vocab_size,
            max_model_len=self._max_model_len,
            prefix_cache=False,
            **options,
        )

    def add(
        self,
        concurrency: int,
        num_new_tokens: int,
        *,
        is_streaming: bool,
        **sampling_changes: Any,
    ) -> None:
        """Hand in requests."""
        changes = {"temperature": 0.0, **sampling_changes}
        sampling = SamplingParams(seed=1, max_tokens=num_new_tokens, ignore_eos=True, **changes)
        for _ in range(concurrency):
            self._num_requests += 1
            prompt = self._generator.integers(0, self._vocab_size, self._num_prompt_tokens)
            self.engine.add(
                "benchmark",
                Generate(
                    request_id=str(self._num_requests),
                    choice=0,
                    attempt=0,
                    prompt_token_ids=tuple(prompt.tolist()),
                    sampling=sampling,
                    lease_tokens=self._max_model_len,
                    deadline_s=3600.0,
                    is_streaming=is_streaming,
                ),
            )

    def generate(
        self, concurrency: int, num_new_tokens: int, *, is_streaming: bool, **sampling: Any
    ) -> float:
        """Seconds from the first request to the last end."""
        started = time.perf_counter()
        self.add(concurrency, num_new_tokens, is_streaming=is_streaming, **sampling)
        while self.engine.has_work():
            self.step()
        return time.perf_counter() - started

    def step(self) -> None:
        """One step, of which nothing may fail."""
        for told in self.engine.step().values():
            failed = [end for end in told.ends if isinstance(end, Failure)]
            assert not failed, failed

    def decode_rate(self, concurrency: int, *, is_streaming: bool) -> float:
        """Decode tokens per second: a whole run less one that makes one token."""
        first_s = self.generate(concurrency, 1, is_streaming=is_streaming)
        whole_s = self.generate(concurrency, self.num_new_tokens, is_streaming=is_streaming)
        return concurrency * (self.num_new_tokens - 1) / (whole_s - first_s)

    def bare_tokens_per_s(self, concurrency: int) -> float:
        """Of the decode program alone, with the contexts that it has while outputs grow."""
        num_blocks = -(-self._max_model_len // BLOCK_SIZE)
        blocks = row_blocks(self.runner, concurrency)
        program_s = []
        for eighths in (1, 3, 5, 7):
            context = self._num_prompt_tokens + self.num_new_tokens * eighths // 8
            rows = [
                RowWork(slot, (1,), context - 1, blocks[slot][:num_blocks], True, RowSampling())
                for slot in range(concurrency)
            ]
            program_s.append(time_decode(self.runner, self.weights, rows, 10)[1])
        return concurrency / statistics.mean(program_s)
