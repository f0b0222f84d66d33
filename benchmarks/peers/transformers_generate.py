"""Decode tokens per second through the whole engine, and of transformers' `generate`, in one run.

    python -m benchmarks.peers.transformers_generate                     # both shapes: ten minutes
    python -m benchmarks.peers.transformers_generate --shape SmolLM2-135M --concurrency 1 8

Random weights of real models' shapes, prompts of 128 tokens, 128 new tokens, greedy, no end of
sequence, all requests at once. Both sides take turns, so that a noisy machine treats them alike,
and medians are compared. transformers (torch on the CPU) runs in bfloat16 and in float32; the
faster one counts. Decode is the time of a whole run less that of one which makes only one token.
"Bare" is the compiled decode program alone, called with rows in the middle of their output.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.engine import BLOCK_SIZE, SHAPES, progress, row_blocks, time_decode
from engine_worker.batch import RowSampling, RowWork
from engine_worker.compile_cache import prepare_backend
from engine_worker.detokenizer import byte_level_table
from engine_worker.engine import Engine
from engine_worker.models.decoder import DecoderWeights, declare, random_weights
from engine_worker.models.dtype import read_cpu_flags, resolve_dtype
from engine_worker.models.hf_config import decoder_spec
from engine_worker.runner.jax_runner import JaxModelRunner
from engine_worker.tokenizer import Tokenizer
from protocol.messages import Failure, Generate, SamplingParams

NUM_PROMPT_TOKENS = 128
NUM_NEW_TOKENS = 128
CONCURRENCIES = (1, 8, 32)

Generation = Callable[[int, int], float]
"""`generation(concurrency, num_new_tokens)`: the seconds that it took, prompts included."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One shape at one concurrency; decode tokens per second, medians."""

    shape: str
    concurrency: int
    engine: float
    engine_streaming: float
    bare: float
    transformers_bfloat16: float
    transformers_float32: float

    @property
    def ratio(self) -> float:
        """The engine over the faster transformers."""
        return self.engine / max(self.transformers_bfloat16, self.transformers_float32)


def wide_tokenizer(vocab_size: int) -> Tokenizer:
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
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), frozenset())


class EngineSide:
    """The whole engine of one shape, without sockets.

    Args:
        shape: Of `benchmarks.engine.SHAPES`.
        max_concurrency: The most requests at once.
    """

    def __init__(self, shape: str, max_concurrency: int) -> None:
        spec = decoder_spec(SHAPES[shape])
        dtype = resolve_dtype(
            "auto", jax.default_backend(), declare(spec, "float32").num_parameters, read_cpu_flags()
        ).dtype
        self.weights: DecoderWeights = random_weights(declare(spec, dtype), seed=0)
        self._max_model_len = NUM_PROMPT_TOKENS + NUM_NEW_TOKENS + 1
        self.runner = JaxModelRunner.create(
            self.weights,
            num_blocks=(max_concurrency + 1) * -(-self._max_model_len // BLOCK_SIZE),
            max_model_len=self._max_model_len,
            block_size=BLOCK_SIZE,
            max_num_seqs=max_concurrency,
        )
        self.runner.warm_up(lambda done, text: None)
        self.runner.finish_warm_up()
        self._engine = Engine(
            self.runner,
            wide_tokenizer(spec.vocab_size),
            vocab_size=spec.vocab_size,
            max_model_len=self._max_model_len,
            prefix_cache=False,
        )
        self._vocab_size = spec.vocab_size
        self._generator = np.random.default_rng(0)
        self._num_requests = 0

    def generate(self, concurrency: int, num_new_tokens: int, *, is_streaming: bool) -> float:
        """Seconds from the first request to the last end."""
        sampling = SamplingParams(temperature=0.0, max_tokens=num_new_tokens, ignore_eos=True)
        started = time.perf_counter()
        for _ in range(concurrency):
            self._num_requests += 1
            prompt = self._generator.integers(0, self._vocab_size, NUM_PROMPT_TOKENS)
            self._engine.add(
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
        while self._engine.has_work():
            for told in self._engine.step().values():
                failed = [end for end in told.ends if isinstance(end, Failure)]
                assert not failed, failed
        return time.perf_counter() - started

    def bare_tokens_per_s(self, concurrency: int) -> float:
        """Of the decode program alone, at the middle of the outputs."""
        context = NUM_PROMPT_TOKENS + NUM_NEW_TOKENS // 2
        num_blocks = -(-self._max_model_len // BLOCK_SIZE)
        blocks = row_blocks(self.runner, concurrency)
        rows = [
            RowWork(slot, (1,), context - 1, blocks[slot][:num_blocks], True, RowSampling())
            for slot in range(concurrency)
        ]
        _, program_s = time_decode(self.runner, self.weights, rows, 15)
        return concurrency / program_s


class TransformersSide:
    """transformers' own model of the shape with torch, on the CPU.

    Args:
        shape: Of `benchmarks.engine.SHAPES`.
        dtype: bfloat16 or float32.
    """

    def __init__(self, shape: str, dtype: str) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        self._torch = torch
        fields: dict[str, Any] = dict(SHAPES[shape])
        model_type = "qwen2" if "Qwen2ForCausalLM" in fields["architectures"] else "llama"
        config = AutoConfig.for_model(model_type, **fields)
        self._vocab_size: int = config.vocab_size
        # Typed as Any: its stubs don't know `generate`.
        model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        self._model = model.eval()

    def generate(self, concurrency: int, num_new_tokens: int) -> float:
        """Seconds of one call."""
        torch = self._torch
        prompts = torch.randint(0, self._vocab_size, (concurrency, NUM_PROMPT_TOKENS))
        started = time.perf_counter()
        with torch.inference_mode():
            output = self._model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=num_new_tokens,
                min_new_tokens=num_new_tokens,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        assert output.shape[1] == NUM_PROMPT_TOKENS + num_new_tokens
        return time.perf_counter() - started


def decode_rates(
    sides: dict[str, Generation], concurrency: int, num_repeats: int
) -> dict[str, float]:
    """Decode tokens per second of each side, which take turns; medians of the repeats."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(num_repeats + 1):
        for name, generate in sides.items():
            first_s = generate(concurrency, 1)
            whole_s = generate(concurrency, NUM_NEW_TOKENS)
            # The first round is for caches and measured step times.
            if repeat:
                rates[name].append(concurrency * (NUM_NEW_TOKENS - 1) / (whole_s - first_s))
                progress(f"  {name} x{concurrency}: {rates[name][-1]:.0f} tokens/s")
    return {name: statistics.median(values) for name, values in rates.items()}


def compare(
    shape: str, concurrencies: Sequence[int], num_repeats: int, dtypes: Sequence[str]
) -> list[Comparison]:
    """All concurrencies of one shape."""
    progress(f"{shape}: compiling")
    engine = EngineSide(shape, max(concurrencies))
    sides: dict[str, Generation] = {
        "engine": lambda num, new: engine.generate(num, new, is_streaming=False),
        "engine, streaming": lambda num, new: engine.generate(num, new, is_streaming=True),
    }
    for dtype in dtypes:
        sides[f"transformers {dtype}"] = TransformersSide(shape, dtype).generate
    found = []
    for concurrency in concurrencies:
        rates = decode_rates(sides, concurrency, num_repeats)
        found.append(
            Comparison(
                shape=shape,
                concurrency=concurrency,
                engine=rates["engine"],
                engine_streaming=rates["engine, streaming"],
                bare=engine.bare_tokens_per_s(concurrency),
                transformers_bfloat16=rates.get("transformers bfloat16", 0.0),
                transformers_float32=rates.get("transformers float32", 0.0),
            )
        )
    return found


def print_table(comparisons: Sequence[Comparison]) -> None:
    """The results for people, in Markdown."""
    print(
        "| shape | requests | engine | engine, streaming | bare program | transformers bf16 "
        "| transformers f32 | engine / transformers | engine / bare |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for c in comparisons:
        print(
            f"| {c.shape} | {c.concurrency} | {c.engine:.0f} | {c.engine_streaming:.0f} "
            f"| {c.bare:.0f} | {c.transformers_bfloat16:.0f} | {c.transformers_float32:.0f} "
            f"| {c.ratio:.2f} | {c.engine / c.bare:.2f} |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description="The engine against transformers' generate.")
    parser.add_argument("--shape", choices=tuple(SHAPES), nargs="+")
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(CONCURRENCIES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--peer-dtype", choices=("bfloat16", "float32"), nargs="+", default=["bfloat16", "float32"]
    )
    parser.add_argument("--compile-cache", type=Path, help="folder of compiled programs")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args(arguments)
    prepare_backend(options.compile_cache)
    comparisons: list[Comparison] = []
    for shape in options.shape or ("SmolLM2-135M", "Qwen2.5-0.5B"):
        comparisons += compare(shape, options.concurrency, options.repeats, options.peer_dtype)
    print_table(comparisons)
    if options.json:
        results = [asdict(comparison) for comparison in comparisons]
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
