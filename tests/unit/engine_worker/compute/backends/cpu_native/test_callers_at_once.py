"""Several threads call the kernels while XLA's own threads compute: nobody waits for ever."""

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine_worker.compute.backends.cpu_native import calls
from engine_worker.compute.backends.cpu_native.calls import (
    Attention,
    AttentionConfig,
    Mlp,
    MlpConfig,
)
from engine_worker.compute.backends.cpu_native.library import Library
from tests.fakes.block_oracle import Problem, Row, StepShape

NUM_CALLERS, NUM_TURNS = 4, 12
HIDDEN = 256
LONG_S = 300.0
"""Seconds after which a caller counts as stuck; all of them take about one."""


def test_programs_of_xla_and_kernels_in_several_threads_end_with_the_bits_of_one(
    kernels: Library,
) -> None:
    """The kernels' threads are the library's, and a program of XLA's waits for its own ones."""
    problem = Problem(StepShape((Row(300, 1), Row(0, 60)), 32), HIDDEN)
    attention = problem.attention(AttentionConfig(8, 2, 32, 0.2, 1e-5), 16)
    blocks: list[Attention | Mlp] = [attention.block(0), problem.mlp(MlpConfig(512, 1e-5)).block()]
    weights = jnp.asarray(problem.normal(HIDDEN, HIDDEN, scale=HIDDEN**-0.5))

    @jax.jit
    def program(x: Any) -> Any:
        for _ in range(2):
            x, _ = calls.run_blocks(x, problem.step, attention.ropes, blocks)
            # Large enough for XLA to share it among its threads.
            x = x + jnp.tanh(jnp.tile(x, (16, 1)) @ weights)[: x.shape[0]]
        return x

    x = jnp.asarray(problem.x)
    expected = np.asarray(program(x))
    differs: list[int] = []

    def call(number: int) -> None:
        found = (np.asarray(program(x)) for _ in range(NUM_TURNS))
        differs.extend(number for each in found if not np.array_equal(each, expected))

    callers = [
        threading.Thread(target=call, args=(number,), daemon=True) for number in range(NUM_CALLERS)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(LONG_S)
    assert not any(caller.is_alive() for caller in callers)
    assert not differs
