"""Which documented fields are harmless and which are refused; every other one is honoured."""

from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import UnsupportedFieldError

HARMLESS_FIELDS: Final[dict[str, str]] = {
    "metadata": "labels for the caller's own records",
    "prediction": "a hint for speed; the text is the same without it",
    "prompt_cache_key": "a routing hint; nothing depends on it",
    "prompt_cache_options": "a caching hint; nothing depends on it",
    "prompt_cache_retention": "a caching hint; nothing depends on it",
    "safety_identifier": "names an end user; it counts with keys that may do so",
    "service_tier": "there is one tier",
    "store": "chat completions are never stored",
    "user": "names an end user; it counts with keys that may do so",
}
"""Accepted and without effect: a client loses nothing when they do nothing."""

CHAT_REFUSED_FIELDS: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "audio": ((), "models here answer in text"),
    "echo": ((False,), "only completions repeat their prompt"),
    "modalities": ((["text"],), "models here answer in text"),
    "moderation": ((), "there is no moderation model"),
    "suffix": (("",), "only completions fill in the middle"),
    "web_search_options": ((), "there is no web search"),
}
"""Documented by OpenAI for chat, refused by name unless null or one of the neutral values."""

COMPLETION_REFUSED_FIELDS: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "chat_template": ((), "only chat has templates"),
    "thinking_token_budget": ((-1,), "only chat separates reasoning from the answer"),
}
"""Documented by OpenAI for completions, refused likewise."""

EXTENSION_REFUSED_FIELDS: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "kv_transfer_params": ((), "each engine manages its own cache"),
    "length_penalty": ((1, 1.0), "there is no beam search"),
    "mm_processor_kwargs": (({},), "models here read text"),
    "prompt_embeds": ((), "not served"),
    "repetition_detection": ((), "use the penalties"),
    "spaces_between_special_tokens": ((True,), "special tokens are decoded as they are"),
    "stream_interval": ((1,), "every step is sent"),
    "truncation_side": (("left",), "prompts are truncated on the left"),
    "use_beam_search": ((False,), "there is no beam search"),
}
"""Extensions of other servers that would change the answer: refused, not ignored."""


def refuse_fields(
    body: Mapping[str, Any], refused: Mapping[str, tuple[tuple[Any, ...], str]]
) -> None:
    """Let no refused field pass silently.

    Raises:
        UnsupportedFieldError: A refused field has a value that would matter.
    """
    for name in body.keys() & refused.keys():
        neutral, reason = refused[name]
        value = body[name]
        if value is None or any(value == one and type(value) is type(one) for one in neutral):
            continue
        raise UnsupportedFieldError(f"`{name}` is not supported: {reason}.", param=name)
