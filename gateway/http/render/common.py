"""What chat and completion answers have in common: usage objects and the head of an answer."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from protocol.wire.messages import Usage


class AnswerHead(Struct, frozen=True):
    """The fields that every chunk and every answer of one request repeats.

    Attributes:
        id: `chatcmpl-…` or `cmpl-…`.
        created: Unix seconds.
        system_fingerprint: Names weights and numerics; equal seeds repeat while it is equal.
        budget_warnings: What to tell of limits; None where nobody asked for it.
        timings: Makes what to tell of times from the final usage; likewise.
    """

    id: str
    created: int
    model: str
    system_fingerprint: str
    budget_warnings: list[dict[str, Any]] | None = None
    timings: Callable[[Usage], dict[str, Any]] | None = None


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
