"""What a request presents as its key: found once for a connection that repeats it."""

import hashlib
from typing import Any, Final, NamedTuple

from fastapi import Request

from gateway.errors import DeniedError
from gateway.http.connections.http_protocol import OF_CONNECTION
from protocol.errors import ErrorCode

_HEADERS: Final = frozenset({b"authorization", b"x-api-key"})
_MEMO: Final = "presented"


class Presented(NamedTuple):
    """A key as others are told of it.

    Attributes:
        digest: SHA-256; None where no key was sent.
        token: The key itself, if it is a bearer token (JWT); empty otherwise.
    """

    digest: bytes | None
    token: str


def presented(request: Request) -> Presented:
    """The digest of a request's key; most requests have the key of the one before.

    What a connection remembers is what its last head held, which is there as long anyway.

    Raises:
        DeniedError: Several keys were sent that differ.
    """
    scope = request.scope
    given = [pair for pair in scope["headers"] if pair[0] in _HEADERS]
    memo: dict[str, Any] = scope["state"].get(OF_CONNECTION, {})
    known: tuple[list[tuple[bytes, bytes]], Presented] | None = memo.get(_MEMO)
    if known is not None and known[0] == given:
        return known[1]
    key = presented_key(request)
    found = Presented(
        None if key is None else hashlib.sha256(key.encode()).digest(),
        key if key is not None and _is_token(key) else "",
    )
    memo[_MEMO] = given, found
    return found


def presented_key(request: Request) -> str | None:
    """The key of `Authorization: Bearer` or of `X-API-Key`; None when neither was sent.

    Raises:
        DeniedError: Several were sent that differ: which one counts must be nobody's guess.
    """
    keys = {_bearer(value) for value in request.headers.getlist("authorization")}
    keys.update(request.headers.getlist("x-api-key"))
    keys.discard("")
    if len(keys) > 1:
        raise DeniedError(
            "Several API keys that differ were sent in `Authorization` and `X-API-Key`; send one.",
            code=ErrorCode.INVALID_API_KEY,
        )
    return keys.pop() if keys else None


def _is_token(key: str) -> bool:
    """Whether what was presented has the form of a JSON Web Token.

    That is three parts, of which the first is a JSON object in base64url.
    """
    return key.startswith("eyJ") and key.count(".") == 2


def _bearer(authorization: str) -> str:
    scheme, _, credentials = authorization.partition(" ")
    # Another scheme is no key of ours; taken whole, it is unknown to the auth worker.
    return credentials.strip() if scheme.lower() == "bearer" else authorization
