"""Matrices of blocks that XLA computes: the kernels multiply by them.

Norms, convolutions, the scan of a recurrent layer, attention over latents and the like stay with
the modules; a `Linear` in such a block asks its matrix for the product.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from engine_worker.compute.backends.base import BlockKind
from engine_worker.compute.backends.cpu_native import calls, packing
from engine_worker.compute.backends.cpu_native.coverage import MAX_INT8_INPUTS
from engine_worker.compute.backends.cpu_native.experts import full_width
from engine_worker.compute.models.decoder import DecoderGraph, Parameter
from engine_worker.compute.models.integer_blocks import BlockFormat
from engine_worker.compute.models.latent_attention import PackedHeads
from engine_worker.compute.models.layers import PackedMatrix
from engine_worker.compute.models.spec import AttentionSpec, LatentSpec, MlpSpec

_MATRIX = re.compile(r"layers\.(\d+)\.(attention|recurrent|mlp)\.\w+\.weight")


def product_paths(
    graph: DecoderGraph, weight_type: str, is_native: Callable[[BlockKind, int], bool]
) -> frozenset[str]:
    """The matrices that are packed for products alone.

    Args:
        graph: The declared decoder.
        weight_type: Of its matrices.
        is_native: Whether a kernel computes a block, by its kind and layer.
    """
    return frozenset(
        parameter.path
        for parameter in graph.parameters
        if parameter.path in graph.linear_paths
        and (found := _MATRIX.fullmatch(parameter.path))
        and _is_multiplied(graph, int(found[1]), BlockKind(found[2]), is_native)
        and not (weight_type == "int8" and parameter.shape[1] > MAX_INT8_INPUTS)
    )


def _is_multiplied(
    graph: DecoderGraph,
    layer: int,
    kind: BlockKind,
    is_native: Callable[[BlockKind, int], bool],
) -> bool:
    # Linears of a block of experts are multiplied with these, or with XLA as they are. Modules of
    # recurrent layers and of latent attention call the kernels for what they cover.
    is_of_experts = kind is BlockKind.MLP and not isinstance(graph.spec.layers[layer].mlp, MlpSpec)
    mixer = graph.spec.layers[layer].mixer
    is_latent = isinstance(mixer, AttentionSpec) and mixer.latent is not None
    is_of_modules = (
        kind is BlockKind.RECURRENT
        or (kind is BlockKind.ATTENTION and is_latent)
        or not is_native(kind, layer)
    )
    return is_of_modules and not is_of_experts


class NativeProducts:
    """Gives the modules of a step matrices that the kernels multiply.

    Args:
        weights: Packed ones of the decoder, by path.
        weight_type: Of its matrices.
        group_size: Of int4.
        stored: Matrices that stay as the checkpoint has them, by path.

    Attributes:
        is_token: [T] bool, the rows of the step that is traced now; others are not multiplied
            behind the last of them.
    """

    def __init__(
        self,
        weights: Mapping[str, Any],
        *,
        weight_type: str,
        group_size: int,
        stored: Mapping[str, BlockFormat],
    ) -> None:
        self.is_token: jax.Array | None = None
        self._weights = weights
        self._weight_type = weight_type
        self._group_size = group_size
        self._stored = stored

    def matrix(self, parameter: Parameter) -> PackedMatrix:
        """The matrix of a `Linear`, one of `product_paths`."""

        def product(x: jax.Array) -> jax.Array:
            return calls.head(
                x,
                self._weights[parameter.path],
                parameter.shape[0],
                self._weight_type,
                self.is_token,
                group_size=self._group_size,
                blocks=self._stored.get(parameter.path),
            )

        return PackedMatrix(product)

    def heads(self, path: str, latent: LatentSpec) -> PackedHeads:
        """The matrices of the heads of latent attention, from `packing.pack_heads`."""
        own_type = full_width(self._weight_type)
        offset = packing.head_offset(latent.kv_rank, latent.plain_dim, own_type)

        def product(x: jax.Array, outputs: int, offset: int) -> jax.Array:
            weights = self._weights[path]
            return calls.multiply_by_head(x, weights, outputs, offset, own_type, self.is_token)

        return PackedHeads(
            partial(product, outputs=latent.kv_rank, offset=0),
            partial(product, outputs=latent.value_dim, offset=offset),
        )
