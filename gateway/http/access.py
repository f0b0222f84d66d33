"""Who may use a route: authorised by default, open only by name."""

import hashlib
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, cast

from fastapi import Request, Response
from fastapi.routing import APIRoute

from gateway.errors import DeniedError
from gateway.request.caller import Caller
from gateway.request.services import Services
from protocol.errors import ErrorCode
from protocol.wire.endpoints import is_loopback
from protocol.wire.messages import Authorize, Granted, KeyRole


class Access(Enum):
    """What a route asks of its caller."""

    OPEN = "open"
    """Nothing: probes."""
    LOCAL = "local"
    """Nothing on a loopback address, a key elsewhere: metrics and documentation."""
    USER = "user"
    """A key; the default."""
    METERED = "metered"
    """A key, with an upper bound of tokens; the route itself asks, once it has read the body."""
    ADMIN = "admin"
    """The key of an administrator, even where no key is needed otherwise."""


ROUTE_ACCESS: dict[str, Access] = {
    "/live": Access.OPEN,
    "/ready": Access.OPEN,
    "/health": Access.OPEN,
    "/ping": Access.OPEN,
    "/metrics": Access.LOCAL,
    "/docs": Access.LOCAL,
    "/openapi.json": Access.LOCAL,
    "/v1/chat/completions": Access.METERED,
    "/v1/completions": Access.METERED,
    "/v1/embeddings": Access.METERED,
    "/v1/admin/keys": Access.ADMIN,
    "/v1/admin/profile": Access.ADMIN,
    "/v1/admin/keys/{key_id}/revoke": Access.ADMIN,
}
"""Every route that is not `Access.USER`."""


class GuardedRoute(APIRoute):
    """A route that asks for authorisation before its handler runs, unless the table opens it."""

    @property
    def access(self) -> Access:
        """What this route asks of its caller."""
        return ROUTE_ACCESS.get(self.path, Access.USER)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler behind the guard."""
        handler = super().get_route_handler()
        access, path = self.access, self.path
        if access is Access.OPEN:
            return handler

        async def guarded(request: Request) -> Response:
            settings = services_of(request).settings
            if access is Access.METERED:
                if settings.require_keys and presented_key(request) is None:
                    # Before the body is read: strangers shall not make us parse megabytes.
                    raise DeniedError(
                        "You didn't provide an API key. Send it as `Authorization: Bearer psk-…`.",
                        code=ErrorCode.INVALID_API_KEY,
                    )
            elif access is not Access.LOCAL or not is_loopback(settings.host):
                role: KeyRole = "admin" if access is Access.ADMIN else "user"
                request.state.granted = await authorize(request, path, role)
            return await handler(request)

        return guarded


async def authorize(request: Request, endpoint: str, role: KeyRole) -> Granted:
    """Ask the auth worker about a request that generates nothing.

    Raises:
        DeniedError: No.
        WorkerUnavailableError: Nobody answers, so nobody gets in.
    """
    caller = caller_of(request)
    return await services_of(request).auth.authorize(
        Authorize(
            request_id=request.state.request_id,
            key_digest=caller.key_digest,
            endpoint=endpoint,
            address=caller.address,
            required_role=role,
        )
    )


def caller_of(request: Request) -> Caller:
    """Digest of the presented key, and the client's address."""
    key = presented_key(request)
    digest = None if key is None else hashlib.sha256(key.encode()).digest()
    return Caller(digest, request.client.host if request.client is not None else "")


def presented_key(request: Request) -> str | None:
    """The key of `Authorization: Bearer` or of `X-API-Key`; None when neither was sent."""
    authorization = request.headers.get("authorization")
    if authorization is None:
        return request.headers.get("x-api-key") or None
    scheme, _, credentials = authorization.partition(" ")
    # Another scheme is no key of ours; taken whole, it is unknown to the auth worker.
    key = credentials.strip() if scheme.lower() == "bearer" else authorization
    return key or None


def services_of(request: Request) -> Services:
    """The parts of the gateway, which the app carries."""
    app: Any = request.app
    return cast("Services", app.state.services)
