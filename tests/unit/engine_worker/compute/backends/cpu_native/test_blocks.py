"""Blocks of the native kernels at every level and in every type, held to float64 and to XLA."""

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_worker.compute.backends.cpu_native import calls, packing
from engine_worker.compute.backends.cpu_native.calls import AttentionConfig, MlpConfig
from engine_worker.compute.backends.cpu_native.library import Library
from engine_worker.compute.models.spec import Activation, QkNorm, QueryScale
from engine_worker.compute.runner.packing import pack_row_fields, unpack_row_fields
from engine_worker.compute.sampling.params import SamplingRows
from engine_worker.compute.sampling.sampler import NAN_LOGITS, sample_tokens
from engine_worker.core.choice.batch import RowSampling, RowWork
from tests.fakes.block_oracle import (
    TOLERANCE,
    Problem,
    Row,
    StepShape,
    distance,
    normalized,
    page_numbers,
    rounded,
)
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.native_levels import LEVELS, at_levels

SOME_ROWS = StepShape((Row(0, 5), Row(70, 1), Row(31, 2), Row(300, 30)), 32, num_padding=2)


rows = st.lists(st.builds(Row, st.integers(0, 70), st.integers(1, 20)), min_size=1, max_size=5)
steps = st.builds(
    StepShape,
    rows.map(tuple),
    st.sampled_from([2, 8, 16, 24, 32, 64, 300]),
    st.integers(0, 3),
)


@st.composite
def attention_configs(draw: st.DrawFn) -> tuple[AttentionConfig, int | None]:
    """Any attention block, with odd numbers of heads and odd widths; and its rotated pairs."""
    kv_heads = draw(st.integers(1, 3))
    dim = 2 * draw(st.sampled_from([1, 3, 8, 16, 20, 32, 40, 64]))
    norm = draw(st.sampled_from(["none", "rms", "layer"]))
    flags = [draw(st.booleans()) for _ in range(9)]
    is_reader = draw(st.sampled_from([False, False, True]))
    qk_norm = draw(st.sampled_from(calls.QK_NORMS))
    pairs = draw(st.one_of(st.none(), st.integers(1, dim // 2)))
    return AttentionConfig(
        num_heads=kv_heads * draw(st.sampled_from([1, 2, 3, 7, 13])),
        num_kv_heads=kv_heads,
        head_dim=dim,
        scale=dim**-0.5,
        eps=1e-5,
        weight_type=draw(st.sampled_from(packing.WEIGHT_TYPES)),
        cache_type=draw(st.sampled_from(calls.CACHE_TYPES)),
        group_size=draw(st.sampled_from(packing.GROUP_SIZES)),
        window=draw(st.sampled_from([0, 0, 1, 7, 33])),
        softcap=draw(st.sampled_from([0.0, 0.0, 3.0])),
        multiplier=draw(st.sampled_from([1.0, 0.22])),
        norm=norm,
        chunk=draw(st.sampled_from([0, 0, 1, 16, 50])),
        query_scale=draw(st.sampled_from([None, QueryScale(0.3, 8, 1)])),
        qk_norm=qk_norm,
        has_norm_bias=norm == "layer" and flags[0],
        has_qkv_bias=flags[1],
        has_o_bias=flags[2],
        has_post_norm=flags[3],
        has_sinks=flags[4],
        has_output_gate=flags[5],
        is_interleaved=flags[6],
        is_value_of_key=flags[7] and qk_norm is not QkNorm.FULL_WIDTH and not is_reader,
        has_value_norm=flags[8] and not is_reader,
        is_reader=is_reader,
    ), pairs


@st.composite
def mlp_configs(draw: st.DrawFn) -> MlpConfig:
    """Any MLP block."""
    is_gated = draw(st.booleans())
    return MlpConfig(
        intermediate_size=draw(st.sampled_from([1, 15, 16, 50, 96, 130])),
        eps=1e-5,
        weight_type=draw(st.sampled_from(packing.WEIGHT_TYPES)),
        group_size=draw(st.sampled_from(packing.GROUP_SIZES)),
        activation=draw(st.sampled_from(Activation)),
        is_gated=is_gated,
        clamp=draw(st.sampled_from([0.0, 0.4])) if is_gated else 0.0,
        up_offset=draw(st.sampled_from([0.0, 1.0])) if is_gated else 0.0,
        gate_multiplier=draw(st.sampled_from([1.0, 1.0, 0.3])) if is_gated else 1.0,
        norm=draw(st.sampled_from(["none", "rms", "layer"])),
        has_gate_up_bias=draw(st.booleans()),
        has_down_bias=draw(st.booleans()),
        has_post_norm=draw(st.booleans()),
    )


def tolerance(config: AttentionConfig | MlpConfig) -> float:
    cache = config.cache_type if isinstance(config, AttentionConfig) else "float32"
    return max(TOLERANCE[config.weight_type], TOLERANCE[cache])


def residual_rounding(problem: Problem, added: Any) -> float:
    """What float32 itself rounds of a residual, relative to what a block adds to it."""
    size = max(float(np.linalg.norm(added)), 1e-30)
    return float(np.finfo(np.float32).eps * np.linalg.norm(problem.x)) / size


def test_the_levels_of_this_page_are_all_that_there_are(kernels: Library) -> None:
    assert set(kernels.levels) <= set(LEVELS)
    assert kernels.levels[-1] == "generic"


@settings(max_examples=8 * EFFORT)
@given(
    step=steps,
    config=attention_configs(),
    hidden=st.sampled_from([1, 17, 64, 100]),
    seed=st.integers(0, 99),
)
def check_attention(
    step: StepShape, config: tuple[AttentionConfig, int | None], hidden: int, seed: int
) -> None:
    problem = Problem(step, hidden, seed)
    if hidden == 1:  # Of one number a norm leaves the sign, which rounding may change.
        config = (replace(config[0], has_post_norm=False), config[1])
    block = problem.attention(*config)
    rope = 0 if block.ropes else None
    found, ((keys, values),) = calls.run_blocks(
        jnp.asarray(problem.x), problem.step, block.ropes, [block.block(rope)]
    )
    expected, expected_keys, expected_values = block.oracle(problem.x)
    # A single number may be what is left of a few larger ones, each of which was rounded.
    limit = tolerance(config[0]) * (8 if hidden == 1 else 1)
    added = expected - problem.x
    assert distance(found - problem.x, added) < limit + residual_rounding(problem, added), config
    for pages, wanted, are_keys in ((keys, expected_keys, True), (values, expected_values, False)):
        numbers = page_numbers(pages, config[0].head_dim, are_keys=are_keys)
        is_known = ~np.isnan(wanted)
        rounding = rounded(wanted, config[0].cache_type, 0)
        assert distance(numbers[is_known], rounding[is_known]) < limit
        # Nothing is written but the tokens of the step.
        assert np.isnan(numbers[~is_known]).all()
    is_padding = problem.positions < 0
    assert np.array_equal(np.asarray(found)[is_padding], problem.x[is_padding])


def test_an_attention_block_is_the_oracles(level: str) -> None:
    check_attention()


@settings(max_examples=8 * EFFORT)
@given(
    step=steps,
    config=mlp_configs(),
    hidden=st.sampled_from([1, 17, 64, 100]),
    seed=st.integers(0, 99),
)
def check_mlp(step: StepShape, config: MlpConfig, hidden: int, seed: int) -> None:
    problem = Problem(step, hidden, seed)
    block = problem.mlp(config)
    found, _ = calls.run_blocks(jnp.asarray(problem.x), problem.step, [], [block.block()])
    expected = block.oracle(problem.x)
    added = expected - problem.x
    limit = tolerance(config) + residual_rounding(problem, added)
    assert distance(found - problem.x, added) < limit, config


def test_an_mlp_block_is_the_oracles(level: str) -> None:
    check_mlp()


@at_levels("weight_type", packing.WEIGHT_TYPES)
def test_an_mlp_reads_the_norm_of_the_attention_block_before_it(
    level: str, weight_type: str
) -> None:
    """Behind one LayerNorm, whatever stands in the residual by then; as one call, and by token."""
    problem = Problem(SOME_ROWS, 70)
    config = AttentionConfig(
        6, 2, 20, 0.3, 1e-5, weight_type, norm="layer", qk_norm=QkNorm.EACH_HEAD
    )
    attention = problem.attention(config, 8)
    mlp = problem.mlp(MlpConfig(50, 1e-5, weight_type, norm="none", is_parallel=True))
    behind = problem.mlp(MlpConfig(30, 1e-5, weight_type))
    x, step = jnp.asarray(problem.x), problem.step
    blocks: list[calls.Attention | calls.Mlp] = [
        attention.block(0),
        mlp.block(),
        behind.block(),
    ]
    found, _ = calls.run_blocks(x, step, attention.ropes, blocks[:2])
    middle, _, _ = attention.oracle(problem.x)
    reads = normalized(problem.x, "layer", config.eps, attention.vectors["norm"])
    expected = mlp.oracle(middle, reads=reads)
    assert distance(found - x, expected - problem.x) < tolerance(config)
    # A block behind them reads the residual again.
    together, _ = calls.run_blocks(x, step, attention.ropes, blocks)
    apart, _ = calls.run_blocks(found, step, [], blocks[2:])
    assert np.array_equal(together, apart)
    last = np.flatnonzero(problem.positions >= 0)[-1]
    only = jnp.where(jnp.arange(len(problem.positions)) >= last - 29, step.positions, -1)
    alone, _ = calls.run_blocks(x, replace(step, positions=only), attention.ropes, blocks[:2])
    assert np.array_equal(alone[last], found[last])


@settings(max_examples=7 * EFFORT)
@given(
    num_rows=st.integers(1, 40),
    outputs=st.sampled_from([1, 31, 32, 100]),
    inputs=st.sampled_from([1, 3, 64, 130]),
    weight_type=st.sampled_from(packing.WEIGHT_TYPES),
    softcap=st.sampled_from([0.0, 2.0]),
)
def check_head(num_rows: int, outputs: int, inputs: int, weight_type: str, softcap: float) -> None:
    random = np.random.default_rng(num_rows)
    weights = random.standard_normal((outputs, inputs), np.float32)
    (packed,) = packing.pack(weights, weight_type, "table", group_size=32)
    values = packing.unpack(packed, weights.shape, weight_type, "table", group_size=32)
    hidden = random.standard_normal((num_rows, inputs), np.float32)
    wanted = random.integers(0, 2, num_rows)
    arguments = (
        jnp.asarray(hidden),
        jnp.asarray(packed),
        outputs,
        weight_type,
        jnp.asarray(wanted),
    )
    logits = calls.head(*arguments, group_size=32, multiplier=0.5, softcap=softcap)
    tokens = calls.likeliest(*arguments, group_size=32, multiplier=0.5, softcap=softcap)
    expected = rounded(hidden, weight_type, 32) @ values.T.astype(np.float64) * 0.5
    if softcap:
        expected = softcap * np.tanh(expected / softcap)
    num_computed = int(np.max(np.flatnonzero(wanted), initial=-1)) + 1
    assert not np.asarray(logits)[num_computed:].any()
    if num_computed:
        found = np.asarray(logits)[:num_computed]
        assert distance(found, expected[:num_computed]) < TOLERANCE[weight_type]
        assert tokens[:num_computed].tolist() == np.argmax(found, axis=1).tolist()
    assert not np.asarray(tokens)[num_computed:].any()
    ids = np.array([0, outputs - 1, outputs + 5, -3], np.int32)
    rows = calls.embedding(
        jnp.asarray(ids), jnp.asarray(packed), outputs, inputs, weight_type, group_size=32
    )
    assert np.array_equal(rows, values[np.clip(ids, 0, outputs - 1)])


def test_a_head_is_the_oracles_and_its_table_looks_up(level: str) -> None:
    check_head()


@at_levels("weight_type", packing.WEIGHT_TYPES)
def test_the_likeliest_token_is_the_first_of_a_tie_and_none_without_a_number(
    level: str, weight_type: str
) -> None:
    """As the sampler's own look at the scores, which no greedy request takes any more."""
    inputs, outputs = 64, 2003
    weights = np.random.default_rng(0).standard_normal((outputs, inputs)).astype(np.float32)
    weights[[700, 1999, 41]] = 3.0
    hidden = np.ones((6, inputs), np.float32)
    hidden[1] = -1.0
    hidden[2, 5] = np.nan
    hidden[3, 5] = np.inf
    hidden[4] = 0.0
    (packed,) = packing.pack(weights, weight_type, "table", group_size=32)
    arguments = (jnp.asarray(hidden), jnp.asarray(packed), outputs, weight_type)
    rows = greedy_rows(len(hidden))
    counts = jnp.zeros((1, outputs), jnp.int32)
    expected = sample_tokens(calls.head(*arguments, group_size=32), counts, rows)
    tokens = calls.likeliest(*arguments, group_size=32)
    assert tokens.tolist() == expected.tolist()
    assert tokens[0] == 41
    assert tokens[2:5].tolist() == [NAN_LOGITS, NAN_LOGITS, 0]


def greedy_rows(num_rows: int) -> SamplingRows:
    """Sampling parameters of greedy rows, all of them wanted."""
    fields = pack_row_fields(
        [RowWork(0, (1,), 0, (0,), True, RowSampling()) for _ in range(num_rows)], num_rows, 1
    )
    return unpack_row_fields(jnp.asarray(fields))


@at_levels("weight_type,cache_type", packing.WEIGHT_TYPES, calls.CACHE_TYPES)
def test_every_type_is_near_plain_xla_in_float32(
    level: str, weight_type: str, cache_type: str
) -> None:
    limits = {"float32": 5e-3, "bfloat16": 1e-2, "int8": 2e-2, "int4": 2e-2}
    problem = Problem(SOME_ROWS, 96)
    config = AttentionConfig(6, 2, 64, 0.125, 1e-5, weight_type, cache_type)
    attention = problem.attention(config, 32)
    mlp = problem.mlp(MlpConfig(200, 1e-5, weight_type))
    found, _ = calls.run_blocks(
        jnp.asarray(problem.x), problem.step, attention.ropes, [attention.block(0), mlp.block()]
    )
    middle, _, _ = attention.oracle(problem.x, rounds=False)
    expected = xla_mlp(mlp, middle)
    assert distance(found, expected) < max(limits[weight_type], limits[cache_type])


def xla_mlp(block: Any, x: Any) -> jax.Array:
    """The XLA form of an MLP block, with the weights that the packed ones stand for."""
    residual = jnp.asarray(x, jnp.float32)
    mean_square = jnp.mean(jnp.square(residual), axis=-1, keepdims=True)
    normed = residual * jax.lax.rsqrt(mean_square + block.config.eps) * block.vectors["norm"]
    gate, up = jnp.split(normed @ jnp.asarray(block.gate_up_values.T, jnp.float32), 2, axis=-1)
    inner = jax.nn.silu(gate) * up
    out = residual + inner @ jnp.asarray(block.down_values.T, jnp.float32)
    is_live = jnp.asarray(block.problem.positions >= 0)[:, None]
    return jnp.where(is_live, out, residual)


TYPES = [(one, "bfloat16") for one in packing.WEIGHT_TYPES] + [
    ("float32", "int8"),
    ("int8", "int8"),
]
"""Of weights and of the cache."""


@at_levels("types", TYPES)
def test_a_tokens_bits_do_not_depend_on_what_else_a_call_computes(
    level: str, types: tuple[str, str]
) -> None:
    """Alone or among others, in one chunk or token by token, as one call or block by block."""
    window = 40
    together = Problem(StepShape((Row(0, 37), Row(300, 1), Row(29, 30)), 16, 3), 80)
    weight_type = types[0]
    config = AttentionConfig(
        9, 3, 32, 0.2, 1e-5, *types, window=window, softcap=4.0, has_sinks=True
    )
    attention = together.attention(config, 16)
    mlp = together.mlp(MlpConfig(144, 1e-5, weight_type))
    first, second = attention.block(0), mlp.block()
    x = jnp.asarray(together.x)
    whole, ((keys, values),) = calls.run_blocks(x, together.step, attention.ropes, [first, second])
    step = together.step
    part, own_keys, own_values = x, first.keys, first.values
    for token in np.flatnonzero(together.positions >= 0):
        only = jnp.where(jnp.arange(len(together.positions)) == token, step.positions, -1)
        block = replace(first, keys=own_keys, values=own_values)
        part, ((own_keys, own_values),) = calls.run_blocks(
            part, replace(step, positions=only), attention.ropes, [block]
        )
        part, _ = calls.run_blocks(part, replace(step, positions=only), [], [second])
    assert np.array_equal(whole, part)
    assert np.array_equal(keys, own_keys)
    assert np.array_equal(values, own_values)


@pytest.mark.parametrize(
    ("window", "cache_type"), [(0, "bfloat16"), (1500, "bfloat16"), (1500, "int8")]
)
def test_a_long_context_whose_spans_threads_share_has_the_same_bits(
    level: str, window: int, cache_type: str
) -> None:
    """A row alone leaves threads without a key head of their own; among others none is shared."""
    long = Row(2600, 2)
    config = AttentionConfig(
        3, 1, 16, 0.3, 1e-5, cache_type=cache_type, window=window, has_sinks=True
    )
    crowd = Problem(StepShape((long, Row(40, 1), Row(0, 1), Row(7, 1), Row(1100, 1)), 32), 48)
    attention = crowd.attention(config, 8)
    x, step, block = jnp.asarray(crowd.x), crowd.step, attention.block(0)
    together, _ = calls.run_blocks(x, step, attention.ropes, [block])
    only = replace(step, positions=jnp.where(step.rows == 0, step.positions, -1))
    alone, _ = calls.run_blocks(x, only, attention.ropes, [block])
    assert np.array_equal(alone[:2], together[:2])
    expected, _, _ = attention.oracle(crowd.x)
    assert distance(together - x, expected - crowd.x) < TOLERANCE[cache_type]


@at_levels(
    "cache_type,window,block_size,begin", calls.CACHE_TYPES, [0, 290, 12], [32, 24], [530, 620]
)
def test_rows_that_begin_with_the_same_blocks_have_the_bits_that_each_has_alone(
    level: str, cache_type: str, window: int, block_size: int, begin: int
) -> None:
    """Their common positions are read once for several of them, also within a chunk."""
    begin = begin // block_size * block_size
    rows = tuple(Row(begin + extra, 1 + extra % 5) for extra in (0, 3, 7, 20, 1, 2, 4, 9, 14))
    problem = Problem(StepShape((*rows, Row(280, 2), Row(begin, 9)), block_size), 40)
    problem.share_blocks(begin // block_size)
    # The last row but one is short and has its second chunk for itself.
    config = AttentionConfig(
        12, 2, 20, 0.3, 1e-5, cache_type=cache_type, window=window, has_sinks=True
    )
    attention = problem.attention(config, 8)
    x, step, block = jnp.asarray(problem.x), problem.step, attention.block(0)
    together, _ = calls.run_blocks(x, step, attention.ropes, [block])
    for row in range(len(rows) + 2):
        only = replace(step, positions=jnp.where(step.rows == row, step.positions, -1))
        alone, _ = calls.run_blocks(x, only, attention.ropes, [block])
        mine = problem.rows == row
        assert np.array_equal(np.asarray(alone)[mine], np.asarray(together)[mine])
    expected, _, _ = attention.oracle(problem.x)
    assert distance(together - x, expected - problem.x) < tolerance(config)


@pytest.mark.parametrize("types", TYPES)
def test_a_number_that_is_none_stays_none_in_its_token_and_reaches_no_other(
    level: str, types: tuple[str, str]
) -> None:
    problem = Problem(StepShape((Row(0, 1), Row(0, 1)), 32), 64)
    weight_type = types[0]
    attention = problem.attention(AttentionConfig(2, 1, 32, 0.2, 1e-5, *types, norm="none"), 16)
    mlp = problem.mlp(MlpConfig(64, 1e-5, weight_type))
    for number in (np.nan, np.inf):
        x = problem.x.copy()
        x[0, 5] = number
        for block in (attention.block(0), mlp.block()):
            found, _ = calls.run_blocks(jnp.asarray(x), problem.step, attention.ropes, [block])
            assert not np.isfinite(np.asarray(found)[0]).any()
            assert np.isfinite(np.asarray(found)[1]).all()


def test_two_rows_over_the_same_blocks_see_each_others_tokens(kernels: Library) -> None:
    problem = Problem(StepShape((Row(20, 4),), 16), 64)
    attention = problem.attention(AttentionConfig(2, 1, 32, 0.2, 1e-5), 16)
    x, step = jnp.asarray(problem.x), problem.step
    one, _ = calls.run_blocks(x, step, attention.ropes, [attention.block(0)])
    doubled = replace(
        step,
        rows=jnp.array([0, 1, 0, 1]),
        block_tables=jnp.concatenate([step.block_tables, step.block_tables]),
    )
    two, _ = calls.run_blocks(x, doubled, attention.ropes, [attention.block(0)])
    assert np.array_equal(one, two)


def test_blocks_of_one_call_read_the_tables_of_their_own_group(kernels: Library) -> None:
    """A layer behind a window beside one that sees all: fewer pages, and NaN in what was freed."""
    shape = StepShape((Row(20, 4), Row(45, 1), Row(46, 1)), 8)
    problem = Problem(shape, 64)
    whole = problem.attention(AttentionConfig(2, 1, 32, 0.2, 1e-5), 8)
    windowed = problem.attention(AttentionConfig(2, 1, 32, 0.2, 1e-5, window=9), 8)
    x, step = jnp.asarray(problem.x), problem.step
    first, second = whole.block(0), replace(windowed.block(0), group=1, rope=1)
    ropes = [*whole.ropes, *windowed.ropes]
    alone, (kept,) = calls.run_blocks(x, step, ropes, [first])
    alone, (seen,) = calls.run_blocks(alone, step, ropes, [replace(second, group=0)])

    # In its own pool the window's blocks come first; a last one, of NaN, stands for freed ones.
    tables, pages = np.asarray(step.block_tables), list[int]()
    own = np.full_like(tables, -1)
    for row, (stored, length) in enumerate(((20, 24), (45, 46), (46, 47))):
        for place in range((stored - 8) // 8, -(-length // 8)):
            own[row, place] = len(pages)
            pages.append(tables[row, place])
    own[own < 0] = len(pages)
    assert (own == len(pages)).sum() >= 8

    def moved(array: Any) -> Any:
        freed = jnp.full_like(array[:1], 0x7FC0 if array.dtype == jnp.uint16 else jnp.nan)
        return jnp.concatenate([array[jnp.array(pages)], freed])

    both = replace(step, block_tables=jnp.concatenate([tables, own]), num_groups=2)
    second = replace(second, keys=moved(second.keys), values=moved(second.values))
    together, (whole_pages, own_pages) = calls.run_blocks(x, both, ropes, [first, second])
    assert np.array_equal(together, alone)
    for found, expected in zip(whole_pages, kept, strict=True):
        assert np.array_equal(found, expected)
    for found, expected in zip(own_pages, seen, strict=True):
        assert np.array_equal(found[:-1], np.asarray(expected)[pages])


def test_a_donated_cache_is_updated_in_place_within_a_loop(kernels: Library) -> None:
    problem = Problem(StepShape((Row(20, 1), Row(3, 1)), 32), 64)
    attention = problem.attention(AttentionConfig(2, 1, 32, 0.2, 1e-5), None)
    block = attention.block(None)

    def decode(x: Any, keys: Any, values: Any) -> Any:
        def turn(index: Any, state: Any) -> Any:
            x, keys, values = state
            step = replace(problem.step, positions=problem.step.positions + index)
            x, (pages,) = calls.run_blocks(x, step, [], [replace(block, keys=keys, values=values)])
            return x, *pages

        return jax.lax.fori_loop(0, 4, turn, (x, keys, values))

    program = jax.jit(decode, donate_argnums=(0, 1, 2))
    arguments = (jnp.asarray(problem.x), block.keys + 0, block.values + 0)
    compiled = program.lower(*arguments).compile()
    copied = re.findall(r"(\S+) copy\(", compiled.as_text() or "")
    assert not [shape for shape in copied if not shape.startswith("s32")]
    places = [argument.unsafe_buffer_pointer() for argument in arguments]
    results = compiled(*arguments)
    assert [result.unsafe_buffer_pointer() for result in results] == places
