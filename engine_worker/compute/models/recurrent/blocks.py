"""Which module computes which recurrent mixer."""

from jax.typing import DTypeLike

from engine_worker.compute.models.recurrent.short_conv import ShortConvBlock
from engine_worker.compute.models.recurrent.specs import RecurrentSpec
from engine_worker.compute.models.spec import DecoderSpec

RecurrentBlock = ShortConvBlock
"""`block(layer, x [T, hidden], recur) -> [T, hidden]`: what a mixer adds to the residual."""


def recurrent_block(spec: DecoderSpec, mixer: RecurrentSpec, dtype: DTypeLike) -> RecurrentBlock:
    """Declares the block of a layer."""
    return ShortConvBlock(spec, mixer, dtype)
