"""Times what the prefix cache saves, and counts what routing by prefix finds.

    python -m benchmarks.prefix            # both parts, a minute or two
    python -m benchmarks.prefix --ttft     # only the time to the first token
    python -m benchmarks.prefix --routing  # only the hit rates

Time to first token: prompts of 1,000 tokens through the whole engine, once with nothing cached and
once with the first 900 computed before (28 blocks of 32, 896 tokens, are found), in turns.

Routing: three engines of the demo model whose caches hold a part of all beginnings each, behind the
gateway's own admission and routing, in one process. Clients send prompts with a common beginning by
group and an end of their own, one after the other; both routings get the same prompts.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import SHAPES
from engine_worker.compute.models.decoder import DecoderWeights, declare, random_weights
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.runner.compile_cache import prepare_backend
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.engine import Engine
from engine_worker.core.scheduling.block_hashes import block_hashes
from engine_worker.demo import demo_model_path
from engine_worker.text.tokenizer import Tokenizer
from gateway.dispatch.admission import Admission
from gateway.dispatch.routing import PrefixRouter
from gateway.dispatch.slots import EngineHandle, Slot
from protocol.version import PROTOCOL_VERSION
from protocol.wire.messages import CachedBlocks, Credits, EngineOffer, Generate, SamplingParams
from protocol.wire.peers import Peer

BLOCK_SIZE = 32
PROMPT_TOKENS = 1000
CACHED_TOKENS = 900
VOCAB_SIZE = 2048
NUM_ENGINES = 3
MAX_NUM_SEQS = 8


def make_weights(shape: str, dtype: Any) -> DecoderWeights:
    """Random weights of a shape, with the demo tokenizer's vocabulary."""
    spec = decoder_spec(SHAPES[shape] | {"vocab_size": VOCAB_SIZE})
    return random_weights(declare(spec, dtype), seed=0)


def make_runner(weights: DecoderWeights, *, num_blocks: int, max_num_seqs: int) -> JaxModelRunner:
    """A warm runner."""
    runner = JaxModelRunner.create(
        weights,
        num_blocks=num_blocks,
        max_model_len=1100,
        block_size=BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
    )
    runner.warm_up(lambda done, text: None)
    return runner


def make_engine(runner: JaxModelRunner) -> Engine:
    """An engine with nothing cached and the demo model's tokenizer."""
    tokenizer = Tokenizer.load(demo_model_path(), demo_model_path())
    return Engine(runner, tokenizer, vocab_size=VOCAB_SIZE, max_model_len=1100)


def generate(request_id: str, prompt: tuple[int, ...], max_tokens: int) -> Generate:
    """A greedy request."""
    return Generate(
        request_id=request_id,
        choice=0,
        attempt=1,
        prompt_token_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True),
        lease_tokens=max_tokens,
        deadline_s=1e6,
        want_token_ids=True,
    )


def draw_tokens(draw: np.random.Generator, count: int) -> tuple[int, ...]:
    """Random tokens, special ones left out."""
    return tuple(draw.integers(4, VOCAB_SIZE, count).tolist())


def first_token_s(engine: Engine, request_id: str, prompt: tuple[int, ...]) -> tuple[float, int]:
    """Seconds from a request to its only token, and how many tokens were cached."""
    started = time.perf_counter()
    engine.add("benchmark", generate(request_id, prompt, 1))
    while True:
        for output in engine.step().values():
            for end in output.ends:
                assert end.usage is not None
                return time.perf_counter() - started, end.usage.cached_tokens


def time_first_tokens(shape: str, dtype_name: str, num_repeats: int) -> None:
    """Print one line of the first table."""
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[dtype_name]
    runner = make_runner(make_weights(shape, dtype), num_blocks=200, max_num_seqs=4)
    engine = make_engine(runner)
    draw = np.random.default_rng(0)
    numbers = itertools.count()
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(num_repeats):
        prompt = draw_tokens(draw, PROMPT_TOKENS)
        end = draw_tokens(draw, PROMPT_TOKENS - CACHED_TOKENS)
        for times, tokens, expected in (
            (cold, prompt, 0),
            (warm, (*prompt[:CACHED_TOKENS], *end), CACHED_TOKENS // BLOCK_SIZE * BLOCK_SIZE),
        ):
            duration_s, num_cached = first_token_s(engine, str(next(numbers)), tokens)
            assert num_cached == expected, (num_cached, expected)
            times.append(duration_s)
    ratio = statistics.median(w / c for c, w in zip(cold, warm, strict=True))
    print(
        f"| {shape} | {dtype_name} | {statistics.median(cold) * 1e3:.0f} |"
        f" {statistics.median(warm) * 1e3:.0f} | 1/{1 / ratio:.1f} |",
        flush=True,
    )


@dataclass(frozen=True, slots=True)
class Load:
    """A load with common beginnings.

    Attributes:
        num_groups: Beginnings.
        shared_tokens: Of each.
        own_tokens: Of each prompt's end.
        num_requests: In all.
        num_clients: At a time.
    """

    num_groups: int = 12
    shared_tokens: int = 384
    own_tokens: int = 64
    num_requests: int = 120
    num_clients: int = 12

    def prompts(self) -> list[tuple[int, ...]]:
        """The same for every run."""
        draw = np.random.default_rng(1)
        shared = [draw_tokens(draw, self.shared_tokens) for _ in range(self.num_groups)]
        return [
            (*shared[draw.integers(self.num_groups)], *draw_tokens(draw, self.own_tokens))
            for _ in range(self.num_requests)
        ]


class Deployment:
    """Engines, and the part of a gateway that gives them work."""

    def __init__(self, runners: list[JaxModelRunner], *, by_prefix: bool) -> None:
        self.engines = [make_engine(runner) for runner in runners]
        self.handles = [_handle(str(index)) for index in range(len(runners))]
        self.router = PrefixRouter()
        for handle in self.handles:
            self.router.on_cached_blocks(handle.peer, CachedBlocks(is_reset=True))
        self.admission = Admission(lambda _: self.handles, 10**6)
        self.by_prefix = by_prefix
        self.slots: dict[str, Slot] = {}
        self.num_cached = 0
        self.num_prompt = 0

    async def run(self, load: Load) -> float:
        """Serve a load; seconds."""
        prompts = iter(load.prompts())
        numbers = itertools.count()
        started = time.perf_counter()
        for prompt in itertools.islice(prompts, load.num_clients):
            await self._send(str(next(numbers)), prompt)
        while self.slots:
            for _ in range(self._step()):
                prompt = next(prompts, ())
                if prompt:
                    await self._send(str(next(numbers)), prompt)
        return time.perf_counter() - started

    async def _send(self, request_id: str, prompt: tuple[int, ...]) -> None:
        slot = await self.admission.acquire("m", tenant="t", priority=0, tokens=len(prompt) + 8)
        if self.by_prefix:
            names = block_hashes(prompt, BLOCK_SIZE, "")
            route = self.router.choose(
                self.handles, slot.engine, names, slot.tokens, lambda _: True
            )
            self.admission.move(slot, route.engine)
            self.router.expect(route.engine, names)
        self.slots[request_id] = slot
        engine = self.engines[self.handles.index(slot.engine)]
        engine.add("benchmark", generate(request_id, prompt, 8))

    def _step(self) -> int:
        """One step of every engine; how many requests ended."""
        num_ended = 0
        for engine, handle in zip(self.engines, self.handles, strict=True):
            for output in engine.step().values():
                for end in output.ends:
                    assert end.usage is not None
                    self.num_cached += end.usage.cached_tokens
                    self.num_prompt += end.usage.prompt_tokens
                    self.admission.release(self.slots.pop(end.request_id))
                    num_ended += 1
            handle.peer.load = engine.load()
            changes = engine.take_cache_changes()
            if changes is not None:
                self.router.on_cached_blocks(
                    handle.peer,
                    CachedBlocks(
                        is_reset=changes.is_reset, added=changes.added, removed=changes.removed
                    ),
                )
        return num_ended


def _handle(name: str) -> EngineHandle:
    offer = EngineOffer(
        model="m",
        fingerprint="f",
        resume_version=1,
        max_model_len=1100,
        created=0,
        credits=Credits(max_requests=2 * MAX_NUM_SEQS, max_tokens=10**9),
        max_num_seqs=MAX_NUM_SEQS,
    )
    peer = Peer(
        identity=name.encode(),
        role="engine",
        instance_id=name,
        protocol_version=PROTOCOL_VERSION,
        build="",
        last_heard=0.0,
        progress_since=0.0,
        phase_since=0.0,
        phase="ready",
        engine=offer,
    )
    return EngineHandle(peer, offer)


def count_hits() -> None:
    """Print the second table."""
    weights = make_weights("penstock-demo", jnp.bfloat16)
    # Eight prompts' worth of blocks: what runs takes half of them, the rest is for the cache.
    runners = [
        make_runner(weights, num_blocks=8 * 15, max_num_seqs=MAX_NUM_SEQS)
        for _ in range(NUM_ENGINES)
    ]
    for name, by_prefix in (("load", False), ("prefix", True)):
        deployment = Deployment(runners, by_prefix=by_prefix)
        duration_s = asyncio.run(deployment.run(Load()))
        print(
            f"| `{name}` | {deployment.num_cached / deployment.num_prompt:.0%} |"
            f" {deployment.num_prompt - deployment.num_cached:,} | {duration_s:.1f} |",
            flush=True,
        )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ttft", action="store_true", help="only the time to the first token")
    parser.add_argument("--routing", action="store_true", help="only the hit rates")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile-cache", type=Path, help="folder of compiled programs")
    arguments = parser.parse_args()
    # Engines of one shape compile their programs once.
    prepare_backend(arguments.compile_cache or Path(tempfile.mkdtemp()))
    if arguments.ttft or not arguments.routing:
        print("| shape | type | nothing cached, ms | 900 of 1,000 cached, ms | ratio |")
        print("|---|---|---|---|---|")
        time_first_tokens("penstock-demo", "bfloat16", arguments.repeats)
        time_first_tokens("SmolLM2-135M", "bfloat16", max(3, arguments.repeats // 3))
    if arguments.routing or not arguments.ttft:
        print("| routing | found cached | prompt tokens computed | seconds |")
        print("|---|---|---|---|")
        count_hits()
    return 0


if __name__ == "__main__":
    sys.exit(main())
