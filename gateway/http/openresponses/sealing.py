"""Texts that a client sends back as it got them: reasoning, and what a compaction stands for."""

from base64 import b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from typing import Any, Final

from gateway.errors import InvalidRequestError

_CARRIES: Final = "\0"
"""Before the items that a summary carries, which are a line of JSON before it."""


def sealed(text: str) -> str:
    """A text as the opaque one that a client may send back."""
    return urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode("ascii")


def unsealed(text: Any, path: str) -> str:
    """The text behind such a one.

    Raises:
        InvalidRequestError: It is none of this server's.
    """
    try:
        return b64decode(text, b"-_", validate=True).decode("utf-8", "surrogatepass")
    except (Base64Error, UnicodeError, TypeError, ValueError):
        raise not_ours(path) from None


def not_ours(path: str) -> InvalidRequestError:
    """The error about an opaque text that was made elsewhere."""
    return InvalidRequestError(f"Invalid `{path}`: it was not made by this server.", param=path)


def with_summary(summary: str, carried_json: str = "[]") -> str:
    """What a compaction seals: a summary, and a JSON array of the items that it carries."""
    if carried_json == "[]" and not summary.startswith(_CARRIES):
        return summary
    return f"{_CARRIES}{carried_json}\n{summary}"


def summary_of(text: str) -> tuple[str, str]:
    """The summary of such a text, and the items, which nobody has checked."""
    if not text.startswith(_CARRIES):
        return text, "[]"
    carried, _, summary = text.removeprefix(_CARRIES).partition("\n")
    return summary, carried
