"""Measures how near a decoder in one type comes to the same decoder in another, on a text."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from engine_worker.compute.backends.base import PackedDecoder, StepTokens, forward
from engine_worker.compute.backends.kv_layout import KvCache
from engine_worker.compute.models.decoder import Leaves

WINDOW: Final = 256
"""Tokens of a piece of the text; each is read from its own beginning."""
_BLOCK_SIZE: Final = 32
_SCORED_ROWS: Final = 64
"""Positions whose scores of the whole vocabulary are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured, over all tokens but the first of each piece.

    Attributes:
        num_tokens: Predicted tokens.
        kl_divergence: Mean of KL(reference || measured) in nats.
        kl_divergence_p99: What it stays below at 99 of 100 tokens.
        top_1_agreement: Share of positions where both think the same token most likely.
        perplexity: Of the measured decoder.
        reference_perplexity: Of the reference.
    """

    num_tokens: int
    kl_divergence: float
    kl_divergence_p99: float
    top_1_agreement: float
    perplexity: float
    reference_perplexity: float

    def record(self) -> dict[str, object]:
        """As it is kept and shown, floats with six digits."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def measure_quality(
    measured: PackedDecoder,
    reference: PackedDecoder,
    token_ids: Sequence[int],
    progress: Callable[[float], None],
    window: int = WINDOW,
) -> Quality:
    """Reads a text with both decoders, piece by piece, and compares their predictions.

    Args:
        measured: A decoder.
        reference: The same decoder in another type.
        token_ids: The text; what remains of it after whole pieces is left out, unless it is all.
        progress: Told the share that is done.
        window: Tokens of a piece; fewer where the text or the model's context is shorter.

    Raises:
        ValueError: The text has fewer than two tokens.
    """
    window = min(window, len(token_ids), measured.backend.spec.max_position_embeddings)
    if window < 2:
        raise ValueError("the text has fewer than two tokens")
    num_pieces = len(token_ids) // window
    pieces = np.asarray(token_ids[: num_pieces * window], np.int32).reshape(num_pieces, window)
    hidden_of = [_hidden_program(decoder, window) for decoder in (measured, reference)]
    compare = _compare_program(measured, reference)
    columns: list[npt.NDArray[np.float32]] = []
    for index, piece in enumerate(pieces):
        hidden = [
            program(decoder.leaves, piece)
            for program, decoder in zip(hidden_of, (measured, reference), strict=True)
        ]
        for start in range(0, window - 1, _SCORED_ROWS):
            targets = piece[start + 1 : start + 1 + _SCORED_ROWS]
            rows = [np.asarray(part[start : start + len(targets)]) for part in hidden]
            padding = _SCORED_ROWS - len(targets)
            padded = [np.pad(part, ((0, padding), (0, 0))) for part in rows]
            scores = compare(
                measured.leaves, reference.leaves, *padded, np.pad(targets, (0, padding))
            )
            columns.append(np.asarray(scores)[:, : len(targets)])
        progress((index + 1) / num_pieces)
    divergences, agreements, losses, reference_losses = np.concatenate(columns, axis=1)
    return Quality(
        num_tokens=len(divergences),
        kl_divergence=float(divergences.mean()),
        kl_divergence_p99=float(np.quantile(divergences, 0.99)),
        top_1_agreement=float(agreements.mean()),
        perplexity=float(np.exp(losses.mean())),
        reference_perplexity=float(np.exp(reference_losses.mean())),
    )


def _hidden_program(
    decoder: PackedDecoder, window: int
) -> Callable[[Leaves, npt.NDArray[np.int32]], jax.Array]:
    """Hidden states [window, hidden] of a piece, through pages as served."""
    backend = decoder.backend
    num_blocks = -(-window // _BLOCK_SIZE)
    layout = backend.kv_layout(num_blocks=num_blocks, block_size=_BLOCK_SIZE)
    width = -(-num_blocks // backend.table_multiple(_BLOCK_SIZE)) * backend.table_multiple(
        _BLOCK_SIZE
    )

    def program(leaves: Leaves, token_ids: jax.Array) -> jax.Array:
        cache: KvCache = jax.tree.map(
            lambda like: jnp.zeros(like.shape, like.dtype), layout.abstract()
        )
        table = jnp.minimum(jnp.arange(width, dtype=jnp.int32), num_blocks)[None]
        step = StepTokens(
            token_ids=token_ids[None],
            positions=jnp.arange(window, dtype=jnp.int32)[None],
            is_token=jnp.ones((1, window), bool),
            num_stored=jnp.full((1,), window, jnp.int32),
            block_tables=(table,) * len(layout.num_blocks),
            slots=jnp.zeros(1, jnp.int32),
            new_slots=jnp.zeros(1, jnp.int32),
            layout=layout,
        )
        hidden, _ = forward(backend.bind(leaves), backend.spec, cache, step)
        return hidden

    compiled: Callable[[Leaves, npt.NDArray[np.int32]], jax.Array] = jax.jit(program)
    return compiled


def _compare_program(measured: PackedDecoder, reference: PackedDecoder) -> Callable[..., jax.Array]:
    def program(
        leaves: Leaves,
        reference_leaves: Leaves,
        hidden: jax.Array,
        reference_hidden: jax.Array,
        targets: jax.Array,
    ) -> jax.Array:
        """[4, R]: KL divergence, agreement, and both decoders' loss, of each position."""
        ours = jax.nn.log_softmax(measured.backend.bind(leaves).head(hidden))
        theirs = jax.nn.log_softmax(reference.backend.bind(reference_leaves).head(reference_hidden))
        rows = jnp.arange(targets.shape[0])
        return jnp.stack(
            [
                jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1),
                (jnp.argmax(ours, -1) == jnp.argmax(theirs, -1)).astype(jnp.float32),
                -ours[rows, targets],
                -theirs[rows, targets],
            ]
        )

    return jax.jit(program)
