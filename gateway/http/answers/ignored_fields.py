"""Tells a client which of its fields had no meaning, or refuses them where that is configured.

And which keywords of its schemas are left to the model.
"""

from collections.abc import Sequence

from gateway.errors import InvalidRequestError
from gateway.http.schemas.base.shapes import MAX_LISTED_FIELDS

_MAX_LISTED_CHARACTERS = 2048
"""Clients and proxies refuse answers with headers of more than a few kilobytes."""


def ignored_headers(ignored: list[str], *, strict: bool) -> dict[str, str]:
    """The header that lists fields without meaning.

    Args:
        ignored: Their paths.
        strict: Refuse the first one instead.

    Raises:
        InvalidRequestError: There is one, and `strict` is set.
    """
    if not ignored:
        return {}
    if strict:
        raise InvalidRequestError(f"Unknown field: `{ignored[0]}`.", param=ignored[0])
    return {"X-Penstock-Ignored-Fields": _listed(ignored)}


def unenforced_headers(keywords: Sequence[str]) -> dict[str, str]:
    """The header that lists keywords that no grammar enforces, as pointers into their schemas."""
    return {"X-Penstock-Unenforced": _listed(keywords)} if keywords else {}


def _listed(names: Sequence[str]) -> str:
    shown = [name[:64].encode("ascii", "backslashreplace").decode() for name in names]
    printable = ["".join(c if c.isprintable() and c != "," else "?" for c in one) for one in shown]
    listed = ", ".join(printable[:MAX_LISTED_FIELDS])
    return listed[:_MAX_LISTED_CHARACTERS]
