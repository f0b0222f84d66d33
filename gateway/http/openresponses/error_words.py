"""Errors of a chat's own checks, in the words of the request that the chat was made of."""

import re
from typing import Final

from gateway.errors import InvalidRequestError
from gateway.http.schemas.tools.tool_places import with_places

_THEIR_WORDS: Final = (
    (re.compile(r"\btools\[(\d+)\]\.custom\.format\.grammar\b"), r"tools[\1].format"),
    (re.compile(r"\btools\[(\d+)\]\.(?:function|custom)\b"), r"tools[\1]"),
    (re.compile(r"\btool_choice\.(?:function|custom|allowed_tools)\b"), "tool_choice"),
    (re.compile(r"\bresponse_format\.json_schema\b"), "text.format"),
    (re.compile(r"\bresponse_format\b"), "text.format"),
    (re.compile(r"\bmax_completion_tokens\b"), "max_output_tokens"),
    # Items become messages in ways of their own: which one it was nobody knows any more.
    (re.compile(r"\bmessages\b(?:\[\d+\][\w.\[\]]*)?"), "input"),
)
"""What a chat's checks call by its own names."""


def their_words(text: str) -> str:
    """A field of a chat, or what is said of one, with the names of the request behind it."""
    for pattern, words in _THEIR_WORDS:
        text = pattern.sub(words, text)
    return text


def in_their_words(error: InvalidRequestError, paths: list[str]) -> InvalidRequestError:
    """An error about a chat, as one about the request that it was made of.

    Args:
        error: Of the chat's own checks.
        paths: Where in the request each tool of the chat is.
    """
    message, param = their_words(error.message), their_words(error.param or "")
    return type(error)(with_places(message, paths), param=with_places(param, paths) or None)
