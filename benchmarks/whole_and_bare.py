"""Decode tokens per second through the whole engine beside its bare program, and of mixed rows.

    python -m benchmarks.whole_and_bare --backend cpu_native --dtype bfloat16
    python -m benchmarks.whole_and_bare --mixed 8 --repeats 7
    taskset -c 0 python -m benchmarks.whole_and_bare --concurrency --mixed 8 --cpu-time

Random weights of a real model's shape, prompts of 128 tokens, 128 new ones, greedy, no end of
sequence, all requests at once, nothing drafted. Decode is the time of a whole run less that of one
that makes only one token. "Bare" is the compiled decode program alone, at four contexts of the
output. `--mixed N` adds what N requests make beside a further one that wants something of its own.
All take turns, so that a noisy machine treats them alike, and medians are compared. `--cpu-time`
counts what this process computed instead of the time that passed: beside other processes, on one
core, where no thread spins.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from benchmarks.random_decoder import BACKENDS, WEIGHT_TYPES, random_decoder
from benchmarks.shapes import SHAPES
from benchmarks.steps import progress
from benchmarks.whole_engine import WholeEngine
from engine_worker.compute.runner.compile_cache import prepare_backend

ODD_ROWS: Final[Mapping[str, dict[str, Any]]] = {
    "nothing": {},
    "log probabilities": {"logprobs": 5},
    "a bias": {"logit_bias": ((7, 1.0),)},
    "a mask of the host": {"allowed_token_ids": tuple(range(0, 2048, 2))},
    "to be streamed": {"is_streaming": True},
}
"""What one request of several may want."""


def mixed_rate(
    engine: WholeEngine, num_rows: int, odd: Mapping[str, Any], clock: Callable[[], float]
) -> float:
    """Decode tokens per second of some rows, while one beside them wants something."""

    def run_s(num_new_tokens: int) -> float:
        engine.add(num_rows, num_new_tokens, is_streaming=False)
        engine.add(1, num_new_tokens, **{"is_streaming": False, **odd})
        started = clock()
        while engine.engine.num_unfinished > 1:
            engine.step()
        duration_s = clock() - started
        while engine.engine.has_work():
            engine.step()
        return duration_s

    first_s = run_s(1)
    return num_rows * (engine.num_new_tokens - 1) / (run_s(engine.num_new_tokens) - first_s)


def medians(measures: Mapping[str, Callable[[], float]], num_repeats: int) -> dict[str, float]:
    """Of what takes turns; the first round is for caches and measured step times."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for repeat in range(num_repeats + 1):
        for name, measure in measures.items():
            rate = measure()
            if repeat:
                found[name].append(rate)
                progress(f"{repeat}: {name}: {rate:.0f} tokens/s")
    return {name: statistics.median(rates) for name, rates in found.items()}


def print_whole_and_bare(engine: WholeEngine, concurrency: int, num_repeats: int) -> None:
    """A row of the table."""
    rates = medians(
        {
            "engine": lambda: engine.decode_rate(concurrency, is_streaming=False),
            "streaming": lambda: engine.decode_rate(concurrency, is_streaming=True),
            "bare": lambda: engine.bare_tokens_per_s(concurrency),
        },
        num_repeats,
    )
    whole, streaming, bare = rates.values()
    print(
        f"| {concurrency} | {whole:.0f} | {streaming:.0f} | {bare:.0f} | {whole / bare:.2f}"
        f" | {streaming / bare:.2f} |"
    )


def print_mixed(
    engine: WholeEngine, num_rows: int, num_repeats: int, clock: Callable[[], float]
) -> None:
    """The table of what one request costs some others."""
    engine.engine = engine.make_engine(clock=clock)
    rates = medians(
        {name: partial(mixed_rate, engine, num_rows, odd, clock) for name, odd in ODD_ROWS.items()},
        num_repeats,
    )
    print(f"\n| beside {num_rows} requests one wants | tokens/s of the {num_rows} | share |")
    print("|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} | {rate / rates['nothing']:.2f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="SmolLM2-135M")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--dtype", choices=WEIGHT_TYPES, default="bfloat16")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--mixed", type=int, default=0, metavar="N")
    parser.add_argument("--cpu-time", action="store_true", help="for --mixed")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    prepare_backend(None)
    decoder = random_decoder(options.shape, options.dtype, options.backend)
    progress(f"{options.shape}, {options.dtype} on {decoder.backend.name}: compiling")
    engine = WholeEngine(decoder, max([*options.concurrency, options.mixed + 1]))
    if options.concurrency:
        print("| requests | engine | engine, streaming | bare | engine / bare | streaming / bare |")
        print("|---|---|---|---|---|---|")
    for concurrency in options.concurrency:
        print_whole_and_bare(engine, concurrency, options.repeats)
    if options.mixed:
        clock = time.process_time if options.cpu_time else time.perf_counter
        print_mixed(engine, options.mixed, options.repeats, clock)


if __name__ == "__main__":
    main()
