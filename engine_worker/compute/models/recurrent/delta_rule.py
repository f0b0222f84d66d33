"""The gated delta rule (arXiv 2412.06464), token by token and in chunks.

Each head remembers a matrix. A token forgets some of it, recalls what is there for its key, and
corrects that towards its value.
"""

import jax
import jax.numpy as jnp
import numpy as np

from engine_worker.compute.models.recurrent.scan import Recurrence, kept_since, product
from engine_worker.compute.models.recurrent.state import Inputs


def one_token(memory: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """The rule for one token of each row.

    Args:
        memory: [B, H, K, V] float32.
        inputs: Query and key [B, G, K], of which H / G neighbouring heads share one; value
            [B, H, V], strength of the correction and logarithm of what is kept [B, H].

    Returns:
        [B, H, V] float32, and the new memory.
    """
    q, k, v, strength, forgets = inputs
    kept = jnp.exp(forgets)[..., None]
    # One product reads the old memory for both: what the new one has for the query beside that is
    # the correction, as far as the query is the key. A sum over a new memory takes longer on a CPU.
    asked = _of_each_head(jnp.stack([k, q], axis=2), memory)
    recalled = product("bhik,bhkv->bhiv", asked, memory) * kept[..., None]
    k, q = asked[:, :, 0], asked[:, :, 1]
    correction = (v - recalled[:, :, 0]) * strength[..., None]
    output = recalled[:, :, 1] + jnp.sum(q * k, axis=-1, keepdims=True) * correction
    return output, memory * kept[..., None] + k[..., None] * correction[..., None, :]


def one_chunk(memory: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """The rule for C tokens of each row at once.

    A correction depends on those before it only through the products of their keys, so all of them
    solve one triangular system; what is recalled and the new memory are products with them.

    Args:
        memory: [B, H, K, V] float32.
        inputs: As `one_token` takes them, with an axis [C] behind that of rows.

    Returns:
        [B, C, H, V] float32, and the new memory.
    """
    q, k, v, strength, forgets = inputs
    size = k.shape[1]
    kept, kept_between = kept_since(forgets)
    q, k, v, strength = (jnp.moveaxis(x, 1, 2) for x in (q, k, v, strength))
    asked = jnp.concatenate([k, q], axis=2)
    written = _of_each_head(product("bgik,bgjk->bgij", asked, k), memory)
    written *= jnp.concatenate([kept_between, kept_between], axis=2)
    recalled = product("bhik,bhkv->bhiv", _of_each_head(asked, memory), memory)
    recalled *= jnp.concatenate([kept, kept], axis=2)[..., None]
    strength = strength[..., None]
    of_earlier = jnp.where(np.tri(size, k=-1, dtype=bool), written[:, :, :size], 0.0) * strength
    wrong = (v - recalled[:, :, :size]) * strength
    corrections = product("bhij,bhjv->bhiv", _inverse_beside_unit(of_earlier), wrong)
    outputs = recalled[:, :, size:]
    outputs += product("bhij,bhjv->bhiv", written[:, :, size:], corrections)
    k = _of_each_head(k, memory) * kept_between[:, :, -1, :, None]
    memory = memory * kept[:, :, -1, None, None] + product("bhjk,bhjv->bhkv", k, corrections)
    return jnp.moveaxis(outputs, 2, 1), memory


delta_rule = Recurrence(one_token, one_chunk)


def _of_each_head(x: jax.Array, memory: jax.Array) -> jax.Array:
    """[B, H, ...] of [B, G, ...]."""
    return jnp.repeat(x, memory.shape[1] // x.shape[1], axis=1)


def _inverse_beside_unit(lower: jax.Array) -> jax.Array:
    """(1 + L)^-1 of strictly lower triangular matrices L [..., C, C].

    From the inverses of blocks on the diagonal to those of blocks twice as large. A power series
    would take as few products, but its terms grow beyond all bounds where keys are alike, while
    blocks of the inverse never do.
    """
    size = lower.shape[-1]
    rows = np.arange(size)[:, None]
    inverse = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), lower.shape)
    block = 1
    while block < size:
        is_beside = (rows // block % 2 == 1) & (rows.T // block == rows // block - 1)
        beside = jnp.where(is_beside, lower, 0.0)
        if block > 1:
            beside = product("...ij,...jk->...ik", inverse, beside)
            beside = product("...ij,...jk->...ik", beside, inverse)
        inverse -= beside
        block *= 2
    return inverse
