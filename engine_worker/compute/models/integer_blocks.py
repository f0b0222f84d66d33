"""Matrices of small numbers in blocks, as quantised checkpoints hold them.

Each block of a row has a scale and maybe a scale of its minima; each group of a block may have a
whole scale and a whole minimum. A number is `scale * group_scale * integer - minimum_scale *
minimum`. GGUF's blocks, AWQ, GPTQ and compressed-tensors are all of this kind, so nothing is lost
when they are written so. Those of MXFP4 are a scale times floats of four bits, and those of GGUF's
IQ4 types are codes of four bits for integers of eight. Parts of different formats of integers
become one matrix by cutting blocks and groups into smaller ones and by widening integers, which
loses nothing either.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

SCALE_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}
FP4_VALUES: Final = np.array(
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0],
    np.float32,
)
"""Of E2M1, by code (OCP Microscaling Formats 1.0, 5.3.3)."""
IQ4_VALUES: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16
)
"""Of GGUF's IQ4_NL and IQ4_XS, by code (ggml, `kvalues_iq4nl` of `ggml-common.h`)."""
CODES: Final[dict[str, npt.NDArray[Any]]] = {"fp4": FP4_VALUES, "iq4": IQ4_VALUES}
"""What codes of four bits stand for."""
_FOUR, _SIX, _EIGHT = 4, 6, 8
_MIN_SIX_GROUP = 32
"""Smaller groups, each with a scale, are multiplied slower in six bits than in eight."""

Bytes = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """How a matrix is held.

    Attributes:
        bits: Of an integer, 4, 6 or 8.
        group_size: Inputs of a group, a multiple of 16.
        block_size: Inputs of a block: one group, or several that have scales.
        scale_dtype: Of the scales of blocks, one of `SCALE_DTYPES`.
        has_scales: Groups have whole scales.
        has_minima: Groups have whole minima. Integers of 4 bits are then 0 to 15, else -8 to 7;
            those of 6 bits are always -32 to 31, those of 8 bits -128 to 127.
        codes: The numbers are codes of this one of `CODES`; empty where they are none. Groups of
            fp4 have neither scales nor minima, those of iq4 no minima.
    """

    bits: int
    group_size: int
    block_size: int
    scale_dtype: str = "float16"
    has_scales: bool = False
    has_minima: bool = False
    codes: str = ""

    @property
    def zero(self) -> int:
        """What stands for 0 in `BlockMatrix.integers`."""
        if self.codes:
            return 0
        if self.bits > _FOUR:
            return 1 << (self.bits - 1)
        return 0 if self.has_minima else 8

    @property
    def name(self) -> str:
        """`int4 in groups of 32`; different formats may share it."""
        return f"{self.numbers_type} in groups of {self.group_size}"

    @property
    def numbers_type(self) -> str:
        """`int8`, `int6`, `int4`, `fp4` or `iq4`."""
        return self.codes or f"int{self.bits}"

    @property
    def key(self) -> str:
        """One word that differs between formats."""
        flags = "s" * self.has_scales + "m" * self.has_minima + self.codes[:1]
        return f"{self.bits}.{self.group_size}.{self.block_size}.{self.scale_dtype}{flags}"


@dataclass(frozen=True, slots=True, eq=False)
class BlockMatrix:
    """A matrix in blocks, on the host.

    Attributes:
        integers: [out, in], plus `format.zero`; or codes.
        scales: [out, in / block_size] of `format.scale_dtype`.
        group_scales: [out, in / group_size]; None where groups have none.
        minima: [out, in / group_size]; None where groups have none.
        minimum_scales: Like `scales`, of the minima.
    """

    format: BlockFormat
    integers: Bytes
    scales: npt.NDArray[Any]
    group_scales: Whole | None = None
    minima: Whole | None = None
    minimum_scales: npt.NDArray[Any] | None = None

    def each(self, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> "BlockMatrix":
        """The matrix after a change to its rows: their order, or which there are."""

        def changed(part: npt.NDArray[Any] | None) -> Any:
            return None if part is None else change(part)

        return BlockMatrix(
            self.format,
            change(self.integers),
            change(self.scales),
            changed(self.group_scales),
            changed(self.minima),
            changed(self.minimum_scales),
        )

    def is_finite(self) -> bool:
        """Whether all scales are numbers."""
        parts = (self.scales, self.minimum_scales)
        return all(
            bool(np.isfinite(part.astype(np.float32)).all()) for part in parts if part is not None
        )

    def numbers(self) -> npt.NDArray[np.float32]:
        """What the matrix stands for, [out, in] float32."""
        form = self.format
        outputs, inputs = self.integers.shape
        if form.codes:
            values = CODES[form.codes][self.integers].astype(np.float32)
        else:
            values = self.integers.astype(np.float32) - np.float32(form.zero)
        values = values.reshape(outputs, -1, form.group_size)
        scales = _per_group(self.scales, form)
        if self.group_scales is not None:
            scales = scales * self.group_scales.astype(np.float32)
        values *= scales[:, :, None]
        if self.minima is not None and self.minimum_scales is not None:
            minima = _per_group(self.minimum_scales, form) * self.minima.astype(np.float32)
            values -= minima[:, :, None]
        return values.reshape(outputs, inputs)


def common_format(formats: Sequence[BlockFormat]) -> BlockFormat | None:
    """The narrowest format that holds matrices of all these; None where there is none here."""
    first = formats[0]
    if all(form == first for form in formats):
        return first
    if len({form.scale_dtype for form in formats}) > 1 or any(
        form.codes == "fp4" for form in formats
    ):
        return None
    has_minima = any(form.has_minima for form in formats)
    # Codes stay codes where all are; beside integers they become those that they stand for.
    codes = first.codes if all(form.codes == first.codes for form in formats) else ""
    is_coded = any(form.codes != codes for form in formats)
    bits = _EIGHT if is_coded else max(form.bits for form in formats)
    group_size = math.gcd(*(form.group_size for form in formats))
    if bits == _FOUR and any(form.has_minima != has_minima for form in formats):
        bits = _SIX
    if bits == _SIX and group_size < _MIN_SIX_GROUP:
        bits = _EIGHT
    block_size = math.gcd(*(form.block_size for form in formats))
    has_scales = any(form.has_scales for form in formats)
    return BlockFormat(
        bits,
        group_size,
        block_size if has_scales else group_size,
        first.scale_dtype,
        has_scales,
        has_minima,
        codes,
    )


def joined(parts: Sequence[BlockMatrix], form: BlockFormat) -> BlockMatrix:
    """Matrices below each other.

    Args:
        parts: Of equally many inputs.
        form: From `common_format`.
    """
    widened = [_widened(part, form) for part in parts]

    def stack(arrays: Sequence[Any]) -> Any:
        if arrays[0] is None:
            return None
        return np.ascontiguousarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))

    return BlockMatrix(
        form,
        stack([part.integers for part in widened]),
        stack([part.scales for part in widened]),
        stack([part.group_scales for part in widened]),
        stack([part.minima for part in widened]),
        stack([part.minimum_scales for part in widened]),
    )


def _widened(part: BlockMatrix, form: BlockFormat) -> BlockMatrix:
    """The same numbers in a wider format."""
    old = part.format
    if old == form:
        return part
    integers = part.integers
    if form.codes != old.codes:
        integers = (CODES[old.codes][integers] + form.zero).astype(np.uint8)
    elif form.zero != old.zero:
        integers = integers + np.uint8(form.zero - old.zero)
    shape = (integers.shape[0], integers.shape[1] // form.group_size)
    group_scales = minima = minimum_scales = None
    if form.has_scales:
        group_scales = _repeated(part.group_scales, shape[1], np.ones(shape, np.int8))
    num_blocks = integers.shape[1] // form.block_size
    scales = _repeated(part.scales, num_blocks, part.scales)
    if form.has_minima:
        minima = _repeated(part.minima, shape[1], np.zeros(shape, np.int8))
        none = np.zeros((shape[0], num_blocks), part.scales.dtype)
        minimum_scales = _repeated(part.minimum_scales, num_blocks, none)
    return BlockMatrix(form, integers, scales, group_scales, minima, minimum_scales)


def _repeated(values: npt.NDArray[Any] | None, count: int, default: npt.NDArray[Any]) -> Any:
    return default if values is None else np.repeat(values, count // values.shape[1], axis=1)


def _per_group(scales: npt.NDArray[Any], form: BlockFormat) -> npt.NDArray[np.float32]:
    wide: npt.NDArray[np.float32] = scales.astype(np.float32)
    return np.repeat(wide, form.block_size // form.group_size, axis=1)
