"""Given equal logits the draw is bitwise the same in every program that can make it."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from engine_worker.compute.runner.full_sampler import FullSampler
from engine_worker.compute.runner.packing import pack_row_fields, unpack_row_fields
from engine_worker.compute.sampling import filters
from engine_worker.compute.sampling.sampler import sample_tokens
from engine_worker.core.choice.batch import RowSampling, RowWork
from engine_worker.core.choice.token_mask import allow_all
from tests.fakes.fuzz_effort import EFFORT

NUM_ROWS, VOCAB_SIZE = 8, 70
Floats = npt.NDArray[np.float32]
Sample = Callable[[Floats, npt.NDArray[np.int32], list[RowWork]], list[int]]


class GivenLogits:
    """Stands in for a decoder whose logits are its only weights."""

    spec = SimpleNamespace(vocab_size=VOCAB_SIZE)

    def bind(self, leaves: Any) -> Any:
        return SimpleNamespace(head=lambda hidden: jnp.asarray(leaves[0]))


def row_fields(rows: list[RowWork]) -> npt.NDArray[np.int32]:
    return pack_row_fields(rows, NUM_ROWS, NUM_ROWS)


def as_list(tokens: jax.Array, rows: list[RowWork]) -> list[int]:
    return [int(token) for token in np.asarray(tokens)[: len(rows)]]


def by_step_program() -> Sample:
    """As the step programs do."""
    program = jax.jit(
        lambda logits, counts, fields: sample_tokens(logits, counts, unpack_row_fields(fields))
    )

    def sample(logits: Floats, counts: npt.NDArray[np.int32], rows: list[RowWork]) -> list[int]:
        return as_list(program(logits, counts, row_fields(rows)), rows)

    return sample


def by_bisection() -> Sample:
    """The filters find their bounds by bisection, as they do for flat distributions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "NUM_CANDIDATES", 2)
        sample = by_step_program()
        sample(np.zeros((NUM_ROWS, VOCAB_SIZE), np.float32), no_counts(), [plain_row(0)])
    return sample


def by_loop() -> Sample:
    """The third turn of a loop on the device, as when several tokens are drawn in one call."""

    @jax.jit
    def program(logits: jax.Array, counts: jax.Array, fields: jax.Array) -> jax.Array:
        def turn(index: jax.Array, tokens: jax.Array) -> jax.Array:
            rows = unpack_row_fields(fields)
            earlier = (2 - index).astype(jnp.uint32)
            rows = rows._replace(positions=rows.positions - earlier)
            return sample_tokens(logits + 0 * tokens[:, None], counts, rows)

        tokens: jax.Array = lax.fori_loop(0, 3, turn, jnp.zeros(NUM_ROWS, jnp.int32))
        return tokens

    def sample(logits: Floats, counts: npt.NDArray[np.int32], rows: list[RowWork]) -> list[int]:
        return as_list(program(logits, counts, row_fields(rows)), rows)

    return sample


def by_full_sampler() -> Sample:
    """As rows are sampled that need more than the step program."""
    sampler = FullSampler(GivenLogits(), NUM_ROWS, NUM_ROWS)  # type: ignore[arg-type]
    program = jax.jit(sampler)
    hidden, last_tokens = np.zeros((NUM_ROWS, 1), np.float32), np.zeros(NUM_ROWS + 1, np.int32)

    def sample(logits: Floats, counts: npt.NDArray[np.int32], rows: list[RowWork]) -> list[int]:
        targets = [None] * len(rows)
        inputs = sampler.pack(rows, range(len(rows)), targets)
        outputs, _, _ = program((logits,), counts, last_tokens, hidden, inputs)
        return [one.token for one in sampler.read(np.asarray(outputs), rows, targets)]

    return sample


def no_counts() -> npt.NDArray[np.int32]:
    return np.zeros((NUM_ROWS, VOCAB_SIZE), np.int32)


def plain_row(slot: int, **sampling: Any) -> RowWork:
    return RowWork(slot, (1,), 4, (0,), True, RowSampling(**sampling))


@pytest.fixture(scope="module")
def variants(bits_of_engines: None) -> dict[str, Sample]:
    return {
        "step": by_step_program(),
        "bisection": by_bisection(),
        "loop": by_loop(),
        "full": by_full_sampler(),
    }


SAMPLINGS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.7]),
        "top_k": st.integers(0, VOCAB_SIZE + 5),
        "top_p": st.floats(0.01, 1.0),
        "min_p": st.floats(0.0, 1.0),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0.1, 3),
        "seed": st.integers(0, 2**64 - 1),
        "choice": st.integers(0, 5),
    },
)


@settings(deadline=None, max_examples=15 * EFFORT)
@given(st.data())
def test_every_variant_row_and_company_draws_the_same(
    variants: dict[str, Sample], data: st.DataObject
) -> None:
    """Ties, masked tokens and flat rows included; the last row's neighbours are all replaced."""
    samplings = data.draw(st.lists(SAMPLINGS, min_size=NUM_ROWS, max_size=NUM_ROWS))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scale = data.draw(st.sampled_from([0.01, 1.0, 8.0]))
    logits = generator.standard_normal((NUM_ROWS, VOCAB_SIZE), np.float32) * np.float32(scale)
    if data.draw(st.booleans()):
        logits = np.round(logits)
    logits[:, generator.integers(0, VOCAB_SIZE, 5)] = -np.inf
    counts = generator.integers(0, 3, (NUM_ROWS, VOCAB_SIZE)).astype(np.int32)
    rows = [plain_row(slot, **sampling) for slot, sampling in enumerate(samplings)]
    drawn = {name: sample(logits, counts, rows) for name, sample in variants.items()}
    first = drawn["step"]
    assert min(first) >= 0
    assert all(tokens == first for tokens in drawn.values()), drawn
    # The same rows in another order, so that each has another place.
    order = generator.permutation(NUM_ROWS)
    moved = variants["step"](logits[order], counts, [rows[place] for place in order])
    assert [moved[int(np.argmax(order == place))] for place in range(NUM_ROWS)] == first
    # One of them in other company, with what needs the full sampler beside and on it.
    company = [plain_row(slot, logit_bias=((3, 5.0),), num_logprobs=4) for slot in range(NUM_ROWS)]
    watched = int(generator.integers(NUM_ROWS))
    company[watched] = RowWork(
        watched, (1,), 4, (0,), True, rows[watched].sampling, allowed_mask=allow_all(VOCAB_SIZE)
    )
    assert variants["full"](logits, counts, company)[watched] == first[watched]


def test_a_masked_row_draws_what_renormalising_over_the_rest_gives() -> None:
    """Chi-square over 6,000 seeds with a mask, a bias and a penalty; bound: 99.9th percentile."""
    sample = by_full_sampler()
    generator = np.random.default_rng(4)
    logits = np.tile(generator.standard_normal(VOCAB_SIZE).astype(np.float32), (NUM_ROWS, 1))
    allowed = [1, 2, 3, 5, 8, 13, 21, 34, 55]
    exact = logits[0].astype(np.float64)
    exact[3] += 1.0
    counts = no_counts()
    counts[:, 5] = 2
    exact[5] -= 2 * 0.5
    weights = np.exp(exact[allowed] / 0.9)
    mask = np.zeros(math.ceil(VOCAB_SIZE / 32), np.uint32)
    for token_id in allowed:
        mask[token_id // 32] |= np.uint32(1 << token_id % 32)
    num_draws = 6000
    observed = dict.fromkeys(allowed, 0)
    for first in range(0, num_draws, NUM_ROWS):
        rows = [
            RowWork(
                slot,
                (1,),
                4,
                (0,),
                True,
                RowSampling(
                    temperature=0.9,
                    frequency_penalty=0.5,
                    logit_bias=((3, 1.0),),
                    seed=first + slot,
                ),
                allowed_mask=mask,
            )
            for slot in range(NUM_ROWS)
        ]
        for token_id in sample(logits, counts, rows):
            observed[token_id] += 1
    expected = num_draws * weights / weights.sum()
    found = np.array([observed[token_id] for token_id in allowed])
    assert np.sum((found - expected) ** 2 / expected) < 26.1
