"""How a recurrent block meets its state, wherever that is kept.

A block computes what each token adds by itself (projections, gates, norms) for all tokens at once,
and hands the part that goes from token to token to `Recur`, as a function over a few tokens of
each row.
"""

from collections.abc import Callable

import jax

State = tuple[jax.Array, ...]
"""One array for each of the spec's `state_shapes`, [B, *shape] float32, a row for each sequence."""

Inputs = tuple[jax.Array, ...]
"""What a mixer takes of each token: [B, S, ...] float32, S tokens of each row."""

Advance = Callable[[State, Inputs, jax.Array], tuple[jax.Array, State]]
"""`advance(state, inputs, is_token [B, S]) -> (outputs [B, S, ...], state)`.

The tokens of a row come first, padding follows. The new state is that after the row's last token;
a row without tokens keeps its own, bit by bit. What padding gets as an output is not said.
"""

Recur = Callable[[int, Inputs, Advance], jax.Array]
"""`recur(layer, inputs [T, ...], advance) -> outputs [T, ...]`, all float32, for the tokens of a
step: finds the state before each row's tokens, and keeps what may be needed after them."""
