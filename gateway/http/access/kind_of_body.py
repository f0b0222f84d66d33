"""Which kinds of body a route takes; one that takes none doesn't mind what is sent."""

from typing import Final

from fastapi import Request
from fastapi.routing import APIRoute

from gateway.errors import InvalidRequestError
from gateway.http.parts import parts_of

METHODS_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_FORMS: Final = frozenset({"/v1/files"})
"""Routes whose bodies are forms."""
_OF_HOOKS: Final = "/v1/hooks/"
"""Before routes of other packages, of whose bodies nothing is known."""


def takes_body(route: APIRoute) -> bool:
    """Whether a route reads a body; its declaration says so, or code of another package may."""
    is_declared = "requestBody" in (route.openapi_extra or {}) or route.path.startswith(_OF_HOOKS)
    return is_declared and not METHODS_WITH_BODY.isdisjoint(route.methods or ())


def check_kind_of_body(request: Request) -> None:
    """Take plain JSON only; a request without a body may say of it what it likes.

    Without keys the type is asked for: a web page may send any other one without a preflight.

    Raises:
        InvalidRequestError: The body is compressed, or of another type.
    """
    headers = request.headers
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise InvalidRequestError(
            f"The Content-Encoding {encoding[:64]!r} is not supported; send the body as plain JSON."
        )
    if request.scope["path"] in _FORMS:
        return  # the route says what it takes; a page's `Origin` was looked at before
    if not parts_of(request).settings.require_keys:
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            raise InvalidRequestError("The Content-Type must be application/json.")
