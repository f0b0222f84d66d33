"""The backend in plain XLA: binds the modules of `compute.models` to weights and pages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from engine_worker.compute.backends.base import (
    BlockKind,
    Likeliest,
    Placement,
    StepTokens,
    kinds_of,
)
from engine_worker.compute.backends.cache_type import AUTO, cache_dtype_of
from engine_worker.compute.backends.kv_layout import (
    NO_RINGS,
    KvCache,
    KvLayout,
    LayerCache,
    LayerPages,
    LayerStates,
    StateRings,
)
from engine_worker.compute.backends.layer_groups import LayerGroups, layer_groups
from engine_worker.compute.backends.packing_plan import (
    PackedWeight,
    PackingPlan,
    PartSpec,
    plain,
)
from engine_worker.compute.backends.xla.paged_attention import attend_pages
from engine_worker.compute.backends.xla.pages import store_tokens, xla_kv_layout
from engine_worker.compute.backends.xla.states import recur_in_step
from engine_worker.compute.models.decoder import Decoder, DecoderGraph, Leaves, Parameter
from engine_worker.compute.models.decoder_layer import DecoderLayer
from engine_worker.compute.models.integer_blocks import BlockFormat
from engine_worker.compute.models.layers import Matrix
from engine_worker.compute.models.moe import MoeBlock, MoeProducts, num_read
from engine_worker.compute.models.quantized import QuantizedMatrix, quantize
from engine_worker.compute.models.recurrent.blocks import RecurrentBlock
from engine_worker.compute.models.recurrent.state import Advance, Inputs
from engine_worker.compute.models.rope import RopeTables
from engine_worker.compute.models.spec import AttentionSpec, DecoderSpec
from protocol.errors import ConfigurationError

XLA: Final = "xla"
MATRIX_AXES: Final = 2
_KEPT_FULL: Final = (
    ".router.weight",
    ".q_norm.weight",
    ".k_norm.weight",
    ".alt_up.prediction.weight",
    ".alt_up.correction.weight",
)
_EXPERTS: Final = (".mlp.gate_up.weight", ".mlp.down.weight")
MAX_ATTENTION_SPAN = 128
"""The most tokens that one turn of the attention loop reads, or one block where that is larger."""
_SOME_ROWS, _MANY_ROWS = 4, 16


def blocks_per_turn(block_size: int, num_token_rows: int = 1) -> int:
    """Blocks of each row that one turn of the attention loop reads.

    One or two rows take long turns, because a turn has its own cost; many rows take shorter ones,
    because a row's last turn reads on average half a turn for nothing. On the CPU the rows between
    take the shortest: then each operation is so small that XLA leaves it to the thread which is
    awake. Waking the other one would take longer (a fifth less time for a step of 8 rows).
    """
    span = MAX_ATTENTION_SPAN
    if num_token_rows >= _MANY_ROWS:
        span //= 2
    elif num_token_rows >= _SOME_ROWS and jax.default_backend() == "cpu":
        span //= 4
    return max(1, span // block_size)


class XlaBackend:
    """Implements `Backend` for every decoder and every device, and is long because that is.

    Args:
        graph: The declared decoder. Its weights are taken as they are.
        weight_type: `int8` quantises the matrices. None is the type of the graph.
        kv_dtype: See `cache_dtype_of`.

    Raises:
        ConfigurationError: A type that XLA has no product for.
    """

    name = XLA
    skips_padding = False

    def __init__(
        self, graph: DecoderGraph, weight_type: str | None = None, kv_dtype: str = AUTO
    ) -> None:
        self._graph = graph
        self._weight_type = weight_type or str(graph.dtype)
        self._cache_dtype = cache_dtype_of(self._weight_type, kv_dtype)
        if self._weight_type not in (str(graph.dtype), "int8"):
            raise ConfigurationError(
                f"dtype {self._weight_type} needs the native backend, xla computes float32, "
                "bfloat16 and int8",
                param="dtype",
            )
        self._packing = _packing(graph, is_quantized=self._weight_type == "int8")

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
        return {}

    @property
    def packing(self) -> PackingPlan:
        return self._packing

    @property
    def cache_dtype(self) -> np.dtype[Any]:
        return self._cache_dtype

    @property
    def placements(self) -> Mapping[BlockKind, Placement]:
        return dict.fromkeys(kinds_of(self.spec), Placement(XLA))

    @property
    def min_rows(self) -> int:
        # XLA:CPU converts a whole matrix of another type to float32 when it multiplies one row.
        return 1 if self._weight_type == "float32" else 2

    @property
    def is_batch_invariant(self) -> bool:
        # Within one program of one shape, which is all that the deterministic mode has.
        return self._weight_type == "float32"

    @property
    def custom_calls(self) -> Sequence[str]:
        return ()

    def table_multiple(self, block_size: int) -> int:
        return blocks_per_turn(block_size)

    @property
    def layer_groups(self) -> LayerGroups:
        return layer_groups(self.spec)

    def kv_layout(
        self, *, num_blocks: int | Sequence[int], block_size: int, rings: StateRings = NO_RINGS
    ) -> KvLayout:
        return xla_kv_layout(
            self.spec, self.cache_dtype, num_blocks=num_blocks, block_size=block_size, rings=rings
        )

    def unwritten(self, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
        # XLA:CPU has no array that it doesn't fill.
        return jnp.zeros(shape, dtype)

    def bind(self, leaves: Leaves) -> "XlaBlocks":
        parts = iter(leaves)
        weights = [weight_of(weight, parts) for weight in self._packing.weights]
        return XlaBlocks(self._graph.bind(weights))


def packed_for_xla(index: int, parameter: Parameter, *, is_quantized: bool) -> PackedWeight:
    """A declared weight as XLA takes it: matrices in int8 with scales, if asked for.

    The experts' bfloat16 matrices are bits in uint16, see `models.moe`.
    """
    is_of_experts = len(parameter.shape) > MATRIX_AXES and parameter.path.endswith(_EXPERTS)
    if is_quantized and (is_of_experts or is_quantizable(parameter)):
        parts = (
            PartSpec(parameter.shape, np.dtype(np.int8)),
            PartSpec(parameter.shape[:-1], np.dtype(np.float32)),
        )
        return PackedWeight(
            parameter.path, (index,), parts, lambda values: quantize(values[0]), row_step=1
        )
    if is_of_experts and parameter.dtype == jnp.bfloat16:
        bits = np.dtype(np.uint16)
        part = PartSpec(parameter.shape, bits)
        return PackedWeight(
            parameter.path, (index,), (part,), lambda values: (values[0].view(bits),)
        )
    return plain(index, parameter)


def is_quantizable(parameter: Parameter) -> bool:
    """Whether a declared weight is a matrix that bears fewer bits.

    A router does not: it is small, and what it chooses would change with them. Nor does what is no
    matrix, such as the biases of all experts, and norms that have a weight for each head.
    """
    is_matrix = len(parameter.shape) == MATRIX_AXES and parameter.path.endswith(".weight")
    return is_matrix and not parameter.path.endswith(_KEPT_FULL)


def is_multiplied(graph: DecoderGraph, parameter: Parameter) -> bool:
    """Whether a declared weight is a matrix of a product in its own type."""
    return parameter.path in graph.linear_paths or parameter.path.endswith(_EXPERTS)


def weight_of(weight: PackedWeight, parts: Iterator[jax.Array]) -> Matrix:
    """The next weight of some leaves, as the modules take it."""
    arrays = [next(parts) for _ in weight.parts]
    return arrays[0] if len(arrays) == 1 else QuantizedMatrix(*arrays)


def _packing(graph: DecoderGraph, *, is_quantized: bool) -> PackingPlan:
    weights = tuple(
        packed_for_xla(index, parameter, is_quantized=is_quantized)
        for index, parameter in enumerate(graph.parameters)
    )
    return PackingPlan(weights, layout="xla int8 1" if is_quantized else "")


RecurKernel = Callable[
    [RecurrentBlock, LayerStates, StepTokens, Inputs], tuple[jax.Array, LayerStates]
]
"""`recur(block, layer, step, inputs)` is what `recur_in_step` is with the block's `Advance`."""


AttendKernel = Callable[
    [AttentionSpec, LayerPages, StepTokens, int, jax.Array, jax.Array, jax.Array],
    tuple[jax.Array, LayerPages],
]
"""`attend(attention, pages, step, group, q, k, v)` stores and attends, see `layers.Attend`."""


class XlaBlocks:
    """Implements `Blocks` with a decoder's modules.

    Args:
        decoder: With its weights.
        recur: Computes what goes from token to token in recurrent layers; None is XLA.
        attend: Attends in some layers, whose pages are its own; in the others XLA does.
    """

    def __init__(
        self,
        decoder: Decoder,
        recur: RecurKernel | None = None,
        attend: Mapping[int, AttendKernel] = MappingProxyType({}),
    ) -> None:
        self._decoder = decoder
        self._recur = recur
        self._attend = attend
        self.experts_read: list[jax.Array] = []

    def embedding(self, step: StepTokens) -> jax.Array:
        return self.with_positions(self._decoder.embedding(step.token_ids.reshape(-1)), step)

    def with_positions(self, x: jax.Array, step: StepTokens) -> jax.Array:
        """Embeddings [T * Q, hidden] of tokens with those of their positions, if there are any."""
        return self._decoder.with_positions(x, step.positions.reshape(-1))

    def layers(
        self,
        x: jax.Array,
        cache: KvCache,
        step: StepTokens,
        ropes: RopeTables,
        is_wanted: jax.Array | None = None,
    ) -> tuple[jax.Array, KvCache]:
        layers, places = list(cache), places_by_group(step)
        token_inputs = self.inputs_by_layer(x, step)
        x, beside = self.begin(x), None
        # Unrolled on purpose: a scan over stacked layers makes XLA:CPU copy each slice.
        for layer in range(len(layers)):
            block = self.layer(layer)
            before, begun = x, block.begin(x)
            x = self.mixer(layer, begun.x, beside, layers, step, places, ropes)
            x = block.between(begun.x, x)
            x = self.mlp(layer, begun.x, x, step)
            x, beside = block.end(begun, x, token_inputs[layer]), before
        return self.end(x), tuple(layers)

    def begin(self, x: jax.Array) -> jax.Array:
        """What the first layer takes of embeddings [T * Q, hidden]: these, or all residuals."""
        return self._decoder.begin(x)

    def end(self, x: jax.Array) -> jax.Array:
        """What the last norm takes of what the last layer gives."""
        return self._decoder.end(x)

    def layer(self, layer: int) -> DecoderLayer:
        """The modules of one layer."""
        block: DecoderLayer = self._decoder.layers[layer]
        return block

    def inputs_by_layer(self, x: jax.Array, step: StepTokens) -> Sequence[jax.Array | None]:
        """For each layer the vectors of the step's tokens, whose embeddings are x [T * Q, ..]."""
        return self._decoder.inputs_by_layer(step.token_ids.reshape(-1), x)

    def mixer(
        self,
        layer: int,
        x: jax.Array,
        beside: jax.Array | None,
        cache: list[LayerCache],
        step: StepTokens,
        places: Sequence["TokenPlaces"],
        ropes: RopeTables,
    ) -> jax.Array:
        """The residual after the attention or recurrent block of one layer.

        Args:
            layer: Which one.
            x: [T * Q, hidden] float32, the residual before it.
            beside: As in `DecoderLayer.mixer_input`.
            cache: Of all layers; the layer's own gets the step's tokens.
            step: The tokens.
            places: Where they are stored, for each cache group.
            ropes: Of the decoder.
        """
        read, own = self.layer(layer).mixer_input(x, beside), cache[layer]
        if isinstance(own, LayerStates):
            added, cache[layer] = self._recurrent(layer, read, own, step)
            return x + added
        spec = self._decoder.spec.layers[layer].attention
        pages = own if spec.shared_from is None else cache[spec.shared_from]
        assert isinstance(pages, LayerPages), "a layer that attends"
        added, pages = self._attention(layer, read, pages, step, places, ropes)
        cache[layer] = pages if spec.shared_from is None else None
        return x + added

    def _attention(
        self,
        layer: int,
        x: jax.Array,
        pages: LayerPages,
        step: StepTokens,
        places_of_groups: Sequence["TokenPlaces"],
        ropes: RopeTables,
    ) -> tuple[jax.Array, LayerPages]:
        """What the attention block of one layer adds, and the pages with the step's tokens."""
        block = self.layer(layer).attention
        assert block is not None, "a layer that attends"
        spec: AttentionSpec = block.spec
        stored, group = pages, step.layout.groups.of_layer[layer]
        places = places_of_groups[group]

        def attend(
            _: int,
            q: jax.Array,
            k: jax.Array | None,
            v: jax.Array | None,
            sinks: jax.Array | None,
        ) -> jax.Array:
            nonlocal stored
            if layer in self._attend and k is not None and v is not None:
                out, stored = self._attend[layer](spec, stored, step, group, q, k, v)
                return out
            # Written before they are read: measured faster than attending to them apart, but for
            # a single float32 row, and it makes a chunk, a decode and a recompute one and the same.
            if k is not None and v is not None:
                stored = store_tokens(stored, k, v, places.block_ids, places.offsets)
            out = attend_pages(
                q.reshape(*step.positions.shape, *q.shape[1:]),
                stored,
                places.block_tables,
                step.num_stored,
                step.positions,
                spec,
                blocks_per_turn(places.block_size, step.positions.shape[0]),
                sinks,
            )
            return out.reshape(*q.shape[:2], -1)

        added = block(layer, x, ropes.of(spec), attend)
        return added, stored

    def _recurrent(
        self, layer: int, x: jax.Array, states: LayerStates, step: StepTokens
    ) -> tuple[jax.Array, LayerStates]:
        """What the recurrent block of one layer adds, and the layer's states."""
        block = self.layer(layer).recurrent
        assert block is not None, "a recurrent layer"

        def recur(_: int, inputs: Inputs, advance: Advance) -> jax.Array:
            nonlocal states
            if self._recur is not None:
                outputs, states = self._recur(block, states, step, inputs)
            else:
                outputs, states = recur_in_step(states, step, inputs, advance)
            return outputs

        added = block(layer, x, recur)
        return added, states

    def mlp(
        self,
        layer: int,
        before: jax.Array,
        x: jax.Array,
        step: StepTokens,
        products: MoeProducts | None = None,
    ) -> jax.Array:
        """The residual [T * Q, hidden] after the MLP block of one layer, or its experts, if any.

        Args:
            layer: Which one.
            before: The residual before its attention block, which only a parallel layer reads.
            x: The residual after it.
            step: The tokens; no expert is read for padding.
            products: Computes those of experts; None is XLA.
        """
        block = self.layer(layer)
        if block.mlp is None:
            return x
        read = block.mlp_input(before, x)
        if not isinstance(block.mlp, MoeBlock):
            return x + block.mlp(read)
        num_experts = block.mlp.spec.num_experts
        return x + block.mlp(
            read,
            step.is_token.reshape(-1),
            products,
            lambda choice: self.experts_read.append(num_read(choice, num_experts)),
        )

    def norm(self, x: jax.Array) -> jax.Array:
        return self._decoder.norm(x)

    def head(self, hidden: jax.Array, is_wanted: jax.Array | None = None) -> jax.Array:
        return self._decoder.project(hidden)

    @property
    def likeliest(self) -> Likeliest | None:
        return None


class TokenPlaces(NamedTuple):
    """Where a step's tokens are stored, the same in every layer of a cache group.

    Attributes:
        block_tables: [T, MB] int32, of the group.
        block_ids: [T * Q] int32; the padding block for padding.
        offsets: [T * Q] int32, in the block.
        block_size: Tokens a block.
    """

    block_tables: jax.Array
    block_ids: jax.Array
    offsets: jax.Array
    block_size: int


def places_by_group(step: StepTokens) -> tuple[TokenPlaces, ...]:
    """The places of a step's tokens in the pages of each cache group."""
    block_size, positions = step.layout.block_size, step.positions
    offsets = (positions % block_size).reshape(-1)
    places = []
    for tables, padding_block in zip(step.block_tables, step.layout.padding_blocks, strict=True):
        own_blocks = jnp.take_along_axis(tables, positions // block_size, 1, mode="clip")
        own_blocks = jnp.where(step.is_token, own_blocks, padding_block)
        places.append(TokenPlaces(tables, own_blocks.reshape(-1), offsets, block_size))
    return tuple(places)
