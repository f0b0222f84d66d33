"""Backends and types of weights side by side through HTTP: tokens/s, memory and start of each.

    python -m benchmarks.backends                                     # xla and cpu_native, bfloat16
    python -m benchmarks.backends --sides xla:bfloat16 cpu_native:int8 --rounds 5
    python -m benchmarks.backends --sides cpu_native:int8 --speculation auto

A checkpoint of a real model's shape with random weights, prompts of 128 tokens, 128 new tokens,
greedy, no end of sequence, streamed, without drafts unless asked for. All servers are up at once
and take turns within each round, so that a noisy machine treats them alike; medians over rounds are
compared.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import psutil
from safetensors.numpy import save_file

from benchmarks.shapes import SHAPES
from benchmarks.stream_client import stream_all
from benchmarks.whole_engine import wide_vocabulary
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.weights.sources import weight_sources
from engine_worker.core.decoding.speculation import SpeculationMode
from protocol.runtime.child_environment import without_settings

NUM_PROMPT_TOKENS = NUM_NEW_TOKENS = 128
NUM_REQUEST_TOKENS = NUM_PROMPT_TOKENS + NUM_NEW_TOKENS + 32
"""Of a request, and some to spare."""
NUM_LONGEST_TOKENS = 1152
"""Of a prompt of 1,024 tokens and its answer, and some to spare."""
_START_TIMEOUT_S = 600.0


@dataclass
class Side:
    """One server.

    Attributes:
        backend, dtype, speculation: What it was told.
        url: Where it listens.
        start_s: From its start to `/ready`, its compile and weights caches filled.
        rates: Tokens per second by concurrency, one of each round.
        resident_mib: Of its engine at the end.
    """

    backend: str
    dtype: str
    url: str
    speculation: str = "off"
    start_s: float = 0.0
    rates: dict[int, list[float]] = field(default_factory=dict)
    resident_mib: int = 0


def write_checkpoint(folder: Path, shape: str) -> None:
    """A model folder of a shape: random bfloat16 weights, a tokenizer of as many tokens."""
    config: dict[str, Any] = SHAPES[shape] | {"dtype": "bfloat16"}
    is_qwen = "Qwen2ForCausalLM" in config["architectures"]
    config["model_type"] = "qwen2" if is_qwen else "llama"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    wide_vocabulary(config["vocab_size"]).save(str(folder / "tokenizer.json"))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    generator = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for sources in weight_sources(declare(decoder_spec(config), "bfloat16")):
        for source in sources:
            values = generator.standard_normal(source.shape, np.float32) * np.float32(0.02)
            if "norm" in source.name:
                values = np.ones(source.shape, np.float32)
            tensors[source.name] = values.astype(ml_dtypes.bfloat16)
    save_file(tensors, folder / "model.safetensors")


def kv_memory(shape: str, num_requests: int) -> str:
    """The setting that a number of requests at once need, or a long prompt; peers get as much.

    Args:
        shape: Of `SHAPES`.
        num_requests: Of `NUM_REQUEST_TOKENS` each, with keys and values in bfloat16.
    """
    config = SHAPES[shape]
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    num_heads = config["num_hidden_layers"] * config["num_key_value_heads"]
    num_tokens = max(NUM_REQUEST_TOKENS * num_requests, NUM_LONGEST_TOKENS)
    return f"{-(-2 * num_heads * head_dim * 2 * num_tokens // 2**20)}MiB"


@contextmanager
def served(
    folder: Path, cache_dir: Path, side: Side, num_requests: int
) -> Iterator[psutil.Process]:
    """A running `penstock serve` that is ready, for so many requests at once."""
    port = side.url.rpartition(":")[2]
    command = [sys.executable, "-m", "penstock", "serve", str(folder), "--no-auth"]
    options = {
        "--port": port,
        "--backend": side.backend,
        "--dtype": side.dtype,
        "--cache-dir": str(cache_dir),
        "--data-dir": str(cache_dir / f"data-{port}"),
        "--kv-memory": kv_memory(folder.name, num_requests),
    }
    environment = without_settings(os.environ) | {"PENSTOCK_SPECULATION": side.speculation}
    started = time.perf_counter()
    process = psutil.Popen(
        [*command, *(word for option in options.items() for word in option)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        while time.perf_counter() - started < _START_TIMEOUT_S:
            if process.poll() is not None:
                raise SystemExit(process.stderr.read().decode())
            try:
                if httpx.get(f"{side.url}/ready", timeout=5.0).is_success:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        side.start_s = time.perf_counter() - started
        yield process
    finally:
        process.terminate()
        process.wait(60)


def completions(
    model: str,
    concurrency: int,
    seed: int,
    *,
    num_prompt_tokens: int = NUM_PROMPT_TOKENS,
    num_new_tokens: int = NUM_NEW_TOKENS,
) -> list[dict[str, Any]]:
    """Bodies of requests with random prompts, for any server of OpenAI's interface."""
    rng = random.Random(seed)  # noqa: S311
    return [
        {
            "model": model,
            "prompt": [rng.randrange(5, 500) for _ in range(num_prompt_tokens)],
            "max_tokens": num_new_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for _ in range(concurrency)
    ]


def tokens_per_s(url: str, model: str, concurrency: int, seed: int) -> float:
    """New tokens per second of so many requests at once, prompts included."""
    answers = stream_all(url, completions(model, concurrency, seed), "/v1/completions")
    return sum(answer.num_tokens for answer in answers) / max(answer.last_s for answer in answers)


def engine_mib(process: psutil.Process) -> int:
    """Resident memory of the largest child, which is the engine."""
    return max(int(child.memory_info().rss) for child in process.children(recursive=True)) >> 20


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def measure(args: argparse.Namespace) -> list[Side]:
    """All sides, side by side."""
    named = (side.split(":") for side in args.sides)
    sides = [
        Side(name, dtype, f"http://127.0.0.1:{free_port()}", args.speculation)
        for name, dtype in named
    ]
    most = max(args.concurrency)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        write_checkpoint(home / args.shape, args.shape)
        for side in sides:  # fills the caches
            with served(home / args.shape, home / "cache", side, most) as process:
                tokens_per_s(side.url, args.shape, most, 0)
                wait_until_idle(process)
        processes = []
        for side in sides:
            process = stack.enter_context(served(home / args.shape, home / "cache", side, most))
            processes.append(process)
            wait_until_idle(process)
        for number in range(args.rounds + 1):
            for concurrency in args.concurrency:
                for side in sides if number % 2 else reversed(sides):
                    seed = 1000 * number + concurrency
                    rate = tokens_per_s(side.url, args.shape, concurrency, seed)
                    if number:  # the first round warms up
                        side.rates.setdefault(concurrency, []).append(rate)
                    sys.stderr.write(
                        f"round {number}, {concurrency} requests, {side.backend} {side.dtype}:"
                        f" {rate:.0f} tokens/s\n"
                    )
        for side, process in zip(sides, processes, strict=True):
            side.resident_mib = engine_mib(process)
    return sides


def wait_until_idle(process: psutil.Process) -> None:
    """Until nothing is compiled behind any more: the engine used hardly any time for a while."""
    engine = max(process.children(recursive=True), key=lambda child: child.memory_info().rss)
    quiet = 0
    while quiet < 4:
        before = sum(engine.cpu_times()[:2])
        time.sleep(0.5)
        quiet = quiet + 1 if sum(engine.cpu_times()[:2]) - before < 0.1 else 0


def table(sides: Sequence[Side], concurrencies: Sequence[int]) -> str:
    """Medians; ratios to the first side of the same round."""
    rows = [
        "| backend, weights | "
        + " | ".join(f"tokens/s at {c}" for c in concurrencies)
        + " | resident MiB | start s |",
        "|---" * (len(concurrencies) + 3) + "|",
    ]
    for side in sides:
        cells = []
        for concurrency in concurrencies:
            rates, base = side.rates[concurrency], sides[0].rates[concurrency]
            ratio = statistics.median(a / b for a, b in zip(rates, base, strict=True))
            cells.append(f"{statistics.median(rates):.0f} ({ratio:.2f}×)")
        rows.append(
            f"| {side.backend}, {side.dtype} | {' | '.join(cells)} "
            f"| {side.resident_mib} | {side.start_s:.1f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Parse options, measure, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="SmolLM2-135M")
    parser.add_argument("--sides", nargs="+", default=["xla:bfloat16", "cpu_native:bfloat16"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--speculation", choices=tuple(SpeculationMode), default="off")
    args = parser.parse_args()
    print(table(measure(args), args.concurrency))


if __name__ == "__main__":
    main()
