"""The backend of native CPU kernels: packs weights for them, and computes with XLA what they don't.

A decoder's blocks run where they are covered, each kind and layer by itself; neighbouring native
blocks are one call of the library, so a covered decoder is one call a step.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.backends.base import (
    BlockKind,
    Likeliest,
    Placement,
    StepTokens,
    kinds_of,
    live_positions,
)
from engine_worker.compute.backends.cache_type import AUTO, cache_dtype_of
from engine_worker.compute.backends.cpu_native import calls, coverage, library, packing
from engine_worker.compute.backends.cpu_native.experts import (
    FULL_WIDTH,
    LINEAR,
    NativeMoeProducts,
    full_width,
)
from engine_worker.compute.backends.cpu_native.products import NativeProducts, product_paths
from engine_worker.compute.backends.cpu_native.recurrent import recurrent_kernel
from engine_worker.compute.backends.kv_layout import (
    NO_RINGS,
    BlockShapes,
    KvCache,
    KvLayout,
    LayerCache,
    LayerPages,
    LayerStateShapes,
    StateRings,
)
from engine_worker.compute.backends.layer_groups import LayerGroups, layer_groups
from engine_worker.compute.backends.packing_plan import (
    PackedWeight,
    PackingPlan,
    PartSpec,
)
from engine_worker.compute.backends.xla.backend import (
    XLA,
    XlaBlocks,
    is_multiplied,
    packed_for_xla,
    places_by_group,
    weight_of,
)
from engine_worker.compute.backends.xla.backend import blocks_per_turn as xla_blocks_per_turn
from engine_worker.compute.backends.xla.pages import layer_shapes as xla_layer_shapes
from engine_worker.compute.models.decoder import DecoderGraph, Leaves, Parameter
from engine_worker.compute.models.decoder_layer import Begun
from engine_worker.compute.models.integer_blocks import BlockFormat
from engine_worker.compute.models.moe import MoeProducts
from engine_worker.compute.models.rope import RopeTables
from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    LatentSpec,
    MlpSpec,
    MoeSpec,
    NormKind,
)

CPU_NATIVE: Final = "cpu_native"
GROUP_SIZE: Final = 64
"""Inputs that share a scale in int4."""
QUANTIZED_TYPES: Final = ("int8", "int4")

_NORM: Final = "norm.weight"
_EMBEDDING: Final = "embedding.weight"
_HEAD: Final = "head.weight"
_HEADS: Final = "layers.{}.attention.kv_b"
"""Of latent attention."""
_ATTENTION_VECTORS: Final = {
    "norm": "norm.weight",
    "norm_bias": "norm.bias",
    "qkv_bias": "qkv.bias",
    "q_norm": "q_norm.weight",
    "k_norm": "k_norm.weight",
    "o_bias": "o.bias",
    "post_norm": "post_norm.weight",
    "sinks": "sinks",
}
_MLP_VECTORS: Final = {
    "norm": "norm.weight",
    "norm_bias": "norm.bias",
    "gate_up_bias": "gate_up.bias",
    "down_bias": "down.bias",
    "post_norm": "post_norm.weight",
}
_EXPERT_VECTORS: Final = {"gate_up_bias": "gate_up.bias", "down_bias": "down.bias"}


class CpuNativeBackend:
    """Implements `Backend` with the library's kernels; the library has to be loaded.

    Args:
        graph: The declared decoder: in the type of its weights, or float32 where these are
            quantised.
        weight_type: float32, bfloat16, int8 or int4.
        block_size: Of the cache.
        stored: Matrices that the checkpoint keeps as integers in blocks, by path. Those that a
            kernel multiplies so stay as they are.
        kv_dtype: See `cache_dtype_of`.

    Attributes:
        product_paths: Matrices that kernels multiply in blocks that XLA computes.
    """

    name = CPU_NATIVE

    def __init__(
        self,
        graph: DecoderGraph,
        weight_type: str,
        block_size: int,
        stored: Mapping[str, BlockFormat] | None = None,
        kv_dtype: str = AUTO,
    ) -> None:
        self._graph = graph
        self._weight_type = weight_type
        self._cache_type = str(cache_dtype_of(weight_type, kv_dtype))
        self._reasons = _uncovered(graph.spec, weight_type, self._cache_type, block_size)
        self.product_paths = product_paths(graph, weight_type, self.is_native)
        packing_ = _Packing(graph, weight_type, self, stored or {})
        self._packing = packing_.plan()
        self._stored = packing_.kept
        self._has_xla_products = packing_.has_xla_products

    @property
    def graph(self) -> DecoderGraph:
        return self._graph

    @property
    def spec(self) -> DecoderSpec:
        return self._graph.spec

    @property
    def weight_type(self) -> str:
        return self._weight_type

    @property
    def stored_formats(self) -> Mapping[str, BlockFormat]:
        return self._stored

    @property
    def packing(self) -> PackingPlan:
        return self._packing

    @property
    def cache_dtype(self) -> np.dtype[Any]:
        return np.dtype(self._cache_type)

    @property
    def placements(self) -> Mapping[BlockKind, Placement]:
        return {kind: self._placement(kind) for kind in kinds_of(self.spec)}

    @property
    def min_rows(self) -> int:
        # One row is slow in other types only, and only where XLA multiplies by a matrix.
        return 1 if self._weight_type == "float32" or not self._has_xla_products else 2

    @property
    def skips_padding(self) -> bool:
        # The kernels compute the tokens that aren't padding; XLA computes all.
        return all(reason is None for reason in self._reasons.values())

    @property
    def is_batch_invariant(self) -> bool:
        # The kernels add in one order for any number of rows; XLA does within one program.
        is_native = self.skips_padding and not self._has_xla_products
        return is_native or self._weight_type == "float32"

    @property
    def custom_calls(self) -> Sequence[str]:
        return library.TARGETS

    def is_native(self, kind: BlockKind, layer: int = 0) -> bool:
        """Whether a kernel computes a block; not if the layer has no such block."""
        return self._reasons.get((kind, layer), "") is None

    def is_one_call(self, layer: int) -> bool:
        """Whether a layer's attention block is a part of a call, from its norm to the residual."""
        return self.is_native(BlockKind.ATTENTION, layer) and layer not in self.latents

    def table_multiple(self, block_size: int) -> int:
        attending = [i for i, layer in enumerate(self.spec.layers) if layer.is_attention]
        if all(self.is_native(BlockKind.ATTENTION, layer) for layer in attending):
            return 1
        return xla_blocks_per_turn(block_size)

    @property
    def latents(self) -> Mapping[int, LatentSpec]:
        """Of the layers whose modules call the kernels to attend to latents."""
        return {
            index: latent
            for index, layer in enumerate(self.spec.layers)
            if self.is_native(BlockKind.ATTENTION, index)
            and (latent := layer.attention.latent) is not None
        }

    @property
    def shared_norms(self) -> Mapping[str, str]:
        """Norms of attention blocks that modules read beside them: where their vectors begin so."""
        if self.spec.alt_up is None:
            return {}
        return {
            f"layers.{layer}.attention.norm.weight": f"layers.{layer}.attention.vectors"
            for layer in range(self.spec.num_layers)
            if self.is_one_call(layer)
        }

    @property
    def layer_groups(self) -> LayerGroups:
        return layer_groups(self.spec)

    def kv_layout(
        self, *, num_blocks: int | Sequence[int], block_size: int, rings: StateRings = NO_RINGS
    ) -> KvLayout:
        layers = tuple(
            self._layer_shapes(layer, block_size) for layer in range(self.spec.num_layers)
        )
        groups = self.layer_groups
        by_group = groups.blocks_by_group(num_blocks)
        return KvLayout(by_group, block_size, layers, self.cache_dtype, rings, groups)

    def unwritten(self, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
        return calls.unwritten(shape, dtype)

    def bind(self, leaves: Leaves) -> "CpuNativeBlocks":
        return CpuNativeBlocks(self, leaves)

    def _layer_shapes(self, layer: int, block_size: int) -> BlockShapes | LayerStateShapes | None:
        if not self.is_native(BlockKind.ATTENTION, layer):
            return xla_layer_shapes(self.spec.layers[layer], block_size, self.cache_dtype)
        attention, cache_type = self.spec.layers[layer].attention, self._cache_type
        if attention.shared_from is not None:
            return None
        if attention.latent is None:
            (keys, dtype), (values, _) = calls.page_shapes(
                1, attention.num_kv_heads, attention.head_dim, block_size, cache_type
            )
        else:
            (keys, dtype), (values, _) = calls.latent_page_shapes(
                1, attention.head_dim, attention.latent.kv_rank, block_size, cache_type
            )
        return BlockShapes(keys[1:], values[1:], dtype)

    def _placement(self, kind: BlockKind) -> Placement:
        reasons = [reason for (block, _), reason in self._reasons.items() if block is kind]
        missing = [reason for reason in reasons if reason is not None]
        if not missing:
            return Placement(CPU_NATIVE)
        has_products = any(f".{kind}." in path for path in self.product_paths)
        reason = missing[0] + "; the kernels multiply by its matrices" * has_products
        if len(missing) == len(reasons):
            return Placement(XLA, reason, has_native_products=has_products)
        reason = f"xla in {len(missing)} of {len(reasons)} layers: {reason}"
        return Placement(CPU_NATIVE, reason, has_native_products=has_products)


_Reasons = dict[tuple[BlockKind, int], str | None]


def _uncovered(spec: DecoderSpec, weight_type: str, cache_type: str, block_size: int) -> _Reasons:
    """Why blocks have no kernel, by kind and layer."""

    def reason(kind: BlockKind, layer: int) -> str | None:
        return coverage.uncovered(
            spec, spec.layers[layer], kind.value, weight_type, cache_type, block_size
        )

    reasons: _Reasons = {}
    for index, layer in enumerate(spec.layers):
        mixer = BlockKind.ATTENTION if layer.is_attention else BlockKind.RECURRENT
        reasons[mixer, index] = reason(mixer, index)
        if layer.mlp is not None:
            reasons[BlockKind.MLP, index] = reason(BlockKind.MLP, index)
    embedding, head = (reason(kind, 0) for kind in (BlockKind.EMBEDDING, BlockKind.HEAD))
    if spec.tied_head:
        # One matrix, packed once.
        embedding = head = embedding or head
    reasons[BlockKind.EMBEDDING, 0], reasons[BlockKind.HEAD, 0] = embedding, head
    return reasons


class _Packing:
    """Makes the plan of packed weights; their names are those of the declared ones."""

    def __init__(
        self,
        graph: DecoderGraph,
        weight_type: str,
        backend: CpuNativeBackend,
        stored: Mapping[str, BlockFormat],
    ) -> None:
        self.kept: dict[str, BlockFormat] = {}
        self.has_xla_products = False
        self._stored = stored
        self._graph = graph
        self._weight_type = weight_type
        self._backend = backend
        self._index = {parameter.path: i for i, parameter in enumerate(graph.parameters)}
        self._plan: dict[str, PackedWeight] = {}
        self._done: set[str] = set()

    def plan(self) -> PackingPlan:
        """The plan."""
        for layer, spec in enumerate(self._graph.spec.layers):
            if self._backend.is_one_call(layer):
                prefix = f"layers.{layer}.attention."
                self._vectors(prefix, _ATTENTION_VECTORS, calls.attention_vectors)
                self._matrix(f"{prefix}qkv.weight", packing.MatrixKind.LINEAR)
                self._matrix(f"{prefix}o.weight", packing.MatrixKind.LINEAR)
            if self._backend.is_native(BlockKind.MLP, layer):
                self._mlp(f"layers.{layer}.mlp.", spec.mlp)
        if self._backend.is_native(BlockKind.EMBEDDING):
            self._matrix(_EMBEDDING, packing.MatrixKind.TABLE)
        if _HEAD in self._index and self._backend.is_native(BlockKind.HEAD):
            self._matrix(_HEAD, packing.MatrixKind.TABLE)
        for path in sorted(self._backend.product_paths):
            self._matrix(path, packing.MatrixKind.LINEAR)
        for layer, latent in self._backend.latents.items():
            self._heads(_HEADS.format(layer), latent)
        is_quantized = self._weight_type in QUANTIZED_TYPES
        for index, parameter in enumerate(self._graph.parameters):
            if parameter.path not in self._done:
                self.has_xla_products |= is_multiplied(self._graph, parameter)
                self._plan[parameter.path] = packed_for_xla(
                    index, parameter, is_quantized=is_quantized
                )
        group = f" {GROUP_SIZE}" if self._weight_type == "int4" else ""
        kept = "".join(f" {path} {form.key}" for path, form in sorted(self.kept.items()))
        # Which matrices stay as they are is the checkpoint's; the name of its file stays short.
        stored = f" stored {hashlib.sha256(kept.encode()).hexdigest()[:8]}" if kept else ""
        products = " with products" if self._backend.product_paths else ""
        products += " and heads" if self._backend.latents else ""
        layout = (
            f"{CPU_NATIVE} {self._weight_type}{group} {packing.LAYOUT_VERSION}{products}{stored}"
        )
        return PackingPlan(tuple(self._plan.values()), layout)

    def _mlp(self, prefix: str, mlp: MlpSpec | MoeSpec | None) -> None:
        if isinstance(mlp, MlpSpec):
            self._vectors(prefix, _MLP_VECTORS, calls.mlp_vectors)
            self._products(prefix, mlp)
            return
        assert isinstance(mlp, MoeSpec), "a layer with an MLP"
        self._experts(prefix, mlp.expert)
        if mlp.shared is not None:
            self._experts(f"{prefix}shared.", mlp.shared)
        for name in LINEAR:
            path = f"{prefix}{name}.weight"
            if path in self._index:
                own = full_width(self._weight_type) if name in FULL_WIDTH else None
                self._matrix(path, packing.MatrixKind.LINEAR, own)

    def _experts(self, prefix: str, expert: MlpSpec) -> None:
        if expert.bias:
            self._vectors(prefix, _EXPERT_VECTORS, calls.mlp_vectors)
        self._products(prefix, expert, are_experts=True)

    def _products(self, prefix: str, mlp: MlpSpec, *, are_experts: bool = False) -> None:
        kind = packing.MatrixKind.GATE_UP if mlp.gated else packing.MatrixKind.LINEAR
        self._matrix(f"{prefix}gate_up.weight", kind, are_experts=are_experts)
        self._matrix(f"{prefix}down.weight", packing.MatrixKind.LINEAR, are_experts=are_experts)

    def _matrix(
        self,
        path: str,
        kind: packing.MatrixKind,
        weight_type: str | None = None,
        *,
        are_experts: bool = False,
    ) -> None:
        index, own_type = self._index[path], weight_type or self._weight_type
        *many, rows, columns = self._graph.parameters[index].shape
        # Matrices of experts lie one behind the other, also where there is but one.
        before = (many[0] if many else 1,) if are_experts else ()
        self._done.add(path)
        # A type of its own is one that is not quantised.
        form = self._stored.get(path) if weight_type is None else None
        if form is not None and packing.are_blocks_covered(columns, form):
            self._plan[path] = _stored_weight(path, index, (rows, columns), form, kind, before)
            self.kept[path] = form
            return
        parts = packing.packed_parts((rows, columns), own_type, kind, GROUP_SIZE)
        specs = tuple(PartSpec((*before, *shape), dtype) for shape, dtype in parts)
        if not many and not before and kind is not packing.MatrixKind.GATE_UP:

            def pack_rows(values: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], ...]:
                return packing.pack(values[0], own_type, kind, group_size=GROUP_SIZE)

            step = packing.PANEL_OUTPUTS
            self._plan[path] = PackedWeight(path, (index,), specs, pack_rows, row_step=step)
            return

        def pack(values: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], ...]:
            matrices = values[0].reshape(-1, rows, columns)
            packed = packing.pack_experts(matrices, own_type, kind, group_size=GROUP_SIZE)
            return tuple(part.reshape(spec.shape) for part, spec in zip(packed, specs, strict=True))

        self._plan[path] = PackedWeight(path, (index,), specs, pack)

    def _heads(self, path: str, latent: LatentSpec) -> None:
        index, own_type = self._index[path], full_width(self._weight_type)
        num_heads = self._graph.parameters[index].shape[0]
        offset = packing.head_offset(latent.kv_rank, latent.plain_dim, own_type)
        size = offset + packing.head_offset(latent.value_dim, latent.kv_rank, own_type)

        def pack(values: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], ...]:
            return packing.pack_heads(values[0], latent.plain_dim, own_type)

        part = PartSpec((num_heads, size), np.dtype(np.uint8))
        self._plan[path] = PackedWeight(path, (index,), (part,), pack)
        self._done.add(path)

    def _vectors(
        self,
        prefix: str,
        paths: Mapping[str, str],
        join: Callable[..., npt.NDArray[np.float32]],
    ) -> None:
        names = [name for name, path in paths.items() if prefix + path in self._index]
        sources = tuple(self._index[prefix + paths[name]] for name in names)
        size = sum(self._graph.parameters[index].num_elements for index in sources)
        is_plus_one = self._graph.spec.norm_kind is NormKind.RMS_PLUS_ONE

        def pack(values: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], ...]:
            vectors = {
                name: value.astype(np.float32) + (is_plus_one and name.endswith("norm"))
                for name, value in zip(names, values, strict=True)
            }
            return (join(**vectors),)

        spec = PartSpec((size,), np.dtype(np.float32))
        self._plan[prefix] = PackedWeight(f"{prefix}vectors", sources, (spec,), pack)
        self._done |= {prefix + paths[name] for name in names}


def _stored_weight(
    path: str,
    index: int,
    shape: tuple[int, int],
    form: BlockFormat,
    kind: packing.MatrixKind,
    before: tuple[int, ...],
) -> PackedWeight:
    """A matrix as the checkpoint keeps it, or several; `before` are axes in front of its own."""
    ((part, dtype),) = packing.packed_block_parts(shape, form, kind)
    spec = PartSpec((*before, *part), dtype)
    if not before and kind is not packing.MatrixKind.GATE_UP:

        def pack_rows(sources: Sequence[Any]) -> tuple[npt.NDArray[Any], ...]:
            (matrix,) = sources[0]
            return packing.pack_blocks(matrix, kind)

        step = packing.PANEL_OUTPUTS
        return PackedWeight(path, (index,), (spec,), pack_rows, form, row_step=step)

    def pack(sources: Sequence[Any]) -> tuple[npt.NDArray[Any], ...]:
        packed = packing.aligned_empty(spec.shape)
        # One at a time: all experts of a layer may be several gigabytes.
        for matrix, place in zip(sources[0], packed.reshape(-1, *part), strict=True):
            packing.pack_blocks_into(place, matrix, kind)
        return (packed,)

    return PackedWeight(path, (index,), (spec,), pack, form)


class CpuNativeBlocks:
    """Implements `Blocks`."""

    def __init__(self, backend: CpuNativeBackend, leaves: Leaves) -> None:
        self._backend = backend
        parts = iter(leaves)
        weights = [(weight.name, weight_of(weight, parts)) for weight in backend.packing.weights]
        self._weights: dict[str, Any] = dict(weights)
        self._products = NativeProducts(
            self._weights,
            weight_type=backend.weight_type,
            group_size=GROUP_SIZE,
            stored=backend.stored_formats,
        )
        # Modules get the weights of blocks that have no kernel, and nothing else.
        heads = {_HEADS.format(layer): latent for layer, latent in backend.latents.items()}

        norms = backend.shared_norms

        def weight(parameter: Parameter) -> Any:
            if parameter.path in norms:
                return self._weights[norms[parameter.path]][: backend.spec.hidden_size]
            if parameter.path in backend.product_paths:
                return self._products.matrix(parameter)
            if parameter.path in heads:
                return self._products.heads(parameter.path, heads[parameter.path])
            return self._weights.get(parameter.path)

        self._xla = XlaBlocks(
            backend.graph.bind(list(map(weight, backend.graph.parameters))),
            recurrent_kernel(backend.spec),
            dict.fromkeys(backend.latents, self._attend_latents),
        )
        self.experts_read = self._xla.experts_read

    def embedding(self, step: StepTokens) -> jax.Array:
        if not self._backend.is_native(BlockKind.EMBEDDING):
            return self._xla.embedding(step)
        spec = self._backend.spec
        x = calls.embedding(
            step.token_ids.reshape(-1),
            self._weights[_EMBEDDING],
            spec.vocab_size,
            spec.hidden_size,
            self._backend.weight_type,
            group_size=GROUP_SIZE,
            blocks=self._backend.stored_formats.get(_EMBEDDING),
            multiplier=spec.embedding_multiplier,
        )
        return self._xla.with_positions(x, step)

    def layers(
        self,
        x: jax.Array,
        cache: KvCache,
        step: StepTokens,
        ropes: RopeTables,
        is_wanted: jax.Array | None = None,
    ) -> tuple[jax.Array, KvCache]:
        self._products.is_token = step.is_token.reshape(-1)
        token_inputs = self._xla.inputs_by_layer(x, step)
        run = _Run(self._backend, self._weights, self._xla.begin(x), list(cache), step, ropes)
        beside: jax.Array | None = None
        begun: Begun | None = None
        last = self._backend.spec.num_layers - 1
        for layer in range(last + 1):
            if layer == last and is_wanted is not None and self._is_all_native(layer, step):
                run.add_last(layer, is_wanted)
                break
            block = self._xla.layer(layer)
            if block.has_parts_between:
                run.finish()
                begun = block.begin(run.x)
                run.x = begun.x
            # What parts between its blocks read, and a mixer that stands beside this layer's.
            before = self._add_mixer(run, layer, beside, step, ropes)
            if block.alt_up is not None:
                run.finish()
                run.x = block.between(before, run.x)
            moe = self._moe_products(layer, step)
            if moe is None and self._backend.is_native(BlockKind.MLP, layer):
                run.add_mlp(layer)
            else:
                run.finish()
                run.x = self._xla.mlp(layer, before, run.x, step, moe)
            if begun is not None:
                run.finish()
                run.x = block.end(begun, run.x, token_inputs[layer])
            beside = before
        run.finish()
        return self._xla.end(run.x), tuple(run.cache)

    def _add_mixer(
        self,
        run: "_Run",
        layer: int,
        beside: jax.Array | None,
        step: StepTokens,
        ropes: RopeTables,
    ) -> jax.Array:
        """Adds a layer's mixer to a run; returns the residual before it, if XLA reads that.

        Args:
            run: Where it goes.
            layer: Which one.
            beside: As in `XlaBlocks.mixer`.
            step: The tokens.
            ropes: Of the decoder.
        """
        layers = self._backend.spec.layers
        is_read = layer + 1 < len(layers) and layers[layer + 1].is_beside
        if is_read or not self._backend.is_one_call(layer):
            run.finish()
        before = run.x
        if not self._backend.is_one_call(layer):
            run.x = self._xla.mixer(
                layer, run.x, beside, run.cache, step, places_by_group(step), ropes
            )
        elif layers[layer].is_beside:
            assert beside is not None, "the first layer has none before it"
            run.add_attention_beside(layer, beside)
        else:
            run.add_attention(layer)
        return before

    def _is_all_native(self, layer: int, step: StepTokens) -> bool:
        """Whether a layer is an attention and an MLP block that are parts of calls, no more."""
        backend, spec = self._backend, self._backend.spec.layers[layer]
        if spec.is_beside or spec.attention.shared_from is not None:
            return False
        has_blocks = backend.is_one_call(layer) and backend.is_native(BlockKind.MLP, layer)
        return (
            has_blocks
            and self._moe_products(layer, step) is None
            and not self._xla.layer(layer).has_parts_between
        )

    def _attend_latents(
        self,
        attention: AttentionSpec,
        pages: LayerPages,
        step: StepTokens,
        group: int,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
    ) -> tuple[jax.Array, LayerPages]:
        own = calls.Step(live_positions(step), token_rows(step), step.block_tables[group])
        y, stored = calls.attend_latents(
            q,
            k[:, 0],
            v[:, 0],
            own,
            (pages.keys, pages.values),
            scale=attention.scale,
            cache_type=str(self._backend.cache_dtype),
        )
        return y, LayerPages(*stored)

    def _moe_products(self, layer: int, step: StepTokens) -> MoeProducts | None:
        """The native products of a layer's experts; None if it has none."""
        moe = self._backend.spec.layers[layer].mlp
        if not isinstance(moe, MoeSpec) or not self._backend.is_native(BlockKind.MLP, layer):
            return None
        return NativeMoeProducts(
            self._backend.spec,
            moe,
            step.is_token.reshape(-1),
            self._weights,
            f"layers.{layer}.mlp.",
            weight_type=self._backend.weight_type,
            group_size=GROUP_SIZE,
            stored=self._backend.stored_formats,
        )

    def norm(self, x: jax.Array) -> jax.Array:
        return self._xla.norm(x)

    def head(self, hidden: jax.Array, is_wanted: jax.Array | None = None) -> jax.Array:
        if not self._backend.is_native(BlockKind.HEAD):
            return self._xla.head(hidden, is_wanted)
        return self._head_call(calls.head, hidden, is_wanted)

    @property
    def likeliest(self) -> Likeliest | None:
        if not self._backend.is_native(BlockKind.HEAD):
            return self._xla.likeliest
        return partial(self._head_call, calls.likeliest)

    def _head_call(
        self, call: Callable[..., jax.Array], hidden: jax.Array, is_wanted: jax.Array | None
    ) -> jax.Array:
        spec = self._backend.spec
        table = _EMBEDDING if spec.tied_head else _HEAD
        return call(
            hidden,
            self._weights[table],
            spec.vocab_size,
            self._backend.weight_type,
            is_wanted,
            group_size=GROUP_SIZE,
            blocks=self._backend.stored_formats.get(table),
            multiplier=spec.logits_multiplier,
            softcap=spec.final_softcap or 0.0,
        )


def token_rows(step: StepTokens) -> jax.Array:
    """[T * Q] int32: each token's row of the block tables of every cache group.

    Draft tokens are rows of their own, with the table of the row before them and the position after
    it. They get that one's row here: a kernel then reads the pages once for all of them.
    """
    num_rows, num_queries = step.positions.shape
    rows = jnp.arange(num_rows, dtype=jnp.int32)
    if num_queries > 1:
        return jnp.repeat(rows, num_queries)
    positions = live_positions(step)
    goes_on = (positions[1:] == positions[:-1] + 1) & (positions[:-1] >= 0)
    for tables in step.block_tables:
        goes_on &= jnp.all(tables[1:] == tables[:-1], axis=1)
    is_first = jnp.concatenate([jnp.ones(1, bool), ~goes_on])
    return lax.cummax(jnp.where(is_first, rows, 0))


class _Run:
    """Neighbouring native blocks that wait to be one call.

    Attributes:
        x: The residual before them.
        cache: Of all layers, as it is so far.
    """

    def __init__(
        self,
        backend: CpuNativeBackend,
        weights: Mapping[str, Any],
        x: jax.Array,
        cache: list[LayerCache],
        step: StepTokens,
        ropes: RopeTables,
    ) -> None:
        self.x = x
        self.cache = cache
        self._backend = backend
        self._weights = weights
        self._ropes = ropes
        self._blocks: list[calls.Attention | calls.Mlp] = []
        self._layers: list[int] = []  # Whose pages the blocks read, in order.
        self._step = calls.Step(
            live_positions(step),
            token_rows(step),
            jnp.concatenate(step.block_tables),
            len(step.block_tables),
        )
        self._groups = step.layout.groups.of_layer

    def add_last(self, layer: int, is_wanted: jax.Array) -> None:
        """The last layer, of which only some tokens' residual is looked at.

        All keys and values are stored first, by a block in which a token sees nothing but itself,
        which costs little, and whose residual is left out.
        """
        self.finish()
        before = self.x
        self.add_attention(layer, window=1)
        self.finish()
        self.x = before
        self._step = replace(self._step, positions=jnp.where(is_wanted, self._step.positions, -1))
        self.add_attention(layer)
        self.add_mlp(layer)

    def add_attention(self, layer: int, window: int | None = None) -> None:
        """The attention block of a layer comes next, with its own window unless another is said."""
        spec, prefix = self._backend.spec, f"layers.{layer}.attention."
        shared_from = spec.layers[layer].attention.shared_from
        owner = layer if shared_from is None else shared_from
        if owner in self._layers:
            self.finish()  # A call has the pages of a layer once.
        config = calls.AttentionConfig.of(
            spec,
            spec.layers[layer],
            weight_type=self._backend.weight_type,
            cache_type=str(self._backend.cache_dtype),
            group_size=GROUP_SIZE,
        )
        stored = self._backend.stored_formats
        config = replace(
            config,
            qkv_blocks=stored.get(f"{prefix}qkv.weight"),
            o_blocks=stored.get(f"{prefix}o.weight"),
            window=config.window if window is None else window,
        )
        pages = self.cache[owner]
        assert isinstance(pages, LayerPages), "a layer that attends"
        self._layers.append(owner)
        self._blocks.append(
            calls.Attention(
                config,
                self._weights[f"{prefix}vectors"],
                self._weights[f"{prefix}qkv.weight"],
                self._weights[f"{prefix}o.weight"],
                pages.keys,
                pages.values,
                self._ropes.index_of(spec.layers[layer].attention),
                self._groups[layer],
            )
        )

    def add_attention_beside(self, layer: int, beside: jax.Array) -> None:
        """What the attention block of a layer adds to another residual is added to this one."""
        self.finish()
        x, self.x = self.x, beside
        self.add_attention(layer)
        self.finish()
        self.x = x + (self.x - beside)

    def add_mlp(self, layer: int) -> None:
        """The MLP block of a layer comes next."""
        spec, prefix = self._backend.spec, f"layers.{layer}.mlp."
        config = calls.MlpConfig.of(
            spec,
            spec.layers[layer],
            weight_type=self._backend.weight_type,
            group_size=GROUP_SIZE,
        )
        stored = self._backend.stored_formats
        config = replace(
            config,
            gate_up_blocks=stored.get(f"{prefix}gate_up.weight"),
            down_blocks=stored.get(f"{prefix}down.weight"),
        )
        self._blocks.append(
            calls.Mlp(
                config,
                self._weights[f"{prefix}vectors"],
                self._weights[f"{prefix}gate_up.weight"],
                self._weights[f"{prefix}down.weight"],
            )
        )

    def finish(self) -> None:
        """Computes what waits."""
        if not self._blocks:
            return
        ropes = [(cosine[:, 0], sine[:, 0]) for cosine, sine in self._ropes.tables]
        self.x, new_pages = calls.run_blocks(self.x, self._step, ropes, self._blocks)
        for layer, (keys, values) in zip(self._layers, new_pages, strict=True):
            self.cache[layer] = LayerPages(keys, values)
        self._blocks, self._layers = [], []
