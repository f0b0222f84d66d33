"""One decoder layer, whatever its blocks are.

Callers that compute attention or MLP elsewhere go through a layer by its parts, in this order:
`begin`, the mixer on `mixer_input`, `between`, the MLP on `mlp_input`, `end`.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from engine_worker.compute.models.alt_up import AltUp
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
from engine_worker.compute.models.token_inputs import TokenInputBlock


class Begun(NamedTuple):
    """A layer on its way.

    Attributes:
        x: [T, hidden] float32, the residual that its blocks compute.
        streams: [T, streams, hidden] float32, what it predicts of all residuals; None where there
            is one.
    """

    x: jax.Array
    streams: jax.Array | None = None


class DecoderLayer(Block):
    """The block of the mixer and that of the MLP or experts, each round the residual.

    Attributes:
        attention: None in a recurrent layer.
        recurrent: None in a layer that attends.
        has_parts_between: `begin`, `between` or `end` do something.
    """

    def __init__(self, spec: DecoderSpec, layer: LayerSpec, dtype: DTypeLike) -> None:
        placement = spec.placement_in(layer)
        self.is_parallel = placement is NormPlacement.PARALLEL
        self.is_beside = layer.is_beside
        mixer = layer.mixer
        # Blocks know the decoder's placement and multiplier; these are this layer's.
        own = replace(
            spec,
            norm_placement=placement,
            residual_multiplier=spec.residual_multiplier * layer.mixer_multiplier,
        )
        self.attention = (
            _attention_block(own, mixer, dtype) if isinstance(mixer, AttentionSpec) else None
        )
        self.recurrent = (
            None if isinstance(mixer, AttentionSpec) else recurrent_block(own, mixer, dtype)
        )
        own = replace(own, residual_multiplier=spec.residual_multiplier * layer.mlp_multiplier)
        self.mlp = _mlp_block(own, layer, dtype)
        self.alt_up = None if spec.alt_up is None else AltUp(spec, spec.alt_up, dtype)
        self.token_input = (
            None if spec.token_inputs is None else TokenInputBlock(spec, spec.token_inputs, dtype)
        )
        self.scale = nnx.Param(jnp.ones((1,), dtype)) if spec.layer_scales else None
        self.has_parts_between = not (
            self.alt_up is None and self.token_input is None and self.scale is None
        )

    def __call__(
        self,
        layer: int,
        x: jax.Array,
        ropes: RopeTables,
        attend: Attend,
        recur: Recur,
        token_inputs: jax.Array | None = None,
        beside: jax.Array | None = None,
    ) -> jax.Array:
        """The residual [T, hidden] float32 after this layer, or all residuals.

        Args:
            layer: Its index, handed to `attend` or `recur`.
            x: [T, hidden] float32 residual, or [T, streams, hidden].
            ropes: Cosine and sine for every distinct rope of the decoder.
            attend: See `Attend`.
            recur: See `Recur`.
            token_inputs: [T, width] float32, the tokens' vectors for this layer, if it takes any.
            beside: As in `mixer_input`.
        """
        begun = self.begin(x)
        x = begun.x
        read = self.mixer_input(x, beside)
        if self.attention is not None:
            x = x + self.attention(layer, read, ropes.of(self.attention.spec), attend)
        if self.recurrent is not None:
            x = x + self.recurrent(layer, read, recur)
        x = self.between(begun.x, x)
        if self.mlp is not None:
            x = x + self.mlp(self.mlp_input(begun.x, x))
        return self.end(begun, x, token_inputs)

    def begin(self, x: jax.Array) -> Begun:
        """What the layer computes of the residuals before it."""
        if self.alt_up is None:
            return Begun(x)
        streams = self.alt_up.predict(x)
        return Begun(streams[:, self.alt_up.spec.active], streams)

    def mixer_input(self, x: jax.Array, beside: jax.Array | None) -> jax.Array:
        """What the mixer reads.

        Args:
            x: [T, hidden] float32 residual before this layer.
            beside: The residual before the mixer of the layer before this one.
        """
        if not self.is_beside:
            return x
        assert beside is not None, "the first layer has none before it"
        return beside

    def between(self, before: jax.Array, after: jax.Array) -> jax.Array:
        """The residual that the MLP goes round, of those before and behind the mixer's block."""
        if self.alt_up is None:
            return after
        assert self.attention is not None, "layers with several residuals attend"
        return self.alt_up.with_laurel(after, self.attention.normed(before))

    def mlp_input(self, before: jax.Array, after: jax.Array) -> jax.Array:
        """What the MLP block takes, of the residual before and after the mixer's."""
        if not self.is_parallel:
            return after
        assert self.attention is not None, "parallel layers attend"
        return self.attention.normed(before)

    def end(self, begun: Begun, x: jax.Array, token_inputs: jax.Array | None) -> jax.Array:
        """The residual behind the layer, or all residuals, of that behind the MLP's block."""
        if self.alt_up is not None:
            assert begun.streams is not None, "begun with them"
            streams = self.alt_up.correct(begun.streams, x)
            if self.token_input is not None:
                assert token_inputs is not None, "declared with them"
                added = self.token_input(self.alt_up.gating(streams), token_inputs)
                streams = streams.at[:, 1:].add(added[:, None])
            return self._scaled(streams)
        if self.token_input is not None:
            assert token_inputs is not None, "declared with them"
            x = x + self.token_input(x, token_inputs)
        return self._scaled(x)

    def _scaled(self, x: jax.Array) -> jax.Array:
        if self.scale is None:
            return x
        scale: jax.Array = self.scale[...].astype(jnp.float32)
        return x * scale


def _attention_block(
    spec: DecoderSpec, attention: AttentionSpec, dtype: DTypeLike
) -> AttentionBlock | LatentAttentionBlock:
    if attention.latent is None:
        return AttentionBlock(spec, attention, dtype)
    return LatentAttentionBlock(spec, attention, dtype)


def _mlp_block(spec: DecoderSpec, layer: LayerSpec, dtype: DTypeLike) -> MlpBlock | MoeBlock | None:
    if layer.mlp is None:
        return None
    if isinstance(layer.mlp, MlpSpec):
        return MlpBlock(spec, layer.mlp, dtype)
    return MoeBlock(spec, layer.mlp, dtype)
