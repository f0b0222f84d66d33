"""Random blocks, the native kernels' answer to them, and the same computed in float64.

The oracle rounds where the kernels are said to round (activations before a product, queries before
a bfloat16 cache, keys and values) and nowhere else, so what is left is the order of sums.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt

from engine_worker.compute.backends.cpu_native import calls, packing
from engine_worker.compute.backends.cpu_native.calls import (
    Attention,
    AttentionConfig,
    Mlp,
    MlpConfig,
    Step,
)
from engine_worker.compute.models.integer_blocks import BlockFormat
from engine_worker.compute.models.spec import Activation, QkNorm, QueryScale
from tests.fakes.integer_blocks import random_blocks

Array = npt.NDArray[Any]
TOLERANCE = {"float32": 3e-6, "bfloat16": 3e-3, "int8": 1e-2, "int4": 1e-2}
"""Of the relative distance to the oracle: a float32 sum; a rounding that went the other way."""


@dataclass(frozen=True)
class Row:
    """A row of a step: tokens that are stored already, and new ones."""

    num_stored: int
    num_new: int


@dataclass(frozen=True)
class StepShape:
    """The tokens of a call."""

    rows: tuple[Row, ...]
    block_size: int
    num_padding: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(row.num_new for row in self.rows) + self.num_padding


class Problem:
    """A residual, a cache with its pages shuffled, and random blocks over them."""

    def __init__(self, shape: StepShape, hidden_size: int, seed: int = 0) -> None:
        self.shape = shape
        self.hidden_size = hidden_size
        self.random = np.random.default_rng(seed)
        self._lay_out_tokens()
        self.x = self.normal(shape.num_tokens, hidden_size)

    def _lay_out_tokens(self) -> None:
        shape = self.shape
        positions: list[int] = []
        rows: list[int] = []
        for index, row in enumerate(shape.rows):
            positions += range(row.num_stored, row.num_stored + row.num_new)
            rows += [index] * row.num_new
        for _ in range(shape.num_padding):
            place = int(self.random.integers(len(positions) + 1))
            if 0 < place < len(positions) and rows[place - 1] == rows[place]:
                place = len(positions)
            positions.insert(place, -1)
            rows.insert(place, 0)
        self.positions = np.array(positions, np.int32)
        self.rows = np.array(rows, np.int32)
        lengths = [row.num_stored + row.num_new for row in shape.rows]
        width = max(1, max(-(-length // shape.block_size) for length in lengths))
        self.num_blocks = width * len(lengths) + 1
        ids = self.random.permutation(self.num_blocks - 1)[: width * len(lengths)]
        self.block_tables = ids.reshape(len(lengths), width).astype(np.int32)
        for table, length in zip(self.block_tables, lengths, strict=True):
            table[-(-length // shape.block_size) :] = -7  # never looked at

    def share_blocks(self, num_blocks: int) -> None:
        """Lets all rows begin with the first one's blocks, as far as they write to none of them.

        To be called before blocks are made.
        """
        for table, row in zip(self.block_tables, self.shape.rows, strict=True):
            num_shared = min(num_blocks, row.num_stored // self.shape.block_size)
            table[:num_shared] = self.block_tables[0, :num_shared]

    def normal(self, *shape: int, scale: float = 1.0) -> npt.NDArray[np.float32]:
        numbers: npt.NDArray[np.float32] = self.random.standard_normal(shape, np.float32)
        return numbers * np.float32(scale)

    @property
    def step(self) -> Step:
        return Step(
            jnp.asarray(self.positions), jnp.asarray(self.rows), jnp.asarray(self.block_tables)
        )

    def matrix(
        self,
        outputs: int,
        inputs: int,
        weight_type: str,
        kind: str,
        group_size: int,
        blocks: BlockFormat | None = None,
    ) -> tuple[Array, Array]:
        """A packed matrix, and what it stands for in float64."""
        if blocks is not None:
            matrix = random_blocks(blocks, outputs, inputs, int(self.random.integers(2**31)))
            # About as large as the others.
            size = np.float32(inputs**-0.5 / matrix.numbers().std())
            scales = (matrix.scales.astype(np.float32) * size).astype(matrix.scales.dtype)
            least = matrix.minimum_scales
            if least is not None:
                least = (least.astype(np.float32) * size).astype(least.dtype)
            matrix = replace(matrix, scales=scales, minimum_scales=least)
            return packing.pack_blocks(matrix, kind)[0], matrix.numbers().astype(np.float64)
        values = self.normal(outputs, inputs, scale=inputs**-0.5)
        (packed,) = packing.pack(values, weight_type, kind, group_size=group_size)
        unpacked = packing.unpack(
            packed, (outputs, inputs), weight_type, kind, group_size=group_size
        )
        return packed, unpacked.astype(np.float64)

    def attention(self, config: AttentionConfig, rotary_pairs: int | None) -> "AttentionProblem":
        return AttentionProblem(self, config, rotary_pairs)

    def mlp(self, config: MlpConfig) -> "MlpProblem":
        return MlpProblem(self, config)


class AttentionProblem:
    """One attention block with random weights and a random cache."""

    def __init__(self, problem: Problem, config: AttentionConfig, rotary_pairs: int | None) -> None:
        self.problem, self.config = problem, config
        hidden, heads, kv_heads = problem.hidden_size, config.num_heads, config.num_kv_heads
        dim = config.head_dim
        q_size, kv_size = heads * dim, kv_heads * dim
        has_keys = not config.is_reader
        width = q_size + kv_size * has_keys * (1 if config.is_value_of_key else 2)
        width += q_size if config.has_output_gate else 0
        is_wide = config.qk_norm in {QkNorm.FULL_WIDTH, QkNorm.EACH_HEAD}
        has_qk = is_wide or config.qk_norm is QkNorm.PER_HEAD
        normal = problem.normal

        def vector(is_there: bool, size: int, mean: float = 0.0) -> Array | None:
            return normal(size, scale=0.2) + np.float32(mean) if is_there else None

        self.vectors: dict[str, Array | None] = {
            "norm": vector(config.norm != "none", hidden, 1.0),
            "norm_bias": vector(config.has_norm_bias, hidden),
            "qkv_bias": vector(config.has_qkv_bias, width),
            "q_norm": vector(has_qk, q_size if is_wide else dim, 1.0),
            "k_norm": vector(has_qk and has_keys, kv_size if is_wide else dim, 1.0),
            "o_bias": vector(config.has_o_bias, hidden),
            "post_norm": vector(config.has_post_norm, hidden, 1.0),
            "sinks": vector(config.has_sinks, heads),
        }
        types = (config.weight_type, "linear", config.group_size)
        self.qkv, self.qkv_values = problem.matrix(width, hidden, *types, config.qkv_blocks)
        self.o, self.o_values = problem.matrix(hidden, q_size, *types, config.o_blocks)
        self.cosine = self.sine = None
        if rotary_pairs is not None:
            angles = problem.random.uniform(0, 6.28, (problem.shape.num_tokens, rotary_pairs))
            self.cosine, self.sine = (
                np.cos(angles).astype(np.float32),
                np.sin(angles).astype(np.float32),
            )
        # What nobody may see is no number, in the scores nor in the values.
        shape = (problem.num_blocks, kv_heads, problem.shape.block_size, dim)
        self.keys, self.values = (np.full(shape, np.nan, np.float32) for _ in range(2))
        for index, row in enumerate(problem.shape.rows):
            # Another block has stored those of the step, too, whose pages are only read.
            for position in range(row.num_stored + (0 if has_keys else row.num_new)):
                self._put(self.keys, self.values, index, position, normal(2, kv_heads, dim))

    def _put(self, keys: Array, values: Array, row: int, position: int, both: Array) -> None:
        size = self.problem.shape.block_size
        page = self.problem.block_tables[row, position // size]
        keys[page, :, position % size], values[page, :, position % size] = both

    def _get(self, numbers: Array, row: int, count: int) -> Array:
        """[count, KH, D] keys or values of a row's first positions."""
        size = self.problem.shape.block_size
        at = np.arange(count)
        found: Array = numbers[self.problem.block_tables[row, at // size], :, at % size]
        return found

    def block(self, rope: int | None) -> Attention:
        return Attention(
            self.config,
            jnp.asarray(calls.attention_vectors(**self.vectors)),
            jnp.asarray(self.qkv),
            jnp.asarray(self.o),
            jnp.asarray(stored_pages(self.keys, self.config.cache_type, are_keys=True)),
            jnp.asarray(stored_pages(self.values, self.config.cache_type, are_keys=False)),
            rope,
        )

    @property
    def ropes(self) -> list[calls.Rope]:
        if self.cosine is None or self.sine is None:
            return []
        return [(jnp.asarray(self.cosine), jnp.asarray(self.sine))]

    def oracle(self, x: Array, *, rounds: bool = True) -> tuple[Array, Array, Array]:
        """x after the block, and the cache's keys and values [B, KH, S, D], all float64.

        Args:
            x: [T, hidden].
            rounds: False computes everything in full precision.
        """
        config, problem, vectors = self.config, self.problem, self.vectors
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        before, behind = (
            rounding_of(config.weight_type, blocks, rounds=rounds)
            for blocks in (config.qkv_blocks, config.o_blocks)
        )
        live = np.flatnonzero(problem.positions >= 0)
        normed = normalized(x[live], config.norm, config.eps, vectors["norm"], vectors["norm_bias"])
        qkv = rounded(normed, before, config.group_size) @ self.qkv_values.T
        if vectors["qkv_bias"] is not None:
            qkv = qkv + vectors["qkv_bias"]
        kv_heads *= not config.is_reader
        ends = [heads * dim, (heads + kv_heads) * dim, (heads + 2 * kv_heads) * dim]
        if config.is_value_of_key:
            ends[2] = ends[1]
        q, k, v, gates = np.split(qkv, ends, axis=1)
        v = k if config.is_value_of_key else v
        if config.qk_norm is QkNorm.FULL_WIDTH:
            q = normalized(q, "rms", config.eps, vectors["q_norm"])
            k = k if config.is_reader else normalized(k, "rms", config.eps, vectors["k_norm"])
        q, k, v = (part.reshape(len(live), part.shape[1] // dim, dim) for part in (q, k, v))
        if config.qk_norm is QkNorm.EACH_HEAD:
            q = normalized(q, "layer", config.eps, of_heads(vectors["q_norm"], dim))
            k = normalized(k, "layer", config.eps, of_heads(vectors["k_norm"], dim))
        if config.qk_norm in {QkNorm.PER_HEAD, QkNorm.WEIGHTLESS}:
            q = normalized(q, "rms", config.eps, vectors["q_norm"])
            k = normalized(k, "rms", config.eps, vectors["k_norm"])
        if config.has_value_norm:
            v = normalized(v, "rms", config.eps, None)
        q, k = self._rotated(q, live), self._rotated(k, live)
        if config.query_scale is not None:
            q = q * scales_of_queries(config.query_scale, problem.positions[live])[:, None, None]
        keys, values = self.keys.astype(np.float64), self.values.astype(np.float64)
        cache_rounding = config.cache_type if rounds else "float64"
        # With a cache of int8 as with one of bfloat16.
        query_rounding = "bfloat16" if cache_rounding == "int8" else cache_rounding
        for index, token in enumerate(live[:0] if config.is_reader else live):
            both = rounded(np.stack([k[index], v[index]]), cache_rounding, 0)
            self._put(keys, values, problem.rows[token], problem.positions[token], both)
        seen_keys = rounded(keys, cache_rounding, 0)
        seen_values = rounded(values, cache_rounding, 0)
        attended = np.stack(
            [
                self._attended(
                    rounded(q[index] * config.scale, query_rounding, 0),
                    *(
                        self._get(seen, problem.rows[token], problem.positions[token] + 1)
                        for seen in (seen_keys, seen_values)
                    ),
                )
                for index, token in enumerate(live)
            ]
        )
        if config.has_output_gate:
            attended = attended / (1 + np.exp(-gates))
        out = rounded(attended, behind, config.group_size) @ self.o_values.T
        result = x.astype(np.float64)
        result[live] += added(
            out, vectors["o_bias"], vectors["post_norm"], config.eps, config.multiplier
        )
        return result, keys, values

    def _rotated(self, heads: Array, live: Array) -> Array:
        if self.cosine is None or self.sine is None:
            return heads
        pairs = self.cosine.shape[1]
        cosine = self.cosine[live][:, None].astype(np.float64)
        sine = self.sine[live][:, None].astype(np.float64)
        first, second = heads[..., :pairs], heads[..., pairs : 2 * pairs]
        if self.config.is_interleaved:
            first, second = heads[..., : 2 * pairs : 2], heads[..., 1 : 2 * pairs : 2]
        turned = [first * cosine - second * sine, second * cosine + first * sine]
        if self.config.is_interleaved:
            turned = [np.stack(turned, axis=-1).reshape(*heads.shape[:-1], 2 * pairs)]
        return np.concatenate([*turned, heads[..., 2 * pairs :]], axis=-1)

    def _attended(self, q: Array, keys: Array, values: Array) -> Array:
        config = self.config
        if config.chunk:
            first = (len(keys) - 1) // config.chunk * config.chunk
            keys, values = keys[first:], values[first:]
        if config.window:
            keys, values = keys[-config.window :], values[-config.window :]
        groups = config.num_heads // config.num_kv_heads
        keys, values = np.repeat(keys, groups, axis=1), np.repeat(values, groups, axis=1)
        scores = np.einsum("hd,shd->hs", q, keys)
        if config.softcap:
            scores = config.softcap * np.tanh(scores / config.softcap)
        sinks = self.vectors["sinks"]
        if sinks is not None:
            scores = np.concatenate([scores, sinks[:, None]], axis=1)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        attended: Array = np.einsum("hs,shd->hd", weights[:, : len(values)], values)
        return attended.reshape(-1)


def of_heads(weights: Array | None, head_dim: int) -> Array | None:
    """Weights of all heads, by head; None for none."""
    return None if weights is None else weights.reshape(-1, head_dim)


def scales_of_queries(scale: QueryScale, positions: Array) -> Array:
    """What multiplies the queries of tokens at `positions` [T]: [T] float64."""
    scales: Array = 1 + scale.beta * np.log1p((positions + scale.offset) // scale.length)
    return scales


def stored_pages(numbers: Array, cache_type: str, *, are_keys: bool) -> Array:
    """Keys or values [B, KH, S, D] as the kernels' pages hold them, see `calls.page_shapes`."""
    num_blocks, kv_heads, size, dim = numbers.shape
    lane = 1 if cache_type == "float32" else 2
    if are_keys:
        ordered = numbers.reshape(num_blocks, kv_heads, size, dim // lane, lane).swapaxes(2, 3)
    else:
        ordered = numbers.reshape(num_blocks, kv_heads, size // lane, lane, dim).swapaxes(3, 4)
    if cache_type == "float32":
        return np.ascontiguousarray(ordered)
    if cache_type == "bfloat16":
        return ordered.astype(ml_dtypes.bfloat16).view(np.uint16)
    scales = (np.abs(numbers).max(axis=-1) / 127).astype(np.float32)
    by_token = np.where(scales > 0, scales, 1)[..., None]
    integers = np.nan_to_num(np.rint(numbers / by_token)).astype(np.int8)
    plain = stored_pages(integers.astype(np.float32), "bfloat16", are_keys=are_keys)
    bits = plain.view(ml_dtypes.bfloat16).astype(np.int8).reshape(num_blocks, kv_heads, -1)
    whole = np.concatenate([bits, scales.view(np.int8)], axis=-1)
    return whole.reshape(num_blocks, kv_heads, size, dim + 4)


def page_numbers(pages: Any, head_dim: int, *, are_keys: bool) -> Array:
    """What `stored_pages` was made of, but for its rounding: [B, KH, S, D] float32."""
    pages = np.asarray(pages)
    num_blocks, kv_heads = pages.shape[:2]
    if pages.dtype == np.int8:
        size = pages.shape[2]
        flat = pages.reshape(num_blocks, kv_heads, -1)
        integers, bits = np.split(flat, [size * head_dim], axis=-1)
        shape = (head_dim // 2, size, 2) if are_keys else (size // 2, head_dim, 2)
        numbers = integers.reshape(num_blocks, kv_heads, *shape).astype(np.float32)
        scales = np.ascontiguousarray(bits).view(np.float32)[..., None]
    else:
        is_half = pages.dtype == np.uint16
        numbers = (pages.view(ml_dtypes.bfloat16) if is_half else pages).astype(np.float32)
        scales = np.ones(1, np.float32)
    if are_keys:
        numbers = numbers.swapaxes(2, 3)
        ordered = numbers.reshape(*numbers.shape[:3], -1)
    else:
        numbers = numbers.swapaxes(3, 4)
        ordered = numbers.reshape(num_blocks, kv_heads, -1, numbers.shape[-1])
    found: Array = ordered * scales
    return found


class MlpProblem:
    """One MLP block with random weights."""

    def __init__(self, problem: Problem, config: MlpConfig) -> None:
        self.problem, self.config = problem, config
        hidden, inner, normal = problem.hidden_size, config.intermediate_size, problem.normal
        outputs = 2 * inner if config.is_gated else inner
        self.vectors: dict[str, Array | None] = {
            "norm": normal(hidden, scale=0.2) + np.float32(1) if config.norm != "none" else None,
            "norm_bias": normal(hidden, scale=0.2) if config.has_norm_bias else None,
            "gate_up_bias": normal(outputs, scale=0.2) if config.has_gate_up_bias else None,
            "down_bias": normal(hidden, scale=0.2) if config.has_down_bias else None,
            "post_norm": normal(hidden, scale=0.2) + np.float32(1)
            if config.has_post_norm
            else None,
        }
        kind = "gate_up" if config.is_gated else "linear"
        types = (config.weight_type, kind, config.group_size)
        self.gate_up, self.gate_up_values = problem.matrix(
            outputs, hidden, *types, config.gate_up_blocks
        )
        self.down, self.down_values = problem.matrix(
            hidden, inner, config.weight_type, "linear", config.group_size, config.down_blocks
        )

    def block(self) -> Mlp:
        return Mlp(
            self.config,
            jnp.asarray(calls.mlp_vectors(**self.vectors)),
            jnp.asarray(self.gate_up),
            jnp.asarray(self.down),
        )

    def oracle(self, x: Array, *, rounds: bool = True, reads: Array | None = None) -> Array:
        """x after the block in float64; see `AttentionProblem.oracle`.

        Args:
            x: [T, hidden].
            rounds: See there.
            reads: [T, hidden], what a parallel block reads.
        """
        config, vectors = self.config, self.vectors
        before, behind = (
            rounding_of(config.weight_type, blocks, rounds=rounds)
            for blocks in (config.gate_up_blocks, config.down_blocks)
        )
        live = np.flatnonzero(self.problem.positions >= 0)
        read = x if reads is None else reads
        normed = normalized(
            read[live], config.norm, config.eps, vectors["norm"], vectors["norm_bias"]
        )
        inner = rounded(normed, before, config.group_size) @ self.gate_up_values.T
        if vectors["gate_up_bias"] is not None:
            inner = inner + vectors["gate_up_bias"]
        inner = gated(inner, config)
        out = rounded(inner, behind, config.group_size) @ self.down_values.T
        result = x.astype(np.float64)
        result[live] += added(
            out, vectors["down_bias"], vectors["post_norm"], config.eps, config.multiplier
        )
        return result


class ExpertsProblem:
    """Random experts, what each token chose, and what they give in float64.

    Args:
        config: Of an expert.
        num_experts: Experts.
        chosen: [T, K] int, `num_experts` is none.
        width: What an expert reads and gives.
        seed: Of all numbers.
    """

    def __init__(
        self, config: MlpConfig, num_experts: int, chosen: Array, width: int, seed: int = 0
    ) -> None:
        self.config, self.chosen = config, chosen.astype(np.int32)
        numbers = Problem(StepShape((Row(0, len(chosen)),), 16), width, seed)
        normal = numbers.normal
        self.x, self.weights = numbers.x, np.abs(normal(*chosen.shape)) + np.float32(0.1)
        inner = config.intermediate_size
        outputs = 2 * inner if config.is_gated else inner
        kind = "gate_up" if config.is_gated else "linear"
        self.gate_up, self.gate_up_values = self._matrices(
            numbers, num_experts, outputs, width, kind, config.gate_up_blocks
        )
        self.down, self.down_values = self._matrices(
            numbers, num_experts, width, inner, "linear", config.down_blocks
        )
        self.gate_up_bias = (
            normal(num_experts, outputs, scale=0.2) if config.has_gate_up_bias else None
        )
        self.down_bias = normal(num_experts, width, scale=0.2) if config.has_down_bias else None

    def _matrices(
        self,
        numbers: Problem,
        num_experts: int,
        outputs: int,
        inputs: int,
        kind: str,
        blocks: BlockFormat | None,
    ) -> tuple[Array, Array]:
        """Packed ones, and what they stand for: [E, outputs, inputs] float64."""
        config = self.config
        found = [
            numbers.matrix(outputs, inputs, config.weight_type, kind, config.group_size, blocks)
            for _ in range(num_experts)
        ]
        packed = packing.aligned_empty((num_experts, *found[0][0].shape))
        for place, (matrix, _) in zip(packed, found, strict=True):
            place[...] = matrix
        return packed, np.stack([values for _, values in found])

    def mlp(self) -> Mlp:
        biases = calls.mlp_vectors(gate_up_bias=self.gate_up_bias, down_bias=self.down_bias)
        return Mlp(
            self.config, jnp.asarray(biases), jnp.asarray(self.gate_up), jnp.asarray(self.down)
        )

    def found(self, rows: Any = slice(None)) -> Array:
        """What the kernels give for some of the tokens."""
        return np.asarray(
            calls.experts(
                jnp.asarray(self.x[rows]),
                jnp.asarray(self.chosen[rows]),
                jnp.asarray(self.weights[rows]),
                self.mlp(),
            )
        )

    def oracle(self) -> Array:
        """[T, width] float64."""
        config, result = self.config, np.zeros(self.x.shape)
        before, behind = (
            rounding_of(config.weight_type, blocks, rounds=True)
            for blocks in (config.gate_up_blocks, config.down_blocks)
        )
        for expert, (gate_up, down) in enumerate(
            zip(self.gate_up_values, self.down_values, strict=True)
        ):
            tokens, places = np.nonzero(self.chosen == expert)
            inner = rounded(self.x[tokens], before, config.group_size) @ gate_up.T
            if self.gate_up_bias is not None:
                inner = inner + self.gate_up_bias[expert]
            out = rounded(gated(inner, config), behind, config.group_size) @ down.T
            if self.down_bias is not None:
                out = out + self.down_bias[expert]
            np.add.at(result, tokens, out * self.weights[tokens, places][:, None])
        return result


def gated(inner: Array, config: MlpConfig) -> Array:
    """What the second product of an MLP reads, of what its first one gives."""
    if not config.is_gated:
        return activated(inner, config.activation)
    gate, up = np.split(inner, 2, axis=1)
    gate = gate * config.gate_multiplier
    if config.clamp:
        gate, up = np.minimum(gate, config.clamp), np.clip(up, -config.clamp, config.clamp)
    return activated(gate, config.activation) * (up + config.up_offset)


def added(
    out: Array, bias: Array | None, post_norm: Array | None, eps: float, multiplier: float
) -> Array:
    if bias is not None:
        out = out + bias
    if post_norm is not None:
        out = normalized(out, "rms", eps, post_norm)
    return out * multiplier


def normalized(
    x: Array, kind: str, eps: float, weight: Array | None, bias: Array | None = None
) -> Array:
    x = x.astype(np.float64)
    if kind == "none":
        return x
    if kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    y: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def rounding_of(weight_type: str, blocks: BlockFormat | None, *, rounds: bool) -> str:
    """How activations are rounded before a product."""
    if not rounds:
        return "float64"
    return weight_type if blocks is None else "int8"


def rounded(x: Array, to: str, group_size: int) -> Array:
    """What a product sees of activations in float64."""
    if to == "float64":
        return x.astype(np.float64)
    if to in {"float32", "bfloat16"}:
        dtype = np.float32 if to == "float32" else ml_dtypes.bfloat16
        return x.astype(np.float32).astype(dtype).astype(np.float64)
    scales = np.abs(x).max(axis=-1, keepdims=True) / 127
    scales = np.where(scales == 0, 1, scales)
    quantised: Array = np.rint(x / scales) * scales
    return quantised


def activated(x: Array, activation: Activation) -> Array:
    values: Array
    if activation is Activation.SILU:
        values = x / (1 + np.exp(-x))
    elif activation is Activation.QUICK_GELU:
        values = x / (1 + np.exp(-1.702 * x))
    elif activation is Activation.RELU:
        values = np.maximum(x, 0)
    elif activation is Activation.RELU_SQUARED:
        values = np.maximum(x, 0) ** 2
    elif activation is Activation.GELU_TANH:
        values = 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))
    else:
        values = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return values


def distance(found: Any, expected: Any) -> float:
    """The relative L2 distance; infinite where either holds no number."""
    found, expected = (np.asarray(numbers, np.float64) for numbers in (found, expected))
    scale = max(float(np.linalg.norm(expected)), 1e-30)
    value = float(np.linalg.norm(found - expected)) / scale
    return value if np.isfinite(value) else math.inf
