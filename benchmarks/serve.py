"""Load generator for any OpenAI-compatible server: TTFT, ITL, E2E, tokens/s, errors by concurrency.

    python -m benchmarks.serve --url http://127.0.0.1:8000 --concurrency 1 8 32 --requests 64

Times are the client's. TTFT is the time to the first event with text (not the role-only chunk), ITL
the gaps between later events with text, E2E the time to the last byte. Output tokens come from the
server's own usage chunk. Prompts are seeded words, different in each request, so that a prefix
cache helps no more than it would in life; `--shared-prefix` makes it.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

_WORDS = [
    "river",
    "stone",
    "light",
    "copper",
    "garden",
    "window",
    "seven",
    "north",
    "quiet",
    "paper",
    "engine",
    "valley",
]


@dataclass
class Timing:
    """One request, seconds from its start; `error` tells why it has no end."""

    ttft_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    e2e_s: float = 0.0
    num_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Level:
    """The figures of one concurrency: counts, tokens per second, and milliseconds."""

    concurrency: int
    num_requests: int
    num_errors: int
    seconds: float
    tokens_per_s: float
    requests_per_s: float
    ttft_ms: dict[str, float]
    itl_ms: dict[str, float]
    e2e_ms: dict[str, float]
    errors: tuple[str, ...]


def percentiles(values_s: Sequence[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile in milliseconds; empty without values."""
    if not values_s:
        return {}
    if len(values_s) == 1:
        return dict.fromkeys(("p50", "p90", "p99"), values_s[0] * 1000)
    cuts = statistics.quantiles(values_s, n=100, method="inclusive")
    return {"p50": cuts[49] * 1000, "p90": cuts[89] * 1000, "p99": cuts[98] * 1000}


def make_prompt(rng: random.Random, num_words: int, shared: int) -> str:
    """Seeded words; the first `shared` of them are equal in every prompt."""
    common = [_WORDS[i % len(_WORDS)] for i in range(shared)]
    own = [rng.choice(_WORDS) for _ in range(max(num_words - shared, 0))]
    return " ".join(common + own)


async def one_request(client: httpx.AsyncClient, body: dict[str, object]) -> Timing:
    """Stream one chat completion and time its events."""
    timing = Timing()
    started = previous = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                await response.aread()
                timing.error = f"{response.status_code}: {response.text[:120]}"
                return timing
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                now = time.perf_counter()
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    timing.error = str(chunk["error"].get("message"))
                usage = chunk.get("usage")
                if usage:
                    timing.num_tokens = usage["completion_tokens"]
                if any(c.get("delta", {}).get("content") for c in chunk.get("choices", [])):
                    if timing.ttft_s is None:
                        timing.ttft_s = now - started
                    else:
                        timing.gaps_s.append(now - previous)
                    previous = now
    except httpx.HTTPError as error:
        timing.error = f"{type(error).__name__}: {error}"
    timing.e2e_s = time.perf_counter() - started
    return timing


async def run_level(args: argparse.Namespace, model: str, concurrency: int) -> Level:
    """`args.requests` requests, `concurrency` at a time."""
    rng = random.Random(args.seed + concurrency)  # noqa: S311
    bodies = [
        {
            "model": model,
            "messages": [
                {"role": "user", "content": make_prompt(rng, args.words, args.shared_prefix)}
            ],
            "max_tokens": args.max_tokens,
            "temperature": args.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if args.ignore_eos else {}),
        }
        for _ in range(max(args.requests, concurrency))
    ]
    timings: list[Timing] = []
    pending = iter(bodies)
    key = os.environ.get("PENSTOCK_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"

    async def stream_after_stream(client: httpx.AsyncClient) -> None:
        for body in pending:
            timings.append(await one_request(client, body))
            if sys.stderr.isatty():
                sys.stderr.write(f"\rconcurrency {concurrency}: {len(timings)}/{len(bodies)} ")

    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(
        base_url=args.url,
        headers={"Authorization": f"Bearer {key}"},
        timeout=600.0,
        limits=limits,
        trust_env=False,
    ) as client:
        started = time.perf_counter()
        await asyncio.gather(*(stream_after_stream(client) for _ in range(concurrency)))
        seconds = time.perf_counter() - started
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    good = [timing for timing in timings if timing.error is None]
    return Level(
        concurrency=concurrency,
        num_requests=len(timings),
        num_errors=len(timings) - len(good),
        seconds=seconds,
        tokens_per_s=sum(timing.num_tokens for timing in good) / seconds,
        requests_per_s=len(good) / seconds,
        ttft_ms=percentiles([t.ttft_s for t in good if t.ttft_s is not None]),
        itl_ms=percentiles([gap for t in good for gap in t.gaps_s]),
        e2e_ms=percentiles([t.e2e_s for t in good]),
        errors=tuple(sorted({t.error for t in timings if t.error})),
    )


def table(levels: Sequence[Level]) -> str:
    """The levels as a Markdown table."""
    rows = [
        "| concurrency | tokens/s | requests/s | TTFT p50/p99 ms | ITL p50/p99 ms "
        "| E2E p50/p99 ms | errors |",
        "|---|---|---|---|---|---|---|",
    ]
    for level in levels:
        pairs = [
            f"{p['p50']:.1f} / {p['p99']:.1f}" if p else "-"
            for p in (level.ttft_ms, level.itl_ms, level.e2e_ms)
        ]
        rows.append(
            f"| {level.concurrency} | {level.tokens_per_s:.0f} | {level.requests_per_s:.2f} | "
            f"{' | '.join(pairs)} | {level.num_errors} of {level.num_requests} |"
        )
    return "\n".join(rows)


async def sweep(args: argparse.Namespace) -> list[Level]:
    """Warm up, then one level after the other."""
    async with httpx.AsyncClient(base_url=args.url, timeout=30.0, trust_env=False) as client:
        model = args.model or (await client.get("/v1/models")).json()["data"][0]["id"]
    warm = argparse.Namespace(**{**vars(args), "requests": args.warmup, "max_tokens": 8})
    if args.warmup:
        await run_level(warm, model, min(args.warmup, 8))
    return [await run_level(args, model, concurrency) for concurrency in args.concurrency]


def main() -> None:
    """Parse options, run the sweep, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="root, without /v1")
    parser.add_argument("--model", help="default: the first that the server lists")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--requests", type=int, default=32, help="a level")
    parser.add_argument("--words", type=int, default=64, help="of each prompt")
    parser.add_argument("--shared-prefix", type=int, default=0, help="words equal in all prompts")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--ignore-eos", action="store_true", help="always --max-tokens tokens")
    parser.add_argument("--warmup", type=int, default=4, help="requests that are not counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    levels = asyncio.run(sweep(args))
    print(table(levels))
    for level in levels:
        for error in level.errors:
            print(f"concurrency {level.concurrency}: {error}", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps([asdict(level) for level in levels], indent=1) + "\n")


if __name__ == "__main__":
    main()
