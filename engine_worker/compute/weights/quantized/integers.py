"""Integers of a few bits in 32-bit words, and the numbers that they are with scales and zeros."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

WORD_BITS: Final = 32
_CHUNK_VALUES: Final = 2**24
"""Numbers that are computed at a time: temporaries stay small beside a large matrix."""


def num_words(count: int, bits: int) -> int:
    """Words that hold so many integers without a gap."""
    return -(-count * bits // WORD_BITS)


def unpack(words: npt.NDArray[Any], bits: int, count: int) -> npt.NDArray[np.uint8]:
    """Integers of a stream of bits, the lowest first, words without gaps between them.

    Args:
        words: [rows, n] of 32 bits, little endian.
        bits: Of an integer, 1 to 8.
        count: Integers of a row.

    Returns:
        [rows, count].
    """
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return octets[:, :count]
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        fields = (octets[:, :, None] >> shifts) & np.uint8(2**bits - 1)
        return fields.reshape(len(octets), -1)[:, :count]
    stream = np.unpackbits(octets, axis=1, bitorder="little", count=count * bits)
    places = np.uint8(1) << np.arange(bits, dtype=np.uint8)
    fields = stream.reshape(len(octets), count, bits) * places
    integers: npt.NDArray[np.uint8] = fields.sum(axis=2, dtype=np.uint8)
    return integers


def scaled(
    integers: npt.NDArray[Any],
    scales: npt.NDArray[np.float32],
    zeros: npt.NDArray[Any] | None,
    groups: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float32]:
    """(integers - zeros) * scales.

    Args:
        integers: [out, in].
        scales: [out or 1, G].
        zeros: [out or 1, G], or None where zero is 0.
        groups: [in], the group of each column; None where all groups are of one width.

    Returns:
        [out, in] float32.
    """
    outputs, inputs = integers.shape
    num_groups = scales.shape[1]
    values = np.empty((outputs, inputs), np.float32)
    scales = np.broadcast_to(scales, (outputs, num_groups))
    if zeros is not None:
        zeros = np.broadcast_to(zeros, scales.shape)
    width = -(-inputs // num_groups)
    if groups is None and inputs % num_groups:
        groups = np.arange(inputs) // width
    step = max(1, _CHUNK_VALUES // inputs)
    for start in range(0, outputs, step):
        rows = slice(start, start + step)
        part = values[rows]
        np.copyto(part, integers[rows], casting="unsafe")
        if groups is None:
            part = part.reshape(len(part), num_groups, width)
        if zeros is not None:
            part -= _spread(zeros[rows].astype(np.float32), groups)
        part *= _spread(scales[rows], groups)
    return values


def _spread(
    values: npt.NDArray[np.float32], groups: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.float32]:
    """One for each column, or [rows, G, 1]."""
    return values[:, :, None] if groups is None else values[:, groups]
