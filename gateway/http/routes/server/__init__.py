"""What is told of the server itself: models, health, hooks of operators, documentation.

A file a subject; none of them is metered but the routes that hooks bring.
Others use `ROUTERS`.
May import every room before `gateway.http.routes`, and no other folder of routes.
"""

from typing import Final

from fastapi import APIRouter

from gateway.http.routes.server import (
    docs,
    health,
    hooks,
    models,
)

ROUTERS: Final[tuple[APIRouter, ...]] = tuple(
    module.router for module in (models, hooks, health, docs)
)
