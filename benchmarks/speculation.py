"""Decode tokens per second with draft tokens and without, on text that repeats and that doesn't.

    python -m benchmarks.speculation
    python -m benchmarks.speculation --models SmolLM2-135M --concurrency 1 8 32 --texts written

Two engines as they are served, one with `auto` and one with `off`, take turns within each round;
the medians of the rounds' ratios count, because a noisy machine treats the two of a round alike.
128 new tokens, all requests at once and read as they come. The bundled model has prompts of 128
tokens of its quality text. Models of another shape have random weights and random prompts: at
temperature 1 their outputs never repeat, greedy ones soon go in circles, which is what prompt
lookup finds.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.backends import write_checkpoint
from benchmarks.shapes import SHAPES
from benchmarks.steps import progress
from engine_worker.config import ModelSettings
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.metrics import EngineMetrics
from engine_worker.demo import demo_model_path
from engine_worker.loading.decoder import ServedModel, load_model
from protocol.wire.messages import Failure, Generate, SamplingParams

BUNDLED: Final = "bundled"
NUM_PROMPT_TOKENS: Final = 128
NUM_NEW_TOKENS: Final = 128
TEXTS: Final = {"repeats": 0.0, "written": 1.0}
"""Temperatures that make outputs repeat or not."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one run: decode tokens per second, and CPU time of the process a token."""

    tokens_per_s: float
    cpu_s: float


class Side:
    """A model as it is served, with its way of drafting.

    Args:
        folder: Of the model.
        mode: Whether it drafts.
        compile_cache: Folder of compiled programs.
    """

    def __init__(self, folder: Path, mode: SpeculationMode, compile_cache: Path) -> None:
        self.metrics = EngineMetrics()
        settings = ModelSettings(
            path=folder,
            name=folder.name,
            speculation=mode,
            prefix_cache=False,
            kv_memory_bytes=256 * 2**20,
            compile_cache_dir=compile_cache,
            weights_cache_dir=compile_cache / "weights",
        )
        self.served: ServedModel = load_model(
            settings, lambda _phase, _done, _text: None, self.metrics
        )
        self._num_requests = 0

    def drafts(self) -> tuple[float, float]:
        """Tokens that were drafted so far, and of these the right ones."""
        counts = {
            sample.labels[0][1]: sample.value
            for sample in self.metrics.registry.message().samples
            if sample.name == "penstock_engine_draft_tokens"
        }
        return counts.get("drafted", 0.0), counts.get("accepted", 0.0)

    def run(self, prompts: Sequence[Sequence[int]], temperature: float) -> Speed:
        """From when all requests have their first token to the last end."""
        engine = self.served.engine
        for seed, prompt in enumerate(prompts):
            self._num_requests += 1
            sampling = SamplingParams(
                temperature=temperature, seed=seed, max_tokens=NUM_NEW_TOKENS, ignore_eos=True
            )
            engine.add(
                "benchmark",
                Generate(
                    request_id=str(self._num_requests),
                    choice=0,
                    attempt=0,
                    prompt_token_ids=tuple(prompt),
                    sampling=sampling,
                    lease_tokens=NUM_NEW_TOKENS,
                    deadline_s=3600.0,
                ),
            )
        # Each step computes one prompt at the least.
        for _ in prompts:
            self._step()
        num_before = engine.held()["benchmark"][1]
        # What the other engine left must not be collected here.
        gc.collect()
        started, cpu_started = time.perf_counter(), time.process_time()
        while engine.has_work():
            self._step()
        num_tokens = len(prompts) * (NUM_PROMPT_TOKENS + NUM_NEW_TOKENS) - num_before
        return Speed(
            num_tokens / (time.perf_counter() - started),
            (time.process_time() - cpu_started) / num_tokens,
        )

    def _step(self) -> None:
        for told in self.served.engine.step().values():
            failed = [end for end in told.ends if isinstance(end, Failure)]
            assert not failed, failed


class Prompts:
    """Pieces of text for the bundled model, random tokens for others."""

    def __init__(self, served: ServedModel, *, is_bundled: bool) -> None:
        self._generator = np.random.default_rng(0)
        self._vocab_size = served.offer.vocab_size
        self._text: Sequence[int] = ()
        if is_bundled:
            text = (demo_model_path() / "quality.txt").read_text(encoding="utf-8")
            self._text = served.tokenizer.encode(text, add_special_tokens=False)

    def take(self, num: int) -> list[list[int]]:
        """Some prompts that were not taken before."""
        if not self._text:
            shape = (num, NUM_PROMPT_TOKENS)
            rows: list[list[int]] = self._generator.integers(0, self._vocab_size, shape).tolist()
            return rows
        starts = self._generator.integers(0, len(self._text) - NUM_PROMPT_TOKENS, num)
        return [list(self._text[start : start + NUM_PROMPT_TOKENS]) for start in starts.tolist()]


def compare(
    model: str,
    folder: Path,
    compile_cache: Path,
    concurrencies: Sequence[int],
    texts: Sequence[str],
    num_rounds: int,
) -> None:
    """Prints the rows of one model."""
    progress(f"{model}: loading")
    off = Side(folder, SpeculationMode.OFF, compile_cache)
    auto = Side(folder, SpeculationMode.AUTO, compile_cache)
    prompts = Prompts(off.served, is_bundled=model == BUNDLED)
    for text in texts:
        for concurrency in concurrencies:
            rounds: list[tuple[Speed, Speed]] = []
            # The first round is for caches and for the step times that `auto` measures.
            for number in range(num_rounds + 1):
                taken = prompts.take(concurrency)
                if number == 1:
                    before = auto.drafts()
                if number % 2:
                    first = off.run(taken, TEXTS[text])
                    second = auto.run(taken, TEXTS[text])
                else:
                    second = auto.run(taken, TEXTS[text])
                    first = off.run(taken, TEXTS[text])
                progress(f"  {text} x{concurrency}: off {first}, auto {second}")
                if number:
                    rounds.append((first, second))
            drafted, accepted = (
                now - then for now, then in zip(auto.drafts(), before, strict=True)
            )
            share = f"{accepted / drafted:.0%} of {drafted:.0f}" if drafted else "none"
            speeds = [
                statistics.median(each[side].tokens_per_s for each in rounds) for side in (0, 1)
            ]
            ratio = statistics.median(b.tokens_per_s / a.tokens_per_s for a, b in rounds)
            cpu_ratio = statistics.median(b.cpu_s / a.cpu_s for a, b in rounds)
            print(
                f"| {model} | {text} | {concurrency} | {speeds[0]:.0f} | {speeds[1]:.0f} "
                f"| {ratio:.3f} | {cpu_ratio:.3f} | {share} |",
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description="Draft tokens against none.")
    parser.add_argument(
        "--models", choices=(BUNDLED, *SHAPES), nargs="+", default=[BUNDLED, "SmolLM2-135M"]
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--texts", choices=tuple(TEXTS), nargs="+", default=list(TEXTS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    print(
        "| model | text | requests | off, tokens/s | auto, tokens/s | auto / off "
        "| CPU time, auto / off | drafts right |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as directory:
        for model in options.models:
            folder = demo_model_path()
            if model != BUNDLED:
                folder = Path(directory) / model
                progress(f"{model}: writing its random weights")
                write_checkpoint(folder, model)
            compare(
                model,
                folder,
                Path(directory) / "cache",
                options.concurrency,
                options.texts,
                options.rounds,
            )


if __name__ == "__main__":
    main()
