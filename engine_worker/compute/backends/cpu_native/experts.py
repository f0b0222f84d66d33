"""Experts on the native kernels: their weights, and the products of a block with them.

Norms, the choice of experts and what is added to the residual stay in `models.moe`, for every
family in one way; the matrices are multiplied here.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import jax
import jax.numpy as jnp

from engine_worker.compute.backends.cpu_native import calls
from engine_worker.compute.models.integer_blocks import BlockFormat
from engine_worker.compute.models.moe import ExpertChoice
from engine_worker.compute.models.spec import DecoderSpec, MlpSpec, MoeSpec

FULL_WIDTH: Final = ("router", "shared_gate")
"""Small matrices on which much depends: they are not quantised."""
LINEAR: Final = (*FULL_WIDTH, "to_latent", "from_latent")


def full_width(weight_type: str) -> str:
    """The type of `FULL_WIDTH` matrices beside weights of a type."""
    return "bfloat16" if weight_type == "bfloat16" else "float32"


class NativeMoeProducts:
    """Implements `MoeProducts`.

    Args:
        spec: Of the decoder.
        moe: Of the block.
        is_token: [T] bool, rows whose experts are computed.
        weights: Packed ones of the decoder, by name.
        prefix: Of the block's.
        weight_type: Of its matrices.
        group_size: Of int4.
        stored: Matrices that stay as the checkpoint has them, by path.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        moe: MoeSpec,
        is_token: jax.Array,
        weights: Mapping[str, Any],
        prefix: str,
        *,
        weight_type: str,
        group_size: int,
        stored: Mapping[str, BlockFormat],
    ) -> None:
        self._moe = moe
        self._is_token = is_token
        self._outputs = {
            "router": moe.num_experts,
            "shared_gate": 1,
            "to_latent": moe.latent_size or 0,
            "from_latent": spec.hidden_size,
        }
        self._weights = weights
        self._prefix = prefix
        self._weight_type = weight_type
        self._group_size = group_size
        self._stored = stored

    def multiply(self, name: str, x: jax.Array) -> jax.Array:
        path = f"{self._prefix}{name}.weight"
        weight_type = self._weight_type
        if name in FULL_WIDTH:
            weight_type = full_width(weight_type)
        return calls.head(
            x,
            self._weights[path],
            self._outputs[name],
            weight_type,
            self._is_token,
            group_size=self._group_size,
            blocks=self._stored.get(path),
        )

    def experts(self, x: jax.Array, choice: ExpertChoice) -> jax.Array:
        mlp = self._mlp("", self._moe.expert)
        if not self._moe.weighs_input:
            return calls.experts(x, choice.experts, choice.weights, mlp)
        # Each choice of a token is a row of its own.
        rows = x[:, None] * choice.weights[..., None]
        chosen = choice.experts.reshape(-1, 1)
        y = calls.experts(
            rows.reshape(-1, x.shape[1]), chosen, jnp.ones(chosen.shape, jnp.float32), mlp
        )
        return jnp.sum(y.reshape(rows.shape), axis=1)

    def shared(self, x: jax.Array) -> jax.Array:
        assert self._moe.shared is not None, "declared with it"
        chosen = jnp.where(self._is_token, 0, 1)[:, None]
        weights = jnp.ones(chosen.shape, jnp.float32)
        return calls.experts(x, chosen, weights, self._mlp("shared.", self._moe.shared))

    def _mlp(self, part: str, expert: MlpSpec) -> calls.Mlp:
        prefix = f"{self._prefix}{part}"
        gate_up, down = f"{prefix}gate_up.weight", f"{prefix}down.weight"
        config = calls.MlpConfig.of_experts(
            expert, weight_type=self._weight_type, group_size=self._group_size
        )
        config = replace(
            config, gate_up_blocks=self._stored.get(gate_up), down_blocks=self._stored.get(down)
        )
        biases = self._weights[f"{prefix}vectors"] if expert.bias else jnp.zeros(0)
        return calls.Mlp(config, biases, self._weights[gate_up], self._weights[down])
