"""A mixture of experts as a block: router, experts that are read only where they are chosen.

The rows of a step are sorted by expert and cut into tiles, each of one expert; a loop with as many
turns as there are tiles multiplies each with the matrices of its expert. An expert that no token
chose is never read, and one program serves every choice. On two cores, with 64 experts of which 8
are chosen, in float32 and beside other work (medians of interleaved runs): `lax.ragged_dot`, which
multiplies every row with every expert there, took 34 times as long for 128 rows, and gathering the
chosen matrices 26 times as long for one row.

Matrices of all experts are one array [E, out, in]. In bfloat16 they come as bits in uint16 from a
backend: XLA:CPU would convert the whole array to float32 before the loop (66 times as long for one
row, measured likewise).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.models.layers import (
    ACTIVATIONS,
    Block,
    Linear,
    Matrix,
    ResidualBlock,
    RmsNorm,
    matrix_of,
    multiply,
    rms_normed,
)
from engine_worker.compute.models.quantized import QuantizedMatrix
from engine_worker.compute.models.spec import (
    DecoderSpec,
    MlpSpec,
    MoeSpec,
    RouterScore,
)

_MIN_TILE_ROWS = 2
"""A product of one row is slow on XLA:CPU in every type but float32, see `layers`."""
_FEW_TILE_ROWS = 8
_MAX_TILE_ROWS = 64


class ExpertMatrices(Block):
    """`y = x W_e^T + b_e` for the expert e of each tile; W is [E, out, in], b is [E, out]."""

    def __init__(
        self, num_experts: int, out_size: int, in_size: int, dtype: DTypeLike, *, bias: bool
    ) -> None:
        self.weight = nnx.Param(jnp.zeros((num_experts, out_size, in_size), dtype))
        self.bias = nnx.Param(jnp.zeros((num_experts, out_size), dtype)) if bias else None

    def __call__(self, x: jax.Array, expert: jax.Array) -> jax.Array:
        """Multiplies rows of one expert.

        Args:
            x: [R, in] of any float type.
            expert: Int32 scalar.

        Returns:
            [R, out] float32.
        """
        y = multiply(x, _matrix_of_expert(self.weight, expert))
        if self.bias is not None:
            biases: jax.Array = self.bias[...]
            y += lax.dynamic_index_in_dim(biases, expert, keepdims=False).astype(jnp.float32)
        return y


def _matrix_of_expert(parameter: Any, expert: jax.Array) -> Matrix:
    """The matrix [out, in] of one expert; nothing else of the array is touched."""
    weights = matrix_of(parameter)
    if isinstance(weights, QuantizedMatrix):
        return QuantizedMatrix(_at(weights.values, expert), _at(weights.scales, expert))
    matrix = _at(weights, expert)
    if matrix.dtype == jnp.uint16:
        return lax.bitcast_convert_type(matrix, jnp.bfloat16)
    return matrix


def _at(arrays: jax.Array, index: jax.Array) -> jax.Array:
    # The barrier keeps what is done with one matrix from being done with all before the loop.
    one: jax.Array = lax.optimization_barrier(  # type: ignore[no-untyped-call]
        lax.dynamic_index_in_dim(arrays, index, keepdims=False)
    )
    return one


def _inner_width(mlp: MlpSpec) -> int:
    """Rows of the first product of an expert."""
    return 2 * mlp.intermediate_size if mlp.gated else mlp.intermediate_size


class SharedExpert(Block):
    """The MLP that sees every token, without a norm of its own."""

    def __init__(self, hidden: int, mlp: MlpSpec, dtype: DTypeLike) -> None:
        self.spec = mlp
        self.gate_up = Linear(_inner_width(mlp), hidden, dtype, bias=mlp.bias)
        self.down = Linear(hidden, mlp.intermediate_size, dtype, bias=mlp.bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, hidden] float32 of x [T, hidden] float32."""
        return self.down(activate(self.spec, self.gate_up(x)))


class BesideDense(Block):
    """What stands round experts beside a dense MLP (Gemma 4).

    Norms before the experts, behind them and behind the dense MLP; scales of what the router
    reads, and of each expert's weight.
    """

    def __init__(self, spec: DecoderSpec, moe: MoeSpec, dtype: DTypeLike) -> None:
        hidden, eps = spec.hidden_size, spec.norm_eps
        self.eps = eps
        self.experts_norm = RmsNorm(hidden, eps, dtype)
        self.experts_post_norm = RmsNorm(hidden, eps, dtype)
        self.dense_post_norm = RmsNorm(hidden, eps, dtype)
        self.input_scale = nnx.Param(jnp.ones((hidden,), dtype))
        self.expert_scale = nnx.Param(jnp.ones((moe.num_experts,), dtype))

    def router_input(self, x: jax.Array) -> jax.Array:
        """What the router reads of the residual x [T, hidden] float32."""
        scale: jax.Array = self.input_scale[...].astype(jnp.float32)
        scaled: jax.Array = rms_normed(x, self.eps) * scale * x.shape[-1] ** -0.5
        return scaled

    def weighed(self, choice: "ExpertChoice") -> "ExpertChoice":
        """The choice with each expert's weight scaled."""
        scales: jax.Array = self.expert_scale[...].astype(jnp.float32)
        return choice._replace(weights=choice.weights * scales[choice.experts])


class MoeProducts(Protocol):
    """What of a block is computed elsewhere: its products with matrices."""

    def multiply(self, name: str, x: jax.Array) -> jax.Array:
        """`x W^T` with the matrix of one of the block's `Linear`s, by its name: [T, out] float32.

        Args:
            name: `router`, `shared_gate`, `to_latent` or `from_latent`.
            x: [T, in] float32.
        """

    def experts(self, x: jax.Array, choice: "ExpertChoice") -> jax.Array:
        """The weighted sum over each token's experts: [T, width] float32.

        Args:
            x: [T, width] float32.
            choice: Of experts; E is none.
        """

    def shared(self, x: jax.Array) -> jax.Array:
        """[T, hidden] float32 of the expert that sees every token, x being [T, hidden] float32."""


TellChoice = Callable[["ExpertChoice"], None]
"""Called while a program is traced, with the experts that its rows read; E is none."""


class MoeBlock(ResidualBlock):
    """Norm, router, the chosen experts of each token and the one that all share."""

    def __init__(self, spec: DecoderSpec, moe: MoeSpec, dtype: DTypeLike) -> None:
        super().__init__(spec, dtype, is_first=False)
        hidden, expert = spec.hidden_size, moe.expert
        width = moe.latent_size or hidden
        self.spec = moe
        self.router = Linear(moe.num_experts, hidden, dtype, bias=moe.router_bias)
        self.correction_bias = (
            nnx.Param(jnp.zeros((moe.num_experts,), jnp.float32)) if moe.correction_bias else None
        )
        self.gate_up = ExpertMatrices(
            moe.num_experts, _inner_width(expert), width, dtype, bias=expert.bias
        )
        self.down = ExpertMatrices(
            moe.num_experts, width, expert.intermediate_size, dtype, bias=expert.bias
        )
        self.to_latent = Linear(width, hidden, dtype, bias=expert.bias) if moe.latent_size else None
        self.from_latent = (
            Linear(hidden, width, dtype, bias=expert.bias) if moe.latent_size else None
        )
        self.shared = None if moe.shared is None else SharedExpert(hidden, moe.shared, dtype)
        self.shared_gate = Linear(1, hidden, dtype, bias=False) if moe.shared_gate else None
        self.beside = BesideDense(spec, moe, dtype) if moe.is_beside_dense else None

    def __call__(
        self,
        x: jax.Array,
        is_token: jax.Array | None = None,
        products: MoeProducts | None = None,
        tell: TellChoice | None = None,
    ) -> jax.Array:
        """What the experts add to the residual.

        Args:
            x: [T, hidden] float32.
            is_token: [T] bool, rows whose experts are computed; None is all. What the others get
                is not said.
            products: Computes the products; None is XLA with the block's own weights.
            tell: Told which experts are read.

        Returns:
            [T, hidden] float32.
        """
        spec, normed = self.spec, self.normed(x)
        products = products or _XlaProducts(self)
        tell = tell or (lambda _: None)
        if self.beside is not None:
            return self._beside_dense(self.beside, x, normed, is_token, products, tell)
        correction = None if self.correction_bias is None else self.correction_bias[...]
        choice = choose_experts(spec, self._product(products, "router", normed), correction)
        choice = self._of_tokens(choice, is_token)
        tell(choice)
        read = normed
        if self.to_latent is not None:
            read = self._product(products, "to_latent", normed)
        y = products.experts(read, choice)
        if self.from_latent is not None:
            y = self._product(products, "from_latent", y)
        if self.shared is not None:
            shared = products.shared(normed)
            if self.shared_gate is not None:
                shared *= jax.nn.sigmoid(self._product(products, "shared_gate", normed))
            y += shared
        return self.added(y)

    def _beside_dense(
        self,
        beside: BesideDense,
        x: jax.Array,
        normed: jax.Array,
        is_token: jax.Array | None,
        products: MoeProducts,
        tell: TellChoice,
    ) -> jax.Array:
        assert self.shared is not None, "declared with it"
        dense = beside.dense_post_norm(products.shared(normed))
        logits = self._product(products, "router", beside.router_input(x))
        choice = self._of_tokens(beside.weighed(choose_experts(self.spec, logits)), is_token)
        tell(choice)
        routed = products.experts(beside.experts_norm(x), choice)
        return self.added(dense + beside.experts_post_norm(routed))

    def _product(self, products: MoeProducts, name: str, x: jax.Array) -> jax.Array:
        bias = getattr(self, name).bias
        y = products.multiply(name, x)
        return y if bias is None else y + bias[...].astype(jnp.float32)

    def _of_tokens(self, choice: "ExpertChoice", is_token: jax.Array | None) -> "ExpertChoice":
        """The choice with no expert for rows that are no tokens."""
        if is_token is None:
            return choice
        experts = jnp.where(is_token[:, None], choice.experts, self.spec.num_experts)
        return choice._replace(experts=experts)


class _XlaProducts:
    """The products of a block in plain XLA."""

    def __init__(self, block: MoeBlock) -> None:
        self._block = block

    def multiply(self, name: str, x: jax.Array) -> jax.Array:
        return multiply(x, matrix_of(getattr(self._block, name).weight))

    def shared(self, x: jax.Array) -> jax.Array:
        assert self._block.shared is not None, "declared with it"
        return self._block.shared(x)

    def experts(self, x: jax.Array, choice: "ExpertChoice") -> jax.Array:
        block, spec = self._block, self._block.spec

        def compute(tile: jax.Array, expert: jax.Array) -> jax.Array:
            return block.down(activate(spec.expert, block.gate_up(tile, expert)), expert)

        return sum_of_experts(spec, x, choice, compute)


def sum_of_experts(
    spec: MoeSpec,
    x: jax.Array,
    choice: "ExpertChoice",
    compute: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """The weighted sum over each token's experts: [T, width] float32.

    Args:
        spec: Of the experts.
        x: [T, width] float32.
        choice: Of experts; E is none.
        compute: From rows [R, width] of one expert, and its number, to [R, width] float32.
    """
    hidden, num_chosen = x.shape[1], spec.num_experts_per_token
    experts = choice.experts
    tiles = expert_tiles(experts.reshape(-1), spec.num_experts)
    rows = x[tiles.order // num_chosen]
    if spec.weighs_input:
        rows *= choice.weights.reshape(-1)[tiles.order][:, None]
    # A tile may go on into the rows of the next expert, whose own tile comes later and writes
    # them again; so may the last one go beyond the end.
    rows = jnp.pad(rows, ((0, tiles.num_rows), (0, 0)))

    def compute_tile(index: jax.Array, y: jax.Array) -> jax.Array:
        expert, first = tiles.experts[index], tiles.first_rows[index]
        tile = lax.dynamic_slice(rows, (first, 0), (tiles.num_rows, hidden))
        return lax.dynamic_update_slice(y, compute(tile, expert), (first, 0))

    by_expert = lax.fori_loop(0, tiles.num_tiles, compute_tile, jnp.zeros(rows.shape, jnp.float32))
    by_choice = jnp.zeros((experts.size, hidden), jnp.float32)
    by_choice = by_choice.at[tiles.order].set(by_expert[: experts.size], unique_indices=True)
    by_choice = by_choice.reshape(*experts.shape, hidden)
    if spec.weighs_input:
        return jnp.sum(by_choice, axis=1)
    return jnp.sum(by_choice * choice.weights[..., None], axis=1)


class ExpertChoice(NamedTuple):
    """The experts of each token.

    Attributes:
        experts: [T, K] int32.
        weights: [T, K] float32.
    """

    experts: jax.Array
    weights: jax.Array


def choose_experts(
    spec: MoeSpec, logits: jax.Array, correction: jax.Array | None = None
) -> ExpertChoice:
    """Routes tokens to experts.

    Args:
        spec: Of the experts.
        logits: [T, E] float32 of the router.
        correction: [E] float32, added to the scores for choosing only (arXiv 2408.15664).
    """
    if spec.score is RouterScore.SIGMOID:
        scores = jax.nn.sigmoid(logits)
    else:
        scores = jax.nn.softmax(logits, axis=-1)
    ranked = scores if correction is None else scores + correction
    if spec.num_groups > 1:
        ranked = _in_best_groups(spec, ranked)
    _, experts = lax.top_k(ranked, spec.num_experts_per_token)
    weights = jnp.take_along_axis(scores, experts, axis=-1)
    if spec.normalize_weights:
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights /= jnp.maximum(total, 1e-20)
    return ExpertChoice(experts, weights * spec.weights_multiplier)


def _in_best_groups(spec: MoeSpec, ranked: jax.Array) -> jax.Array:
    """Scores [T, E] with minus infinity outside each token's best groups (arXiv 2405.04434)."""
    groups = ranked.reshape(ranked.shape[0], spec.num_groups, -1)
    best, _ = lax.top_k(groups, spec.num_group_scores)
    _, chosen = lax.top_k(jnp.sum(best, axis=-1), spec.num_groups_per_token)
    is_chosen = jnp.any(chosen[..., None] == jnp.arange(spec.num_groups), axis=1)
    return jnp.where(is_chosen[..., None], groups, -jnp.inf).reshape(ranked.shape)


def num_read(choice: ExpertChoice, num_experts: int) -> jax.Array:
    """How many experts some tokens read, each of which is read once: int32 scalar.

    Args:
        choice: Of experts; E is none.
        num_experts: E.
    """
    each = choice.experts.reshape(-1, 1) == jnp.arange(num_experts)
    return jnp.sum(jnp.any(each, axis=0), dtype=jnp.int32)


class ExpertTiles(NamedTuple):
    """Rows sorted by expert and cut into tiles, each with rows of one expert.

    Attributes:
        order: [N] int32, which row stands where; those without an expert at the end.
        experts: [M] int32, the expert of each tile.
        first_rows: [M] int32, where it begins in the sorted rows.
        num_tiles: Int32 scalar, how many of the M there are.
        num_rows: Of a tile, the last of an expert's may be partly another one's.
    """

    order: jax.Array
    experts: jax.Array
    first_rows: jax.Array
    num_tiles: jax.Array
    num_rows: int


def expert_tiles(experts: jax.Array, num_experts: int) -> ExpertTiles:
    """Cuts rows into tiles.

    Args:
        experts: [N] int32, the expert of each row; `num_experts` is none.
        num_experts: Experts.
    """
    num_rows = tile_rows(experts.size, num_experts)
    order = jnp.argsort(experts, stable=True)
    counts = jnp.zeros(num_experts, jnp.int32).at[experts].add(1, mode="drop")
    first_rows = jnp.cumsum(counts) - counts
    tiles_by_expert = (counts + num_rows - 1) // num_rows
    ends = jnp.cumsum(tiles_by_expert)
    most = min(experts.size, experts.size // num_rows + num_experts)
    index = jnp.arange(most, dtype=jnp.int32)
    expert = jnp.searchsorted(ends, index, side="right", method="compare_all")
    expert = jnp.minimum(expert, num_experts - 1).astype(jnp.int32)
    in_expert = index - (ends - tiles_by_expert)[expert]
    return ExpertTiles(order, expert, first_rows[expert] + in_expert * num_rows, ends[-1], num_rows)


def tile_rows(num_rows: int, num_experts: int) -> int:
    """Rows of a tile: the power of two that half as much again as an expert's share falls into.

    Where that is few rows, reading an expert's matrices a second time costs more than multiplying
    some rows for nothing, so it is rounded up; where it is many, the other way round.
    """
    share = 1.5 * num_rows / num_experts
    power = 1 << max(0, int(share).bit_length() - 1)
    if power < min(share, _FEW_TILE_ROWS):
        power *= 2
    return min(max(power, _MIN_TILE_ROWS), _MAX_TILE_ROWS)


def activate(mlp: MlpSpec, gate_up: jax.Array) -> jax.Array:
    """`activation(gate) * up` of [T, 2 * inner] float32, clamped and offset as the spec says.

    Without a gate the activation of [T, inner].
    """
    if not mlp.gated:
        return ACTIVATIONS[mlp.activation](gate_up)
    gate, up = jnp.split(gate_up, 2, axis=-1)
    if mlp.clamp is not None:
        gate, up = jnp.minimum(gate, mlp.clamp), jnp.clip(up, -mlp.clamp, mlp.clamp)
    return ACTIVATIONS[mlp.activation](gate) * (up + mlp.up_offset)
