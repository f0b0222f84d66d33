"""An encoder of any family: declared with flax.nnx, split at load, then a pure function."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.models.decoder import Leaves, Parameter, parameters_of
from engine_worker.compute.models.layers import Block, Linear, RmsNorm
from engine_worker.compute.models.moe import ExpertMatrices, choose_experts, sum_of_experts
from engine_worker.compute.models.rope import RopeTable, inverse_frequencies, rotate
from engine_worker.compute.models.spec import MoeSpec, RopeSpec
from engine_worker.compute.models.tensors import Source
from engine_worker.embedding.attention import (
    DistanceVectors,
    attend,
    distance_biases,
    distance_rows,
    relative_buckets,
)
from engine_worker.embedding.encoder_spec import (
    DisentangledSpec,
    EncoderLayerSpec,
    EncoderSpec,
    HeadSpec,
)
from engine_worker.embedding.families.family import EncoderFamily

_ACTIVATIONS: Final[dict[str, Callable[[jax.Array], jax.Array]]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class LayerNorm(Block):
    """Layer norm over the last axis in float32 (arXiv 1607.06450)."""

    def __init__(self, size: int, eps: float, dtype: DTypeLike, *, bias: bool = True) -> None:
        self.weight = nnx.Param(jnp.ones((size,), dtype))
        self.bias = nnx.Param(jnp.zeros((size,), dtype)) if bias else None
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., size] float32 to the same shape."""
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
        weight: jax.Array = self.weight[...]
        scaled = (x - mean) * lax.rsqrt(variance + self.eps) * weight.astype(jnp.float32)
        if self.bias is None:
            return scaled
        bias: jax.Array = self.bias[...]
        return scaled + bias.astype(jnp.float32)


class Table(Block):
    """Rows that are looked up."""

    def __init__(self, num_rows: int, size: int, dtype: DTypeLike) -> None:
        self.weight = nnx.Param(jnp.zeros((num_rows, size), dtype))

    def __call__(self, rows: jax.Array) -> jax.Array:
        """Rows [...] int32 (clamped into range) as [..., size] float32."""
        weight: jax.Array = self.weight[...]
        found: jax.Array = weight.at[rows].get(mode="clip")
        return found.astype(jnp.float32)


Norm = LayerNorm | RmsNorm


def _norm(spec: EncoderSpec, dtype: DTypeLike, size: int | None = None) -> Norm:
    """A norm of an encoder, of the hidden size where no other is given."""
    size = size or spec.hidden_size
    if spec.has_rms_norm:
        return RmsNorm(size, spec.norm_eps, dtype)
    return LayerNorm(size, spec.norm_eps, dtype, bias=spec.norm_bias)


class Places(NamedTuple):
    """What the places of tokens in a row mean to its layers.

    Attributes:
        visible: [B, T] bool, false for padding.
        tables: By rope, cosine and sine of the positions 0 to T - 1.
        relative: See `attend`.
        rows: By distance the row of `vectors`, see `DistanceVectors`.
        vectors: [R, hidden] float32, of distances; None without them.
    """

    visible: jax.Array
    tables: Mapping[RopeSpec, RopeTable]
    relative: jax.Array | None
    rows: npt.NDArray[np.int32] | None = None
    vectors: jax.Array | None = None


class Mlp(Block):
    """`down(activation(up(x)))`, or with a gate before the activation."""

    def __init__(self, spec: EncoderSpec, dtype: DTypeLike) -> None:
        hidden, inner = spec.hidden_size, spec.intermediate_size
        self.activation, self.is_gated = spec.activation, spec.is_gated
        self.up = Linear(inner * (2 if spec.is_gated else 1), hidden, dtype, bias=spec.up_bias)
        self.down = Linear(hidden, inner, dtype, bias=spec.down_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, hidden] float32 to the same shape."""
        inner = self.up(x)
        activate = _ACTIVATIONS[self.activation]
        if not self.is_gated:
            return self.down(activate(inner))
        gate, up = jnp.split(inner, 2, axis=-1)
        return self.down(activate(gate) * up)


class Experts(Block):
    """Experts in place of an MLP: `activation(x W_up^T) W_down`, maybe one bias for all of them."""

    def __init__(self, spec: EncoderSpec, experts: MoeSpec, dtype: DTypeLike) -> None:
        hidden, inner = spec.hidden_size, experts.expert.intermediate_size
        self.spec, self.activation = experts, spec.activation
        self.router = Linear(experts.num_experts, hidden, dtype, bias=False)
        self.up = ExpertMatrices(experts.num_experts, inner, hidden, dtype, bias=False)
        self.down = nnx.Param(jnp.zeros((experts.num_experts, inner, hidden), dtype))
        self.bias = nnx.Param(jnp.zeros((hidden,), dtype)) if spec.has_expert_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, hidden] float32 to the same shape."""
        down: jax.Array = self.down[...]

        def compute(rows: jax.Array, expert: jax.Array) -> jax.Array:
            inner = _ACTIVATIONS[self.activation](self.up(rows, expert))
            # The barrier keeps what is done with one matrix from being done with all before.
            matrix: jax.Array = lax.optimization_barrier(  # type: ignore[no-untyped-call]
                lax.dynamic_index_in_dim(down, expert, keepdims=False)
            )
            product: jax.Array = jnp.dot(
                inner.astype(matrix.dtype),
                matrix,
                precision=lax.Precision.HIGHEST,
                preferred_element_type=jnp.float32,
            )
            return product

        choice = choose_experts(self.spec, self.router(x))
        summed = sum_of_experts(self.spec, x, choice, compute)
        return summed if self.bias is None else summed + self.bias[...].astype(jnp.float32)


class EncoderLayer(Block):
    """Attention within the row, then an MLP, each round the residual, with its norm."""

    def __init__(self, spec: EncoderSpec, layer: EncoderLayerSpec, dtype: DTypeLike) -> None:
        hidden = spec.hidden_size
        norm = partial(_norm, spec, dtype)
        self.num_heads = spec.num_heads
        self.spec = layer
        self.is_pre_norm = spec.is_pre_norm
        self.disentangled = spec.disentangled
        self.qkv = Linear(3 * hidden, hidden, dtype, bias=spec.qkv_bias)
        self.o = Linear(hidden, hidden, dtype, bias=spec.o_bias)
        self.q_norm, self.k_norm = (norm() if spec.has_qk_norm else None for _ in range(2))
        self.sum_norm = norm() if spec.has_sum_norm else None
        self.attention_norm = norm() if layer.has_attention_norm else None
        self.mlp: Mlp | Experts = (
            Mlp(spec, dtype) if layer.experts is None else Experts(spec, layer.experts, dtype)
        )
        self.mlp_norm = norm()
        of_distances = partial(Linear, hidden, hidden, dtype, bias=True)
        own = (
            None if spec.disentangled is None or spec.disentangled.is_shared else spec.disentangled
        )
        self.distance_keys = of_distances() if own and own.has_keys else None
        self.distance_queries = of_distances() if own and own.has_queries else None

    def __call__(self, x: jax.Array, places: Places) -> jax.Array:
        """One layer: [B, T, hidden] float32 to the same shape."""
        shape, flat = x.shape, x.reshape(-1, x.shape[-1])
        if self.is_pre_norm:
            normed = flat if self.attention_norm is None else self.attention_norm(flat)
            flat = flat + self._attention(normed, shape, places)
            return (flat + self.mlp(self.mlp_norm(flat))).reshape(shape)
        assert self.attention_norm is not None, "only pre-norm layers may lack one"
        added = self._attention(flat, shape, places)
        if self.sum_norm is not None:
            added = self.sum_norm(flat + added)
        flat = self.attention_norm(flat + added)
        return self.mlp_norm(flat + self.mlp(flat)).reshape(shape)

    def _attention(self, x: jax.Array, shape: tuple[int, ...], places: Places) -> jax.Array:
        num_rows, num_tokens, hidden = shape
        heads = (num_rows, num_tokens, self.num_heads, -1)
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (one.reshape(heads) for one in (q, k, v))
        rope = self.spec.rope
        if rope is not None:
            turn = partial(rotate, table=places.tables[rope], is_interleaved=rope.interleaved)
            q, k = turn(q), turn(k)
        vectors = None if self.disentangled is None else self._vectors(self.disentangled, places)
        mixed = attend(
            q,
            k,
            v,
            places.visible,
            window=self.spec.window,
            relative=places.relative,
            vectors=vectors,
        )
        return self.o(mixed.reshape(-1, hidden))

    def _vectors(self, wanted: DisentangledSpec, places: Places) -> DistanceVectors:
        assert places.vectors is not None, "an encoder with them has a table"
        assert places.rows is not None, "an encoder with them has a table"
        heads = (len(places.vectors), self.num_heads, -1)
        queries: jax.Array | None
        keys: jax.Array | None
        if wanted.is_shared:
            queries, keys, _ = jnp.split(self.qkv(places.vectors), 3, axis=-1)
        else:
            keys = None if self.distance_keys is None else self.distance_keys(places.vectors)
            queries = (
                None if self.distance_queries is None else self.distance_queries(places.vectors)
            )
        return DistanceVectors(
            places.rows,
            keys.reshape(heads) if wanted.has_keys and keys is not None else None,
            queries.reshape(heads) if wanted.has_queries and queries is not None else None,
        )


class ClassifierHead(Block):
    """From one vector a row to the logits of the labels."""

    def __init__(self, spec: EncoderSpec, head: HeadSpec, dtype: DTypeLike) -> None:
        hidden = spec.hidden_size
        self.activation = head.activation
        self.dense = Linear(hidden, hidden, dtype, bias=head.dense_bias)
        self.norm = _norm(spec, dtype) if head.has_norm else None
        self.out = Linear(head.num_labels, hidden, dtype, bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, hidden] float32 to [B, labels] float32."""
        x = _ACTIVATIONS[self.activation](self.dense(x))
        return self.out(x if self.norm is None else self.norm(x))


class Encoder(Block):
    """Embeddings, layers and perhaps a classifier."""

    def __init__(self, spec: EncoderSpec, dtype: DTypeLike) -> None:
        width = spec.embedding_size or spec.hidden_size
        self.spec = spec
        self.words = Table(spec.vocab_size, width, dtype)
        self.positions = _table(spec.num_positions, width, dtype)
        self.types = _table(spec.num_types, width, dtype)
        self.relative = _table(spec.num_relative_buckets, spec.num_heads, dtype)
        self.norm = _norm(spec, dtype, width) if spec.has_embedding_norm else None
        self.widen = (
            None
            if spec.embedding_size is None
            else Linear(spec.hidden_size, spec.embedding_size, dtype, bias=True)
        )
        wanted = spec.disentangled
        self.distances = _table(2 * wanted.span if wanted else 0, spec.hidden_size, dtype)
        self.distances_norm = _norm(spec, dtype) if wanted and wanted.has_norm else None
        self.layers = nnx.List([EncoderLayer(spec, layer, dtype) for layer in spec.layers])
        self.final_norm = _norm(spec, dtype) if spec.is_pre_norm else None
        self.head = None if spec.head is None else ClassifierHead(spec, spec.head, dtype)

    def __call__(self, token_ids: jax.Array, type_ids: jax.Array, visible: jax.Array) -> jax.Array:
        """Hidden states; see `EncoderGraph.hidden`."""
        x = self._embedded(token_ids, type_ids)
        places = self._places(token_ids.shape[1], visible)
        for layer in self.layers:
            x = layer(x, places)
        return x if self.final_norm is None else self.final_norm(x)

    def _embedded(self, token_ids: jax.Array, type_ids: jax.Array) -> jax.Array:
        x = self.words(token_ids)
        if self.positions is not None:
            positions = jnp.arange(token_ids.shape[1], dtype=jnp.int32)
            x += self.positions(positions + self.spec.first_position)
        if self.types is not None:
            x += self.types(type_ids)
        if self.norm is not None:
            x = self.norm(x)
        if self.widen is None:
            return x
        return self.widen(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

    def _places(self, num_tokens: int, visible: jax.Array) -> Places:
        spec = self.spec
        relative = None
        if self.relative is not None:
            buckets = relative_buckets(num_tokens, spec.num_relative_buckets)
            relative = self.relative(jnp.asarray(buckets))
        if spec.has_distance_bias:
            relative = jnp.asarray(distance_biases(num_tokens, spec.num_heads))
        tables = {
            rope: _rope_table(rope, spec.head_dim, num_tokens)
            for rope in {layer.rope for layer in spec.layers}
            if rope is not None
        }
        if self.distances is None or spec.disentangled is None:
            return Places(visible, tables, relative)
        rows = distance_rows(num_tokens, spec.disentangled.span, spec.disentangled.longest)
        # Each layer projects only the rows that so many tokens reach.
        first, last = int(rows.min()), int(rows.max())
        vectors = self.distances(jnp.arange(first, last + 1, dtype=jnp.int32))
        if self.distances_norm is not None:
            vectors = self.distances_norm(vectors)
        return Places(visible, tables, relative, rows - np.int32(first), vectors)


def _rope_table(rope: RopeSpec, head_dim: int, num_tokens: int) -> RopeTable:
    """Cosine and sine of the positions of a row, as constants of the program."""
    angles = np.arange(num_tokens, dtype=np.float32)[:, None] * inverse_frequencies(rope, head_dim)
    factor = np.float32(rope.attention_factor)
    cosine, sine = np.cos(angles) * factor, np.sin(angles) * factor
    return jnp.asarray(cosine[:, None, :]), jnp.asarray(sine[:, None, :])


def _table(num_rows: int, size: int, dtype: DTypeLike) -> Table | None:
    return Table(num_rows, size, dtype) if num_rows else None


class EncoderGraph:
    """The static half of a split encoder.

    Attributes:
        spec: The encoder.
        parameters: One entry per leaf, in order.
    """

    def __init__(self, spec: EncoderSpec, dtype: DTypeLike) -> None:
        self.spec = spec
        self.dtype = np.dtype(dtype)
        abstract = nnx.eval_shape(lambda: Encoder(spec, dtype))
        self._graphdef, state = nnx.split(abstract)
        self.parameters: tuple[Parameter, ...] = parameters_of(state)
        self._treedef = jax.tree_util.tree_structure(state)

    @property
    def num_parameters(self) -> int:
        """Numbers in all weights."""
        return sum(parameter.num_elements for parameter in self.parameters)

    def hidden(
        self, leaves: Leaves, token_ids: jax.Array, type_ids: jax.Array, visible: jax.Array
    ) -> jax.Array:
        """Hidden states of a batch of rows; called while the caller's program is traced.

        Args:
            leaves: All weights, aligned with `parameters`.
            token_ids: [B, T] int32.
            type_ids: [B, T] int32, 1 in the second text of a pair where the model tells them apart.
            visible: [B, T] bool, false for padding.

        Returns:
            [B, T, hidden] float32, after the last layer.
        """
        return self._merged(leaves)(token_ids, type_ids, visible)  # type: ignore[no-any-return]

    def logits(self, leaves: Leaves, pooled: jax.Array) -> jax.Array:
        """[B, hidden] float32 to [B, labels] float32; only where the spec has a head."""
        return self._merged(leaves).head(pooled)  # type: ignore[no-any-return]

    def sources(
        self, family: EncoderFamily, names: Collection[str]
    ) -> tuple[tuple[Source, ...], ...]:
        """For each leaf the tensors of a checkpoint that fill it, joined along their first axis.

        Args:
            family: Of the encoder.
            names: Of all tensors in the checkpoint.
        """
        by_path = family.tensors(self.spec, family.prefix_in(names), names)
        return tuple(by_path[parameter.path] for parameter in self.parameters)

    def _merged(self, leaves: Leaves) -> Any:
        return nnx.merge(self._graphdef, jax.tree_util.tree_unflatten(self._treedef, leaves))


def is_ignorable(name: str) -> bool:
    """Whether a tensor that no weight asks for is one that such checkpoints rightly hold."""
    return (
        "pooler." in name
        or name.endswith(("position_ids", "inv_freq"))
        or name.startswith(("cls.", "lm_head.", "vocab_", "decoder.", "head."))
    )
