"""How near a backend's logits of a small model are to transformers', in every way to get them.

All go through pages: a prompt at once, in chunks, and token by token; behind a beginning that
another request left in the cache; and from prompt and output together, as an answer is resumed.
"""

import gc
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from engine_worker.compute.backends.base import PackedDecoder, StepTokens, forward
from engine_worker.compute.backends.kv_layout import KvCache
from engine_worker.compute.backends.kv_memory import state_rings
from engine_worker.compute.models.decoder import DecoderWeights, Leaves
from tests.fakes.model_families import FamilyCase
from tests.fakes.packed_decoder import packed
from tests.fakes.parity import Logits, TokenIds, computed_model, load, save_model

WAYS: Final = ("prefill", "chunked", "decode", "cached", "resumed")
KINDS: Final = (
    *(("cpu_native", one) for one in ("float32", "bfloat16", "int8", "int4")),
    *(("xla", one) for one in ("float32", "bfloat16", "int8")),
)
"""Backends and the types of weights that they compute."""
NUM_PROMPT: Final = 48
NUM_TOKENS: Final = 80
_FAST_COMPILE: Final = {"xla_backend_optimization_level": 0}
"""A thousand programs are compiled, each of which runs a few times."""
_CHUNK: Final = 16
_BLOCK: Final = 8
_NUM_CACHED: Final = 24
_NUM_RESUMED: Final = 21
_ROW_BLOCKS: Final = NUM_TOKENS // _BLOCK


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of some tokens.

    Attributes:
        num_same: For so many both think the same token likeliest.
        num_tokens: That were compared.
        difference: The largest of two logits, over the deviation of transformers'.
    """

    num_same: int
    num_tokens: int
    difference: float

    @property
    def percent(self) -> int:
        """Rounded down, so that 100 is all."""
        return 100 * self.num_same // self.num_tokens


@dataclass(frozen=True, slots=True)
class Expected:
    """A small model, and what transformers computes for it in float32.

    Attributes:
        weights: In float32, as the engine reads its files.
        token_ids: [NUM_TOKENS].
        logits: [NUM_TOKENS, vocab].
    """

    weights: DecoderWeights
    token_ids: TokenIds
    logits: Logits


def expected_of(case: FamilyCase) -> Expected:
    """Makes the model of a case."""
    with tempfile.TemporaryDirectory() as folder:
        model, token_ids, logits = computed_model(case, NUM_TOKENS)
        save_model(Path(folder), case, model)
        return Expected(load(Path(folder)), token_ids[0].numpy().astype(np.int32), logits)


def agreements(expected: Expected, backend: str, weight_type: str) -> dict[str, Agreement]:
    """Computes the tokens in all of `WAYS`."""
    decoder = packed(expected.weights, backend, weight_type, _BLOCK)
    found = {
        way: _compare(logits, expected.logits[first:end])
        for way, (first, end, logits) in _compute_all(_PagedDecoder(decoder), expected).items()
    }
    # Programs of one model are of no use to the next.
    jax.clear_caches()  # type: ignore[no-untyped-call]
    gc.collect()
    return found


def _compare(ours: Logits, theirs: Logits) -> Agreement:
    num_same = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    return Agreement(num_same, len(ours), float(np.abs(ours - theirs).max() / theirs.std()))


class _PagedDecoder:
    """Computes tokens of single requests through pages, by programs like those that serve."""

    def __init__(self, decoder: PackedDecoder) -> None:
        self._backend, self._leaves = decoder.backend, decoder.leaves
        self._layout = self._backend.kv_layout(
            num_blocks=self._backend.layer_groups.blocks_by_group(len(WAYS) * _ROW_BLOCKS),
            block_size=_BLOCK,
            rings=state_rings(self._backend.spec, num_slots=len(WAYS), max_draft_tokens=0),
        )
        self._cache: KvCache = self._layout.allocate()
        self._compute = jax.jit(
            self._step,
            donate_argnums=1,
            static_argnames="num_rows",
            compiler_options=_FAST_COMPILE,
        )

    def compute(
        self, token_ids: TokenIds, first: int, blocks: Sequence[int], slot: int, width: int
    ) -> Logits:
        """Logits [len(token_ids), vocab] of tokens that follow `first` others.

        Args:
            token_ids: At most as many as the program has places.
            first: Position of the first one.
            blocks: Of the request, `_ROW_BLOCKS` of them.
            slot: Of the request.
            width: Of the program: `NUM_PROMPT`, whose last places may be padding, or 1, whose other
                rows are.
        """
        num_rows = self._backend.min_rows if width == 1 else 1
        ids = np.zeros((num_rows, width), np.int32)
        ids[0, : len(token_ids)] = token_ids
        logits, self._cache = self._compute(
            self._leaves,
            self._cache,
            ids,
            jnp.int32(first),
            jnp.int32(len(token_ids)),
            self._tables(first, blocks),
            jnp.int32(slot),
            num_rows=num_rows,
        )
        return np.asarray(logits)[: len(token_ids)]

    def _tables(self, first: int, blocks: Sequence[int]) -> tuple[npt.NDArray[np.int32], ...]:
        """For each cache group [width]; blocks behind the window of the first token are freed."""
        multiple = self._backend.table_multiple(_BLOCK)
        width = -(-len(blocks) // multiple) * multiple
        tables = []
        for padding, reach in zip(
            self._layout.padding_blocks, self._layout.groups.reaches, strict=True
        ):
            table = np.full(width, padding, np.int32)
            num_freed = 0 if reach is None else max(0, first - reach + 1) // _BLOCK
            table[num_freed : len(blocks)] = blocks[num_freed:]
            tables.append(table)
        return tuple(tables)

    def _step(
        self,
        leaves: Leaves,
        cache: KvCache,
        token_ids: jax.Array,
        first: jax.Array,
        num_tokens: jax.Array,
        tables: tuple[jax.Array, ...],
        slot: jax.Array,
        *,
        num_rows: int,
    ) -> tuple[jax.Array, KvCache]:
        """Logits [num_rows * width, vocab], of which the first are those of tokens."""
        offsets = jnp.arange(token_ids.shape[1], dtype=jnp.int32)
        is_row = jnp.arange(num_rows) == 0
        slots = jnp.where(is_row, slot, self._layout.rings.num_slots).astype(jnp.int32)
        step = StepTokens(
            token_ids=token_ids,
            positions=jnp.broadcast_to(first + offsets, token_ids.shape),
            is_token=is_row[:, None] & (offsets < num_tokens),
            num_stored=jnp.where(is_row, first + num_tokens, 0).astype(jnp.int32),
            block_tables=tuple(
                jnp.where(is_row[:, None], table, padding).astype(jnp.int32)
                for table, padding in zip(tables, self._layout.padding_blocks, strict=True)
            ),
            slots=slots,
            new_slots=slots,
            layout=self._layout,
        )
        blocks = self._backend.bind(leaves)
        hidden, cache = forward(blocks, self._backend.spec, cache, step)
        return blocks.head(hidden), cache


def _compute_all(
    decoder: _PagedDecoder, expected: Expected
) -> Mapping[str, tuple[int, int, Logits]]:
    """For each way the first and the end of what it computed, and logits [end - first, vocab]."""
    token_ids = expected.token_ids
    blocks = {
        way: list(range(index * _ROW_BLOCKS, (index + 1) * _ROW_BLOCKS))
        for index, way in enumerate(WAYS)
    }
    # An answer goes on where its prompt lies, and its prompt's beginning is shared.
    blocks["decode"] = blocks["chunked"]
    num_shared = _NUM_CACHED // _BLOCK
    blocks["cached"][:num_shared] = blocks["chunked"][:num_shared]

    def compute(way: str, first: int, end: int, step: int) -> Logits:
        slot = WAYS.index("chunked" if way == "decode" else way)
        width = 1 if step == 1 else NUM_PROMPT
        pieces = [
            decoder.compute(token_ids[at : min(at + step, end)], at, blocks[way], slot, width)
            for at in range(first, end, step)
        ]
        return np.concatenate(pieces)

    known = NUM_PROMPT + _NUM_RESUMED
    found: dict[str, tuple[int, int, Logits]] = {
        "prefill": (0, NUM_PROMPT, compute("prefill", 0, NUM_PROMPT, NUM_PROMPT)),
        "chunked": (0, NUM_PROMPT, compute("chunked", 0, NUM_PROMPT, _CHUNK)),
        "decode": (NUM_PROMPT, NUM_TOKENS, compute("decode", NUM_PROMPT, NUM_TOKENS, 1)),
        "cached": (_NUM_CACHED, NUM_PROMPT, compute("cached", _NUM_CACHED, NUM_PROMPT, _CHUNK)),
    }
    before, after = compute("resumed", 0, known, _CHUNK), compute("resumed", known, NUM_TOKENS, 1)
    resumed = np.concatenate([before[NUM_PROMPT:], after])
    return {**found, "resumed": (NUM_PROMPT, NUM_TOKENS, resumed)}


def record_of(found: Mapping[str, Agreement]) -> dict[str, Any]:
    """As JSON."""
    return {way: [one.num_same, one.num_tokens, one.difference] for way, one in found.items()}


def agreements_of(record: Mapping[str, Any]) -> dict[str, Agreement]:
    """The inverse of `record_of`."""
    return {way: Agreement(*values) for way, values in record.items()}
