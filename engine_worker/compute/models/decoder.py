"""The one decoder: declared once with flax.nnx, split at load, computed by pure functions.

    graph = declare(spec, jnp.bfloat16)            # shapes only, nothing allocated
    weights = load_weights(path, graph)            # DecoderWeights(graph, leaves)
    hidden = graph.forward(leaves, token_ids, positions, attend)   # inside the caller's jit
    logits = graph.logits(leaves, hidden[rows])

nnx merges only while a program is traced; a compiled step takes the flat tuple of arrays and
never meets a module.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.models.layers import (
    Attend,
    Block,
    DecoderLayer,
    Embedding,
    Head,
    RmsNorm,
    matmul,
)
from engine_worker.compute.models.rope import RopeTable, rope_table
from engine_worker.compute.models.spec import DecoderSpec, RopeSpec
from engine_worker.compute.models.support import check_supported

Leaves = tuple[jax.Array, ...]
"""Every weight of a decoder, in the order of `DecoderGraph.parameters`."""


class Decoder(Block):
    """Embedding, layers, final norm and head."""

    def __init__(self, spec: DecoderSpec, dtype: DTypeLike) -> None:
        self.spec = spec
        self.embedding = Embedding(spec, dtype)
        self.layers = nnx.List([DecoderLayer(spec, layer, dtype) for layer in spec.layers])
        self.norm = RmsNorm(spec.hidden_size, spec.norm_eps, dtype)
        self.head = None if spec.tied_head else Head(spec, dtype)

    def __call__(self, token_ids: jax.Array, positions: jax.Array, attend: Attend) -> jax.Array:
        """Hidden states after the final norm; see `DecoderGraph.forward`."""
        tables: dict[tuple[RopeSpec, int], RopeTable] = {}
        x = self.embedding(token_ids)
        # Unrolled on purpose: a scan over stacked layers makes XLA:CPU copy each slice.
        for index, layer in enumerate(self.layers):
            rope, head_dim = layer.attention.spec.rope, layer.attention.spec.head_dim
            table = None
            if rope is not None:
                if (rope, head_dim) not in tables:
                    tables[rope, head_dim] = _shared_table(rope, head_dim, positions)
                table = tables[rope, head_dim]
            x = layer(index, x, table, attend)
        return self.norm(x)

    def project(self, hidden: jax.Array) -> jax.Array:
        """Logits; see `DecoderGraph.logits`."""
        head = self.embedding if self.head is None else self.head
        return matmul(hidden, head.weight[...])


def _shared_table(rope: RopeSpec, head_dim: int, positions: jax.Array) -> RopeTable:
    """Computes a table once for all layers.

    XLA:CPU would compute it again in each layer, for each head. The result of a branch is never
    taken apart like that, so it stands in one that is always taken.
    """
    empty = (positions.shape[0], 1, head_dim // 2)
    table: RopeTable = lax.cond(
        positions[0] >= 0,
        lambda: rope_table(rope, head_dim, positions),
        lambda: (jnp.zeros(empty, jnp.float32), jnp.zeros(empty, jnp.float32)),
    )
    return table


@dataclass(frozen=True, slots=True)
class Parameter:
    """One weight: its dotted path in the modules, its shape and its type."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def num_elements(self) -> int:
        """Numbers in this weight."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def size_bytes(self) -> int:
        """Bytes of this weight on the device."""
        return self.num_elements * self.dtype.itemsize


class DecoderGraph:
    """The static half of a split decoder: what a program closes over.

    Attributes:
        spec: The decoder.
        dtype: Of every weight.
        parameters: One entry per leaf, in order.
    """

    def __init__(self, spec: DecoderSpec, dtype: DTypeLike) -> None:
        check_supported(spec)
        self.spec = spec
        self.dtype = np.dtype(dtype)
        abstract = nnx.eval_shape(lambda: Decoder(spec, dtype))
        self._graphdef, state = nnx.split(abstract)
        self._treedef = jax.tree_util.tree_structure(state)
        self.parameters = parameters_of(state)

    @property
    def num_parameters(self) -> int:
        """Numbers in all weights; a tied head counts once."""
        return sum(parameter.num_elements for parameter in self.parameters)

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights on the device."""
        return sum(parameter.size_bytes for parameter in self.parameters)

    def forward(
        self, leaves: Leaves, token_ids: jax.Array, positions: jax.Array, attend: Attend
    ) -> jax.Array:
        """Hidden states of a flat batch of tokens; called while the caller's program is traced.

        Args:
            leaves: All weights, aligned with `parameters`.
            token_ids: [T] int32; T >= 2 for bfloat16 weights on a CPU (see `layers`).
            positions: [T] int32, the position of each token in its own sequence.
            attend: Called once a layer, in order; it stores k and v and returns [T, H, D] of any
                float type.

        Returns:
            [T, hidden] float32, after the final norm.
        """
        return self._merge(leaves)(token_ids, positions, attend)  # type: ignore[no-any-return]

    def logits(self, leaves: Leaves, hidden: jax.Array) -> jax.Array:
        """Scores of every token of the vocabulary.

        Args:
            leaves: All weights, aligned with `parameters`.
            hidden: [R, hidden] from `forward`; R >= 2 for bfloat16 weights on a CPU.

        Returns:
            [R, vocab] float32.
        """
        return self._merge(leaves).project(hidden)  # type: ignore[no-any-return]

    def _merge(self, leaves: Leaves) -> Any:
        return nnx.merge(self._graphdef, jax.tree_util.tree_unflatten(self._treedef, leaves))


def parameters_of(state: Any) -> tuple[Parameter, ...]:
    """The weights of a split module's abstract state, in the order of its leaves."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return tuple(
        Parameter(_dotted(path), tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in flat
    )


def _dotted(path: tuple[Any, ...]) -> str:
    """`layers.0.attention.qkv.weight` from a key path, without the variable's own `.value`."""
    return ".".join(str(entry.key) for entry in path if hasattr(entry, "key"))


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A loaded decoder: the static graph and the arrays that fill it."""

    graph: DecoderGraph
    leaves: Leaves


def declare(spec: DecoderSpec, dtype: DTypeLike) -> DecoderGraph:
    """Declares a decoder without allocating any weight.

    Args:
        spec: What to declare.
        dtype: float32 or bfloat16, of every weight.

    Raises:
        UnsupportedFeatureError: The spec names something that is not implemented.
    """
    return DecoderGraph(spec, dtype)


def random_weights(graph: DecoderGraph, seed: int, scale: float = 0.02) -> DecoderWeights:
    """Weights for benchmarks and tests: matrices normal with deviation `scale`, norms at one.

    Args:
        graph: The declared decoder.
        seed: Equal seeds give equal weights.
        scale: Standard deviation of matrices and biases.
    """
    generator = np.random.default_rng(seed)
    leaves = []
    for parameter in graph.parameters:
        if "norm" in parameter.path:
            values = np.ones(parameter.shape, np.float32)
        else:
            values = generator.standard_normal(parameter.shape, np.float32) * np.float32(scale)
        leaves.append(jnp.asarray(values.astype(parameter.dtype)))
    return DecoderWeights(graph, tuple(leaves))
