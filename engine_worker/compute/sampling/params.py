"""How the rows of a program are sampled, as device arrays."""

from typing import NamedTuple

import jax


class SamplingRows(NamedTuple):
    """One entry per row of a program; padding rows are greedy and not sampled.

    Attributes:
        slots: [R] int32, the row of the token counts; num_slots for padding.
        sampled: [R] bool, whether this row's token is wanted.
        positions: [R] uint32, of the token to be drawn.
        choices: [R] uint32.
        seeds_low, seeds_high: [R] uint32 halves of the 64-bit seed.
        temperatures: [R] float32; below `GREEDY_TEMPERATURE` the row is greedy.
        top_ks: [R] int32; 0 is off.
        top_ps: [R] float32; 1 and above is off.
        log_min_ps: [R] float32 natural logarithm; minus infinity is off.
        presence_penalties, frequency_penalties: [R] float32; 0 is off.
        repetition_penalties: [R] float32; 1 is off.
    """

    slots: jax.Array
    sampled: jax.Array
    positions: jax.Array
    choices: jax.Array
    seeds_low: jax.Array
    seeds_high: jax.Array
    temperatures: jax.Array
    top_ks: jax.Array
    top_ps: jax.Array
    log_min_ps: jax.Array
    presence_penalties: jax.Array
    frequency_penalties: jax.Array
    repetition_penalties: jax.Array


GREEDY_TEMPERATURE = 1e-5
"""A temperature below this is greedy: dividing by it would leave one token anyway."""
