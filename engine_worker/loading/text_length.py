"""How long the texts may be that a decoder makes vectors of: as long as memory holds one."""

import logging
from typing import Final

from engine_worker.compute.backends.kv_memory import default_kv_memory_bytes, device_memory_stats
from engine_worker.embedding.long_rows import long_row_bytes
from engine_worker.embedding.models import DecoderModel
from engine_worker.embedding.row_programs import whole_and_piece_tokens

_MEBIBYTE: Final = 2**20
_log = logging.getLogger("penstock.engine")


def longest_text(name: str, model: DecoderModel, wanted: int, *, reserved_bytes: int = 0) -> int:
    """The most tokens of a text, at most those that are wanted.

    Keys and values of a long text take memory while it is computed, one text at a time. It gets the
    share of what is free that a cache gets by default.

    Args:
        name: The model's.
        model: With its weights in memory.
        wanted: Tokens.
        reserved_bytes: Of what is free, another cache will take so much.
    """
    whole, piece = whole_and_piece_tokens()
    if wanted <= whole:
        return wanted
    stats = device_memory_stats()
    budget = default_kv_memory_bytes(0 if stats else reserved_bytes, stats)
    if long_row_bytes(model, wanted, piece) <= budget:
        return wanted
    low, high = whole // piece, -(-wanted // piece) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if long_row_bytes(model, middle * piece, piece) <= budget:
            low = middle
        else:
            high = middle - 1
    _log.warning(
        "%s makes vectors of texts of at most %d tokens, not of %d: one of those takes %d MiB"
        " beside the weights, and there are %d MiB for it; give it more memory",
        name,
        low * piece,
        wanted,
        long_row_bytes(model, wanted, piece) // _MEBIBYTE,
        budget // _MEBIBYTE,
    )
    return low * piece
