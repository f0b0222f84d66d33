"""Attention over latents and the products of its heads, at every level held to float64."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_worker.compute.backends.cpu_native import calls, packing
from engine_worker.compute.backends.cpu_native.library import Library
from tests.fakes.block_oracle import (
    TOLERANCE,
    Problem,
    Row,
    StepShape,
    distance,
    page_numbers,
    rounded,
    stored_pages,
)
from tests.fakes.fuzz_effort import EFFORT

Array = npt.NDArray[Any]
CACHE_TYPES = ("float32", "bfloat16")
SCALE = 0.2


@dataclass(frozen=True)
class Sizes:
    """Of a latent attention."""

    num_heads: int = 3
    latent: int = 48
    rotated: int = 6
    cache_type: str = "bfloat16"


class LatentProblem:
    """Random queries, keys and latents of a step, and random ones in the cache."""

    def __init__(self, step: StepShape, sizes: Sizes, seed: int = 0) -> None:
        self.sizes, self.problem = sizes, Problem(step, 8, seed)
        num_tokens, normal = step.num_tokens, self.problem.normal
        self.queries = normal(num_tokens, sizes.num_heads, sizes.latent + sizes.rotated)
        self.keys, self.latents = (
            normal(num_tokens, width) for width in (sizes.rotated, sizes.latent)
        )
        # What nobody may see is no number.
        shape = (self.problem.num_blocks, step.block_size)
        self.cached = [
            np.full((*shape, width), np.nan, np.float32) for width in (sizes.rotated, sizes.latent)
        ]
        for index, row in enumerate(step.rows):
            for position in range(row.num_stored):
                for cached in self.cached:
                    cached[self.place(index, position)] = normal(cached.shape[-1])

    def place(self, row: int, position: int) -> tuple[int, int]:
        """Page and slot of a row's position."""
        page, slot = divmod(position, self.problem.shape.block_size)
        return int(self.problem.block_tables[row, page]), slot

    @property
    def pages(self) -> tuple[jax.Array, jax.Array]:
        keys, latents = (
            jnp.asarray(stored_pages(one[:, None], self.sizes.cache_type, are_keys=True))
            for one in self.cached
        )
        return keys, latents

    def found(
        self, step: calls.Step | None = None, pages: tuple[jax.Array, jax.Array] | None = None
    ) -> tuple[Array, tuple[jax.Array, jax.Array]]:
        """The kernels' result, and the pages after it."""
        queries, keys, latents = map(jnp.asarray, (self.queries, self.keys, self.latents))
        y, new_pages = calls.attend_latents(
            queries,
            keys,
            latents,
            step or self.problem.step,
            pages or self.pages,
            scale=SCALE,
            cache_type=self.sizes.cache_type,
        )
        return np.asarray(y), new_pages

    def oracle(self) -> tuple[Array, list[Array]]:
        """The same in float64, rounded where the kernels are said to round."""
        cache_type, problem = self.sizes.cache_type, self.problem
        cached = [rounded(one, cache_type, 0) for one in self.cached]
        live = np.flatnonzero(problem.positions >= 0)
        for token in live:
            place = self.place(problem.rows[token], problem.positions[token])
            for one, new in zip(cached, (self.keys, self.latents), strict=True):
                one[place] = rounded(new[token], cache_type, 0)
        y = np.zeros((*self.queries.shape[:2], self.sizes.latent))
        for token in live:
            row, end = problem.rows[token], problem.positions[token] + 1
            places = tuple(np.array([self.place(row, at) for at in range(end)]).T)
            keys, latents = (one[places] for one in cached)
            q = rounded(self.queries[token] * np.float32(SCALE), cache_type, 0)
            scores = q @ np.concatenate([latents, keys], axis=1).T
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            y[token] = weights / weights.sum(axis=1, keepdims=True) @ latents
        return y, cached


def check(problem: LatentProblem) -> None:
    sizes = problem.sizes
    (y, pages), (expected, cached) = problem.found(), problem.oracle()
    assert distance(y, expected) < TOLERANCE[sizes.cache_type], (problem.problem.shape, sizes)
    assert not y[problem.problem.positions < 0].any()
    for stored, wanted in zip(pages, cached, strict=True):
        numbers = page_numbers(stored, wanted.shape[-1], are_keys=True)[:, 0]
        # Nothing is written but the tokens of the step.
        np.testing.assert_array_equal(numbers, wanted)


rows = st.lists(st.builds(Row, st.integers(0, 90), st.integers(1, 20)), min_size=1, max_size=4)


@settings(max_examples=10 * EFFORT, deadline=None)
@given(
    step=st.builds(
        StepShape,
        rows.map(tuple),
        st.sampled_from([2, 8, 16, 24, 32, 64, 300]),
        st.integers(0, 3),
    ),
    sizes=st.builds(
        Sizes,
        st.sampled_from([1, 3, 16, 40]),
        st.sampled_from([2, 16, 34, 48, 128]),
        st.sampled_from([2, 6, 32]),
        st.sampled_from(CACHE_TYPES),
    ),
    seed=st.integers(0, 99),
)
def check_problems(step: StepShape, sizes: Sizes, seed: int) -> None:
    check(LatentProblem(step, sizes, seed))


def test_attention_over_latents_is_the_oracles(level: str) -> None:
    check_problems()
    for cache_type in CACHE_TYPES:
        # As wide as DeepSeek's, with pages that are turned in whole vectors.
        wide = Sizes(16, 512, 64, cache_type)
        check(LatentProblem(StepShape((Row(300, 2), Row(0, 5)), 32, 1), wide))


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_a_tokens_bits_do_not_depend_on_what_else_a_call_attends_to(
    level: str, cache_type: str
) -> None:
    """Alone or among others, in one chunk or token by token; with spans that threads share."""
    rows = (Row(0, 19), Row(1300, 2), Row(1300, 1), Row(29, 9))
    problem = LatentProblem(StepShape(rows, 16, 3), Sizes(5, 34, 6, cache_type))
    together, pages = problem.found()
    step, own_pages = problem.problem.step, problem.pages
    for token in np.flatnonzero(problem.problem.positions >= 0):
        only = jnp.where(jnp.arange(len(together)) == token, step.positions, -1)
        alone, own_pages = problem.found(replace(step, positions=only), own_pages)
        assert np.array_equal(alone[token], together[token])
    for one, other in zip(own_pages, pages, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("weight_type", CACHE_TYPES)
def test_each_heads_numbers_are_multiplied_by_its_own_matrix(level: str, weight_type: str) -> None:
    random = np.random.default_rng(0)
    num_heads, plain, value, latent, num_rows = 3, 12, 40, 70, 17
    matrices = random.standard_normal((num_heads, plain + value, latent), np.float32)
    (packed,) = packing.pack_heads(matrices, plain, weight_type)
    numbers = rounded(matrices, weight_type, 0)
    wanted = np.arange(num_rows) == 14
    offset = packing.head_offset(latent, plain, weight_type)
    for own, at, inputs in (
        (numbers[:, :plain].swapaxes(1, 2), 0, plain),
        (numbers[:, plain:], offset, latent),
    ):
        x = random.standard_normal((num_rows, num_heads, inputs), np.float32)
        arguments = (jnp.asarray(packed), own.shape[1], at, weight_type)
        y = calls.multiply_by_head(jnp.asarray(x), *arguments, jnp.asarray(wanted))
        expected = np.einsum("thi,hoi->tho", rounded(x, weight_type, 0), own)
        assert distance(y[:15], expected[:15]) < TOLERANCE[weight_type]
        assert not np.asarray(y)[15:].any()
        alone = calls.multiply_by_head(jnp.asarray(x[3:4]), *arguments)
        assert np.array_equal(alone[0], y[3])


def refused(match: str, call: Any) -> None:
    # Of a call by itself jax raises either.
    errors = (jax.errors.JaxRuntimeError, ValueError)
    with pytest.raises(errors, match=match):
        jax.tree.map(np.asarray, call())


def test_calls_that_do_not_fit_are_refused(
    kernels: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = StepShape((Row(30, 3), Row(0, 1)), 16)

    def problem(**changes: Any) -> LatentProblem:
        made = LatentProblem(shape, Sizes())
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    good = problem()
    step, (keys, latents) = good.problem.step, good.pages
    for match, changes in (
        ("queries are not those of the latents", {"queries": good.queries[..., :-2]}),
        ("queries are not those of the latents", {"queries": good.queries[:, :0]}),
        ("keys is", {"keys": good.keys[:-1]}),
        ("latents is", {"latents": good.latents[:-1]}),
        ("queries is", {"queries": good.queries.astype(np.int32)}),
        ("key pages is", {"keys": good.keys[:, :4], "queries": good.queries[..., :-2]}),
    ):
        made = problem(**changes)
        refused(f"native kernels, latent: {match}", lambda made=made: made.found(pages=good.pages))
    for match, wrong_pages in (
        ("latent pages is", (keys, latents[:-1])),
        ("key pages is", (keys.astype(jnp.float32), latents)),
        ("odd number of tokens", (keys[:, :, :, :15], latents[:, :, :, :15])),
    ):
        refused(match, lambda pages=wrong_pages: good.found(pages=pages))
    tables = step.block_tables.at[0, 1].set(good.problem.num_blocks)
    for match, wrong_step in (
        ("is outside of the cache's", replace(step, block_tables=tables)),
        ("of row 1 is outside of", replace(step, positions=step.positions.at[3].set(900))),
        ("row 9 is outside of", replace(step, rows=step.rows.at[0].set(9))),
    ):
        refused(match, lambda step=wrong_step: good.found(step))
    monkeypatch.setattr(calls, "CACHE_TYPES", ("int8", "float32", "bfloat16"))
    refused("cache type is 2", good.found)
    monkeypatch.undo()
    monkeypatch.setattr(calls, "_CONFIG_VERSION", 1)
    refused("native kernels, latent: the call was built for another version", good.found)


def test_products_of_heads_that_do_not_fit_are_refused(kernels: Library) -> None:
    x = jnp.zeros((5, 2, 8))
    packed = jnp.zeros((2, 3 * 4 * 128), jnp.uint8)  # Three panels of 8 bfloat16 inputs.
    good = (x, packed, 64, 4 * 128, "bfloat16")
    calls.multiply_by_head(*good).block_until_ready()
    for match, place, value in (
        ("x is", 0, x[0]),
        ("matrices is", 1, packed[:1]),
        ("a head's matrix is not in its bytes", 2, 65),
        ("a head's matrix is not in its bytes", 3, 2 * 4 * 128),
        ("a head's matrix is not in its bytes", 3, 64),
        ("offset is -128", 3, -128),
        ("matrices of heads are float32 or bfloat16", 4, "int8"),
    ):
        wrong = (*good[:place], value, *good[place + 1 :])
        refused(f"native kernels, by_head: {match}", lambda w=wrong: calls.multiply_by_head(*w))
    refused("wanted is", lambda: calls.multiply_by_head(*good, jnp.zeros(4)))
