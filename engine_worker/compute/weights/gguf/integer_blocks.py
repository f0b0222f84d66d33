"""GGUF's blocks of small numbers as `BlockMatrix`: the same integers and scales, in other places.

Source: ggml, `ggml-common.h` (the structs `block_*`) and `ggml-quants.c`.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine_worker.compute.models.integer_blocks import (
    SCALE_DTYPES,
    BlockFormat,
    BlockMatrix,
)
from engine_worker.compute.weights.gguf.blocks import for_each_part
from engine_worker.compute.weights.stored_file import ReadOctets
from engine_worker.errors import CheckpointError
from protocol.runtime.gguf_header import BLOCK_TYPES, GgufTensor

FORMATS: Final = {
    "Q8_0": BlockFormat(8, 32, 32),
    "Q4_0": BlockFormat(4, 32, 32),
    "Q4_1": BlockFormat(4, 32, 32, has_minima=True),
    "Q5_0": BlockFormat(6, 32, 32),
    "Q5_1": BlockFormat(6, 32, 32, has_minima=True),
    "Q2_K": BlockFormat(4, 16, 256, has_scales=True, has_minima=True),
    "Q3_K": BlockFormat(4, 16, 256, has_scales=True),
    "Q4_K": BlockFormat(4, 32, 256, has_scales=True, has_minima=True),
    "Q5_K": BlockFormat(6, 32, 256, has_scales=True, has_minima=True),
    "Q6_K": BlockFormat(8, 16, 256, has_scales=True),
    "IQ4_NL": BlockFormat(4, 32, 32, codes="iq4"),
    "IQ4_XS": BlockFormat(4, 32, 256, has_scales=True, codes="iq4"),
    "MXFP4": BlockFormat(4, 32, 32, "float8_e8m0fnu", codes="fp4"),
}
"""Types that are read without loss, and how."""
_SIZES: Final = {name: (numbers, size) for name, numbers, size in BLOCK_TYPES.values()}

Bytes = npt.NDArray[np.uint8]
Parts = tuple[npt.NDArray[Any], ...]
"""Of N blocks: integers [N, numbers] as stored; scales [N, 1]; then what the format has: scales of
groups [N, groups], minima [N, groups], scales of minima [N, 1]."""


def read_blocks(read: ReadOctets, tensor: GgufTensor) -> BlockMatrix:
    """A matrix of a file.

    Args:
        read: Of the tensor's file.
        tensor: Of a type in `FORMATS`.

    Raises:
        CheckpointError: It can't be read, or has scales that are no finite numbers.
    """
    form = FORMATS[tensor.type_name]
    numbers, size = _SIZES[tensor.type_name]
    num_blocks, parts_of = (tensor.end - tensor.start) // size, _READERS[tensor.type_name]
    num_groups = numbers // form.group_size
    scale_dtype = SCALE_DTYPES[form.scale_dtype]
    shapes: list[tuple[int, npt.DTypeLike]] = [(numbers, np.uint8), (1, scale_dtype)]
    shapes += [(num_groups, np.int8)] * (form.has_scales + form.has_minima)
    shapes += [(1, scale_dtype)] * form.has_minima
    found = [np.empty((num_blocks, width), dtype) for width, dtype in shapes]

    def fill(first: int, blocks: Bytes) -> None:
        # A few megabytes at a time stay in the cache.
        for whole, values in zip(found, parts_of(blocks), strict=True):
            whole[first : first + len(blocks)] = values

    for_each_part(read, tensor, fill)
    rows = iter([values.reshape(tensor.shape[0], -1) for values in found])
    matrix = BlockMatrix(
        form,
        integers=next(rows),
        scales=next(rows),
        group_scales=next(rows) if form.has_scales else None,
        minima=next(rows) if form.has_minima else None,
        minimum_scales=next(rows) if form.has_minima else None,
    )
    if not matrix.is_finite():
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name!r} is broken: it holds numbers that are not"
            " finite; download the file again"
        )
    return matrix


def _halves(blocks: Bytes, first: int) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(blocks[:, first : first + 2]).view(np.float16)


def _nibbles(octets: Bytes) -> Bytes:
    """Low ones of all bytes, then high ones."""
    return np.concatenate([octets & 15, octets >> 4], axis=1)


def _fifth_bits(blocks: Bytes, first: int) -> Bytes:
    """[N, 32] of a bit each, shifted to where they are added."""
    return np.unpackbits(blocks[:, first : first + 4], axis=1, bitorder="little") << np.uint8(4)


def _ones(blocks: Bytes) -> npt.NDArray[np.int8]:
    return np.ones((len(blocks), 1), np.int8)


def _q8_0(blocks: Bytes) -> Parts:
    return blocks[:, 2:] ^ np.uint8(128), _halves(blocks, 0)


def _q4_0(blocks: Bytes) -> Parts:
    return _nibbles(blocks[:, 2:]), _halves(blocks, 0)


def _q4_1(blocks: Bytes) -> Parts:
    return _nibbles(blocks[:, 4:]), _halves(blocks, 0), _ones(blocks), -_halves(blocks, 2)


def _q5_0(blocks: Bytes) -> Parts:
    fives = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return fives + np.uint8(32 - 16), _halves(blocks, 0)


def _q5_1(blocks: Bytes) -> Parts:
    fives = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return fives + np.uint8(32), _halves(blocks, 0), _ones(blocks), -_halves(blocks, 2)


def _pairs(octets: Bytes, num_groups: int) -> Bytes:
    """Bits 0-1 of 32 bytes, then bits 2-3, and so on; [N, 64 or 32] to [N, 256 or ...]."""
    runs = octets.reshape(len(octets), num_groups, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return ((runs >> shifts) & np.uint8(3)).reshape(len(octets), -1)


def _q2_k(blocks: Bytes) -> Parts:
    scales = blocks[:, :16]
    return (
        _pairs(blocks[:, 16:80], 2),
        _halves(blocks, 80),
        scales & 15,
        scales >> 4,
        _halves(blocks, 82),
    )


def _q3_k(blocks: Bytes) -> Parts:
    high = np.unpackbits(blocks[:, :32, None], axis=2, bitorder="little")  # [N, 32, 8]
    integers = _pairs(blocks[:, 32:96], 2)
    integers = integers | (high.swapaxes(1, 2).reshape(len(blocks), -1) << np.uint8(2))
    packed = blocks[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)
    top = ((packed[:, None, 8:] >> shifts) & np.uint8(3)).reshape(len(blocks), -1)
    scales = (low | (top << np.uint8(4))).astype(np.int16) - 32
    # From -4 to 3, stored with 8 more.
    return integers + np.uint8(4), _halves(blocks, 108), scales


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Scales and minima of Q4_K and Q5_K: [N, 8] each, of 12 bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return scales, minima


def _q4_k(blocks: Bytes) -> Parts:
    scales, minima = _six_bits(blocks[:, 4:16])
    runs = blocks[:, 16:].reshape(-1, 4, 32)
    integers = np.stack([runs & 15, runs >> 4], axis=2).reshape(len(blocks), -1)
    return integers, _halves(blocks, 0), scales, minima, _halves(blocks, 2)


def _q5_k(blocks: Bytes) -> Parts:
    scales, minima = _six_bits(blocks[:, 4:16])
    high = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little")  # [N, 32, 8]
    runs = blocks[:, 48:].reshape(-1, 4, 32)
    integers = np.stack([runs & 15, runs >> 4], axis=2).reshape(len(blocks), -1)
    integers = integers | (high.swapaxes(1, 2).reshape(len(blocks), -1) << np.uint8(4))
    return integers + np.uint8(32), _halves(blocks, 0), scales, minima, _halves(blocks, 2)


def _q6_k(blocks: Bytes) -> Parts:
    runs = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([runs & 15, runs >> 4], axis=2).reshape(len(blocks), -1)
    high = _pairs(blocks[:, 128:192], 2)
    integers = (low | (high << np.uint8(4))) + np.uint8(128 - 32)
    return integers, _halves(blocks, 208), blocks[:, 192:208].view(np.int8)


def _iq4_nl(blocks: Bytes) -> Parts:
    return _nibbles(blocks[:, 2:]), _halves(blocks, 0)


def _iq4_xs(blocks: Bytes) -> Parts:
    high = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16)
    shifts = np.arange(0, 16, 2, dtype=np.uint16)
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(len(blocks), -1)
    scales = (low | (((high >> shifts) & 3) << 4)).astype(np.int16) - 32
    runs = blocks[:, 8:].reshape(-1, 8, 16)
    codes = np.concatenate([runs & 15, runs >> 4], axis=2).reshape(len(blocks), -1)
    return codes, _halves(blocks, 0), scales


def _mxfp4(blocks: Bytes) -> Parts:
    exponents = np.ascontiguousarray(blocks[:, :1]).view(SCALE_DTYPES["float8_e8m0fnu"])
    return _nibbles(blocks[:, 1:]), exponents


_READERS: Final[dict[str, Callable[[Bytes], Parts]]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
