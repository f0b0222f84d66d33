"""The one decoder: declared once with flax.nnx, split at load, computed by pure functions.

    graph = declare(spec, jnp.bfloat16)            # shapes only, nothing allocated
    weights = load_weights(path, graph)            # DecoderWeights(graph, leaves)
    hidden = graph.forward(leaves, token_ids, positions, attend)   # inside the caller's jit
    logits = graph.logits(leaves, hidden[rows])

nnx merges only while a program is traced; a compiled step takes the flat tuple of arrays and
never meets a module.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from engine_worker.compute.models.alt_up import Streams
from engine_worker.compute.models.decoder_layer import DecoderLayer
from engine_worker.compute.models.layers import (
    Attend,
    Block,
    Embedding,
    Head,
    Linear,
    matmul,
    matrix_of,
    norm_of,
)
from engine_worker.compute.models.recurrent.state import Advance, Inputs, Recur
from engine_worker.compute.models.rope import rope_tables
from engine_worker.compute.models.spec import DecoderSpec
from engine_worker.compute.models.support import check_supported
from engine_worker.compute.models.token_inputs import TokenInputs

Leaves = tuple[jax.Array, ...]
"""Every weight of a decoder, in the order of `DecoderGraph.parameters`."""


class Decoder(Block):
    """Embedding, layers, final norm and head."""

    def __init__(self, spec: DecoderSpec, dtype: DTypeLike) -> None:
        hidden = spec.hidden_size
        self.spec = spec
        self.embedding = Embedding(spec.vocab_size, hidden, dtype, spec.embedding_multiplier)
        self.position_embedding = (
            Embedding(spec.max_position_embeddings, hidden, dtype)
            if spec.learned_positions
            else None
        )
        self.token_inputs = (
            None if spec.token_inputs is None else TokenInputs(spec, spec.token_inputs, dtype)
        )
        self.streams = None if spec.alt_up is None else Streams(spec, spec.alt_up, dtype)
        self.layers = nnx.List([DecoderLayer(spec, layer, dtype) for layer in spec.layers])
        self.norm = norm_of(spec, hidden, dtype)
        self.head = None if spec.tied_head else Head(spec, dtype)

    def __call__(
        self, token_ids: jax.Array, positions: jax.Array, attend: Attend, recur: Recur
    ) -> jax.Array:
        """Hidden states after the final norm; see `DecoderGraph.forward`."""
        x = self.with_positions(self.embedding(token_ids), positions)
        ropes = rope_tables(self.spec, positions)
        token_inputs = self.inputs_by_layer(token_ids, x)
        x, beside = self.begin(x), None
        for index, layer in enumerate(self.layers):
            before = x
            x = layer(index, x, ropes, attend, recur, token_inputs[index], beside)
            beside = before
        return self.norm(self.end(x))

    def inputs_by_layer(self, token_ids: jax.Array, x: jax.Array) -> Sequence[jax.Array | None]:
        """For each layer the vectors [T, width] of tokens [T] with embeddings x [T, hidden]."""
        if self.token_inputs is None:
            return (None,) * len(self.layers)
        inputs = self.token_inputs(token_ids, x)
        return tuple(inputs[:, layer] for layer in range(len(self.layers)))

    def begin(self, x: jax.Array) -> jax.Array:
        """What the first layer takes: embeddings [T, hidden], or [T, streams, hidden] of them."""
        return x if self.streams is None else self.streams.begin(x)

    def end(self, x: jax.Array) -> jax.Array:
        """What the last norm takes [T, hidden] of what the last layer gives."""
        return x if self.streams is None else self.streams.end(x)

    def with_positions(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Embeddings [T, hidden] with those of their positions [T], if the decoder has such."""
        return x if self.position_embedding is None else x + self.position_embedding(positions)

    def project(self, hidden: jax.Array) -> jax.Array:
        """Logits; see `DecoderGraph.logits`."""
        head = self.embedding if self.head is None else self.head
        logits = matmul(hidden, matrix_of(head.weight))
        if self.spec.logits_multiplier != 1.0:
            logits *= self.spec.logits_multiplier
        softcap = self.spec.final_softcap
        return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def no_recurrence(layer: int, _: Inputs, __: Advance) -> jax.Array:
    """The `Recur` of callers whose decoders have no recurrent layer."""
    raise AssertionError(f"layer {layer} is recurrent, and nobody keeps its state")


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
        linear_paths: Of the matrices of `Linear`s.
    """

    def __init__(self, spec: DecoderSpec, dtype: DTypeLike) -> None:
        check_supported(spec)
        self.spec = spec
        self.dtype = np.dtype(dtype)
        abstract = nnx.eval_shape(lambda: Decoder(spec, dtype))
        self._graphdef, state = nnx.split(abstract)
        self._treedef = jax.tree_util.tree_structure(state)
        self.parameters = parameters_of(state)
        self.linear_paths = frozenset(
            ".".join((*map(str, path), "weight"))
            for path, module in nnx.iter_modules(abstract)
            if isinstance(module, Linear)
        )

    @property
    def num_parameters(self) -> int:
        """Numbers in all weights; a tied head counts once."""
        return sum(parameter.num_elements for parameter in self.parameters)

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights on the device."""
        return sum(parameter.size_bytes for parameter in self.parameters)

    def forward(
        self,
        leaves: Leaves,
        token_ids: jax.Array,
        positions: jax.Array,
        attend: Attend,
        recur: Recur = no_recurrence,
    ) -> jax.Array:
        """Hidden states of a flat batch of tokens; called while the caller's program is traced.

        Args:
            leaves: All weights, aligned with `parameters`.
            token_ids: [T] int32; T >= 2 for bfloat16 weights on a CPU (see `layers`).
            positions: [T] int32, the position of each token in its own sequence.
            attend: Called once a layer that attends, in order; it stores k and v and returns
                [T, H, D] of any float type.
            recur: The same for recurrent layers.

        Returns:
            [T, hidden] float32, after the final norm.
        """
        return self.bind(leaves)(token_ids, positions, attend, recur)

    def logits(self, leaves: Leaves, hidden: jax.Array) -> jax.Array:
        """Scores of every token of the vocabulary.

        Args:
            leaves: All weights, aligned with `parameters`.
            hidden: [R, hidden] from `forward`; R >= 2 for bfloat16 weights on a CPU.

        Returns:
            [R, vocab] float32.
        """
        return self.bind(leaves).project(hidden)

    def bind(self, leaves: Sequence[Any]) -> Decoder:
        """The modules with weights in them; called while the caller's program is traced.

        Args:
            leaves: Aligned with `parameters`: arrays, matrices as a backend packs them
                (`layers.Matrix`), or None where no block that is used has the weight.
        """
        state = jax.tree_util.tree_unflatten(self._treedef, leaves)
        decoder: Decoder = nnx.merge(self._graphdef, state)
        return decoder


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
