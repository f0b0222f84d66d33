"""One folder a kind of route, one file a resource: reads a body, starts a request, answers.

A route holds no state and decides nothing that another API would decide alike: that belongs to
`gateway.request`. Routes are closed by default; `access/guard.py` opens them by name.
Others use `ROUTERS`, in the order in which paths are matched, and the app alone does.
May import every room of the gateway but the app.
"""

from typing import Final

from fastapi import APIRouter

from gateway.http.routes import (
    administration,
    anthropic_organization,
    inference,
    organization,
    server,
    stored,
)

ROUTERS: Final[tuple[APIRouter, ...]] = (
    *inference.ROUTERS,
    *stored.ROUTERS,
    *server.ROUTERS,
    *administration.ROUTERS,
    *organization.ROUTERS,
    *anthropic_organization.ROUTERS,
)
