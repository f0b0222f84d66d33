"""Multi-head latent attention (DeepSeek V2, arXiv 2405.04434), with its products absorbed.

A token's keys and values of all heads come from one short latent vector, and the cache holds that
vector (as values) and one rotated key that all heads share (as keys). Queries are brought to the
latent's space instead of keys to the heads', so a context costs as much as one key head does, and
prefill and decode compute alike. The two small products per head are in float32, unless a backend
has packed their matrices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.models.layers import Attend, Linear, ResidualBlock, RmsNorm
from engine_worker.compute.models.rope import Rotation
from engine_worker.compute.models.spec import AttentionSpec, DecoderSpec

_LATENT_NORM_EPS = 1e-6
"""Of every checkpoint's latent norms, whatever the decoder's own is."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedHeads:
    """The matrices of all heads, as only their backend can read them.

    Attributes:
        to_latents: Queries [T, H, plain] float32 brought to the latents: [T, H, kv_rank] float32.
        to_values: Values [T, H, value_dim] float32 of what is attended to, [T, H, kv_rank] float32.
    """

    to_latents: Callable[[jax.Array], jax.Array]
    to_values: Callable[[jax.Array], jax.Array]


class LatentAttentionBlock(ResidualBlock):
    """Norm, query and latent projections, rotation, attention, output projection."""

    def __init__(self, spec: DecoderSpec, attention: AttentionSpec, dtype: DTypeLike) -> None:
        super().__init__(spec, dtype, is_first=True)
        latent, hidden, heads = attention.latent, spec.hidden_size, attention.num_heads
        assert latent is not None, "an attention without a latent is another block"
        assert attention.rope is not None, "its keys are nothing without positions"
        bias, q_width = attention.qkv_bias, heads * (latent.plain_dim + attention.head_dim)
        self.spec = attention
        self.latent = latent
        if latent.q_rank is None:
            self.q_a, self.q_a_norm = None, None
        else:
            self.q_a = Linear(latent.q_rank, hidden, dtype, bias=bias)
            self.q_a_norm = RmsNorm(latent.q_rank, _LATENT_NORM_EPS, dtype)
        self.q = Linear(q_width, latent.q_rank or hidden, dtype, bias=False)
        self.kv_a = Linear(latent.kv_rank + attention.head_dim, hidden, dtype, bias=bias)
        self.kv_a_norm = RmsNorm(latent.kv_rank, _LATENT_NORM_EPS, dtype)
        self.kv_b = nnx.Param(
            jnp.zeros((heads, latent.plain_dim + latent.value_dim, latent.kv_rank), dtype)
        )
        self.o = Linear(hidden, heads * latent.value_dim, dtype, bias=attention.o_bias)

    def __call__(
        self, layer: int, x: jax.Array, rotation: Rotation | None, attend: Attend
    ) -> jax.Array:
        """What attention adds to the residual; arguments as of `layers.AttentionBlock`.

        `attend` gets queries [T, H, kv_rank + rotated], keys [T, 1, rotated] and values
        [T, 1, kv_rank], and returns [T, H, kv_rank].
        """
        assert rotation is not None, "declared with a rope"
        spec, latent, num_tokens = self.spec, self.latent, x.shape[0]
        normed = self.normed(x)
        q = normed
        if self.q_a is not None and self.q_a_norm is not None:
            q = self.q_a_norm(self.q_a(normed))
        q = self.q(q).reshape(num_tokens, spec.num_heads, -1)
        plain, turning = q[..., : latent.plain_dim], q[..., latent.plain_dim :]
        if rotation.query_scale is not None:
            plain = plain * rotation.query_scale
        compressed = self.kv_a(normed)
        values = self.kv_a_norm(compressed[:, : latent.kv_rank])[:, None, :]
        keys = rotation.keys(compressed[:, None, latent.kv_rank :])
        heads = self._heads()
        absorbed = heads.to_latents(plain)
        q = jnp.concatenate([absorbed, rotation.queries(turning)], axis=-1)
        attended = heads.to_values(attend(layer, q, keys, values, None))
        return self.added(self.o(attended.reshape(num_tokens, -1)))

    def _heads(self) -> PackedHeads:
        up: jax.Array | PackedHeads = self.kv_b.get_value()
        if isinstance(up, PackedHeads):
            return up
        up, plain = up.astype(jnp.float32), self.latent.plain_dim
        return PackedHeads(
            partial(_by_head, "thn,hnr->thr", matrices=up[:, :plain]),
            partial(_by_head, "thr,hvr->thv", matrices=up[:, plain:]),
        )


def _by_head(equation: str, x: jax.Array, matrices: jax.Array) -> jax.Array:
    product: jax.Array = jnp.einsum(equation, x, matrices, precision=lax.Precision.HIGHEST)
    return product
