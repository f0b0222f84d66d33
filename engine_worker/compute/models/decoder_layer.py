"""One decoder layer, whatever its blocks are."""

import jax
from jax.typing import DTypeLike

from engine_worker.compute.models.latent_attention import LatentAttentionBlock
from engine_worker.compute.models.layers import Attend, AttentionBlock, Block, MlpBlock
from engine_worker.compute.models.moe import MoeBlock
from engine_worker.compute.models.recurrent.blocks import recurrent_block
from engine_worker.compute.models.recurrent.state import Recur
from engine_worker.compute.models.rope import RopeTables
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    NormPlacement,
)


class DecoderLayer(Block):
    """The block of the mixer and that of the MLP or experts, each round the residual.

    Attributes:
        attention: None in a recurrent layer.
        recurrent: None in a layer that attends.
    """

    def __init__(self, spec: DecoderSpec, layer: LayerSpec, dtype: DTypeLike) -> None:
        self.is_parallel = spec.norm_placement is NormPlacement.PARALLEL
        mixer = layer.mixer
        self.attention = (
            _attention_block(spec, mixer, dtype) if isinstance(mixer, AttentionSpec) else None
        )
        self.recurrent = (
            None if isinstance(mixer, AttentionSpec) else recurrent_block(spec, mixer, dtype)
        )
        self.mlp = _mlp_block(spec, layer, dtype)

    def __call__(
        self, layer: int, x: jax.Array, ropes: RopeTables, attend: Attend, recur: Recur
    ) -> jax.Array:
        """The residual [T, hidden] float32 after this layer.

        Args:
            layer: Its index, handed to `attend` or `recur`.
            x: [T, hidden] float32 residual.
            ropes: Cosine and sine for every distinct rope of the decoder.
            attend: See `Attend`.
            recur: See `Recur`.
        """
        before = x
        if self.attention is not None:
            x = x + self.attention(layer, x, ropes.of(self.attention.spec), attend)
        if self.recurrent is not None:
            x = x + self.recurrent(layer, x, recur)
        return x + self.mlp(self.mlp_input(before, x))

    def mlp_input(self, before: jax.Array, after: jax.Array) -> jax.Array:
        """What the MLP block takes, of the residual before and after the mixer's."""
        if not self.is_parallel:
            return after
        assert self.attention is not None, "parallel layers attend"
        return self.attention.normed(before)


def _attention_block(
    spec: DecoderSpec, attention: AttentionSpec, dtype: DTypeLike
) -> AttentionBlock | LatentAttentionBlock:
    if attention.latent is None:
        return AttentionBlock(spec, attention, dtype)
    return LatentAttentionBlock(spec, attention, dtype)


def _mlp_block(spec: DecoderSpec, layer: LayerSpec, dtype: DTypeLike) -> MlpBlock | MoeBlock:
    if isinstance(layer.mlp, MlpSpec):
        return MlpBlock(spec, layer.mlp, dtype)
    return MoeBlock(spec, layer.mlp, dtype)
