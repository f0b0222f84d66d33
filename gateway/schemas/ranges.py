"""The bounds of every numeric or counted request field, one table for schemas and documentation."""

from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of one field; `exclusive_minimum` leaves the lower bound itself out."""

    minimum: float
    maximum: float
    exclusive_minimum: bool = False

    def __str__(self) -> str:
        low = f"{self.minimum:.10g} <" if self.exclusive_minimum else f"{self.minimum:.10g} ≤"
        return f"{low} x ≤ {self.maximum:.10g}"


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
}

MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARACTERS: Final = 1024
MAX_STOP_TOKEN_IDS: Final = 128
MAX_MESSAGES: Final = 16_384
MAX_TOOLS: Final = 1024
MAX_TOOL_CALLS: Final = 1024
MAX_CONTENT_PARTS: Final = 4096
MAX_TOOL_NAME_CHARACTERS: Final = 128
MAX_PROMPTS: Final = 128
MAX_CHOICES: Final = 128
"""Prompts times `n` of one request at most."""


def ranged(name: str) -> Any:
    """The pydantic `Field` of an optional field with the bounds of the table."""
    bounds = RANGES[name]
    lower = {"gt": bounds.minimum} if bounds.exclusive_minimum else {"ge": bounds.minimum}
    limits: dict[str, Any] = {**lower, "le": bounds.maximum}
    if name == "seed":
        # JSON Schema tools lose such integers to floats; the model checks them all the same.
        limits = {"ge": int(bounds.minimum), "le": int(bounds.maximum)}
    return Field(default=None, **limits)
