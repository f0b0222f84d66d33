"""Attention of few rows, whose heads a thread takes together, at every level."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.backends.cpu_native import calls
from engine_worker.compute.backends.cpu_native.calls import AttentionConfig
from tests.fakes.block_oracle import TOLERANCE, Problem, Row, StepShape, distance

CONTEXTS = (0, 1, 31, 32, 255, 256, 300, 530, 7, 64, 100, 1040, 12, 270, 90, 5)
"""Stored tokens: fewer and more than a page, a chunk of 256 and a span of 1,024."""


@pytest.mark.parametrize(
    ("cache_type", "window", "block_size"),
    [("bfloat16", 0, 32), ("bfloat16", 290, 24), ("int8", 290, 32), ("float32", 0, 32)],
)
def test_heads_that_are_taken_together_have_the_bits_of_a_row_alone(
    level: str, cache_type: str, window: int, block_size: int
) -> None:
    """Sixteen rows of six heads are plenty for two threads; a row alone is shared head by head."""
    rows = tuple(Row(context, 1 + index % 2) for index, context in enumerate(CONTEXTS))
    problem = Problem(StepShape(rows, block_size), 40)
    config = AttentionConfig(
        12, 6, 20, 0.3, 1e-5, cache_type=cache_type, window=window, has_sinks=True
    )
    attention = problem.attention(config, 8)
    x, step, block = jnp.asarray(problem.x), problem.step, attention.block(0)
    together, _ = calls.run_blocks(x, step, attention.ropes, [block])
    for row in (0, 5, 6, 11):
        only = replace(step, positions=jnp.where(step.rows == row, step.positions, -1))
        alone, _ = calls.run_blocks(x, only, attention.ropes, [block])
        mine = problem.rows == row
        assert np.array_equal(np.asarray(alone)[mine], np.asarray(together)[mine])
    if cache_type == "float32":  # Its bound is that of shorter contexts.
        return
    expected, _, _ = attention.oracle(problem.x)
    assert distance(together - x, expected - problem.x) < TOLERANCE[cache_type]
