"""Which tokens may be drawn, as one bit a token; host data, filled here and by grammars."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

MaskWords = npt.NDArray[np.uint32]
"""[ceil(V / 32)] uint32: bit `i % 32` of word `i // 32` says whether token `i` may be drawn."""

_WORD_BITS = 32
_ALL_BITS = (1 << _WORD_BITS) - 1


def num_mask_words(vocab_size: int) -> int:
    """Words of one mask."""
    return -(-vocab_size // _WORD_BITS)


def allow_all(vocab_size: int) -> MaskWords:
    """A fresh mask that forbids nothing."""
    return np.full(num_mask_words(vocab_size), _ALL_BITS, np.uint32)


def allow_only(token_ids: Sequence[int], vocab_size: int) -> MaskWords:
    """A fresh mask that allows some tokens; every id is below the vocabulary's size."""
    bits = np.zeros(num_mask_words(vocab_size) * _WORD_BITS, np.bool_)
    bits[np.asarray(token_ids, np.int64)] = True
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def forbid(mask: MaskWords, token_ids: Iterable[int]) -> None:
    """Takes some tokens out of a mask, in place."""
    ids = np.fromiter(token_ids, np.int64)
    bits = np.uint32(1) << (ids % _WORD_BITS).astype(np.uint32)
    np.bitwise_and.at(mask, ids // _WORD_BITS, ~bits)


def is_allowed(mask: MaskWords, token_id: int) -> bool:
    """Whether a token may be drawn."""
    return bool(mask[token_id // _WORD_BITS] >> np.uint32(token_id % _WORD_BITS) & 1)
