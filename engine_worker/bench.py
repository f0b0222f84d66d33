"""`python -m engine_worker.bench`: how fast this machine runs a model, without sockets.

Random prompts of `--prompt-tokens`, `--new-tokens` each, greedy, end-of-sequence off, at several
concurrencies, through the whole engine; the median of `--repeats`. Choices draft no tokens unless
`--speculation auto`: greedy answers to random prompts go in circles, which speculation makes fast.
"""

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine_worker.config import DEFAULT_COMPILE_CACHE_DIR, DTYPES
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.python_api.llm import LLM
from protocol.errors import PenstockError
from protocol.runtime.shared_settings import BACKENDS, KV_DTYPES
from protocol.wire.messages import SamplingParams

_FIRST_ORDINARY_ID = 5
"""Ids below it are control tokens in most vocabularies."""


@dataclass(frozen=True, slots=True)
class Speed:
    """One concurrency: prompt tokens per second alone, and new tokens per second after it."""

    concurrency: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def measure(
    llm: LLM,
    vocab_size: int,
    concurrency: int,
    *,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
) -> Speed:
    """The speed at one concurrency, medians of some repeats.

    Prompts differ in each repeat, so that the prefix cache helps none of them.
    """
    rng = random.Random(concurrency)  # noqa: S311 - which tokens, not a secret
    prefills, decodes = [], []
    for _ in range(repeats):
        prompts = [
            [rng.randrange(_FIRST_ORDINARY_ID, vocab_size) for _ in range(prompt_tokens)]
            for _ in range(concurrency)
        ]
        first_s = _seconds(llm, prompts, 1)
        whole_s = _seconds(llm, [prompt[::-1] for prompt in prompts], new_tokens)
        prefills.append(concurrency * prompt_tokens / first_s)
        decodes.append(concurrency * (new_tokens - 1) / max(whole_s - first_s, 1e-9))
    return Speed(concurrency, statistics.median(prefills), statistics.median(decodes))


def _seconds(llm: LLM, prompts: Sequence[Sequence[int]], max_tokens: int) -> float:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    started = time.perf_counter()
    llm.generate_token_ids(prompts, sampling)
    return time.perf_counter() - started


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; the exit code is 1 when the model can't be loaded."""
    parser = argparse.ArgumentParser(prog="penstock bench engine", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, help="a folder; the bundled model if none")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, default="auto")
    parser.add_argument("--speculation", choices=tuple(SpeculationMode), default="off")
    parser.add_argument("--compile-cache", type=Path, default=DEFAULT_COMPILE_CACHE_DIR)
    args = parser.parse_args(arguments)
    if min(*args.concurrency, args.prompt_tokens, args.repeats) < 1 or args.new_tokens < 2:
        parser.error("numbers must be at least 1, --new-tokens at least 2")
    # The engine gets a folder; nothing in it may reach for the network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    started = time.perf_counter()
    try:
        llm = LLM(
            args.model,
            dtype=args.dtype,
            backend=args.backend,
            kv_dtype=args.kv_dtype,
            max_num_seqs=max(args.concurrency),
            max_model_len=args.prompt_tokens + args.new_tokens,
            compile_cache_dir=args.compile_cache,
            speculation=args.speculation,
        )
    except PenstockError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    with llm:
        sys.stderr.write(f"loaded in {time.perf_counter() - started:.1f} s\n")
        _say("| concurrency | prefill tokens/s | decode tokens/s |\n|---|---|---|")
        for concurrency in args.concurrency:
            speed = measure(
                llm,
                llm.vocab_size,
                concurrency,
                prompt_tokens=args.prompt_tokens,
                new_tokens=args.new_tokens,
                repeats=args.repeats,
            )
            _say(
                f"| {concurrency} | {speed.prefill_tokens_per_s:.0f} "
                f"| {speed.decode_tokens_per_s:.0f} |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
