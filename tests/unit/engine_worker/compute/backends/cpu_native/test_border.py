"""Calls that don't fit are errors of the program that name what is wrong, and change nothing."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.backends.cpu_native import calls
from engine_worker.compute.backends.cpu_native.calls import (
    Attention,
    AttentionConfig,
    Mlp,
    MlpConfig,
)
from engine_worker.compute.backends.cpu_native.library import Library
from engine_worker.compute.models.spec import QkNorm, QueryScale
from tests.fakes.block_oracle import AttentionProblem, Problem, Row, StepShape


@pytest.fixture
def block(kernels: Library) -> AttentionProblem:
    problem = Problem(StepShape((Row(30, 3), Row(0, 1)), 16), 64)
    return problem.attention(AttentionConfig(4, 2, 16, 0.25, 1e-5), 8)


def refused(block: AttentionProblem, match: str, step: Any = None, **changes: Any) -> None:
    """Runs the block with some of its parts replaced."""
    problem = block.problem
    x = changes.pop("x", jnp.asarray(problem.x))
    ropes = changes.pop("ropes", block.ropes)
    attention: Attention = replace(block.block(0), **changes)
    with pytest.raises(jax.errors.JaxRuntimeError, match=match):
        calls.run_blocks(x, step or problem.step, ropes, [attention])[0].block_until_ready()


def test_a_block_outside_of_the_cache_is_refused(block: AttentionProblem) -> None:
    step = block.problem.step
    for wrong in (-1, block.problem.num_blocks):
        tables = step.block_tables.at[0, 1].set(wrong)
        match = f"block {wrong} of row 0 is outside of the cache's {block.problem.num_blocks}"
        refused(block, match, replace(step, block_tables=tables))


def test_tables_of_a_group_that_isnt_there_are_refused(block: AttentionProblem) -> None:
    step = block.problem.step
    refused(block, "group", group=1)
    for num_groups in (0, 3):
        refused(block, "no such number of block tables", replace(step, num_groups=num_groups))
    tables = jnp.concatenate([step.block_tables, step.block_tables[:1]])
    odd = replace(step, block_tables=tables, num_groups=2)
    refused(block, "some groups have more block tables", odd)


def test_a_block_outside_of_its_own_groups_cache_is_refused(block: AttentionProblem) -> None:
    step, wrong = block.problem.step, block.problem.num_blocks
    tables = step.block_tables.at[0, 1].set(wrong)
    # Nobody reads the pages of the other group, whatever its tables name.
    both = jnp.concatenate([tables, step.block_tables])
    match = f"block {wrong} of row 0 is outside of the cache's {wrong}"
    refused(block, match, replace(step, block_tables=both, num_groups=2))
    x = jnp.asarray(block.problem.x)
    step = replace(step, block_tables=both, num_groups=2)
    calls.run_blocks(x, step, block.ropes, [replace(block.block(0), group=1)])[
        0
    ].block_until_ready()


def test_a_position_behind_the_block_table_is_refused(block: AttentionProblem) -> None:
    step = block.problem.step
    positions = step.positions.at[3].set(1000)
    refused(block, "token 3 at position 1000 of row 1", replace(step, positions=positions))


def test_a_row_without_a_block_table_is_refused(block: AttentionProblem) -> None:
    step = block.problem.step
    for wrong in (-1, 2):
        match = f"row {wrong} is outside of the block tables"
        refused(block, match, replace(step, rows=step.rows.at[0].set(wrong)))


def test_what_padding_names_is_never_looked_at(block: AttentionProblem) -> None:
    step = block.problem.step
    wild = replace(
        step,
        positions=jnp.full_like(step.positions, -1),
        rows=jnp.full_like(step.rows, 10**6),
        block_tables=jnp.full_like(step.block_tables, -(10**6)),
    )
    x = jnp.asarray(block.problem.x)
    found, _ = calls.run_blocks(x, wild, block.ropes, [block.block(0)])
    assert np.array_equal(found, x)


def test_arrays_of_another_shape_or_type_are_refused(block: AttentionProblem) -> None:
    whole = block.block(0)
    refused(block, "positions is", replace(block.problem.step, positions=jnp.zeros(2, jnp.int32)))
    refused(block, "qkv is", qkv=whole.qkv[:1])
    refused(block, "o is", o=whole.o[:, :-64])
    refused(block, "o is", o=whole.o.astype(jnp.int32))
    refused(block, "keys is", keys=whole.keys[:, :1])
    refused(block, "values is", values=whole.values[:-1])
    refused(block, "keys is", keys=whole.keys.astype(jnp.float32))
    refused(block, "vectors is too short", vectors=whole.vectors[:-1])
    refused(block, "vectors is longer", vectors=jnp.zeros(100))
    refused(block, "sine is", ropes=[(block.ropes[0][0], block.ropes[0][1][:1])])


def test_pages_of_int8_without_their_scales_are_refused(kernels: Library) -> None:
    problem = Problem(StepShape((Row(30, 3), Row(0, 1)), 16), 64)
    block = problem.attention(AttentionConfig(4, 2, 16, 0.25, 1e-5, cache_type="int8"), 8)
    whole = block.block(0)
    assert whole.keys.shape == (problem.num_blocks, 2, 16, 16 + 4)
    refused(block, "keys is", keys=whole.keys[..., :16])
    refused(block, "values is", values=whole.values[..., :16])
    refused(block, "values is", values=whole.values[:, :, :8])
    refused(block, "keys is", keys=whole.keys.astype(jnp.int16))
    refused(block, "keys is", config=replace(block.config, cache_type="bfloat16"))
    refused(
        block, "odd number of tokens", keys=whole.keys[:, :, :15], values=whole.values[:, :, :15]
    )


def test_attributes_that_contradict_each_other_are_refused(block: AttentionProblem) -> None:
    config = block.config
    refused(block, "rope is 1", rope=1)
    wide = [(jnp.zeros((4, 9)), jnp.zeros((4, 9)))]
    refused(block, "rope is wider than the head", ropes=wide)
    refused(block, "not multiples of the key heads", config=replace(config, num_kv_heads=3))
    refused(block, "head_dim is 514", config=replace(config, head_dim=514))
    made_of_keys = replace(config, qk_norm=QkNorm.FULL_WIDTH, is_value_of_key=True)
    refused(block, "one norm for all heads", config=made_of_keys)
    for length in (0, -1):
        match = f"length of the scale of queries is {length}"
        refused(block, match, config=replace(config, query_scale=QueryScale(0.1, length)))
    refused(block, "the head's width is odd", config=replace(config, head_dim=15))
    refused(block, "scale is no finite number", config=replace(config, scale=float("nan")))
    refused(block, "qkv is", config=replace(config, weight_type="int8"))
    refused(block, "group size of int4", config=replace(config, weight_type="int4", group_size=16))


def test_a_call_of_another_version_is_refused(
    block: AttentionProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_CONFIG_VERSION", 1)
    refused(block, "built for another version of the kernels")


def test_an_mlp_that_does_not_fit_is_refused(kernels: Library) -> None:
    problem = Problem(StepShape((Row(0, 2),), 16), 64)
    mlp = problem.mlp(MlpConfig(48, 1e-5)).block()
    for part, wrong in (
        ("gate_up", replace(mlp, gate_up=mlp.gate_up[:-1])),
        ("down", replace(mlp, down=mlp.down[:, :128])),
        ("vectors", replace(mlp, vectors=mlp.vectors[:-1])),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=f"native kernels, blocks: {part} is"):
            calls.run_blocks(jnp.asarray(problem.x), problem.step, [], [wrong])[
                0
            ].block_until_ready()


def test_an_mlp_that_reads_another_blocks_norm_stands_behind_attention(
    block: AttentionProblem,
) -> None:
    problem = block.problem
    mlp = problem.mlp(MlpConfig(48, 1e-5, norm="none", is_parallel=True)).block()
    usual = problem.mlp(MlpConfig(48, 1e-5))
    normed = replace(usual.block(), config=replace(usual.config, is_parallel=True))
    rows: list[list[Attention | Mlp]] = [
        [mlp],
        [block.block(0), usual.block(), mlp],
        [block.block(0), normed],
    ]
    for blocks in rows:
        with pytest.raises(jax.errors.JaxRuntimeError, match="an MLP reads the norm of"):
            calls.run_blocks(jnp.asarray(problem.x), problem.step, block.ropes, blocks)[
                0
            ].block_until_ready()


def test_a_block_that_reads_anothers_pages_has_no_keys_and_values(
    block: AttentionProblem,
) -> None:
    reader = replace(block.config, is_reader=True)
    refused(block, "qkv is", config=reader)
    for wrong in ({"has_value_norm": True}, {"is_value_of_key": True}):
        match = "values of another block are made or normalised"
        refused(block, match, config=replace(reader, **wrong))  # type: ignore[arg-type]
    own = block.problem.attention(replace(reader, qk_norm=QkNorm.PER_HEAD), 8)
    refused(own, "vectors is longer", vectors=jnp.zeros(64 + 16 + 16))


def test_a_head_or_table_that_does_not_fit_is_refused(kernels: Library) -> None:
    table = jnp.zeros((2, 4 * 128), jnp.uint8)  # 64 outputs of 8 bfloat16 inputs
    hidden, ids = jnp.zeros((3, 8)), jnp.zeros(3, jnp.int32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="native kernels, head: head is"):
        calls.head(hidden, table, 65, "bfloat16").block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match="wanted is"):
        calls.head(hidden, table, 64, "bfloat16", jnp.zeros(2)).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match="native kernels, embedding: table is"):
        calls.embedding(ids, table, 64, 9, "bfloat16").block_until_ready()
