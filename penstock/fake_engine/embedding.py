"""The vectors of a scripted engine: they follow from the tokens, so all engines agree."""

import hashlib
import math
import struct
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Final

from penstock.fake_engine.script import (
    NUM_BYTE_IDS,
    VOCAB_SIZE,
    Fault,
    decode,
    encoded,
    find_fault,
)
from protocol.errors import ErrorCode
from protocol.wire.messages import Embed, Embedded, Failure

NUM_DIMENSIONS: Final = 8

POOLING: Final = "mean"
"""What is announced; a script has no token vectors."""


def wanted_trouble(command: Embed) -> Fault | None:
    """The first trouble that an input asks for."""
    faults = map(find_fault, chain(command.texts, map(decode, _known(command.token_ids))))
    return next((fault for fault in faults if fault is not None), None)


def embed(command: Embed, max_tokens: int) -> Embedded | Failure:
    """The vectors of all inputs, or why there are none.

    Args:
        command: What to embed.
        max_tokens: Of an input.
    """
    # Bytes are the ids of a text already, and ten megabytes of them must hold nobody up.
    inputs: list[Sequence[int]] = [*map(encoded, command.texts), *command.token_ids]
    refusal = _refusal(command, inputs, max_tokens)
    if refusal is not None:
        return Failure(request_id=command.request_id, code=refusal[0], message=refusal[1])
    num_kept = command.truncate_prompt_tokens
    limit = max_tokens if num_kept in (None, -1) else num_kept
    inputs = [ids[:limit] for ids in inputs]
    num_dimensions = command.dimensions or NUM_DIMENSIONS
    return Embedded(
        request_id=command.request_id,
        num_dimensions=num_dimensions,
        vectors=b"".join(_vector(ids, num_dimensions) for ids in inputs),
        num_tokens=tuple(map(len, inputs)),
    )


def _refusal(
    command: Embed, inputs: Sequence[Sequence[int]], max_tokens: int
) -> tuple[ErrorCode, str] | None:
    if len(_known(command.token_ids)) < len(command.token_ids):
        message = f"There are token ids that are not from 0 to {VOCAB_SIZE - 1}."
        return ErrorCode.INVALID_REQUEST, message
    if command.dimensions is not None and not 1 <= command.dimensions <= NUM_DIMENSIONS:
        message = f"'dimensions' must be 1 to {NUM_DIMENSIONS}, not {command.dimensions}."
        return ErrorCode.INVALID_REQUEST, message
    longest = max(map(len, inputs), default=0)
    num_kept = command.truncate_prompt_tokens
    if num_kept is None and longest > max_tokens:
        message = f"An input has {longest} tokens; this model takes {max_tokens}."
        return ErrorCode.CONTEXT_LENGTH_EXCEEDED, message
    if num_kept is not None and num_kept != -1 and not 1 <= num_kept <= max_tokens:
        message = f"'truncate_prompt_tokens' must be -1 or 1 to {max_tokens}, not {num_kept}."
        return ErrorCode.INVALID_REQUEST, message
    return None


def _known(inputs: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The inputs whose token ids there are."""
    return [ids for ids in inputs if not ids or (min(ids) >= 0 and max(ids) < VOCAB_SIZE)]


def _vector(token_ids: Sequence[int], num_dimensions: int) -> bytes:
    """Of length 1: float32, little-endian, [D]."""
    is_text = isinstance(token_ids, bytes) or max(token_ids, default=0) < NUM_BYTE_IDS
    content = bytes(token_ids) if is_text else array("Q", token_ids)
    digest = hashlib.blake2b(content, digest_size=NUM_DIMENSIONS).digest()
    numbers = [byte - 127.5 for byte in digest[:num_dimensions]]
    norm = math.hypot(*numbers)
    return struct.pack(f"<{num_dimensions}f", *(number / norm for number in numbers))
