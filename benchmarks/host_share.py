"""How much of an engine step is host work, and that flax's modules never run in it."""

import cProfile
import pstats
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.shapes import SHAPES
from benchmarks.whole_engine import WholeEngine, served_dtype
from engine_worker.compute.models.decoder import declare, random_weights
from engine_worker.compute.models.hf_config import decoder_spec

NUM_WARM_STEPS = 8
NUM_NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class HostShare:
    """Decode steps of the whole engine, all rows streaming; medians in seconds.

    Attributes:
        step_s: One step: scheduling, packing, program, detokenising, deltas.
        host_s: Of it, outside the compiled program.
        num_flax_calls: Python calls into flax while steps ran under a profiler.
    """

    shape: str
    num_running: int
    step_s: float
    host_s: float
    num_flax_calls: int

    @property
    def share(self) -> float:
        """Of the step."""
        return self.host_s / self.step_s


def measure_host_share(shape: str, num_running: int) -> HostShare:
    """Runs some requests of a shape to the end of their outputs."""
    weights = random_weights(declare(decoder_spec(SHAPES[shape]), served_dtype(shape)), seed=0)
    whole = WholeEngine(weights, num_running, num_prompt_tokens=16, num_new_tokens=NUM_NEW_TOKENS)
    whole.add(num_running, NUM_NEW_TOKENS, is_streaming=True)
    for _ in range(num_running + NUM_WARM_STEPS):
        whole.step()
    steps: list[float] = []
    hosts: list[float] = []
    for _ in range(NUM_NEW_TOKENS // 2):
        in_programs = whole.runner.program_s
        started = time.perf_counter()
        whole.step()
        steps.append(time.perf_counter() - started)
        hosts.append(steps[-1] - (whole.runner.program_s - in_programs))
    return HostShare(
        shape=shape,
        num_running=num_running,
        step_s=statistics.median(steps),
        host_s=statistics.median(hosts),
        num_flax_calls=_num_flax_calls(whole),
    )


def print_host_shares(shares: Sequence[HostShare]) -> None:
    """The results for people, in Markdown."""
    print("\n| shape | running | step ms | host ms | host share | calls into flax |")
    print("|---|---|---|---|---|---|")
    for s in shares:
        print(
            f"| {s.shape} | {s.num_running} | {s.step_s * 1e3:.2f} | {s.host_s * 1e3:.2f} "
            f"| {s.share:.0%} | {s.num_flax_calls} |"
        )


def _num_flax_calls(whole: WholeEngine) -> int:
    """Of the requests' remaining steps."""
    profile = cProfile.Profile()
    profile.enable()
    while whole.engine.has_work():
        whole.step()
    profile.disable()
    stats = pstats.Stats(profile).get_stats_profile().func_profiles
    return sum(
        int(str(entry.ncalls).split("/")[0])
        for entry in stats.values()
        if "/flax/" in entry.file_name
    )
