"""Penstock and its peers side by side, through HTTP where a peer has a server.

    python -m benchmarks.peers.side_by_side --rounds 2                # SmolLM2-135M: ten minutes
    python -m benchmarks.peers.side_by_side --shape Qwen2.5-0.5B --peers llama.cpp openvino

One checkpoint of a real model's shape with random weights, written for each peer in its format.
Prompts of 128 random tokens, 128 new ones, greedy, no end of sequence, no cached prompts, no drafts
(with `--speculation off auto` Penstock runs twice, without and with them); then the time to the
first token of one prompt of 1,024. All sides are up at once and take turns within each round, so
that a noisy machine treats them alike; medians are compared.
Peers are installed below `--environments`, once; who can't be is left out with the reason.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.backends import NUM_NEW_TOKENS, NUM_REQUEST_TOKENS, write_checkpoint
from benchmarks.peers.installed import NotInstalledError, Peers, machine
from benchmarks.peers.sides import (
    AloneSide,
    PenstockSide,
    ServerSide,
    Side,
    llama_cpp_sides,
    openvino_sides,
)
from benchmarks.shapes import SHAPES
from benchmarks.steps import progress
from engine_worker.core.decoding.speculation import SpeculationMode

PEERS: Final = ("llama.cpp", "openvino", "vllm", "transformers")
AIMS: Final = {
    ("bfloat16", 1): 1.1,
    ("int8", 1): 1.2,
    ("int4", 1): 1.2,
    ("bfloat16", 8): 1.6,
    ("int8", 8): 2.0,
    ("bfloat16", 32): 1.4,
    ("int8", 32): 1.8,
}
"""Tokens per second over the best peer's in the same type."""
PREFILL_AIM: Final = 1.25


def make_sides(args: argparse.Namespace, home: Path) -> list[Side]:
    """All sides that can be installed here, not started yet."""
    folder = home / str(args.shape)
    write_checkpoint(folder, args.shape)
    peers = Peers(args.environments, args.jobs, without_amx=args.llama_cpp_without_amx)
    slots, context = max(args.concurrency), NUM_REQUEST_TOKENS

    def vllm() -> list[Side]:
        python = peers.python("vllm")
        command = [str(python.with_name("vllm")), "serve", str(folder), "--port", "{port}"]
        limits = ["--dtype", "bfloat16", "--max-model-len", "1152", "--max-num-seqs", str(slots)]
        return [
            ServerSide(
                "vLLM CPU",
                "bfloat16",
                [*command, *limits, "--no-enable-prefix-caching", "--host", "127.0.0.1"],
                ready_path="/health",
                model=str(folder),
                environment={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
            )
        ]

    def transformers() -> list[Side]:
        python, name = peers.python("transformers"), "transformers, engine"
        return [AloneSide(name, "bfloat16", python, "transformers", folder)]

    makers: dict[str, Callable[[], list[Side]]] = {
        "llama.cpp": lambda: llama_cpp_sides(peers, folder, args.types, slots, context),
        "openvino": lambda: openvino_sides(peers, folder, args.types),
        "vllm": vllm,
        "transformers": transformers,
    }
    sides: list[Side] = [
        PenstockSide(folder, home / "cache", weights, slots, speculation)
        for weights in args.types
        for speculation in args.speculation
    ]
    for name in args.peers:
        try:
            sides += [side for side in makers[name]() if side.weights in args.types]
        except NotInstalledError as error:
            progress(f"{name} is left out: {error}")
    return sides


def started_sides(
    sides: Sequence[Side], stack: ExitStack, concurrencies: Sequence[int]
) -> list[Side]:
    """Those that start and answer once: what the first of its kind costs is nobody's speed."""
    up: list[Side] = []
    for side in sides:
        try:
            side.start(stack)
            for concurrency in concurrencies:
                side.tokens_per_s(concurrency, 0, 8)
        except NotInstalledError as error:
            progress(f"{side.name} {side.weights} is left out: {error}")
            continue
        progress(f"{side.name} {side.weights}: started in {side.start_s:.1f} s")
        up.append(side)
    return up


def measure(args: argparse.Namespace) -> list[Side]:
    """All sides, in turns."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-peers-")))
        sides = started_sides(make_sides(args, home), stack, args.concurrency)
        for number in range(1, args.rounds + 1):
            order = sides if number % 2 else sides[::-1]
            for concurrency in args.concurrency:
                for side in order:
                    rate = side.tokens_per_s(
                        concurrency, 1000 * number + concurrency, args.new_tokens
                    )
                    side.rates.setdefault(concurrency, []).append(rate)
                    progress(f"{number}: {side.name} {side.weights} x{concurrency}: {rate:.0f}")
            for side in order:
                side.first_s.append(side.time_to_first_token(number))
        for side in sides:
            side.measure_memory()
    return sides


def table(sides: Sequence[Side], concurrencies: Sequence[int]) -> str:
    """Every side, by the type of its weights."""
    rows = [
        "| weights | | "
        + " | ".join(f"tokens/s at {c}" for c in concurrencies)
        + " | first token of 1,024, ms | resident MiB | start s |",
        "|---" * (len(concurrencies) + 5) + "|",
    ]
    for side in sorted(
        sides, key=lambda side: list(dict.fromkeys(s.weights for s in sides)).index(side.weights)
    ):
        rates = " | ".join(f"{statistics.median(side.rates[c]):.0f}" for c in concurrencies)
        first_ms = statistics.median(side.first_s) * 1e3
        rows.append(
            f"| {side.weights} | {side.name} | {rates} | {first_ms:.0f}"
            f" | {side.resident_mib} | {side.start_s:.1f} |"
        )
    return "\n".join(rows)


def ratios(sides: Sequence[Side], concurrencies: Sequence[int]) -> str:
    """Penstock over the best peer of the same type, round by round, beside the aims."""
    rows = ["| weights | | what | best peer | Penstock / it | aim |", "|---" * 6 + "|"]
    for ours in (side for side in sides if isinstance(side, PenstockSide)):
        others = [s for s in sides if s.weights == ours.weights and not isinstance(s, PenstockSide)]
        if not others:
            continue
        for concurrency in concurrencies:
            best = max(others, key=lambda s: statistics.median(s.rates[concurrency]))
            pairs = zip(ours.rates[concurrency], best.rates[concurrency], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            aim = AIMS.get((ours.weights, concurrency))
            rows.append(
                f"| {ours.weights} | {ours.name} | {concurrency} requests | {best.name}"
                f" | {ratio:.2f}"
                f" | {'–' if aim is None else f'≥ {aim}'} |"
            )
        best = min(others, key=lambda s: statistics.median(s.first_s))
        ratio = statistics.median(b / a for a, b in zip(ours.first_s, best.first_s, strict=True))
        rows.append(
            f"| {ours.weights} | {ours.name} | prompt of 1,024 | {best.name} | {ratio:.2f}"
            f" | ≥ {PREFILL_AIM} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Parse options, measure, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="SmolLM2-135M")
    parser.add_argument("--types", nargs="+", default=["bfloat16", "int8", "int4"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--speculation", nargs="+", choices=tuple(SpeculationMode), default=["off"])
    parser.add_argument("--new-tokens", type=int, default=NUM_NEW_TOKENS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="compilers of llama.cpp at a time")
    parser.add_argument(
        "--llama-cpp-without-amx",
        action="store_true",
        help="where its products with AMX end at an illegal instruction",
    )
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "penstock-peers"
    )
    args = parser.parse_args()
    sides = measure(args)
    print(f"{args.shape}, {machine()}, medians of {args.rounds} rounds in turn\n")
    print(table(sides, args.concurrency))
    print()
    print(ratios(sides, args.concurrency))


if __name__ == "__main__":
    main()
