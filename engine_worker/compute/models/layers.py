"""The blocks of a decoder as flax.nnx modules: embedding, norms, attention, MLP, head.

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
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.models.quantized import QuantizedMatrix, quantized_matmul
from engine_worker.compute.models.rope import Rotation
from engine_worker.compute.models.spec import (
    Activation,
    AttentionSpec,
    DecoderSpec,
    MlpSpec,
    NormKind,
    NormPlacement,
    QkNorm,
)

Attend = Callable[[int, jax.Array, jax.Array | None, jax.Array | None, jax.Array | None], jax.Array]
"""`attend(layer, q [T, H, D], k [T, KH, D], v [T, KH, D], sinks [H]) -> [T, H, D]`, in float32.

Stores k and v of these tokens and attends causally to everything stored, with the window, scale
and softcap of `spec.layers[layer].attention`, and its sinks if it has any. k is already rotated; q
is not yet scaled. A layer that shares another one's keys and values has None for both.
"""

ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    Activation.SILU: jax.nn.silu,
    Activation.GELU_TANH: partial(jax.nn.gelu, approximate=True),
    Activation.GELU: partial(jax.nn.gelu, approximate=False),
    Activation.QUICK_GELU: lambda x: x * jax.nn.sigmoid(1.702 * x),
    Activation.RELU: jax.nn.relu,
    Activation.RELU_SQUARED: lambda x: jnp.square(jax.nn.relu(x)),
}

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
        weight: Matrix | PackedMatrix = self.weight.get_value()
        if isinstance(weight, PackedMatrix):
            y = weight.product(x.astype(jnp.float32))
        else:
            y = multiply(x, weight)
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32)
        return y


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """A matrix of a `Linear` that only its backend can read.

    Attributes:
        product: `x W^T` of [T, in] float32: [T, out] float32.
    """

    product: Callable[[jax.Array], jax.Array]


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


def multiply(x: jax.Array, weight: Matrix) -> jax.Array:
    """`matmul` with the matrix on the side where it is faster for so many rows."""
    if isinstance(weight, jax.Array) and _is_faster_turned(x.shape[0], weight.dtype):
        return _turned_matmul(x, weight)
    return matmul(x, weight)


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


def rms_normed(x: jax.Array, eps: float) -> jax.Array:
    """Vectors [..., size] float32, each divided by the root of the mean of its squares."""
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


class RmsNorm(Block):
    """Root-mean-square norm over the last axis, in float32 (arXiv 1910.07467).

    Multiplies by w, or by 1 + w where the checkpoint holds what is added to one.
    """

    def __init__(
        self,
        size: int | tuple[int, ...],
        eps: float,
        dtype: DTypeLike,
        *,
        is_plus_one: bool = False,
    ) -> None:
        self.weight = nnx.Param(jnp.ones(size, dtype))
        self.eps = eps
        self.is_plus_one = is_plus_one

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., size] to float32 of the same shape."""
        weight: jax.Array = self.weight[...].astype(jnp.float32)
        if self.is_plus_one:
            weight = 1.0 + weight
        return rms_normed(x.astype(jnp.float32), self.eps) * weight


class LayerNorm(Block):
    """Norm by mean and deviation over the last axis, in float32 (arXiv 1607.06450)."""

    def __init__(
        self, size: int | tuple[int, ...], eps: float, dtype: DTypeLike, *, bias: bool
    ) -> None:
        self.weight = nnx.Param(jnp.ones(size, dtype))
        self.bias = nnx.Param(jnp.zeros(size, dtype)) if bias else None
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., size] to float32 of the same shape."""
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        y: jax.Array = x * lax.rsqrt(variance + self.eps) * self.weight[...].astype(jnp.float32)
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32)
        return y


Norm = RmsNorm | LayerNorm


def norm_of(spec: DecoderSpec, size: int | tuple[int, ...], dtype: DTypeLike) -> Norm:
    """A norm of a decoder's kind over vectors of `size`, or over the last of some axes."""
    if spec.norm_kind is NormKind.LAYER:
        return LayerNorm(size, spec.norm_eps, dtype, bias=spec.norm_bias)
    is_plus_one = spec.norm_kind is NormKind.RMS_PLUS_ONE
    return RmsNorm(size, spec.norm_eps, dtype, is_plus_one=is_plus_one)


class ResidualBlock(Block):
    """What every sublayer of a layer has: the norms around it, and the weight of what it adds.

    In a parallel layer the attention block has the norm that the MLP reads, too.
    """

    def __init__(self, spec: DecoderSpec, dtype: DTypeLike, *, is_first: bool) -> None:
        placement, hidden = spec.norm_placement, spec.hidden_size
        has_norm = placement is not NormPlacement.POST and (
            is_first or placement is not NormPlacement.PARALLEL
        )
        has_post_norm = placement in {NormPlacement.POST, NormPlacement.SANDWICH}
        self.norm = norm_of(spec, hidden, dtype) if has_norm else None
        self.post_norm = norm_of(spec, hidden, dtype) if has_post_norm else None
        self.multiplier = spec.residual_multiplier

    def normed(self, x: jax.Array) -> jax.Array:
        """What the sublayer reads of a residual [T, hidden]."""
        return x if self.norm is None else self.norm(x)

    def added(self, y: jax.Array) -> jax.Array:
        """What the residual gets of the sublayer's result y [T, hidden]."""
        if self.post_norm is not None:
            y = self.post_norm(y)
        return y if self.multiplier == 1.0 else y * self.multiplier


class Embedding(Block):
    """Vectors of tokens, or of positions; a tied head has the tokens' as its matrix, too."""

    def __init__(
        self, num_rows: int, hidden_size: int, dtype: DTypeLike, multiplier: float = 1.0
    ) -> None:
        self.weight = nnx.Param(jnp.zeros((num_rows, hidden_size), dtype))
        self.multiplier = multiplier

    def __call__(self, indices: jax.Array) -> jax.Array:
        """Looks up [T] int32 rows (in range; clamped otherwise): [T, hidden] float32."""
        weight = matrix_of(self.weight)
        if isinstance(weight, QuantizedMatrix):
            rows = weight.rows(indices)
        else:
            rows = weight.at[indices].get(mode="clip").astype(jnp.float32)
        return rows if self.multiplier == 1.0 else rows * self.multiplier


class AttentionBlock(ResidualBlock):
    """Norm, fused q|k|v projection, optional q/k norm, rotation, attention, output projection.

    The gate of the output, where there is one, is the last part of the fused projection.
    """

    def __init__(self, spec: DecoderSpec, attention: AttentionSpec, dtype: DTypeLike) -> None:
        super().__init__(spec, dtype, is_first=True)
        hidden = spec.hidden_size
        width = sum(attention.projected_sizes)
        if attention.output_gate:
            width += attention.q_size
        self.spec = attention
        self.eps = spec.norm_eps
        self.qkv = Linear(width, hidden, dtype, bias=attention.qkv_bias)
        q_shape, k_shape = _qk_norm_shapes(attention)
        self.q_norm = norm_of(spec, q_shape, dtype) if q_shape else None
        self.k_norm = norm_of(spec, k_shape, dtype) if k_shape else None
        self.sinks = (
            nnx.Param(jnp.zeros((attention.num_heads,), dtype)) if attention.sinks else None
        )
        self.o = Linear(hidden, attention.q_size, dtype, bias=attention.o_bias)

    def __call__(
        self, layer: int, x: jax.Array, rotation: Rotation | None, attend: Attend
    ) -> jax.Array:
        """What attention adds to the residual.

        Args:
            layer: Index of the layer, handed to `attend`.
            x: [T, hidden] float32 residual.
            rotation: Of these tokens; None for a layer without positions.
            attend: See `Attend`.

        Returns:
            [T, hidden] float32.
        """
        spec, num_tokens = self.spec, x.shape[0]
        q_size, k_size, v_size = spec.projected_sizes
        q, k, v, gate = jnp.split(
            self.qkv(self.normed(x)), [q_size, q_size + k_size, q_size + k_size + v_size], axis=-1
        )
        q = self._heads(q, self.q_norm, spec.num_heads)
        q = q if rotation is None else rotation.queries(q)
        sinks = None if self.sinks is None else self.sinks[...].astype(jnp.float32)
        if spec.shared_from is not None:
            attended = attend(layer, q, None, None, sinks)
        else:
            v = k if spec.is_value_of_key else v
            k = self._heads(k, self.k_norm, spec.num_kv_heads)
            k = k if rotation is None else rotation.keys(k)
            v = v.reshape(num_tokens, spec.num_kv_heads, spec.head_dim)
            v = rms_normed(v, self.eps) if spec.value_norm else v
            attended = attend(layer, q, k, v, sinks)
        attended = attended.reshape(num_tokens, spec.q_size)
        if spec.output_gate:
            attended *= jax.nn.sigmoid(gate)
        return self.added(self.o(attended))

    def _heads(self, x: jax.Array, norm: Norm | None, num_heads: int) -> jax.Array:
        """Queries or keys [T, heads * D] as normalised heads [T, heads, D]."""
        shape, kind = (x.shape[0], num_heads, self.spec.head_dim), self.spec.qk_norm
        if kind is QkNorm.WEIGHTLESS:
            return rms_normed(x.reshape(shape), self.eps)
        if norm is None:
            return x.reshape(shape)
        if kind is QkNorm.FULL_WIDTH:
            return norm(x).reshape(shape)
        return norm(x.reshape(shape))


_Shape = tuple[int, ...]


def _qk_norm_shapes(attention: AttentionSpec) -> tuple[_Shape, _Shape]:
    """Of the weights of the norms of queries and keys; empty where there are none."""
    width = attention.head_dim
    shapes: tuple[_Shape, _Shape]
    match attention.qk_norm:
        case QkNorm.PER_HEAD:
            shapes = (width,), (width,)
        case QkNorm.FULL_WIDTH:
            shapes = (attention.q_size,), (attention.kv_size,)
        case QkNorm.EACH_HEAD:
            shapes = (attention.num_heads, width), (attention.num_kv_heads, width)
        case _:
            shapes = (), ()
    return shapes if attention.shared_from is None else (shapes[0], ())


class MlpBlock(ResidualBlock):
    """Norm and MLP, gated (fused gate|up projection, arXiv 2002.05202) or plain."""

    def __init__(self, spec: DecoderSpec, mlp: MlpSpec, dtype: DTypeLike) -> None:
        super().__init__(spec, dtype, is_first=False)
        hidden, inner = spec.hidden_size, mlp.intermediate_size
        self.spec = mlp
        width = 2 * inner if mlp.gated else inner
        self.gate_up = Linear(width, hidden, dtype, bias=mlp.bias)
        self.down = Linear(hidden, inner, dtype, bias=mlp.bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """What the MLP adds to the residual x [T, hidden] float32: [T, hidden] float32.

        In a parallel layer x is what the layer's one norm made of the residual.
        """
        activate, inner = ACTIVATIONS[self.spec.activation], self.gate_up(self.normed(x))
        if not self.spec.gated:
            return self.added(self.down(activate(inner)))
        gate, up = jnp.split(inner, 2, axis=-1)
        if self.spec.gate_cutoff is not None:
            gate = _above_cutoff(gate, self.spec.gate_cutoff)
        if self.spec.gate_multiplier != 1.0:
            gate *= self.spec.gate_multiplier
        return self.added(self.down(activate(gate) * up))


def _above_cutoff(x: jax.Array, cutoff: float) -> jax.Array:
    """What of x [T, inner] is more than `cutoff` standard deviations above each row's mean."""
    mean, deviation = (f(x, axis=-1, keepdims=True) for f in (jnp.mean, jnp.std))
    return jax.nn.relu(x - (mean + cutoff * deviation))


class Head(Block):
    """The output head when it has a matrix of its own."""

    def __init__(self, spec: DecoderSpec, dtype: DTypeLike) -> None:
        self.weight = nnx.Param(jnp.zeros((spec.vocab_size, spec.hidden_size), dtype))
