"""For whom a request is, as whoever sends it says: a header, or a field of its body.

Everybody may say so; it counts with keys that may name their end users.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Final

from gateway.errors import InvalidRequestError

MAX_CHARS: Final = 256
"""A longer name is told by its digest, so that no two of them become one."""


def end_user_of(getlist: Callable[[str], list[str]], names: Iterable[str]) -> str:
    """The end user that a header names; the first header that is there counts.

    Args:
        getlist: All values of a header of the request.
        names: Headers that may name one.

    Raises:
        InvalidRequestError: It is there twice, with two names: which one counts must be nobody's
            guess.
    """
    for name in names:
        values = {value.strip() for value in getlist(name)}
        values.discard("")
        if len(values) > 1:
            raise InvalidRequestError(f"The header {name} names several end users; name one.")
        if values:
            return bounded_name(values.pop())
    return ""


def named_end_user(*fields: Any) -> str:
    """The end user that fields of a body name; the first one that is a text counts."""
    for field in fields:
        if isinstance(field, str) and field.strip():
            return bounded_name(field.strip())
    return ""


def bounded_name(name: str) -> str:
    """A name that is short enough to be kept."""
    if len(name) <= MAX_CHARS:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"sha256:{digest}"
