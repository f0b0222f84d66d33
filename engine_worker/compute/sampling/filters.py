"""Which tokens a draw may take: top-k, top-p and min-p as one lowest allowed score per row.

The bound is looked for among the best `NUM_CANDIDATES` scores, and where it lies below them by
bisection over the ordered bits of a float32 (at most 33 passes over the row); the whole row is
never sorted. Counts and probability masses are integers, so both ways, and every order of adding
up, give the same bits. All tokens with a score equal to the bound are kept.
"""

from collections.abc import Callable
from typing import Final

import jax
import jax.numpy as jnp
from jax import lax

from engine_worker.compute.sampling.floats import exp, from_rank, to_rank
from engine_worker.compute.sampling.params import SamplingRows

MAX_VOCAB_SIZE: Final = 1 << 19
"""Sums of so many parts of masses still fit 32 bits."""
NUM_CANDIDATES: Final = 256
_WEIGHT_ONE: Final = 1 << 24
_PART_BITS: Final = 12
_PART_MASK: Final = (1 << _PART_BITS) - 1


def lowest_allowed(scores: jax.Array, rows: SamplingRows) -> jax.Array:
    """The lowest score that top-k, then top-p of what top-k left, and min-p allow.

    Masses are in units of 2**-24 of the most likely token's probability.

    Args:
        scores: [R, V] float32, logits over temperature; minus infinity for masked tokens;
            V at most `MAX_VOCAB_SIZE`.
        rows: The filters.

    Returns:
        [R] float32; minus infinity where nothing is filtered.
    """
    maximum = jnp.max(scores, axis=1)
    nothing = jnp.full_like(maximum, -jnp.inf)
    any_top_p = jnp.any(rows.top_ps < 1.0)

    def of_top_k_and_top_p() -> jax.Array:
        candidates = lax.top_k(scores, min(NUM_CANDIDATES, scores.shape[1]))[0]
        of_top_k = _top_k_bound(scores, candidates, rows.top_ks)
        bound: jax.Array = lax.cond(
            any_top_p,
            lambda: _top_p_bound(scores, maximum, candidates, of_top_k, rows.top_ps),
            lambda: of_top_k,
        )
        return bound

    is_needed = any_top_p | jnp.any(rows.top_ks > 0)
    bound: jax.Array = lax.cond(is_needed, of_top_k_and_top_p, lambda: nothing)
    return jnp.maximum(bound, maximum + rows.log_min_ps)


def is_filtered(rows: SamplingRows) -> jax.Array:
    """[R] bool: whether any filter is on."""
    return (rows.top_ks > 0) | (rows.top_ps < 1.0) | (rows.log_min_ps > -jnp.inf)


def _top_k_bound(scores: jax.Array, candidates: jax.Array, top_ks: jax.Array) -> jax.Array:
    """The k-th best score of each row, [R]; minus infinity where top-k is off."""
    num_candidates = candidates.shape[1]

    def enough(bound: jax.Array) -> jax.Array:
        at_least = scores >= bound[:, None]
        return jnp.sum(at_least.astype(jnp.int32), axis=1) >= top_ks

    def among_candidates() -> jax.Array:
        place = jnp.clip(top_ks - 1, 0, num_candidates - 1)
        return jnp.take_along_axis(candidates, place[:, None], axis=1)[:, 0]

    bound = lax.cond(
        jnp.all(top_ks <= num_candidates),
        among_candidates,
        lambda: _highest_bound(enough, top_ks.shape),
    )
    return jnp.where(top_ks > 0, bound, -jnp.inf)


def _top_p_bound(
    scores: jax.Array,
    maximum: jax.Array,
    candidates: jax.Array,
    floor: jax.Array,
    top_ps: jax.Array,
) -> jax.Array:
    """The score at which the mass of better scores reaches top-p of the mass above `floor`.

    Args:
        scores: [R, V] float32.
        maximum: [R] float32, the best of each row.
        candidates: [R, C] float32, the best scores in falling order.
        floor: [R] float32, the bound of top-k.
        top_ps: [R] float32.

    Returns:
        [R] float32, at least `floor`; `floor` where top-p is off.
    """
    units = _units(scores, maximum, floor)

    def mass_above(bound: jax.Array) -> jax.Array:
        kept = jnp.where(scores >= bound[:, None], units, 0)
        return _mass(*_sums(kept >> _PART_BITS, kept & _PART_MASK))

    # At least the most likely token stays, whatever rounding makes of a tiny top-p.
    target = jnp.maximum(mass_above(floor) * top_ps, 1.0)
    best = _units(candidates, maximum, floor)
    low = jnp.cumsum(best & _PART_MASK, axis=1, dtype=jnp.uint32)
    masses = _mass(jnp.cumsum(best >> _PART_BITS, axis=1, dtype=jnp.uint32), low)
    reached = masses >= target[:, None]
    is_off = top_ps >= 1.0
    # Masses rise, so the places before the first that reaches the target are those that do not.
    place = jnp.sum((~reached).astype(jnp.int32), axis=1, keepdims=True)
    bound = lax.cond(
        jnp.all(reached[:, -1] | is_off),
        lambda: jnp.take_along_axis(candidates, place, axis=1, mode="clip")[:, 0],
        lambda: _highest_bound(lambda bound: mass_above(bound) >= target, top_ps.shape),
    )
    return jnp.where(is_off, floor, bound)


def _units(scores: jax.Array, maximum: jax.Array, floor: jax.Array) -> jax.Array:
    """Probabilities as integers, the best score's being 2**24: [R, N] uint32; 0 below `floor`."""
    weights = exp(scores - maximum[:, None]) * float(_WEIGHT_ONE)
    return jnp.where(scores >= floor[:, None], jnp.round(weights), 0.0).astype(jnp.uint32)


def _sums(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums of the rows of two [R, N] uint32 arrays, [R] each.

    As one reduction of both, which XLA:CPU vectorises without writing its inputs to memory; two
    reductions take seven times as long.
    """

    def add(
        sums: tuple[jax.Array, jax.Array], entries: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return sums[0] + entries[0], sums[1] + entries[1]

    zero = jnp.uint32(0)
    of_first, of_second = lax.reduce((first, second), (zero, zero), add, (1,))
    return of_first, of_second


def _mass(high: jax.Array, low: jax.Array) -> jax.Array:
    """`high * 2**12 + low` as float32, from sums of the parts of integers."""
    high, low = high + (low >> _PART_BITS), low & _PART_MASK
    # The product is exact, so the sum is rounded once however it is compiled.
    mass: jax.Array = high.astype(jnp.float32) * (1 << _PART_BITS) + low.astype(jnp.float32)
    return mass


def _highest_bound(enough: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """The highest float32 bound per row for which `enough` holds, which must fall monotonically.

    Minus infinity where it holds nowhere.
    """
    lowest = to_rank(jnp.full(shape, -jnp.inf, jnp.float32))
    highest = to_rank(jnp.full(shape, jnp.inf, jnp.float32))

    def unfinished(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        low, high = state
        return jnp.any(high - low > 1)

    def halve(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = state
        middle = low + (high - low) // 2
        holds = enough(from_rank(middle))
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    low, _ = lax.while_loop(unfinished, halve, (lowest, highest))
    return from_rank(low)
