"""The key or token that a request came with."""

from fastapi import Request

from gateway.errors import DeniedError
from protocol.errors import ErrorCode


def is_token(presented: str) -> bool:
    """Whether what was presented has the form of a JSON Web Token.

    That is three parts, of which the first is a JSON object in base64url.
    """
    return presented.startswith("eyJ") and presented.count(".") == 2


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


def _bearer(authorization: str) -> str:
    scheme, _, credentials = authorization.partition(" ")
    # Another scheme is no key of ours; taken whole, it is unknown to the auth worker.
    return credentials.strip() if scheme.lower() == "bearer" else authorization
