"""The one host buffer of a program call: written with numpy, taken apart inside the program.

A transfer per argument would cost more than the whole step of a small model, so everything a call
needs, floats as their bits, is one int32 vector: row fields, limits of decoding rows, token ids,
and block tables.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from engine_worker.compute.runner.buckets import Bucket
from engine_worker.compute.sampling.params import SamplingRows
from engine_worker.core.choice.batch import MAX_ROW_STOP_TOKEN_IDS, RowSampling, RowWork
from engine_worker.core.choice.cache_group import NO_BLOCK

_UINT32: Final = (1 << 32) - 1
_NUM_LIMITS: Final = 1 + MAX_ROW_STOP_TOKEN_IDS
LAST_TOKEN: Final = -1
"""As the token of a decode: what the same row of the decode before sampled, wherever that is."""


class RowField(IntEnum):
    """Column of a row's fields."""

    START = 0
    NUM_TOKENS = auto()
    SLOT = auto()
    STATE_SLOT = auto()
    SAMPLED = auto()
    SEED_LOW = auto()
    SEED_HIGH = auto()
    CHOICE = auto()
    TOP_K = auto()
    TEMPERATURE = auto()
    TOP_P = auto()
    LOG_MIN_P = auto()
    PRESENCE_PENALTY = auto()
    FREQUENCY_PENALTY = auto()
    REPETITION_PENALTY = auto()


NUM_ROW_FIELDS: Final = RowField.REPETITION_PENALTY + 1
_FLOAT_FIELDS: Final = slice(RowField.TEMPERATURE, NUM_ROW_FIELDS)


class StepInputs(NamedTuple):
    """What a packed vector holds, inside a program.

    Attributes:
        token_ids: [T, Q] int32, T the rows that have tokens; or `LAST_TOKEN` in decode.
        positions: [T, Q] int32.
        is_token: [T, Q] bool; False is padding.
        num_stored: [T] int32, tokens of the row in the cache once this call has stored its own.
        block_tables: For each cache group [T, MB] int32.
        slots: [T] int32, of every row, sampled or not; padding has the one after the last.
        sampling: R rows of parameters.
        max_new_tokens: [T] int32; no rows in a prefill.
        stop_token_ids: [T, `MAX_ROW_STOP_TOKEN_IDS`] int32; -1 is no id.
    """

    token_ids: jax.Array
    positions: jax.Array
    is_token: jax.Array
    num_stored: jax.Array
    block_tables: tuple[jax.Array, ...]
    slots: jax.Array
    sampling: SamplingRows
    max_new_tokens: jax.Array
    stop_token_ids: jax.Array


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where things lie in the vector of one bucket.

    Attributes:
        bucket: The program's shape.
        table_width: Block ids of a row (MB).
        num_slots: Slots; padding rows name the slot after the last.
        padding_blocks: For each cache group what padding entries of a block table name.
    """

    bucket: Bucket
    table_width: int
    num_slots: int
    padding_blocks: tuple[int, ...]

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        bucket = self.bucket
        return (
            bucket.num_rows * NUM_ROW_FIELDS,
            0 if bucket.is_prefill else bucket.num_rows * _NUM_LIMITS,
            bucket.num_token_rows * bucket.num_queries,
            len(self.padding_blocks) * bucket.num_token_rows * self.table_width,
        )

    @property
    def num_entries(self) -> int:
        """Length of the vector."""
        return sum(self._sizes)

    def pack(self, rows: Sequence[RowWork], apart: Collection[int] = ()) -> npt.NDArray[np.int32]:
        """Writes the rows of one call, padded to the bucket.

        Args:
            rows: At most the bucket's rows that have tokens, each with at most its tokens.
            apart: Indices of rows of which hidden states are computed only, whatever they want.

        Returns:
            [num_entries] int32, a fresh array: the program may still read it when the next is made.
        """
        packed = np.zeros(self.num_entries, np.int32)
        fields, limits, token_ids, tables = self.parts(packed)
        fields[:] = pack_row_fields(rows, self.bucket.num_rows, self.num_slots, apart)
        for group, padding_block in enumerate(self.padding_blocks):
            tables[group] = padding_block
            for index, row in enumerate(rows):
                write_table(tables[group, index], row.block_tables[group], padding_block)
        for index, row in enumerate(rows):
            token_ids[index, : len(row.token_ids)] = row.token_ids
        if not self.bucket.is_prefill:
            _pack_limits(limits, rows)
        return packed

    def parts(self, packed: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], ...]:
        """Row fields, limits, token ids and block tables of a vector; views of it.

        All are a row each, the tables for each cache group: [G, T, MB].
        """
        fields, limits, token_ids, tables = np.split(packed, np.cumsum(self._sizes)[:-1])
        return (
            fields.reshape(-1, NUM_ROW_FIELDS),
            limits.reshape(-1, _NUM_LIMITS),
            token_ids.reshape(-1, self.bucket.num_queries),
            tables.reshape(len(self.padding_blocks), -1, self.table_width),
        )

    def unpack(self, packed: jax.Array) -> StepInputs:
        """The inverse of `pack`, inside a program."""
        num_queries = self.bucket.num_queries
        parts = jnp.split(packed, np.cumsum(self._sizes)[:-1])
        fields, limits = parts[0].reshape(-1, NUM_ROW_FIELDS), parts[1].reshape(-1, _NUM_LIMITS)
        num_token_rows = self.bucket.num_token_rows
        start = fields[:num_token_rows, RowField.START]
        num_row_tokens = fields[:num_token_rows, RowField.NUM_TOKENS]
        offsets = jnp.arange(num_queries, dtype=jnp.int32)
        return StepInputs(
            token_ids=parts[2].reshape(-1, num_queries),
            positions=start[:, None] + offsets,
            is_token=offsets < num_row_tokens[:, None],
            num_stored=start + num_row_tokens,
            block_tables=tuple(parts[3].reshape(len(self.padding_blocks), -1, self.table_width)),
            slots=fields[:num_token_rows, RowField.STATE_SLOT],
            sampling=unpack_row_fields(fields),
            max_new_tokens=limits[:, 0],
            stop_token_ids=limits[:, 1:],
        )


def write_table(table: npt.NDArray[np.int32], block_ids: Sequence[int], padding_block: int) -> None:
    """Writes a row's blocks to the front of its table, the padding block's id for freed ones."""
    written = table[: len(block_ids)]
    written[:] = block_ids
    written[written == NO_BLOCK] = padding_block


def pack_row_fields(
    rows: Sequence[RowWork], num_rows: int, num_slots: int, apart: Collection[int] = ()
) -> npt.NDArray[np.int32]:
    """The fields of some rows, padded: [num_rows, NUM_ROW_FIELDS] int32, floats as their bits.

    Args:
        rows: At most `num_rows`.
        num_rows: Rows of the program.
        num_slots: The slot that rows without a sample name.
        apart: Indices of rows that become ones without a sample.
    """
    fields = np.zeros((num_rows, NUM_ROW_FIELDS), np.int32)
    fields[:] = _padding_fields(num_slots)
    for index, row in enumerate(rows):
        fields[index, RowField.START] = row.start
        fields[index, RowField.STATE_SLOT] = row.slot
        fields[index, RowField.NUM_TOKENS] = len(row.token_ids)
        if row.sample and index not in apart:
            fields[index, RowField.SLOT] = row.slot
            fields[index, RowField.SAMPLED] = 1
            _pack_sampling(fields[index], row.sampling)
    return fields


def _pack_limits(limits: npt.NDArray[np.int32], rows: Sequence[RowWork]) -> None:
    limits[:, 1:] = -1
    for index, row in enumerate(rows):
        limits[index, 0] = row.max_new_tokens
        limits[index, 1 : 1 + len(row.stop_token_ids)] = row.stop_token_ids


def _padding_fields(num_slots: int) -> npt.NDArray[np.int32]:
    fields = np.zeros(NUM_ROW_FIELDS, np.int32)
    fields[RowField.SLOT] = num_slots
    fields[RowField.STATE_SLOT] = num_slots
    floats = fields.view(np.float32)
    floats[RowField.TOP_P] = 1.0
    floats[RowField.LOG_MIN_P] = -math.inf
    floats[RowField.REPETITION_PENALTY] = 1.0
    return fields


def _pack_sampling(fields: npt.NDArray[np.int32], sampling: RowSampling) -> None:
    fields.view(np.uint32)[RowField.SEED_LOW] = sampling.seed & _UINT32
    fields.view(np.uint32)[RowField.SEED_HIGH] = (sampling.seed >> 32) & _UINT32
    fields[RowField.CHOICE] = sampling.choice
    fields[RowField.TOP_K] = max(sampling.top_k, 0)
    min_p = sampling.min_p
    fields.view(np.float32)[_FLOAT_FIELDS] = (
        sampling.temperature,
        sampling.top_p,
        math.log(min_p) if min_p > 0.0 else -math.inf,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repetition_penalty,
    )


def unpack_row_fields(fields: jax.Array) -> SamplingRows:
    """The inverse of `pack_row_fields`, inside a program; further columns are left out."""

    def floats(field: RowField) -> jax.Array:
        return lax.bitcast_convert_type(fields[:, field], jnp.float32)

    def bits(field: RowField) -> jax.Array:
        return lax.bitcast_convert_type(fields[:, field], jnp.uint32)

    positions = fields[:, RowField.START] + fields[:, RowField.NUM_TOKENS]
    return SamplingRows(
        slots=fields[:, RowField.SLOT],
        sampled=fields[:, RowField.SAMPLED] != 0,
        positions=positions.astype(jnp.uint32),
        choices=bits(RowField.CHOICE),
        seeds_low=bits(RowField.SEED_LOW),
        seeds_high=bits(RowField.SEED_HIGH),
        temperatures=floats(RowField.TEMPERATURE),
        top_ks=fields[:, RowField.TOP_K],
        top_ps=floats(RowField.TOP_P),
        log_min_ps=floats(RowField.LOG_MIN_P),
        presence_penalties=floats(RowField.PRESENCE_PENALTY),
        frequency_penalties=floats(RowField.FREQUENCY_PENALTY),
        repetition_penalties=floats(RowField.REPETITION_PENALTY),
    )
