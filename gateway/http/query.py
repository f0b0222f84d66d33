"""What stands in the query of a request, checked."""

from collections.abc import Sequence
from typing import NamedTuple

from fastapi import Request

from gateway.errors import InvalidRequestError, StoredNotFoundError
from gateway.storage.records import is_id

DEFAULT_PAGE = 100
MAX_PAGE = 1000
DEFAULT_ITEMS_PAGE = 20
MAX_ITEMS_PAGE = 100
MAX_TEXT_CHARACTERS = 200
MAX_DIGITS = 15


def check_query(request: Request, *known: str) -> None:
    """Refuse what would be ignored: a misspelt filter lists everything.

    Raises:
        InvalidRequestError: The query names something that this server doesn't heed.
    """
    for name in request.query_params:
        if name not in known:
            raise InvalidRequestError(f"`{name[:64]}` has no meaning here.", param=name[:64])


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
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
        raise InvalidRequestError(
            f"`{name}` must be a whole number of at most {MAX_DIGITS} digits.", param=name
        )
    return int(text)


def query_text(request: Request, name: str, *, one_of: Sequence[str] = ()) -> str:
    """A text; empty when it isn't there.

    Raises:
        InvalidRequestError: It is too long, or none of those that there are.
    """
    text = request.query_params.get(name, "")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InvalidRequestError(
            f"`{name}` has more than {MAX_TEXT_CHARACTERS} characters.", param=name
        )
    if text and one_of and text not in one_of:
        raise InvalidRequestError(f"`{name}` must be one of {', '.join(one_of)}.", param=name)
    return text


def query_flag(request: Request, name: str) -> bool:
    """`true` or `false`, in any letters; false when it isn't there.

    Raises:
        InvalidRequestError: It is neither.
    """
    text = request.query_params.get(name, "").lower()
    if text not in ("", "true", "false"):
        raise InvalidRequestError(f"`{name}` must be true or false.", param=name)
    return text == "true"


class ListQuery(NamedTuple):
    """Which page of a list of OpenAI's is wanted.

    Attributes:
        after: The id of the last item of the page before; empty for the first page.
    """

    after: str
    limit: int
    is_ascending: bool


def list_query(request: Request) -> ListQuery:
    """`after`, `limit` from 1 to 100, and `order`.

    Raises:
        InvalidRequestError: One of them is wrong.
    """
    limit = query_number(request, "limit")
    if limit is not None and not 1 <= limit <= MAX_ITEMS_PAGE:
        raise InvalidRequestError(f"`limit` must be from 1 to {MAX_ITEMS_PAGE}.", param="limit")
    return ListQuery(
        query_text(request, "after"),
        DEFAULT_ITEMS_PAGE if limit is None else limit,
        query_text(request, "order", one_of=("asc", "desc")) == "asc",
    )


def id_of_path(kind: str, text: str) -> str:
    """An id in the path, which names nothing if it can't be one.

    Raises:
        StoredNotFoundError: It can't.
    """
    if not is_id(text):
        raise StoredNotFoundError(kind, text)
    return text
