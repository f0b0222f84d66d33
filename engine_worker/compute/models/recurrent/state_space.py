"""The state space of Mamba-2 (arXiv 2405.21060), token by token and in chunks."""

import jax
import jax.numpy as jnp

from engine_worker.compute.models.recurrent.scan import Recurrence, kept_since, product
from engine_worker.compute.models.recurrent.state import Inputs


def one_token(memory: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """One token of each row.

    Args:
        memory: [B, H, P, N] float32.
        inputs: Values [B, H, P]; what writes and what reads [B, G, N], of which H / G neighbouring
            heads share one; logarithm of what is kept [B, H].

    Returns:
        [B, H, P] float32, and the new memory.
    """
    values, writes, reads, forgets = inputs
    writes, reads = (jnp.repeat(x, memory.shape[1] // x.shape[1], axis=1) for x in (writes, reads))
    memory = memory * jnp.exp(forgets)[..., None, None]
    memory = memory + values[..., None] * writes[..., None, :]
    return jnp.sum(memory * reads[..., None, :], axis=-1), memory


def one_chunk(memory: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """C tokens of each row at once.

    Args:
        memory: [B, H, P, N] float32.
        inputs: As `one_token` takes them, with an axis [C] behind that of rows.

    Returns:
        [B, C, H, P] float32, and the new memory.
    """
    values, writes, reads, forgets = inputs
    num_rows, num_heads, _, state_size = memory.shape
    size, num_groups = writes.shape[1:3]
    # All values of a group's heads meet the same writes and reads.
    by_group = (num_rows, size, num_groups, -1)
    grouped = memory.reshape(num_rows, num_groups, -1, state_size)
    kept, kept_between = kept_since(forgets)
    seen = product("bign,bjgn->bgij", reads, writes)
    seen = jnp.repeat(seen, num_heads // num_groups, axis=1) * kept_between
    outputs = product("bign,bgxn->bigx", reads, grouped).reshape(values.shape)
    outputs *= jnp.moveaxis(kept, 1, 2)[..., None]
    outputs += product("bhij,bjhp->bihp", seen, values)
    left = values * jnp.moveaxis(kept_between[:, :, -1], 1, 2)[..., None]
    written = product("bjgx,bjgn->bgxn", left.reshape(by_group), writes).reshape(memory.shape)
    return outputs, memory * kept[:, :, -1, None, None] + written


state_space = Recurrence(one_token, one_chunk)
