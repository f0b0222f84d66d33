"""What llama.cpp's converter does to tensors, undone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]
Values = npt.NDArray[Any]


def _same(shape: Shape) -> Shape:
    return shape


@dataclass(frozen=True, slots=True)
class Change:
    """How Hugging Face's tensor is made of the one in the file.

    Attributes:
        apply: To the numbers.
        shape: To the shape alone, equally.
        keeps_rows: Only rows change their places, so that it goes for integers and scales, too.
        is_transposition: Nothing but the order of the last two axes changes.
    """

    apply: Callable[[Values], Values]
    shape: Callable[[Shape], Shape] = _same
    keeps_rows: bool = False
    is_transposition: bool = False


@dataclass(frozen=True, slots=True)
class Join:
    """How Hugging Face's tensor is made of several in the file.

    Attributes:
        places: Their names without `blk.0.`.
        apply: To their numbers, in this order.
        shape: Of the result, from all of theirs; raises ValueError where they don't go together.
        order: Where a matrix of the result is made of the rows of one of each, how these change
            their places: from those of all of them below each other. None where it is made
            otherwise.
        is_transposed: The result has the last two axes of such matrices the other way round.
    """

    places: tuple[str, ...]
    apply: Callable[[Sequence[Values]], Values]
    shape: Callable[..., Shape]
    order: Callable[[Values], Values] | None = None
    is_transposed: bool = False


def in_turn(places: tuple[str, ...], *, transposed: bool) -> Join:
    """The last axis takes one number of each tensor after the other.

    Args:
        places: Of the tensors, which are equally shaped.
        transposed: The file has its last two axes the other way round.
    """

    def apply(parts: Sequence[Values]) -> Values:
        turned = [np.swapaxes(part, -1, -2) if transposed else part for part in parts]
        width = turned[0].shape[-1]
        joined = np.empty((*turned[0].shape[:-1], width * len(turned)), turned[0].dtype)
        for index, part in enumerate(turned):
            joined[..., index :: len(turned)] = part
        return joined

    def shape(first: Shape, *others: Shape) -> Shape:
        if any(other != first for other in others) or len(first) < 2:
            raise ValueError("their shapes differ")
        axes = (*first[:-2], first[-1], first[-2]) if transposed else first
        return (*axes[:-1], axes[-1] * len(places))

    def order(rows: Values) -> Values:
        return rows.reshape(len(places), -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)

    return Join(places, apply, shape, order if transposed else None, transposed)


def rotate_halves(num_heads: int) -> Change:
    """Rows of queries or keys from pairs of neighbours back to halves of a head.

    llama.cpp rotates (2i, 2i + 1) where Hugging Face rotates (i, i + d/2), and reorders the rows of
    each head so that both mean the same.
    """

    def apply(values: Values) -> Values:
        pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])
        return pairs.swapaxes(1, 2).reshape(values.shape)

    return Change(apply, keeps_rows=True)


def _minus_one(values: Values) -> Values:
    return values.astype(np.float32) - np.float32(1)


MINUS_ONE = Change(_minus_one)
"""Norms that scale by 1 + w: the file holds 1 + w."""

ONE_ROW = Change(lambda values: values.reshape(1, -1), lambda shape: (1, math.prod(shape)))
"""Vectors that Hugging Face keeps as a matrix of one row."""

ONE_INPUT = Change(lambda values: values[:, None], lambda shape: (shape[0], 1, *shape[1:]))
"""Convolutions of each channel by itself: [channels, kernel], which Hugging Face keeps as
[channels, 1, kernel]."""

EACH_TRANSPOSED = Change(
    lambda values: np.swapaxes(values, -1, -2),
    lambda shape: (*shape[:-2], shape[-1], shape[-2]),
    is_transposition=True,
)
"""Stacks of matrices that Hugging Face keeps as [.., in, out]."""

TRANSPOSED = Change(lambda values: values.T, lambda shape: shape[::-1], is_transposition=True)
"""Matrices that Hugging Face keeps as [in, out]."""
