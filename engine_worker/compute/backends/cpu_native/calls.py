"""The native kernels as pure jax functions.

    x = embedding(token_ids, table, spec.vocab_size, spec.hidden_size, "bfloat16")
    x, pages = run_blocks(x, step, ropes, [Attention(...), Mlp(...), ...])
    y = experts(x, chosen, weights, Mlp(...))
    y, pages = attend_latents(queries, keys, latents, step, pages, scale=0.1, cache_type="bfloat16")
    y, states = recurrent(mixed, before, after, (taps, bias), states, RecurrentHeads(...))
    logits = head(hidden, table, spec.vocab_size, "bfloat16", wanted)

Weights and cache are arguments, and nothing else decides what is computed. `run_blocks` takes any
row of neighbouring blocks, up to a whole decoder, and is one call of the library: the residual and
the pages are updated in place where the caller's program donates them. `handlers.cc` checks every
shape, alias and block id, so a wrong call is an error of the program.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import jax
import jax.ffi
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import DTypeLike

from engine_worker.compute.backends.cache_type import INT8, SCALE_BYTES
from engine_worker.compute.backends.cpu_native.packing import WEIGHT_TYPES, block_type
from engine_worker.compute.models.integer_blocks import SCALE_DTYPES, BlockFormat
from engine_worker.compute.models.spec import (
    Activation,
    DecoderSpec,
    LayerSpec,
    MlpSpec,
    NormKind,
    NormPlacement,
    QkNorm,
    QueryScale,
)

CACHE_TYPES: Final = ("float32", "bfloat16", "int8")
"""In the order of `CacheType` in `calls.h`."""
MAX_HEAD_DIM: Final = 512
MAX_KEY_DIM: Final = 1024
"""Of a latent and what is rotated beside it."""
MAX_LATENT_HEADS: Final = 256
MAX_EXPERTS: Final = 65536
MAX_TAPS: Final = 16
"""Of a convolution: `kMaxTaps` of `calls.h`."""
GOES_ON: Final = -2
"""Instead of a state: that of the token before, or none that is kept; `kGoesOn` of `calls.h`."""
_CONFIG_VERSION: Final = 6
_NORMS: Final = ("none", "rms", "layer")
QK_NORMS: Final = (
    QkNorm.NONE,
    QkNorm.PER_HEAD,
    QkNorm.FULL_WIDTH,
    QkNorm.WEIGHTLESS,
    QkNorm.EACH_HEAD,
)
"""In the order of `QkNorm` in `calls.h`; of these the last is a LayerNorm, and the others RMS."""
_ACTIVATIONS: Final = (
    Activation.SILU,
    Activation.GELU_TANH,
    Activation.GELU,
    Activation.RELU,
    Activation.QUICK_GELU,
    Activation.RELU_SQUARED,
)
"""In the order of `Activation` in `calls.h`."""
_FORMAT_FIELDS: Final = 6
_BLOCK_FIELDS: Final = 23 + 2 * _FORMAT_FIELDS
_BLOCK_SCALARS: Final = 5
_NO_SCALE: Final = QueryScale(0.0, 1)

Rope = tuple[jax.Array, jax.Array]
"""Cosine and sine, each [T, rotated pairs] float32: pair i is numbers i and i + pairs of a head, or
2i and 2i + 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The tokens of a call, in any order.

    Attributes:
        positions: [T] int32 in the token's own sequence; -1 is padding, which is skipped.
        rows: [T] int32, the token's row of each group's tables.
        block_tables: [G * R, MB] int32, the tables of one group of layers after the other; those
            of a row's blocks that its tokens need, in order.
        num_groups: G, 1 or 2.
    """

    positions: jax.Array
    rows: jax.Array
    block_tables: jax.Array
    num_groups: int = 1


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """What an attention block computes; see `AttentionSpec` for most of it.

    Attributes:
        window, chunk: 0 is none.
        norm: Before the block: `none`, `rms` or `layer`.
        softcap: 0 is none.
        multiplier: Of what the block adds to the residual.
        qkv_blocks: How the matrix is packed where that isn't `weight_type`.
        o_blocks: Likewise.
        has_post_norm: An RMS norm stands between the output projection and the residual.
        is_interleaved: Of the rope: pairs are neighbours.
        is_reader: The pages are another layer's, which stored the step's tokens there: `qkv` and
            the vectors have neither keys nor values.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    eps: float
    weight_type: str = "bfloat16"
    cache_type: str = "bfloat16"
    group_size: int = 64
    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    multiplier: float = 1.0
    norm: str = "rms"
    query_scale: QueryScale | None = None
    has_output_gate: bool = False
    is_interleaved: bool = False
    is_value_of_key: bool = False
    has_value_norm: bool = False
    is_reader: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    has_norm_bias: bool = False
    has_qkv_bias: bool = False
    has_o_bias: bool = False
    has_post_norm: bool = False
    has_sinks: bool = False
    qkv_blocks: BlockFormat | None = None
    o_blocks: BlockFormat | None = None

    @classmethod
    def of(
        cls,
        spec: DecoderSpec,
        layer: LayerSpec,
        *,
        weight_type: str,
        cache_type: str,
        group_size: int = 64,
    ) -> "AttentionConfig":
        """The attention block of a layer that `uncovered` has nothing against."""
        attention = layer.attention
        return cls(
            num_heads=attention.num_heads,
            num_kv_heads=attention.num_kv_heads,
            head_dim=attention.head_dim,
            scale=attention.scale,
            eps=spec.norm_eps,
            weight_type=weight_type,
            cache_type=cache_type,
            group_size=group_size,
            window=attention.window or 0,
            chunk=attention.chunk or 0,
            query_scale=attention.query_scale,
            has_output_gate=attention.output_gate,
            is_interleaved=attention.rope is not None and attention.rope.interleaved,
            is_value_of_key=attention.is_value_of_key,
            has_value_norm=attention.value_norm,
            is_reader=attention.shared_from is not None,
            softcap=attention.softcap or 0.0,
            multiplier=spec.residual_multiplier * layer.mixer_multiplier,
            norm=_norm_of(spec, layer),
            qk_norm=attention.qk_norm,
            has_norm_bias=spec.norm_bias,
            has_qkv_bias=attention.qkv_bias,
            has_o_bias=attention.o_bias,
            has_post_norm=_has_post_norm(spec, layer),
            has_sinks=attention.sinks,
        )


@dataclass(frozen=True, slots=True)
class MlpConfig:
    """What an MLP block computes; fields as in `AttentionConfig` and `MlpSpec`.

    Attributes:
        clamp: 0 is none.
        gate_multiplier: Of the gate, before it is clamped; 1 where there is none.
        is_parallel: It reads what the norm of the attention block before it, in the same call,
            gave, and has none of its own.
    """

    intermediate_size: int
    eps: float
    weight_type: str = "bfloat16"
    group_size: int = 64
    activation: Activation = Activation.SILU
    is_gated: bool = True
    multiplier: float = 1.0
    norm: str = "rms"
    has_norm_bias: bool = False
    has_gate_up_bias: bool = False
    has_down_bias: bool = False
    has_post_norm: bool = False
    gate_up_blocks: BlockFormat | None = None
    down_blocks: BlockFormat | None = None
    clamp: float = 0.0
    up_offset: float = 0.0
    gate_multiplier: float = 1.0
    is_parallel: bool = False

    @classmethod
    def of(
        cls, spec: DecoderSpec, layer: LayerSpec, *, weight_type: str, group_size: int = 64
    ) -> "MlpConfig":
        """The MLP block of a layer that `uncovered` has nothing against."""
        assert isinstance(layer.mlp, MlpSpec), "experts are `of_experts`"
        is_parallel = spec.placement_in(layer) is NormPlacement.PARALLEL
        return replace(
            cls.of_experts(layer.mlp, weight_type=weight_type, group_size=group_size),
            eps=spec.norm_eps,
            multiplier=spec.residual_multiplier * layer.mlp_multiplier,
            norm="none" if is_parallel else _norm_of(spec, layer),
            has_norm_bias=spec.norm_bias and not is_parallel,
            has_post_norm=_has_post_norm(spec, layer),
            is_parallel=is_parallel,
        )

    @classmethod
    def of_experts(cls, mlp: MlpSpec, *, weight_type: str, group_size: int = 64) -> "MlpConfig":
        """What one expert computes, without a norm."""
        return cls(
            intermediate_size=mlp.intermediate_size,
            eps=0.0,
            weight_type=weight_type,
            group_size=group_size,
            activation=mlp.activation,
            is_gated=mlp.gated,
            norm="none",
            has_gate_up_bias=mlp.bias,
            has_down_bias=mlp.bias,
            clamp=mlp.clamp or 0.0,
            up_offset=mlp.up_offset,
            gate_multiplier=mlp.gate_multiplier,
        )


def _norm_of(spec: DecoderSpec, layer: LayerSpec) -> str:
    if spec.placement_in(layer) is NormPlacement.POST:
        return "none"
    return "layer" if spec.norm_kind is NormKind.LAYER else "rms"


def _has_post_norm(spec: DecoderSpec, layer: LayerSpec) -> bool:
    return spec.placement_in(layer) in {NormPlacement.POST, NormPlacement.SANDWICH}


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """One attention block of a call.

    Attributes:
        config: What it computes.
        vectors: From `attention_vectors`.
        qkv: Packed; outputs are all q heads, all k heads, all v heads, all gates of heads.
        o: Packed.
        keys: Of this layer, see `page_shapes`.
        values: Of this layer.
        rope: Index of its rope in the call; None for a layer without positions.
        group: Whose block tables it reads.
    """

    config: AttentionConfig
    vectors: jax.Array
    qkv: jax.Array
    o: jax.Array
    keys: jax.Array
    values: jax.Array
    rope: int | None
    group: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Mlp:
    """One MLP block of a call.

    Attributes:
        config: What it computes.
        vectors: From `mlp_vectors`.
        gate_up: Packed as `gate_up`, or as `linear` where it isn't gated.
        down: Packed.
    """

    config: MlpConfig
    vectors: jax.Array
    gate_up: jax.Array
    down: jax.Array


Vector = npt.NDArray[np.float32] | None


def attention_vectors(
    *,
    norm: Vector = None,
    norm_bias: Vector = None,
    qkv_bias: Vector = None,
    q_norm: Vector = None,
    k_norm: Vector = None,
    o_bias: Vector = None,
    post_norm: Vector = None,
    sinks: Vector = None,
) -> npt.NDArray[np.float32]:
    """All small vectors of an attention block as one; None for those that its config has not.

    Norms are what is multiplied: of a norm whose checkpoint has w for 1 + w, 1 + w.
    """
    return _joined(norm, norm_bias, qkv_bias, q_norm, k_norm, o_bias, post_norm, sinks)


def mlp_vectors(
    *,
    norm: Vector = None,
    norm_bias: Vector = None,
    gate_up_bias: Vector = None,
    down_bias: Vector = None,
    post_norm: Vector = None,
) -> npt.NDArray[np.float32]:
    """All small vectors of an MLP block as one, as in `attention_vectors`."""
    return _joined(norm, norm_bias, gate_up_bias, down_bias, post_norm)


def _joined(*vectors: Vector) -> npt.NDArray[np.float32]:
    there = [np.asarray(vector, np.float32).reshape(-1) for vector in vectors if vector is not None]
    return np.concatenate([np.zeros(0, np.float32), *there])


def page_shapes(
    num_blocks: int, num_kv_heads: int, head_dim: int, block_size: int, cache_type: str
) -> tuple[tuple[tuple[int, ...], np.dtype[Any]], tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of one layer's keys and of its values.

    A page is laid out as a panel of a packed matrix: tokens are the outputs of the keys and the
    inputs of the values. So two bfloat16 that share a lane of four bytes are neighbouring numbers
    of a key, and the same number of two neighbouring tokens' values.

    Args:
        num_blocks: All that a block table may name, the padding block among them.
        num_kv_heads: Key heads.
        head_dim: Even, at most `MAX_HEAD_DIM`.
        block_size: Tokens a block, even; multiples of 32 are fastest.
        cache_type: `float32`, `bfloat16` (as bits in uint16), or `int8`: of a head first the
            numbers in the order of bfloat16, then the float32 scale of each token.
    """
    if cache_type == "int8":
        shape = (num_blocks, num_kv_heads, block_size, head_dim + SCALE_BYTES)
        return (shape, INT8), (shape, INT8)
    is_half = CACHE_TYPES.index(cache_type) == 1
    dtype, lane = (np.dtype(np.uint16), 2) if is_half else (np.dtype(np.float32), 1)
    keys = (num_blocks, num_kv_heads, head_dim // lane, block_size, lane)
    values = (num_blocks, num_kv_heads, block_size // lane, head_dim, lane)
    return (keys, dtype), (values, dtype)


def run_blocks(
    x: jax.Array, step: Step, ropes: Sequence[Rope], blocks: Sequence[Attention | Mlp]
) -> tuple[jax.Array, tuple[tuple[jax.Array, jax.Array], ...]]:
    """Runs neighbouring blocks on the residual.

    All keys and values of the step are stored before any is read. A token's result has the same
    bits whatever else the step holds. Tokens after the last one that isn't padding cost nothing.

    Args:
        x: [T, hidden] float32.
        step: The tokens.
        ropes: What the attention blocks name.
        blocks: In order.

    Returns:
        x after the blocks (as it was for padding), and (keys, values) of each attention block.
    """
    arguments: list[jax.Array] = [x, step.positions, step.rows, step.block_tables]
    for cosine, sine in ropes:
        arguments += [cosine, sine]
    config, scalars = [_CONFIG_VERSION, len(ropes), len(blocks), step.num_groups], []
    results, aliases = [_like(x)], {0: 0}
    for block in blocks:
        fields, block_scalars = _fields_of(block)
        config += fields + [0] * (_BLOCK_FIELDS - len(fields))
        scalars += block_scalars + [0.0] * (_BLOCK_SCALARS - len(block_scalars))
        if isinstance(block, Mlp):
            arguments += [block.vectors, block.gate_up, block.down]
            continue
        arguments += [block.vectors, block.qkv, block.o]
        for pages in (block.keys, block.values):
            aliases[len(arguments)] = len(results)
            arguments.append(pages)
            results.append(_like(pages))
    out = jax.ffi.ffi_call("penstock_blocks", results, input_output_aliases=aliases)(
        *arguments, config=np.array(config, np.int64), scalars=np.array(scalars, np.float32)
    )
    pages_out = tuple(zip(out[1::2], out[2::2], strict=True))
    return out[0], pages_out


def _format_fields(weight_type: str, group_size: int, blocks: BlockFormat | None) -> list[int]:
    """How a matrix is packed, in the order in which `handlers.cc` reads it."""
    if blocks is None:
        return [WEIGHT_TYPES.index(weight_type), group_size, 0, 0, 0, 0]
    return [
        block_type(blocks),
        blocks.group_size,
        blocks.block_size,
        list(SCALE_DTYPES).index(blocks.scale_dtype),
        int(blocks.has_scales),
        int(blocks.has_minima),
    ]


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
    return _result(*array.shape, dtype=array.dtype)


def _result(*shape: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _fields_of(block: Attention | Mlp) -> tuple[list[int], list[float]]:
    """A block's attributes in the order in which `handlers.cc` reads them."""
    if isinstance(block, Mlp):
        mlp = block.config
        flags = (
            mlp.has_norm_bias,
            mlp.has_gate_up_bias,
            mlp.has_down_bias,
            mlp.has_post_norm,
            mlp.is_parallel,
        )
        return [
            1,
            *_format_fields(mlp.weight_type, mlp.group_size, mlp.gate_up_blocks),
            *_format_fields(mlp.weight_type, mlp.group_size, mlp.down_blocks),
            mlp.intermediate_size,
            _ACTIVATIONS.index(mlp.activation),
            int(mlp.is_gated),
            _NORMS.index(mlp.norm),
            *map(int, flags),
        ], [mlp.eps, mlp.multiplier, mlp.clamp, mlp.up_offset, mlp.gate_multiplier]
    attention = block.config
    query_scale = attention.query_scale or _NO_SCALE
    bits = (
        attention.has_norm_bias,
        attention.has_qkv_bias,
        attention.has_o_bias,
        attention.has_post_norm,
        attention.has_sinks,
    )
    return [
        0,
        *_format_fields(attention.weight_type, attention.group_size, attention.qkv_blocks),
        *_format_fields(attention.weight_type, attention.group_size, attention.o_blocks),
        attention.num_heads,
        attention.num_kv_heads,
        attention.head_dim,
        attention.window,
        -1 if block.rope is None else block.rope,
        _NORMS.index(attention.norm),
        QK_NORMS.index(attention.qk_norm),
        CACHE_TYPES.index(attention.cache_type),
        *map(int, bits),
        block.group,
        attention.chunk,
        query_scale.length,
        query_scale.offset,
        int(attention.has_output_gate),
        int(attention.is_interleaved),
        int(attention.is_value_of_key),
        int(attention.has_value_norm),
        int(attention.is_reader),
    ], [
        attention.eps,
        attention.scale,
        attention.softcap,
        attention.multiplier,
        query_scale.beta,
    ]


def experts(x: jax.Array, chosen: jax.Array, weights: jax.Array, mlp: Mlp) -> jax.Array:
    """The weighted sum over each token's experts.

    An expert's matrices are read once, and not at all where no token chose it. A token's result has
    the same bits whatever the others are and chose.

    Args:
        x: [T, width] float32, what the experts read.
        chosen: [T, K] int32, 0 to E - 1; E is no expert. Others are an error of the program.
        weights: [T, K] float32.
        mlp: Of all experts: `gate_up` and `down` from `packing.pack_experts`, `vectors` all of the
            biases [E, ..] of the first product, then of the second. Without norms and multiplier.

    Returns:
        [T, width] float32.
    """
    fields, scalars = _fields_of(mlp)
    return jax.ffi.ffi_call("penstock_experts", _like(x))(
        x,
        chosen,
        weights,
        mlp.vectors,
        mlp.gate_up,
        mlp.down,
        config=np.array([_CONFIG_VERSION, *fields[1:]], np.int64),
        scalars=np.array(scalars, np.float32),
    )


def latent_page_shapes(
    num_blocks: int, key_dim: int, latent_dim: int, block_size: int, cache_type: str
) -> tuple[tuple[tuple[int, ...], np.dtype[Any]], tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of one layer's rotated keys and of its latents, both as keys lie.

    Args:
        num_blocks: As of `page_shapes`.
        key_dim: Of what is rotated, even.
        latent_dim: Even.
        block_size: As of `page_shapes`.
        cache_type: `float32` or `bfloat16`.
    """
    keys, latents = (
        page_shapes(num_blocks, 1, dim, block_size, cache_type)[0] for dim in (key_dim, latent_dim)
    )
    return keys, latents


def attend_latents(
    queries: jax.Array,
    keys: jax.Array,
    latents: jax.Array,
    step: Step,
    pages: tuple[jax.Array, jax.Array],
    *,
    scale: float,
    cache_type: str,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Attention whose values are latents that all heads share, at the beginning of their keys.

    All keys and latents of the step are stored before any is read. A token's result has the same
    bits whatever else the step holds.

    Args:
        queries: [T, H, latent + rotated] float32: for the latent, then for what is rotated.
        keys: [T, rotated] float32, rotated.
        latents: [T, latent] float32.
        step: The tokens; one group of block tables.
        pages: As of `latent_page_shapes`; updated in place where the caller's program donates them.
        scale: Of the scores.
        cache_type: Of the pages.

    Returns:
        [T, H, latent] float32, zeros for padding; and the pages.
    """
    y = _result(*queries.shape[:2], latents.shape[1])
    arguments = (queries, keys, latents, step.positions, step.rows, step.block_tables, *pages)
    out = jax.ffi.ffi_call(
        "penstock_latent", [y, *map(_like, pages)], input_output_aliases={6: 1, 7: 2}
    )(
        *arguments,
        config=np.array([_CONFIG_VERSION, CACHE_TYPES.index(cache_type)], np.int64),
        scalars=np.array([scale], np.float32),
    )
    return out[0], (out[1], out[2])


def multiply_by_head(
    x: jax.Array,
    matrices: jax.Array,
    outputs: int,
    offset: int,
    weight_type: str,
    wanted: jax.Array | None = None,
) -> jax.Array:
    """The product of each head's numbers and a matrix of its own.

    Args:
        x: [T, H, inputs] float32.
        matrices: [H, bytes] uint8: of each head one packed matrix or several, see `packing.pack`.
        outputs: Of a head.
        offset: Where the matrix begins in the bytes of its head.
        weight_type: `float32` or `bfloat16`.
        wanted: [T] bool or int32; rows after the last wanted one are zeros. None wants all.

    Returns:
        [T, H, outputs] float32.
    """
    if wanted is None:
        wanted = jnp.ones(x.shape[0], jnp.int32)
    config = [_CONFIG_VERSION, *_format_fields(weight_type, 0, None), offset]
    return jax.ffi.ffi_call("penstock_by_head", _result(*x.shape[:2], outputs))(
        x, wanted.astype(jnp.int32), matrices, config=np.array(config, np.int64)
    )


def head(
    hidden: jax.Array,
    table: jax.Array,
    vocab_size: int,
    weight_type: str,
    wanted: jax.Array | None = None,
    *,
    group_size: int = 64,
    blocks: BlockFormat | None = None,
    multiplier: float = 1.0,
    softcap: float = 0.0,
) -> jax.Array:
    """Scores of every token of the vocabulary.

    Args:
        hidden: [R, hidden] float32, after the final norm.
        table: Packed head, or the tied embedding.
        vocab_size: Its outputs.
        weight_type: As packed.
        wanted: [R] bool or int32; rows after the last wanted one are zeros. None wants all.
        group_size: As packed.
        blocks: How the table is packed where that isn't `weight_type`.
        multiplier: Of the scores.
        softcap: Scores become softcap * tanh(scores / softcap); 0 is none.

    Returns:
        [R, vocab_size] float32.
    """
    if wanted is None:
        wanted = jnp.ones(hidden.shape[0], jnp.int32)
    return jax.ffi.ffi_call("penstock_head", _result(hidden.shape[0], vocab_size))(
        hidden,
        wanted.astype(jnp.int32),
        table,
        config=_table_config(weight_type, group_size, blocks),
        scalars=np.array([multiplier, softcap], np.float32),
    )


def likeliest(
    hidden: jax.Array,
    table: jax.Array,
    vocab_size: int,
    weight_type: str,
    wanted: jax.Array | None = None,
    *,
    group_size: int = 64,
    blocks: BlockFormat | None = None,
    multiplier: float = 1.0,
    softcap: float = 0.0,
) -> jax.Array:
    """The token with the highest score, from the arguments of `head`, which stores no score.

    Returns:
        [R] int32: the lowest id of a tie; `NAN_LOGITS` where a score is NaN or infinity; 0 after
        the last wanted row.
    """
    if wanted is None:
        wanted = jnp.ones(hidden.shape[0], jnp.int32)
    result = _result(hidden.shape[0], dtype=jnp.int32)
    return jax.ffi.ffi_call("penstock_likeliest", result)(
        hidden,
        wanted.astype(jnp.int32),
        table,
        config=_table_config(weight_type, group_size, blocks),
        scalars=np.array([multiplier, softcap], np.float32),
        vocabulary=np.array([vocab_size], np.int64),
    )


def embedding(
    token_ids: jax.Array,
    table: jax.Array,
    vocab_size: int,
    hidden_size: int,
    weight_type: str,
    *,
    group_size: int = 64,
    blocks: BlockFormat | None = None,
    multiplier: float = 1.0,
) -> jax.Array:
    """Looks up [T] int32 ids (clamped to the vocabulary) in a packed table: [T, hidden] float32."""
    return jax.ffi.ffi_call("penstock_embedding", _result(token_ids.shape[0], hidden_size))(
        token_ids,
        table,
        config=_table_config(weight_type, group_size, blocks),
        scalars=np.array([multiplier, 0.0], np.float32),
        vocabulary=np.array([vocab_size], np.int64),
    )


def unwritten(shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    """An array whose whole pages of memory hold anything and weren't touched; zeros elsewhere.

    For `host_memory.release_pages`, which makes the pages read as zeros. The type is one that
    caches are stored in: int8, uint16 or float32.
    """
    return jax.ffi.ffi_call("penstock_unwritten", _result(*shape, dtype=dtype))()


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentHeads:
    """What the heads of a recurrent layer remember of some tokens.

    Attributes:
        num_groups: Of neighbouring heads, which share a query and a key, or what writes and reads.
        writes: [T, H] float32: how strongly a delta net corrects, or the time of a state space.
        forgets: [T, H] float32, the logarithm of what is kept.
        passed: [H] float32 of a state space: how much of its values passes it by; None is a delta
            net.
        eps: Of the norms of a delta net's queries and keys.
    """

    num_groups: int
    writes: jax.Array
    forgets: jax.Array
    passed: jax.Array | None = None
    eps: float = 0.0


def recurrent(
    mixed: jax.Array,
    before: jax.Array,
    after: jax.Array,
    convolution: tuple[jax.Array, jax.Array | None],
    states: tuple[jax.Array, ...],
    heads: RecurrentHeads | None = None,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """What goes from token to token in a recurrent layer, one token after the other.

    A token's result and state have the same bits whatever the other tokens are.

    Args:
        mixed: [T, C] float32, what is convolved.
        before: [T] int32, each token's state before it; -1 are zeros, `GOES_ON` is what the token
            in front of it left.
        after: [T] int32, where the state after it goes, or `GOES_ON` where that isn't kept; -1 is
            padding, which gets zeros.
        convolution: Weights [C, taps] and bias [C], float32.
        states: As a `LayerStates` has them; updated in place where the caller's program donates
            them.
        heads: Behind the convolution; None is none.

    Returns:
        [T, C] float32 or, with heads, [T, H, width of a head]; and the states.
    """
    taps, bias = convolution
    bias = jnp.zeros(0, jnp.float32) if bias is None else bias
    arguments = [mixed, before, after, taps, bias, *states]
    aliases = {5 + index: 1 + index for index in range(len(states))}
    kind, num_groups, eps, y = 0, 1, 0.0, _like(mixed)
    if heads is not None:
        kind, num_groups, eps = (1 if heads.passed is None else 2), heads.num_groups, heads.eps
        arguments += [heads.writes, heads.forgets]
        arguments += [] if heads.passed is None else [heads.passed]
        y = _result(*heads.writes.shape, states[1].shape[3 if kind == 1 else 2])
    out = jax.ffi.ffi_call(
        "penstock_recurrent", [y, *map(_like, states)], input_output_aliases=aliases
    )(
        *arguments,
        config=np.array([_CONFIG_VERSION, kind, num_groups], np.int64),
        scalars=np.array([eps], np.float32),
    )
    return out[0], tuple(out[1:])


def _table_config(
    weight_type: str, group_size: int, blocks: BlockFormat | None
) -> npt.NDArray[np.int64]:
    return np.array([_CONFIG_VERSION, *_format_fields(weight_type, group_size, blocks)], np.int64)
