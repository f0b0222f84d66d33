"""Recurrences in chunks against their definition, and both against float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine_worker.compute.models.recurrent.delta_rule import delta_rule
from engine_worker.compute.models.recurrent.scan import (
    CHUNK_SIZE,
    Recurrence,
    each_chunk,
    each_token,
)
from engine_worker.compute.models.recurrent.state_space import state_space
from tests.fakes.fuzz_effort import EFFORT

Array = npt.NDArray[Any]
Arrays = tuple[Array, ...]

DECAYS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "none": lambda draw, shape: np.zeros(shape),
    "long": lambda draw, shape: -draw.uniform(0, 1e-4, shape),
    "mixed": lambda draw, shape: -np.exp(draw.normal(-2, 2, shape)),
    # Little is lost right behind what forgets nearly everything.
    "cliffs": lambda draw, shape: np.where(
        draw.random(shape) < 0.6, -(10 ** draw.uniform(1, 3, shape)), -draw.uniform(0, 0.1, shape)
    ),
    "all": lambda draw, shape: np.where(draw.random(shape) < 0.2, -np.inf, 0.0),
}


def delta_inputs(
    draw: np.random.Generator, shape: tuple[int, int], decay: str, *, alike: bool
) -> tuple[Array, Arrays]:
    """A memory and inputs of the delta rule: six heads, of which three share a key each."""
    keys = draw.normal(size=(*shape, 2, 8))
    if alike:
        # One key again and again, which corrections with a strength of 2 throw back and forth.
        keys = keys[:, :1] + 1e-3 * keys
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    strength = np.full((*shape, 6), 2.0) if alike else draw.uniform(0, 2, (*shape, 6))
    values = draw.normal(size=(*shape, 6, 5))
    inputs = (draw.normal(size=keys.shape), keys, values, strength)
    return draw.normal(size=(shape[0], 6, 8, 5)), (*inputs, DECAYS[decay](draw, (*shape, 6)))


def space_inputs(
    draw: np.random.Generator, shape: tuple[int, int], decay: str, *, alike: bool
) -> tuple[Array, Arrays]:
    """A memory and inputs of a state space: six heads in two groups."""
    writes, reads = draw.normal(size=(2, *shape, 2, 7))
    if alike:
        reads = writes
    values = draw.normal(size=(*shape, 6, 5))
    inputs = (values, writes, reads, DECAYS[decay](draw, (*shape, 6)))
    return draw.normal(size=(shape[0], 6, 5, 7)), inputs


def delta_in_float64(memory: Array, inputs: Arrays) -> tuple[Array, Array]:
    """One token of one row, head by head: what each remembers [K, V] is corrected."""
    outputs = np.zeros(memory.shape[:1] + memory.shape[2:])
    q, k, v, strength, forgets = inputs
    for head in range(len(memory)):
        key, query = k[head // 3], q[head // 3]
        memory[head] *= np.exp(forgets[head])
        memory[head] += strength[head] * np.outer(key, v[head] - memory[head].T @ key)
        outputs[head] = memory[head].T @ query
    return outputs, memory


def space_in_float64(memory: Array, inputs: Arrays) -> tuple[Array, Array]:
    """One token of one row, head by head."""
    outputs = np.zeros(memory.shape[:2])
    values, writes, reads, forgets = inputs
    for head in range(len(memory)):
        memory[head] *= np.exp(forgets[head])
        memory[head] += np.outer(values[head], writes[head // 3])
        outputs[head] = memory[head] @ reads[head // 3]
    return outputs, memory


TOLERANCE = 1e-4
"""Of what is usual; differences of sums of decays, or a power series, miss it."""

KINDS = {
    "delta": (delta_rule, delta_inputs, delta_in_float64),
    "space": (state_space, space_inputs, space_in_float64),
}


Computed = tuple[jax.Array, jax.Array]
Given = tuple[jax.Array, tuple[jax.Array, ...], jax.Array]


@partial(jax.jit, static_argnums=(0, 2))
def in_chunks(rule: Recurrence, given_arrays: Given, chunk_size: int) -> Computed:
    return each_chunk(rule.one_chunk, *given_arrays, chunk_size)


@partial(jax.jit, static_argnums=0)
def token_by_token(rule: Recurrence, given_arrays: Given) -> Computed:
    return each_token(rule.one_token, *given_arrays)


@partial(jax.jit, static_argnums=0)
def in_the_faster_way(rule: Recurrence, given_arrays: Given) -> Computed:
    return rule(*given_arrays)


def in_float32(memory: Array, inputs: Arrays, is_token: Array) -> Given:
    return (
        jnp.asarray(memory, jnp.float32),
        tuple(jnp.asarray(x, jnp.float32) for x in inputs),
        jnp.asarray(is_token),
    )


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Within a share of what is usual in the expected values."""
    expected = np.asarray(expected, np.float64)
    scale = np.sqrt(np.mean(np.square(expected))) if expected.size else 1.0
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * max(scale, 1e-3))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8 * EFFORT, deadline=None)
@given(
    lengths=st.tuples(st.integers(0, 70), st.integers(0, 70)),
    chunk_size=st.sampled_from([1, 5, CHUNK_SIZE]),
    decay=st.sampled_from(sorted(DECAYS)),
    alike=st.booleans(),
    seed=st.integers(0, 1000),
)
@example(lengths=(1,), chunk_size=CHUNK_SIZE, decay="mixed", alike=False, seed=0)
@example(lengths=(70, 0), chunk_size=CHUNK_SIZE, decay="none", alike=True, seed=0)
@example(lengths=(70, 70), chunk_size=CHUNK_SIZE, decay="cliffs", alike=False, seed=1)
@example(lengths=(70, 0), chunk_size=CHUNK_SIZE, decay="all", alike=False, seed=1)
@example(lengths=(31, 64), chunk_size=CHUNK_SIZE, decay="long", alike=True, seed=2)
def test_chunks_are_what_tokens_make_one_after_the_other(
    kind: str, lengths: tuple[int, ...], chunk_size: int, decay: str, alike: bool, seed: int
) -> None:
    rule, make, in_float64 = KINDS[kind]
    # Few shapes, so that few programs are compiled.
    num_tokens = next(size for size in (1, 33, 70) if size >= max(lengths))
    draw = np.random.default_rng(seed)
    memory, inputs = make(draw, (len(lengths), num_tokens), decay, alike=alike)
    is_token = np.arange(num_tokens) < np.array(lengths)[:, None]
    # What padding holds reaches nothing.
    spoiled = tuple(
        np.where(is_token.reshape(*is_token.shape, *[1] * (x.ndim - 2)), x, np.nan) for x in inputs
    )
    given_arrays = in_float32(memory, spoiled, is_token)
    outputs, after = in_chunks(rule, given_arrays, chunk_size)
    plain_outputs, plain_after = token_by_token(rule, given_arrays)
    for row, length in enumerate(lengths):
        exact, state = [], memory[row].astype(np.float32).astype(np.float64)
        for index in range(length):
            token = tuple(x[row, index].astype(np.float32).astype(np.float64) for x in inputs)
            output, state = in_float64(state, token)
            exact.append(output)
        for found, found_after in ((outputs, after), (plain_outputs, plain_after)):
            assert_close(found_after[row], state, TOLERANCE)
            if exact:
                assert_close(found[row, :length], np.array(exact), TOLERANCE)
        if not length:
            np.testing.assert_array_equal(after[row], memory[row].astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "num_first",
    [pytest.param(1, marks=pytest.mark.long), CHUNK_SIZE, pytest.param(45, marks=pytest.mark.long)],
)
def test_a_memory_kept_anywhere_is_where_the_rest_goes_on(kind: str, num_first: int) -> None:
    rule, make, _ = KINDS[kind]
    memory, inputs, is_token = in_float32(
        *make(np.random.default_rng(5), (2, 70), "mixed", alike=False), np.ones((2, 70), bool)
    )
    expected, expected_after = token_by_token(rule, (memory, inputs, is_token))
    parts = []
    for part in (slice(num_first), slice(num_first, None)):
        some = (memory, tuple(x[:, part] for x in inputs), is_token[:, part])
        outputs, memory = in_the_faster_way(rule, some)
        parts.append(outputs)
    assert_close(jnp.concatenate(parts, axis=1), expected, TOLERANCE)
    assert_close(memory, expected_after, TOLERANCE)
