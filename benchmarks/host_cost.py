"""What the host does for a decode step: CPU time of the step loop with programs that take none.

    python -m benchmarks.host_cost --rows 256 --context 1024 8192
    python -m benchmarks.host_cost --rows 256 --context 8192 --profile
    python -m benchmarks.host_cost --rows 256 --context 1024 --ending

The real engine, runner and step loop with random prompts, all of them decoding and streamed to one
gateway, which has leases for them and wants token ids, as it always does. With `--ending` one row
ends in each step, the first of all, so that all others move. Only the compiled programs are stood
in for: they return a token for each row at once. What is timed is scheduling, planning, checking
and packing, taking tokens, detokenising, deltas, metrics, and the bytes of the message to the
gateway. `time.thread_time` counts what this thread computed, so other processes disturb it little.
"""

import argparse
import cProfile
import gc
import pstats
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.random_decoder import random_decoder
from benchmarks.shapes import SHAPES
from benchmarks.steps import BLOCK_SIZE
from benchmarks.whole_engine import wide_tokenizer
from engine_worker.compute.runner.buckets import Bucket
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.runner.program_set import ProgramSet
from engine_worker.compute.runner.programs import MAX_NEW_TOKENS, ProgramOutput
from engine_worker.compute.runner.score_program import ScoreLayout
from engine_worker.core.engine import Engine
from engine_worker.serving.handler import EngineHandler
from engine_worker.serving.inbox import GatewayCommand
from engine_worker.serving.step_loop import StepLoop
from protocol.runtime import collector
from protocol.version import PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.codec import encode
from protocol.wire.messages import Generate, Message, SamplingParams

_GATEWAY = "gateway"
_NUM_STEPS = 60
_NUM_WARM_STEPS = 8


class InstantPrograms(ProgramSet):
    """Programs that compute nothing; each row samples the same token."""

    def compile(self, key: Bucket | int | ScoreLayout) -> Any:
        assert isinstance(key, Bucket)
        num_turns = 1 if key.is_prefill else MAX_NEW_TOKENS
        tokens = np.full((num_turns, key.num_rows), -1, np.int32)
        tokens[0] = 70
        output = ProgramOutput(tokens, None)  # type: ignore[arg-type]
        return lambda leaves, state, packed: (output, state)


class InstantRunner(JaxModelRunner):
    """A runner of such programs."""

    program_set = InstantPrograms


class Outlet:
    """Writes messages as a worker does, and counts their bytes."""

    num_bytes = 0

    def send(self, gateway_id: str, message: Message) -> None:
        """Encode a message."""
        self.num_bytes += len(encode(message))

    def gateway_ids(self) -> tuple[str, ...]:
        """The only one."""
        return (_GATEWAY,)

    def gateway_version(self, gateway_id: str) -> ProtocolVersion:
        """Of this release."""
        return PROTOCOL_VERSION


def decoding_loop(num_rows: int, context: int, *, are_ending: bool) -> StepLoop:
    """A step loop whose requests all decode, at a context of so many tokens.

    Args:
        num_rows: Of each step.
        context: Tokens of each prompt.
        are_ending: One after the other, one in each step that is timed.
    """
    decoder = random_decoder("tiny", "float32")
    vocab_size = SHAPES["tiny"]["vocab_size"]
    num_new_tokens = context // 512 + 2 * _NUM_WARM_STEPS + 2 * _NUM_STEPS
    max_model_len = context + num_new_tokens
    runner = InstantRunner.create(
        decoder,
        num_blocks=(num_rows + 1) * -(-max_model_len // BLOCK_SIZE) * 5 // 4,
        max_model_len=max_model_len,
        block_size=BLOCK_SIZE,
        max_num_seqs=num_rows,
        max_num_batched_tokens=512 * num_rows,
    )
    engine = Engine(
        runner, wide_tokenizer(vocab_size), vocab_size=vocab_size, max_model_len=max_model_len
    )
    handler = EngineHandler()
    outlet = Outlet()
    handler.connect(outlet)
    loop = StepLoop(engine, handler, outlet)
    drawn = np.random.default_rng(0)
    for index in range(num_rows):
        is_ending = are_ending and index < _NUM_STEPS
        max_tokens = _NUM_WARM_STEPS + 2 + index if is_ending else num_new_tokens
        command = Generate(
            request_id=f"request-{index}",
            choice=0,
            attempt=0,
            prompt_token_ids=tuple(drawn.integers(0, vocab_size, context).tolist()),
            sampling=SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True),
            lease_tokens=max_model_len,
            deadline_s=3600.0,
            want_token_ids=True,
            is_streaming=True,
            lease_id=f"lease-{index}",
        )
        handler.inbox.put(GatewayCommand(_GATEWAY, command, time.monotonic()))
    for _ in range(context // 512 + _NUM_WARM_STEPS):
        loop.run_once(block=False)
    return loop


def cpu_ms(loop: StepLoop) -> float:
    """Median CPU time of a step."""
    times = []
    for _ in range(_NUM_STEPS):
        started = time.thread_time()
        loop.run_once(block=False)
        times.append(time.thread_time() - started)
    return statistics.median(times) * 1e3


def print_profile(loop: StepLoop) -> None:
    """Where it goes."""
    profile = cProfile.Profile(time.thread_time)
    profile.enable()
    for _ in range(_NUM_STEPS // 2):
        loop.run_once(block=False)
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(40)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[8, 32, 256])
    parser.add_argument("--context", type=int, nargs="*", default=[1024, 8192])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--ending", action="store_true")
    options = parser.parse_args(arguments)
    gc.set_threshold(*collector.THRESHOLDS)  # as a worker has them
    print("| rows | context | CPU of a step, ms |")
    print("|---|---|---|")
    for num_rows in options.rows:
        for context in options.context:
            loop = decoding_loop(num_rows, context, are_ending=options.ending)
            print(f"| {num_rows} | {context} | {cpu_ms(loop):.2f} |", flush=True)
            if options.profile:
                print_profile(loop)


if __name__ == "__main__":
    main()
