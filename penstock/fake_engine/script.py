"""What a scripted engine says: every token follows from the prompt and its place, so all engines agree.

A prompt may ask for trouble: `[[crash]]`, `[[hang]]` and `[[fail]]` take effect before the first
token, `[[crash@5]]` before the sixth. A text to be embedded may ask for it as well.
"""

import hashlib
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

NUM_BYTE_IDS: Final = 256
"""Ids below it are bytes: prompts are tokenised byte by byte."""

WORDS: Final = tuple(
    f"{first}{second}{third}"
    for first in ("ba", "de", "fi", "go", "ku", "la", "me", "ni")
    for second in ("ra", "so", "tu", "ve", "wi", "xo", "yu", "za")
    for third in ("l", "m", "n", "r")
)
"""What the other ids stand for, each with a space before it."""

VOCAB_SIZE: Final = NUM_BYTE_IDS + len(WORDS)

NUM_DIMENSIONS: Final = 8
"""Of embeddings."""

FaultKind = Literal["crash", "hang", "fail"]
_FAULT = re.compile(rf"\[\[({'|'.join(get_args(FaultKind))})(?:@(\d{{1,9}}))?\]\]")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong on request.

    Attributes:
        kind: `crash` ends the process at once, `hang` stops all steps while heartbeats go on,
            `fail` ends the request with an error.
        num_tokens: Output tokens before it happens.
    """

    kind: FaultKind
    num_tokens: int


def find_fault(prompt: str) -> Fault | None:
    """The first trouble that a prompt asks for."""
    match = _FAULT.search(prompt)
    if match is None:
        return None
    kind = next(kind for kind in get_args(FaultKind) if kind == match[1])
    return Fault(kind, int(match[2] or 0))


def encode(text: str) -> tuple[int, ...]:
    """A prompt as token ids: its UTF-8 bytes."""
    return tuple(text.encode("utf-8", "surrogatepass"))


def decode(token_ids: Sequence[int]) -> str:
    """The text of prompt and output ids."""
    parts: list[str] = []
    prompt = bytearray()
    for token_id in token_ids:
        if token_id < NUM_BYTE_IDS:
            prompt.append(token_id)
        else:
            parts.append(word_of(token_id))
    return prompt.decode("utf-8", "replace") + "".join(parts)


def embedding(token_ids: Sequence[int], num_dimensions: int) -> bytes:
    """A vector of length 1 that follows from the tokens: float32, little-endian, [D]."""
    digest = hashlib.blake2b(repr(tuple(token_ids)).encode(), digest_size=NUM_DIMENSIONS).digest()
    numbers = [byte - 127.5 for byte in digest[:num_dimensions]]
    norm = math.hypot(*numbers)
    return struct.pack(f"<{num_dimensions}f", *(number / norm for number in numbers))


def word_of(token_id: int) -> str:
    """The text of an output id."""
    return f" {WORDS[token_id - NUM_BYTE_IDS]}"


class Script:
    """The output of one choice.

    Args:
        prompt_token_ids: As the engine got them.
        seed: Of the request; other seeds give other outputs.
        choice: Of the request; other choices give other outputs.
    """

    def __init__(self, prompt_token_ids: Sequence[int], seed: int, choice: int) -> None:
        key = hashlib.blake2b(digest_size=8)
        key.update(repr((tuple(prompt_token_ids), seed, choice)).encode())
        self._state = int.from_bytes(key.digest(), "little")

    def token(self, place: int) -> int:
        """The output token at a place, counted from 0."""
        # A multiplicative hash (Knuth): its high bits are well mixed and cost next to nothing.
        mixed = (self._state + place * 0x9E3779B97F4A7C15) * 0xD1342543DE82EF95
        return NUM_BYTE_IDS + ((mixed >> 40) & 0xFFFF) % len(WORDS)

    def text(self, num_tokens: int) -> str:
        """The first tokens as text."""
        return "".join(word_of(self.token(place)) for place in range(num_tokens))
