"""The blocks of a decoder as flax.nnx modules: embedding, attention block, MLP block, head.

Each block is one pure function of its weights and its arguments, in plain XLA: the reference on
every backend, and the border behind which a native kernel can replace it.

Types: matrices are [out, in] as in the checkpoint, in the weights' dtype. Activations between the
blocks are float32 and are cast to the weights' dtype just before a product, whose result is asked
for in float32: XLA:CPU then multiplies bfloat16 natively, while a mixed product (or one that
returns bfloat16) converts the whole matrix to float32 on every call. With bfloat16 weights a
product of a single row does so too, so callers hand in at least two rows.

XLA:CPU rearranges the right operand of a product on every call, which for few rows takes as long
as to multiply. There the matrix stands on the left, unless its rows are so many (the head's) that
turning the result round costs more.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.models.quantized import QuantizedMatrix, quantized_matmul
from engine_worker.compute.models.rope import RopeTable, rotate
from engine_worker.compute.models.spec import AttentionSpec, DecoderSpec, LayerSpec, MlpSpec, QkNorm

Attend = Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array]
"""`attend(layer, q [T, H, D], k [T, KH, D], v [T, KH, D]) -> [T, H, D]`, all float32 in.

Stores k and v of these tokens and attends causally to everything stored, with the window, scale
and softcap of `spec.layers[layer].attention`. k is already rotated; q is not yet scaled.
"""

_MAX_TURNED_ROWS = 64
_MIN_TURNED_BFLOAT16_ROWS = 2
"""Measured on two cores with AVX-512 BF16; see `_is_faster_turned`."""


class Block(nnx.Module):  # type: ignore[misc]  # flax is untyped here
    """The base of every module below: the one place that meets flax's untyped `Module`."""


class Linear(Block):
    """`y = x W^T + b` with W [out, in]."""

    def __init__(self, out_size: int, in_size: int, dtype: DTypeLike, *, bias: bool) -> None:
        self.weight = nnx.Param(jnp.zeros((out_size, in_size), dtype))
        self.bias = nnx.Param(jnp.zeros((out_size,), dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiplies.

        Args:
            x: [T, in] of any float type.

        Returns:
            [T, out] float32.
        """
        weight = matrix_of(self.weight)
        if isinstance(weight, jax.Array) and _is_faster_turned(x.shape[0], weight.dtype):
            y = _turned_matmul(x, weight)
        else:
            y = matmul(x, weight)
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32)
        return y


Matrix = jax.Array | QuantizedMatrix
"""A matrix [out, in] of a block, as its backend packs it."""


def matrix_of(parameter: Any) -> Matrix:
    """The matrix in a module's parameter."""
    value: Matrix = parameter.get_value()
    return value


def matmul(x: jax.Array, weight: Matrix) -> jax.Array:
    """`x W^T`, operands in the weight's dtype, result in float32.

    Args:
        x: [T, in] of any float type.
        weight: [out, in].

    Returns:
        [T, out] float32.
    """
    if isinstance(weight, QuantizedMatrix):
        return quantized_matmul(x, weight)
    return _dot(x.astype(weight.dtype), weight)


def _turned_matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`matmul` as `(W x^T)^T`, which `_is_faster_turned` chooses."""
    # Without the barrier the compiler would turn it round again.
    product: jax.Array = lax.optimization_barrier(  # type: ignore[no-untyped-call]
        _dot(weight, x.astype(weight.dtype))
    )
    return product.T


def _is_faster_turned(num_rows: int, dtype: DTypeLike) -> bool:
    """Whether so many rows are multiplied faster with the matrix on the left.

    XLA:CPU rearranges the right operand in memory on every call, and multiplies by the left one as
    it is.
    """
    if jax.default_backend() != "cpu":
        return False
    if dtype == jnp.float32:
        return num_rows <= _MAX_TURNED_ROWS
    return _MIN_TURNED_BFLOAT16_ROWS <= num_rows <= _MAX_TURNED_ROWS


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """The product of [M, K] and [N, K], both of one type: [M, N] float32."""
    # Accelerators otherwise round float32 operands (TF32), which the float32 mode must not.
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return lax.dot_general(
        left,
        right,
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


class RmsNorm(Block):
    """Root-mean-square norm over the last axis, in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float, dtype: DTypeLike) -> None:
        self.weight = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., size] to float32 of the same shape."""
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        weight: jax.Array = self.weight[...]
        return x * lax.rsqrt(mean_square + self.eps) * weight.astype(jnp.float32)


class Embedding(Block):
    """The token embedding, which is also the head's matrix when the head is tied."""

    def __init__(self, spec: DecoderSpec, dtype: DTypeLike) -> None:
        self.weight = nnx.Param(jnp.zeros((spec.vocab_size, spec.hidden_size), dtype))

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """Looks up [T] int32 ids (in range; clamped otherwise): [T, hidden] float32."""
        weight = matrix_of(self.weight)
        if isinstance(weight, QuantizedMatrix):
            return weight.rows(token_ids)
        rows: jax.Array = weight.at[token_ids].get(mode="clip")
        return rows.astype(jnp.float32)


class AttentionBlock(Block):
    """Norm, fused q|k|v projection, optional q/k norm, rotation, attention, output projection."""

    def __init__(self, spec: DecoderSpec, attention: AttentionSpec, dtype: DTypeLike) -> None:
        hidden, eps = spec.hidden_size, spec.norm_eps
        width = attention.q_size + 2 * attention.kv_size
        per_head = attention.qk_norm is QkNorm.PER_HEAD
        self.spec = attention
        self.norm = RmsNorm(hidden, eps, dtype)
        self.qkv = Linear(width, hidden, dtype, bias=attention.qkv_bias)
        self.q_norm = RmsNorm(attention.head_dim, eps, dtype) if per_head else None
        self.k_norm = RmsNorm(attention.head_dim, eps, dtype) if per_head else None
        self.o = Linear(hidden, attention.q_size, dtype, bias=attention.o_bias)

    def __call__(
        self, layer: int, x: jax.Array, table: RopeTable | None, attend: Attend
    ) -> jax.Array:
        """What attention adds to the residual.

        Args:
            layer: Index of the layer, handed to `attend`.
            x: [T, hidden] float32 residual.
            table: Cosine and sine for these tokens; None for a layer without positions.
            attend: See `Attend`.

        Returns:
            [T, hidden] float32.
        """
        spec, num_tokens = self.spec, x.shape[0]
        qkv = self.qkv(self.norm(x))
        q, k, v = jnp.split(qkv, [spec.q_size, spec.q_size + spec.kv_size], axis=-1)
        q = q.reshape(num_tokens, spec.num_heads, spec.head_dim)
        k = k.reshape(num_tokens, spec.num_kv_heads, spec.head_dim)
        v = v.reshape(num_tokens, spec.num_kv_heads, spec.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        return self.o(attend(layer, q, k, v).reshape(num_tokens, spec.q_size))


class MlpBlock(Block):
    """Norm and gated MLP with fused gate|up projection (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, spec: DecoderSpec, mlp: MlpSpec, dtype: DTypeLike) -> None:
        hidden, inner = spec.hidden_size, mlp.intermediate_size
        self.norm = RmsNorm(hidden, spec.norm_eps, dtype)
        self.gate_up = Linear(2 * inner, hidden, dtype, bias=mlp.bias)
        self.down = Linear(hidden, inner, dtype, bias=mlp.bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """What the MLP adds to the residual x [T, hidden] float32: [T, hidden] float32."""
        gate, up = jnp.split(self.gate_up(self.norm(x)), 2, axis=-1)
        return self.down(jax.nn.silu(gate) * up)


class DecoderLayer(Block):
    """One layer: attention block and MLP block, each round the residual."""

    def __init__(self, spec: DecoderSpec, layer: LayerSpec, dtype: DTypeLike) -> None:
        assert isinstance(layer.mlp, MlpSpec), "check_supported refuses experts"
        self.attention = AttentionBlock(spec, layer.attention, dtype)
        self.mlp = MlpBlock(spec, layer.mlp, dtype)

    def __call__(
        self, layer: int, x: jax.Array, table: RopeTable | None, attend: Attend
    ) -> jax.Array:
        """The residual [T, hidden] float32 after this layer."""
        x = x + self.attention(layer, x, table, attend)
        return x + self.mlp(x)


class Head(Block):
    """The output head when it has a matrix of its own."""

    def __init__(self, spec: DecoderSpec, dtype: DTypeLike) -> None:
        self.weight = nnx.Param(jnp.zeros((spec.vocab_size, spec.hidden_size), dtype))
