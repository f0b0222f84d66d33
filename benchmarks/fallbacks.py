"""What blocks cost that have no kernel or one in parts, beside a decoder of usual blocks.

    python -m benchmarks.fallbacks                       # all, bfloat16, 15 rounds
    python -m benchmarks.fallbacks --only latent delta-net --rounds 40 --dtype int8

The plain decoder has 4 layers, hidden 1,024, 16 heads on 4 of 64, an MLP of 2,816, 512 tokens of
context. Each of the others has in every layer one thing more, or another mixer; where no kernel
covers that, XLA computes the block (its matrices are still multiplied by the kernels). The
processor time of a decode step of 1 and 8 rows, and of a prompt of 256 tokens in one step, in turn
with the plain decoder's; ratios are of medians. The column of weights has how much more the decoder
reads.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from benchmarks.experts import BLOCK_SIZE, packed
from benchmarks.steps import progress
from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.backends.cpu_native.backend import CpuNativeBackend
from engine_worker.compute.backends.cpu_native.library import load
from engine_worker.compute.models.recurrent.specs import DeltaNetSpec, MambaSpec, ShortConvSpec
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LatentSpec,
    LayerSpec,
    MlpSpec,
    NormKind,
    NormPlacement,
    QkNorm,
    QueryScale,
    RopeSpec,
)
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch

NUM_LAYERS, HIDDEN, CONTEXT, PROMPT = 4, 1024, 512, 256
ATTENTION: Final = AttentionSpec(16, 4, 64, 0.125, RopeSpec())
MLP: Final = MlpSpec(2816)
ROWS: Final = (1, 8)


def decoder_of(*layers: LayerSpec) -> DecoderSpec:
    """A decoder that has these layers in turn."""
    turns = (layers * NUM_LAYERS)[:NUM_LAYERS]
    return DecoderSpec("Any", 4096, HIDDEN, turns, 2048, norm_eps=1e-6, tied_head=True)


def specs() -> dict[str, DecoderSpec]:
    """What is measured, by the name of what it has more; the first one is the plain decoder."""
    plain = LayerSpec(ATTENTION, MLP)

    def attending(**more: object) -> DecoderSpec:
        return decoder_of(LayerSpec(replace(ATTENTION, **more), MLP))  # type: ignore[arg-type]

    shared = decoder_of(plain)
    reads = LayerSpec(replace(ATTENTION, shared_from=1), MLP)
    latent = AttentionSpec(
        16, 1, 64, 96**-0.5, RopeSpec(), latent=LatentSpec(None, 256, plain_dim=64, value_dim=64)
    )
    return {
        "plain": decoder_of(plain),
        "queries-by-position": attending(query_scale=QueryScale(0.1, 256)),
        "chunks": attending(chunk=256),
        "gated-attention": attending(output_gate=True, qk_norm=QkNorm.PER_HEAD),
        "normed-values": attending(value_norm=True, qk_norm=QkNorm.PER_HEAD),
        "shared-keys": replace(shared, layers=(plain, plain, reads, reads)),
        "side-by-side": replace(
            decoder_of(plain), norm_kind=NormKind.LAYER, norm_placement=NormPlacement.PARALLEL
        ),
        "latent": decoder_of(LayerSpec(latent, MLP)),
        "delta-net": decoder_of(LayerSpec(DeltaNetSpec(8, 8, 128, 128, 4), MLP)),
        "mamba-2": decoder_of(LayerSpec(MambaSpec(32, 64, 1, 128, 4), MLP)),
        "short-conv": decoder_of(LayerSpec(ShortConvSpec(HIDDEN, 3), MLP)),
    }


def steps_of(decoder: PackedDecoder) -> dict[str, Callable[[], object]]:
    """What is timed of a decoder."""
    num_row_blocks = (CONTEXT + PROMPT) // BLOCK_SIZE + 1
    runner = JaxModelRunner.create(
        decoder,
        num_blocks=max(ROWS) * num_row_blocks + 1,
        max_model_len=CONTEXT + PROMPT,
        block_size=BLOCK_SIZE,
        max_num_seqs=max(ROWS),
        max_num_batched_tokens=PROMPT,
    )

    def row(slot: int, token_ids: tuple[int, ...], first: int) -> RowWork:
        num_blocks = -(-(first + len(token_ids)) // BLOCK_SIZE)
        blocks = tuple(range(slot * num_row_blocks, slot * num_row_blocks + num_blocks))
        return RowWork(slot, token_ids, first, blocks, True, RowSampling(temperature=0.0))

    batches = {
        f"decode {num_rows}": StepBatch(
            tuple(row(slot, (37 * slot + 1,), CONTEXT) for slot in range(num_rows))
        )
        for num_rows in ROWS
    }
    batches[f"prompt {PROMPT}"] = StepBatch((row(0, tuple(range(PROMPT)), 0),))
    return {name: partial(runner.run, batch) for name, batch in batches.items()}


def cpu_seconds(steps: dict[str, Callable[[], object]], num_rounds: int) -> dict[str, float]:
    """Medians of the process's processor time, in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(num_rounds + 2):
        for name, run in steps.items():
            started = time.process_time()
            run()
            if index >= 2:  # The first ones compile.
                times[name].append(time.process_time() - started)
    return {name: statistics.median(one) for name, one in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    found = specs()
    plain = found.pop("plain")
    parser.add_argument("--only", nargs="+", choices=tuple(found), default=list(found))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    library = load()
    print(f"{library.level}, {library.num_threads} threads, {options.dtype}\n", flush=True)
    beside = packed(plain, options.dtype)
    beside_steps = steps_of(beside)
    head = ["has more", "weights", *(f"{name}, ms CPU (ratio)" for name in beside_steps)]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for name in options.only:
        progress(name)
        decoder = packed(found[name], options.dtype)
        assert isinstance(decoder.backend, CpuNativeBackend), name
        steps = steps_of(decoder)
        cells = [name, f"{decoder.size_bytes / beside.size_bytes:.2f}"]
        for what, run in steps.items():
            times = cpu_seconds({"plain": beside_steps[what], name: run}, options.rounds)
            ratio = times[name] / times["plain"]
            cells.append(f"{times[name] * 1e3:.1f} ({ratio:.2f})")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
