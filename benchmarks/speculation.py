"""Decode tokens per second with draft tokens and without, on text that repeats and that doesn't.

    python -m benchmarks.speculation
    python -m benchmarks.speculation --shape SmolLM2-135M --concurrency 1 4

Random weights, random prompts of 128 tokens, 128 new ones, all requests at once and read as they
come. Greedy outputs of random weights soon go in circles, which is what prompt lookup finds; at
temperature 1 they never repeat. Engines with and without drafts share the programs and take
turns; medians. CPU time says more than the clock where other processes share the cores.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shapes import SHAPES
from benchmarks.steps import progress
from benchmarks.whole_engine import NUM_NEW_TOKENS, NUM_PROMPT_TOKENS, WholeEngine, served_dtype
from engine_worker.compute.models.decoder import declare, random_weights
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.runner.compile_cache import prepare_backend
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.metrics import EngineMetrics

TEXTS = {"repeats": 0.0, "doesn't": 1.0}
"""Temperatures that make outputs of random weights repeat or not."""


def count_drafts(metrics: EngineMetrics) -> tuple[float, float]:
    """Tokens that were drafted so far, and of these the right ones."""
    counts = {
        sample.labels[0][1]: sample.value
        for sample in metrics.registry.message().samples
        if sample.name == "penstock_engine_draft_tokens"
    }
    return counts.get("drafted", 0.0), counts.get("accepted", 0.0)


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one run: decode tokens per second, and CPU time of the process a token."""

    tokens_per_s: float
    cpu_s: float


def decode_speed(whole: WholeEngine, concurrency: int, temperature: float) -> Speed:
    """From when all requests have their first token to the last end."""
    whole.add(concurrency, NUM_NEW_TOKENS, is_streaming=True, temperature=temperature)
    engine = whole.engine
    # Each step computes one prompt at the least.
    for _ in range(concurrency):
        whole.step()
    num_before = engine.held()["benchmark"][1]
    started, cpu_started = time.perf_counter(), time.process_time()
    while engine.has_work():
        whole.step()
    num_tokens = concurrency * (NUM_PROMPT_TOKENS + NUM_NEW_TOKENS) - num_before
    return Speed(
        num_tokens / (time.perf_counter() - started),
        (time.process_time() - cpu_started) / num_tokens,
    )


def compare(shape: str, concurrencies: Sequence[int], num_repeats: int) -> None:
    """Prints the rows of one shape."""
    progress(f"{shape}: compiling")
    weights = random_weights(declare(decoder_spec(SHAPES[shape]), served_dtype(shape)), seed=0)
    whole = WholeEngine(weights, max(8, *concurrencies))
    for text, temperature in TEXTS.items():
        metrics = {mode: EngineMetrics() for mode in (SpeculationMode.OFF, SpeculationMode.AUTO)}
        engines = {
            mode: whole.make_engine(speculation=mode, metrics=each)
            for mode, each in metrics.items()
        }
        for concurrency in concurrencies:
            speeds: dict[SpeculationMode, list[Speed]] = {mode: [] for mode in engines}
            before = count_drafts(metrics[SpeculationMode.AUTO])
            for repeat in range(num_repeats + 1):
                for mode, engine in engines.items():
                    whole.engine = engine
                    speed = decode_speed(whole, concurrency, temperature)
                    progress(f"  {text} x{concurrency} {mode}: {speed}")
                    # The first round is for caches and measured step times.
                    if repeat:
                        speeds[mode].append(speed)
            drafted, accepted = (
                now - then
                for now, then in zip(
                    count_drafts(metrics[SpeculationMode.AUTO]), before, strict=True
                )
            )
            off, auto = (
                statistics.median(each.tokens_per_s for each in values)
                for values in speeds.values()
            )
            off_cpu, auto_cpu = (
                statistics.median(each.cpu_s for each in values) for values in speeds.values()
            )
            share = f"{accepted / drafted:.0%} of {drafted:.0f}" if drafted else "none"
            print(
                f"| {shape} | {text} | {concurrency} | {off:.0f} | {auto:.0f} | {auto / off:.2f} "
                f"| {off_cpu * 1e3:.2f} | {auto_cpu * 1e3:.2f} | {share} |",
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description="Draft tokens against none.")
    parser.add_argument("--shape", choices=tuple(SHAPES), nargs="+")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile-cache", type=Path, help="folder of compiled programs")
    options = parser.parse_args(arguments)
    prepare_backend(options.compile_cache)
    print(
        "| shape | text | requests | off, tokens/s | auto, tokens/s | auto / off "
        "| off, CPU ms a token | auto, CPU ms a token | drafts right |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for shape in options.shape or ("penstock-demo", "SmolLM2-135M"):
        compare(shape, options.concurrency, options.repeats)


if __name__ == "__main__":
    main()
