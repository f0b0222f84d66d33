"""The encoder of the BERT family: declared with flax.nnx, split at load, then a pure function."""

from collections.abc import Callable
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
from engine_worker.compute.models.tensors import Source
from engine_worker.embedding.encoder_spec import EncoderSpec

_ACTIVATIONS: Final[dict[str, Callable[[jax.Array], jax.Array]]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
_MASKED_SCORE: Final = -1e30
"""Finite, so that a row of padding gives no NaN."""


# Accelerators otherwise round float32 operands (TF32).
_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class LayerNorm(Block):
    """Layer norm over the last axis in float32 (arXiv 1607.06450)."""

    def __init__(self, size: int, eps: float, dtype: DTypeLike) -> None:
        self.weight = nnx.Param(jnp.ones((size,), dtype))
        self.bias = nnx.Param(jnp.zeros((size,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., size] float32 to the same shape."""
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
        weight: jax.Array = self.weight[...]
        bias: jax.Array = self.bias[...]
        scaled = (x - mean) * lax.rsqrt(variance + self.eps) * weight.astype(jnp.float32)
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
    """Attention to all tokens of the row, then an MLP, each followed by a norm."""

    def __init__(self, spec: EncoderSpec, dtype: DTypeLike) -> None:
        hidden = spec.hidden_size
        self.num_heads = spec.num_heads
        self.activation = spec.activation
        self.qkv = Linear(3 * hidden, hidden, dtype, bias=True)
        self.o = Linear(hidden, hidden, dtype, bias=True)
        self.attention_norm = LayerNorm(hidden, spec.norm_eps, dtype)
        self.up = Linear(spec.intermediate_size, hidden, dtype, bias=True)
        self.down = Linear(hidden, spec.intermediate_size, dtype, bias=True)
        self.norm = LayerNorm(hidden, spec.norm_eps, dtype)

    def __call__(self, x: jax.Array, visible: jax.Array) -> jax.Array:
        """One layer.

        Args:
            x: [B, T, hidden] float32.
            visible: [B, T] bool, false for padding.

        Returns:
            [B, T, hidden] float32.
        """
        num_rows, num_tokens, hidden = x.shape
        flat = x.reshape(-1, hidden)
        qkv = self.qkv(flat).reshape(num_rows, num_tokens, 3, self.num_heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = _einsum("bthd,bshd->bhts", q, k) * (q.shape[-1] ** -0.5)
        scores = jnp.where(visible[:, None, None, :], scores, _MASKED_SCORE)
        mixed = _einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-1), v)
        flat = self.attention_norm(flat + self.o(mixed.reshape(-1, hidden)))
        inner = _ACTIVATIONS[self.activation](self.up(flat))
        return self.norm(flat + self.down(inner)).reshape(x.shape)


class Encoder(Block):
    """Embeddings and layers."""

    def __init__(self, spec: EncoderSpec, dtype: DTypeLike) -> None:
        hidden = spec.hidden_size
        self.first_position = spec.first_position
        self.words = Table(spec.vocab_size, hidden, dtype)
        self.positions = Table(spec.num_positions, hidden, dtype)
        self.types = Table(spec.num_types, hidden, dtype)
        self.norm = LayerNorm(hidden, spec.norm_eps, dtype)
        self.layers = nnx.List([EncoderLayer(spec, dtype) for _ in range(spec.num_layers)])

    def __call__(self, token_ids: jax.Array, visible: jax.Array) -> jax.Array:
        """Hidden states; see `EncoderGraph.hidden`."""
        positions = jnp.arange(token_ids.shape[1], dtype=jnp.int32) + self.first_position
        x = self.words(token_ids) + self.positions(positions) + self.types(jnp.zeros(1, jnp.int32))
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, visible)
        return x


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

    def hidden(self, leaves: Leaves, token_ids: jax.Array, visible: jax.Array) -> jax.Array:
        """Hidden states of a batch of rows; called while the caller's program is traced.

        Args:
            leaves: All weights, aligned with `parameters`.
            token_ids: [B, T] int32.
            visible: [B, T] bool, false for padding.

        Returns:
            [B, T, hidden] float32, after the last layer.
        """
        model: Any = nnx.merge(self._graphdef, jax.tree_util.tree_unflatten(self._treedef, leaves))
        return model(token_ids, visible)  # type: ignore[no-any-return]

    def sources(self, prefix: str) -> tuple[tuple[Source, ...], ...]:
        """For each leaf the tensors of a checkpoint that fill it, joined along their first axis.

        Args:
            prefix: Before every name: empty, `bert.` or `roberta.`.
        """
        by_path = _sources(self.spec, prefix)
        return tuple(by_path[parameter.path] for parameter in self.parameters)


def is_ignorable(name: str) -> bool:
    """Whether a tensor that no weight asks for is one that such checkpoints rightly hold."""
    return (
        "pooler." in name or name.endswith("position_ids") or name.startswith(("cls.", "lm_head."))
    )


def _sources(spec: EncoderSpec, prefix: str) -> dict[str, tuple[Source, ...]]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    head = f"{prefix}embeddings."
    sources = {
        "words.weight": (Source(f"{head}word_embeddings.weight", (spec.vocab_size, hidden)),),
        "positions.weight": (
            Source(f"{head}position_embeddings.weight", (spec.num_positions, hidden)),
        ),
        "types.weight": (Source(f"{head}token_type_embeddings.weight", (spec.num_types, hidden)),),
        **_pair("norm", f"{head}LayerNorm", (hidden,)),
    }
    for index in range(spec.num_layers):
        ours, theirs = f"layers.{index}.", f"{prefix}encoder.layer.{index}."
        attention = f"{theirs}attention."
        parts = [f"{attention}self.{name}" for name in ("query", "key", "value")]
        sources |= {
            f"{ours}qkv.weight": tuple(Source(f"{p}.weight", (hidden, hidden)) for p in parts),
            f"{ours}qkv.bias": tuple(Source(f"{p}.bias", (hidden,)) for p in parts),
            **_pair(f"{ours}o", f"{attention}output.dense", (hidden, hidden)),
            **_pair(f"{ours}attention_norm", f"{attention}output.LayerNorm", (hidden,)),
            **_pair(f"{ours}up", f"{theirs}intermediate.dense", (inner, hidden)),
            **_pair(f"{ours}down", f"{theirs}output.dense", (hidden, inner)),
            **_pair(f"{ours}norm", f"{theirs}output.LayerNorm", (hidden,)),
        }
    return sources


def _pair(ours: str, theirs: str, shape: tuple[int, ...]) -> dict[str, tuple[Source, ...]]:
    """A weight and its bias."""
    return {
        f"{ours}.weight": (Source(f"{theirs}.weight", shape),),
        f"{ours}.bias": (Source(f"{theirs}.bias", shape[:1]),),
    }
