"""Decode tokens per second through the whole engine, and of transformers' `generate`, in one run.

    python -m benchmarks.peers.transformers_generate                     # both shapes: ten minutes
    python -m benchmarks.peers.transformers_generate --shape SmolLM2-135M --concurrency 1 8

Random weights of real models' shapes, prompts of 128 tokens, 128 new tokens, greedy, no end of
sequence, all requests at once. Both sides take turns, so that a noisy machine treats them alike,
and medians are compared. transformers (torch on the CPU) runs in bfloat16 and in float32; the
faster one counts. Decode is the time of a whole run less that of one which makes only one token.
"Bare" is the compiled decode program alone, at four contexts of the output.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.shapes import SHAPES
from benchmarks.steps import progress
from benchmarks.whole_engine import (
    NUM_NEW_TOKENS,
    NUM_PROMPT_TOKENS,
    WholeEngine,
    served_dtype,
)
from engine_worker.compute.models.decoder import declare, random_weights
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.runner.compile_cache import prepare_backend

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


class TransformersSide:
    """transformers' own model of the shape with torch.

    Args:
        shape: Of `benchmarks.shapes.SHAPES`.
        dtype: bfloat16 or float32.
        device: torch's name of it.
    """

    def __init__(self, shape: str, dtype: str, device: str = "cpu") -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        self._torch = torch
        fields: dict[str, Any] = dict(SHAPES[shape])
        model_type = "qwen2" if "Qwen2ForCausalLM" in fields["architectures"] else "llama"
        config = AutoConfig.for_model(model_type, **fields)
        self._vocab_size: int = config.vocab_size
        # Typed as Any: its stubs don't know `generate`.
        model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        self._model = model.eval().to(device)
        self._device = device

    def generate(
        self, concurrency: int, num_new_tokens: int, num_prompt_tokens: int = NUM_PROMPT_TOKENS
    ) -> float:
        """Seconds of one call."""
        torch = self._torch
        shape = (concurrency, num_prompt_tokens)
        prompts = torch.randint(0, self._vocab_size, shape, device=self._device)
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
        # Reading a token waits for an accelerator.
        assert 0 <= int(output[0, -1]) < self._vocab_size
        assert output.shape[1] == num_prompt_tokens + num_new_tokens
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
    engine = WholeEngine(
        random_weights(declare(decoder_spec(SHAPES[shape]), served_dtype(shape)), seed=0),
        max(concurrencies),
    )
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
