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
        column_parts: Nothing but the order of so many equal parts of the columns changes; 0 where
            that isn't so.
    """

    apply: Callable[[Values], Values]
    shape: Callable[[Shape], Shape] = _same
    keeps_rows: bool = False
    is_transposition: bool = False
    column_parts: int = 0


@dataclass(frozen=True, slots=True)
class Join:
    """How Hugging Face's tensor is made of several in the file.

    Attributes:
        places: Their names without `blk.0.`.
        apply: To their numbers, in this order.
        shape: Of the result, from all of theirs; raises ValueError where they don't go together.
        order: Where a matrix of the result, or each of a stack, is made of the rows of one of each,
            how these change their places: from those of all of them below each other. None where it
            is made otherwise.
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


def below_each_other(places: tuple[str, ...]) -> Join:
    """The rows of each tensor below those of the one before, of each matrix where they are stacks.

    Args:
        places: Of the tensors, which are equally shaped.
    """

    def apply(parts: Sequence[Values]) -> Values:
        return np.concatenate(list(parts), axis=-2)

    def shape(first: Shape, *others: Shape) -> Shape:
        if any(other != first for other in others) or len(first) < 2:
            raise ValueError("their shapes differ")
        return *first[:-2], len(places) * first[-2], first[-1]

    return Join(places, apply, shape, order=lambda rows: rows)


def neighbours(num_groups: int, num_heads: int, before: int = 0) -> Change:
    """Rows of heads back to where those that share a key stand beside each other.

    llama.cpp has the first head of each group, then the second of each.

    Args:
        num_groups: Of heads that share a key.
        num_heads: All of them.
        before: Rows that stand before them and keep their places.
    """

    def apply(values: Values) -> Values:
        moved = values[before:]
        heads = moved.reshape(-1, num_groups, len(moved) // num_heads, *values.shape[1:])
        grouped = heads.swapaxes(0, 1).reshape(moved.shape)
        return np.concatenate([values[:before], grouped]) if before else grouped

    return Change(apply, keeps_rows=True)


def neighbouring_columns(num_groups: int, num_heads: int) -> Change:
    """The same of columns; see `neighbours`."""

    def apply(values: Values) -> Values:
        heads = values.reshape(len(values), -1, num_groups, values.shape[1] // num_heads)
        return heads.swapaxes(1, 2).reshape(values.shape)

    return Change(apply, column_parts=num_heads)


def first_then(first: Change, then: Change) -> Change:
    """One change behind another."""
    return Change(
        lambda values: then.apply(first.apply(values)),
        lambda shape: then.shape(first.shape(shape)),
        keeps_rows=first.keeps_rows and then.keeps_rows,
    )


def _minus_one(values: Values) -> Values:
    return values.astype(np.float32) - np.float32(1)


MINUS_ONE = Change(_minus_one)
"""Norms that scale by 1 + w: the file holds 1 + w."""

ONE_ROW = Change(lambda values: values.reshape(1, -1), lambda shape: (1, math.prod(shape)))
"""Vectors that Hugging Face keeps as a matrix of one row."""

FLAT = Change(lambda values: values.reshape(-1), lambda shape: (math.prod(shape),))
"""Vectors that the file has as a matrix of one column, or as a row for each group."""


def _logarithm(values: Values) -> Values:
    # One that isn't below 0 becomes no number, which is refused where weights are read.
    with np.errstate(all="ignore"):
        logarithms: Values = np.log(-values.astype(np.float32).reshape(-1))
    return logarithms


DECAY = Change(_logarithm, FLAT.shape)
"""Decays of a state: the file holds -exp(a)."""

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
