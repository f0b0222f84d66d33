"""The bounds of every request field that has some, one table for schemas, errors and documentation."""

from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of one field; `exclusive_minimum` leaves the lower bound itself out."""

    minimum: float
    maximum: float
    exclusive_minimum: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is within; NaN never is."""
        above = value > self.minimum if self.exclusive_minimum else value >= self.minimum
        return above and value <= self.maximum

    def __str__(self) -> str:
        below = "<" if self.exclusive_minimum else "≤"
        return f"{self.minimum} {below} x ≤ {self.maximum}"


MAX_TOKENS: Final = 2**31 - 1

RANGES: Final[dict[str, Range]] = {
    "temperature": Range(0, 2),
    "top_p": Range(0, 1, exclusive_minimum=True),
    "top_k": Range(-1, MAX_TOKENS),
    "min_p": Range(0, 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "repetition_penalty": Range(0, 10, exclusive_minimum=True),
    "n": Range(1, 128),
    "max_tokens": Range(1, MAX_TOKENS),
    "max_completion_tokens": Range(1, MAX_TOKENS),
    "min_tokens": Range(0, MAX_TOKENS),
    "seed": Range(-(2**63), 2**63 - 1),
    "best_of": Range(1, 128),
    "logprobs": Range(0, 20),
    "top_logprobs": Range(0, 20),
    "prompt_logprobs": Range(0, 20),
    "truncate_prompt_tokens": Range(-1, MAX_TOKENS),
    "dimensions": Range(1, MAX_TOKENS),
    "seconds": Range(0, 60, exclusive_minimum=True),
}
"""Numbers. `logprobs` is one in completions only; chat has a truth value and `top_logprobs`."""

LOGIT_BIAS: Final = Range(-100, 100)
MAX_LOGIT_BIASES: Final = 1024
MAX_ALLOWED_TOKEN_IDS: Final = 2**18
MAX_BAD_WORDS: Final = 128
MAX_BAD_WORD_CHARACTERS: Final = 256
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARACTERS: Final = 1024
MAX_STOP_TOKEN_IDS: Final = 128
MAX_DETOKENIZED_TOKENS: Final = 2**20
MAX_EMBEDDING_INPUTS: Final = 2048
MAX_MESSAGES: Final = 16_384
MAX_TOOLS: Final = 1024
MAX_TOOL_CALLS: Final = 1024
MAX_CONTENT_PARTS: Final = 4096
MAX_TOOL_NAME_CHARACTERS: Final = 128
MAX_PROMPTS: Final = 128
MAX_GRAMMAR_CHARACTERS: Final = 262_144
MAX_GUIDED_CHOICES: Final = 4096
MAX_CHOICE_CHARACTERS: Final = 4096
MAX_CHOICES: Final = 128
"""Prompts times `n`, or times `best_of`, of one request at most."""

LIST_BOUNDS: Final[dict[str, str]] = {
    "logit_bias": f"at most {MAX_LOGIT_BIASES} token ids, each with {LOGIT_BIAS}",
    "allowed_token_ids": f"1 to {MAX_ALLOWED_TOKEN_IDS} token ids",
    "bad_words": f"at most {MAX_BAD_WORDS} texts of 1 to {MAX_BAD_WORD_CHARACTERS} characters",
    "stop": f"at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARACTERS} characters",
    "stop_token_ids": f"at most {MAX_STOP_TOKEN_IDS} token ids",
    "messages": (
        f"1 to {MAX_MESSAGES}, each with at most {MAX_CONTENT_PARTS} content parts and"
        f" {MAX_TOOL_CALLS} tool calls"
    ),
    "tools": f"1 to {MAX_TOOLS}",
    "prompt": (
        f"at most {MAX_PROMPTS} prompts; prompts times `n` (or `best_of`) at most {MAX_CHOICES}"
    ),
    "tokens": f"1 to {MAX_DETOKENIZED_TOKENS} token ids",
    "input": f"1 to {MAX_EMBEDDING_INPUTS} texts or lists of token ids",
}
"""How long lists may be, in words."""


def ranged(name: str) -> Any:
    """The pydantic `Field` of an optional field with the bounds of the table."""
    bounds = RANGES[name]
    lower = {"gt": bounds.minimum} if bounds.exclusive_minimum else {"ge": bounds.minimum}
    limits: dict[str, Any] = {**lower, "le": bounds.maximum}
    if name == "seed":
        # JSON Schema tools lose such integers to floats; the model checks them all the same.
        limits = {"ge": int(bounds.minimum), "le": int(bounds.maximum)}
    return Field(default=None, **limits)
