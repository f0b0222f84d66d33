"""Which module computes which recurrent mixer."""

from jax.typing import DTypeLike

from engine_worker.compute.models.recurrent.delta_net import DeltaNetBlock
from engine_worker.compute.models.recurrent.mamba import MambaBlock
from engine_worker.compute.models.recurrent.short_conv import ShortConvBlock
from engine_worker.compute.models.recurrent.specs import (
    DeltaNetSpec,
    RecurrentSpec,
    ShortConvSpec,
)
from engine_worker.compute.models.spec import DecoderSpec

RecurrentBlock = ShortConvBlock | DeltaNetBlock | MambaBlock
"""`block(layer, x [T, hidden], recur) -> [T, hidden]`: what a mixer adds to the residual."""


def recurrent_block(spec: DecoderSpec, mixer: RecurrentSpec, dtype: DTypeLike) -> RecurrentBlock:
    """Declares the block of a layer."""
    if isinstance(mixer, ShortConvSpec):
        return ShortConvBlock(spec, mixer, dtype)
    if isinstance(mixer, DeltaNetSpec):
        return DeltaNetBlock(spec, mixer, dtype)
    return MambaBlock(spec, mixer, dtype)
