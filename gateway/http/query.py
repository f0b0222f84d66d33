"""What stands in the query of a request, checked."""

from collections.abc import Sequence

from fastapi import Request

from gateway.errors import InvalidRequestError

DEFAULT_PAGE = 100
MAX_PAGE = 1000
_MAX_TEXT_CHARS = 200
_MAX_DIGITS = 15


def page_size(request: Request) -> int:
    """`limit`, from 1 to `MAX_PAGE`.

    Raises:
        InvalidRequestError: It is none.
    """
    limit = query_number(request, "limit")
    if limit is None:
        return DEFAULT_PAGE
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidRequestError(f"`limit` must be from 1 to {MAX_PAGE}.", param="limit")
    return limit


def query_number(request: Request, name: str) -> int | None:
    """A whole number without a sign; None when it isn't there.

    Raises:
        InvalidRequestError: It is none, or too long.
    """
    text = request.query_params.get(name)
    if text is None:
        return None
    # No int() of a client's text of any length.
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise InvalidRequestError(
            f"`{name}` must be a whole number of at most {_MAX_DIGITS} digits.", param=name
        )
    return int(text)


def query_text(request: Request, name: str, *, one_of: Sequence[str] = ()) -> str:
    """A text; empty when it isn't there.

    Raises:
        InvalidRequestError: It is too long, or none of those that there are.
    """
    text = request.query_params.get(name, "")
    if len(text) > _MAX_TEXT_CHARS:
        raise InvalidRequestError(
            f"`{name}` has more than {_MAX_TEXT_CHARS} characters.", param=name
        )
    if text and one_of and text not in one_of:
        raise InvalidRequestError(f"`{name}` must be one of {', '.join(one_of)}.", param=name)
    return text
