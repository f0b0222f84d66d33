"""An encoder of any family: declared with flax.nnx, split at load, then a pure function."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.models.decoder import Leaves, Parameter, parameters_of
from engine_worker.compute.models.layers import Block, Linear
from engine_worker.compute.models.rope import RopeTable, inverse_frequencies, rotate
from engine_worker.compute.models.spec import RopeSpec
from engine_worker.compute.models.tensors import Source
from engine_worker.embedding.attention import attend, distance_biases, relative_buckets
from engine_worker.embedding.encoder_spec import EncoderLayerSpec, EncoderSpec, HeadSpec
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


class EncoderLayer(Block):
    """Attention within the row, then an MLP, each round the residual, with its norm."""

    def __init__(self, spec: EncoderSpec, layer: EncoderLayerSpec, dtype: DTypeLike) -> None:
        hidden, inner = spec.hidden_size, spec.intermediate_size
        norm = partial(LayerNorm, hidden, spec.norm_eps, dtype, bias=spec.norm_bias)
        self.num_heads = spec.num_heads
        self.activation = spec.activation
        self.window = layer.window
        self.is_pre_norm, self.is_gated = spec.is_pre_norm, spec.is_gated
        self.qkv = Linear(3 * hidden, hidden, dtype, bias=spec.qkv_bias)
        self.o = Linear(hidden, hidden, dtype, bias=spec.o_bias)
        self.attention_norm = norm() if layer.has_attention_norm else None
        self.up = Linear(inner * (2 if spec.is_gated else 1), hidden, dtype, bias=spec.up_bias)
        self.down = Linear(hidden, inner, dtype, bias=spec.down_bias)
        self.mlp_norm = norm()

    def __call__(
        self,
        x: jax.Array,
        visible: jax.Array,
        table: RopeTable | None,
        relative: jax.Array | None,
    ) -> jax.Array:
        """One layer.

        Args:
            x: [B, T, hidden] float32.
            visible: [B, T] bool, false for padding.
            table: Cosine and sine of the positions 0 to T - 1; None for no rotation.
            relative: See `attend`.

        Returns:
            [B, T, hidden] float32.
        """
        shape, flat = x.shape, x.reshape(-1, x.shape[-1])
        attention = partial(
            self._attention, shape=shape, visible=visible, table=table, relative=relative
        )
        if self.is_pre_norm:
            normed = flat if self.attention_norm is None else self.attention_norm(flat)
            flat = flat + attention(normed)
            return (flat + self._mlp(self.mlp_norm(flat))).reshape(shape)
        assert self.attention_norm is not None, "only pre-norm layers may lack one"
        flat = self.attention_norm(flat + attention(flat))
        return self.mlp_norm(flat + self._mlp(flat)).reshape(shape)

    def _attention(
        self,
        x: jax.Array,
        shape: tuple[int, ...],
        visible: jax.Array,
        table: RopeTable | None,
        relative: jax.Array | None,
    ) -> jax.Array:
        num_rows, num_tokens, hidden = shape
        qkv = self.qkv(x).reshape(num_rows, num_tokens, 3, self.num_heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        mixed = attend(q, k, v, visible, window=self.window, relative=relative)
        return self.o(mixed.reshape(-1, hidden))

    def _mlp(self, x: jax.Array) -> jax.Array:
        inner = self.up(x)
        activate = _ACTIVATIONS[self.activation]
        if not self.is_gated:
            return self.down(activate(inner))
        gate, up = jnp.split(inner, 2, axis=-1)
        return self.down(activate(gate) * up)


class ClassifierHead(Block):
    """From one vector a row to the logits of the labels."""

    def __init__(self, spec: EncoderSpec, head: HeadSpec, dtype: DTypeLike) -> None:
        hidden = spec.hidden_size
        self.activation = head.activation
        self.dense = Linear(hidden, hidden, dtype, bias=head.dense_bias)
        self.norm = (
            LayerNorm(hidden, spec.norm_eps, dtype, bias=spec.norm_bias) if head.has_norm else None
        )
        self.out = Linear(head.num_labels, hidden, dtype, bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, hidden] float32 to [B, labels] float32."""
        x = _ACTIVATIONS[self.activation](self.dense(x))
        return self.out(x if self.norm is None else self.norm(x))


class Encoder(Block):
    """Embeddings, layers and perhaps a classifier."""

    def __init__(self, spec: EncoderSpec, dtype: DTypeLike) -> None:
        hidden = spec.hidden_size
        norm = partial(LayerNorm, hidden, spec.norm_eps, dtype, bias=spec.norm_bias)
        self.spec = spec
        self.words = Table(spec.vocab_size, hidden, dtype)
        self.positions = _table(spec.num_positions, hidden, dtype)
        self.types = _table(spec.num_types, hidden, dtype)
        self.relative = _table(spec.num_relative_buckets, spec.num_heads, dtype)
        self.norm = norm()
        self.layers = nnx.List([EncoderLayer(spec, layer, dtype) for layer in spec.layers])
        self.final_norm = norm() if spec.is_pre_norm else None
        self.head = None if spec.head is None else ClassifierHead(spec, spec.head, dtype)

    def __call__(self, token_ids: jax.Array, type_ids: jax.Array, visible: jax.Array) -> jax.Array:
        """Hidden states; see `EncoderGraph.hidden`."""
        num_tokens = token_ids.shape[1]
        positions = jnp.arange(num_tokens, dtype=jnp.int32)
        x = self.words(token_ids)
        if self.positions is not None:
            x += self.positions(positions + self.spec.first_position)
        if self.types is not None:
            x += self.types(type_ids)
        x = self.norm(x)
        relative = None
        if self.relative is not None:
            buckets = relative_buckets(num_tokens, self.spec.num_relative_buckets)
            relative = self.relative(jnp.asarray(buckets))
        if self.spec.has_distance_bias:
            relative = jnp.asarray(distance_biases(num_tokens, self.spec.num_heads))
        tables = {
            rope: _rope_table(rope, self.spec.head_dim, num_tokens)
            for rope in {layer.rope for layer in self.spec.layers}
            if rope is not None
        }
        for layer, spec in zip(self.layers, self.spec.layers, strict=True):
            table = None if spec.rope is None else tables[spec.rope]
            x = layer(x, visible, table, relative)
        return x if self.final_norm is None else self.final_norm(x)


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
