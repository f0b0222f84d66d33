"""What a scripted engine says; all engines of one fingerprint say the same.

Each token follows from the prompt, seed, choice, fingerprint and its place.
A prompt may ask for trouble: `[[crash]]`, `[[hang]]` and `[[fail]]` take effect before the first
token, `[[crash@5]]` before the sixth. A text to be embedded may ask for it as well.
"""

import hashlib
import re
from array import array
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

WORD_TEXTS: Final = tuple(f" {word}" for word in WORDS)
"""The texts of the ids from `NUM_BYTE_IDS` on."""

MAX_TOKEN_BYTES: Final = max(map(len, WORD_TEXTS))

FINGERPRINT: Final = "scripted-2"
"""Of the script unless another one is asked for; 2 since the hash of the prompt is another one."""

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
    match = _FAULT.search(prompt) if "[[" in prompt else None
    if match is None:
        return None
    kind = next(kind for kind in get_args(FaultKind) if kind == match[1])
    return Fault(kind, int(match[2] or 0))


def encode(text: str) -> tuple[int, ...]:
    """A prompt as token ids: its UTF-8 bytes."""
    return tuple(encoded(text))


def encoded(text: str) -> bytes:
    """The ids of a text as the bytes that they are."""
    return text.encode("utf-8", "surrogatepass")


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


def word_of(token_id: int) -> str:
    """The text of an output id."""
    return WORD_TEXTS[token_id - NUM_BYTE_IDS]


class Script:
    """The output of one choice.

    Args:
        prompt_token_ids: As the engine got them; none of them is negative.
        seed: Of the request; other seeds give other outputs.
        choice: Of the request; other choices give other outputs.
        fingerprint: Of the engine; other "weights" give other outputs.
    """

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        seed: int,
        choice: int,
        fingerprint: str = FINGERPRINT,
    ) -> None:
        key = hashlib.blake2b(array("Q", prompt_token_ids), digest_size=8)
        key.update(f"{seed} {choice} {fingerprint}".encode())
        self._state = int.from_bytes(key.digest(), "little")

    def token(self, place: int) -> int:
        """The output token at a place, counted from 0."""
        return self.tokens(place, place + 1)[0]

    def tokens(self, begin: int, end: int) -> list[int]:
        """The output tokens at the places from `begin` to before `end`."""
        # A multiplicative hash (Knuth): its high bits are well mixed and cost next to nothing.
        state, step, num_words = self._state, 0x9E3779B97F4A7C15, len(WORDS)
        return [
            NUM_BYTE_IDS
            + (((state + place * step) * 0xD1342543DE82EF95 >> 40) & 0xFFFF) % num_words
            for place in range(begin, end)
        ]

    def text(self, num_tokens: int) -> str:
        """The first tokens as text."""
        return "".join(map(word_of, self.tokens(0, num_tokens)))
