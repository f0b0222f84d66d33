"""Recurrent layers: what goes from token to token is one call of the library.

Everything else of these layers is their modules'.
"""

import jax
import jax.numpy as jnp

from engine_worker.compute.backends.base import StepTokens
from engine_worker.compute.backends.cpu_native import calls
from engine_worker.compute.backends.cpu_native.coverage import are_recurrent_layers_covered
from engine_worker.compute.backends.kv_layout import LayerStates
from engine_worker.compute.backends.xla.backend import RecurKernel
from engine_worker.compute.backends.xla.states import state_addresses
from engine_worker.compute.models.recurrent.blocks import RecurrentBlock
from engine_worker.compute.models.recurrent.delta_net import NORM_EPS, DeltaNetBlock
from engine_worker.compute.models.recurrent.mamba import MambaBlock
from engine_worker.compute.models.recurrent.short_conv import CausalConv
from engine_worker.compute.models.recurrent.state import Inputs
from engine_worker.compute.models.spec import DecoderSpec


def recurrent_kernel(spec: DecoderSpec) -> RecurKernel | None:
    """Computes the recurrent layers of a decoder; None where the library doesn't cover them all."""
    return recur if are_recurrent_layers_covered(spec) else None


def recur(
    block: RecurrentBlock, layer: LayerStates, step: StepTokens, inputs: Inputs
) -> tuple[jax.Array, LayerStates]:
    """As `recur_in_step`; what padding gets is zeros.

    A token's result and state have the same bits in any chunk and whatever the other rows are.
    """
    before, after = _addresses(step)
    y, states = calls.recurrent(
        inputs[0], before, after, _convolution(block.conv), layer.arrays, _heads(block, inputs)
    )
    return y, LayerStates(states)


def _addresses(step: StepTokens) -> tuple[jax.Array, jax.Array]:
    """For each token [T * Q] int32 the states before and after it, as `calls.recurrent` takes them.

    Kept are those at borders between blocks, and behind a row's last token.
    """
    positions, tables, layout = step.positions, step.block_tables[0], step.layout
    starts = positions[:, :1]
    first = state_addresses(layout, jnp.maximum(starts, 1), tables, step.slots)
    goes_on = jnp.full((positions.shape[0], positions.shape[1] - 1), calls.GOES_ON, jnp.int32)
    before = jnp.concatenate([jnp.where(starts == 0, -1, first), goes_on], axis=1)
    is_last = ~jnp.pad(step.is_token[:, 1:], ((0, 0), (0, 1)))
    is_kept = is_last | ((positions + 1) % layout.block_size == 0)
    after = state_addresses(layout, positions + 1, tables, step.new_slots)
    after = jnp.where(is_kept, after, calls.GOES_ON)
    return before.reshape(-1), jnp.where(step.is_token, after, -1).reshape(-1)


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
