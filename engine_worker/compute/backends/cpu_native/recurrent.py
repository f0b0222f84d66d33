"""Recurrent layers of rows of one token: what goes from token to token is one call of the library.

Everything else of these layers is their modules', and so are chunks of prompts.
"""

from typing import Final

import jax
import jax.numpy as jnp

from engine_worker.compute.backends.base import StepTokens
from engine_worker.compute.backends.cpu_native import calls
from engine_worker.compute.backends.kv_layout import LayerStates
from engine_worker.compute.backends.xla.backend import RecurRows
from engine_worker.compute.backends.xla.states import addresses_of_rows
from engine_worker.compute.models.recurrent.blocks import RecurrentBlock
from engine_worker.compute.models.recurrent.delta_net import NORM_EPS, DeltaNetBlock
from engine_worker.compute.models.recurrent.mamba import MambaBlock
from engine_worker.compute.models.recurrent.short_conv import CausalConv
from engine_worker.compute.models.recurrent.state import Inputs
from engine_worker.compute.models.spec import AttentionSpec, DecoderSpec

MAX_KERNEL_SIZE: Final = 16
"""`kMaxTaps` of `calls.h`."""


def rows_kernel(spec: DecoderSpec) -> RecurRows | None:
    """Computes the recurrent layers of a decoder; None where the library doesn't cover them all."""
    mixers = [layer.mixer for layer in spec.layers if not isinstance(layer.mixer, AttentionSpec)]
    return recur_rows if all(each.kernel_size <= MAX_KERNEL_SIZE for each in mixers) else None


def recur_rows(
    block: RecurrentBlock, layer: LayerStates, step: StepTokens, inputs: Inputs
) -> tuple[jax.Array, LayerStates]:
    """As `recur_in_step`, for rows of one token; what padding gets is zeros.

    A token's result and state have the same bits whatever the other rows are.
    """
    before, after = addresses_of_rows(step)
    before = jnp.where(step.positions[:, 0] == 0, -1, before)
    after = jnp.where(step.is_token[:, 0], after, -1)
    y, states = calls.recurrent(
        inputs[0], before, after, _convolution(block.conv), layer.arrays, _heads(block, inputs)
    )
    return y, LayerStates(states)


def _convolution(conv: CausalConv) -> tuple[jax.Array, jax.Array | None]:
    taps = conv.weight[...].astype(jnp.float32)[:, 0]
    return taps, None if conv.bias is None else conv.bias[...].astype(jnp.float32)


def _heads(block: RecurrentBlock, inputs: Inputs) -> calls.RecurrentHeads | None:
    if isinstance(block, DeltaNetBlock):
        strength, forgets = inputs[1:]
        return calls.RecurrentHeads(block.spec.num_key_heads, strength, forgets, eps=NORM_EPS)
    if isinstance(block, MambaBlock):
        (time,) = inputs[1:]
        passed = block.passed[...].astype(jnp.float32)
        return calls.RecurrentHeads(block.spec.num_groups, time, block.forgets(time), passed)
    return None
