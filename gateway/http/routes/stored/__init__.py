"""What clients leave with this server: conversations, files and batches.

A file an API; where it is kept is the business of `gateway.storage`.
Others use `ROUTERS`.
May import every room before `gateway.http.routes`, and `gateway.http.routes.inference`.
"""

from typing import Final

from fastapi import APIRouter

from gateway.http.routes.stored import (
    batches,
    conversations,
    files,
)

ROUTERS: Final[tuple[APIRouter, ...]] = tuple(
    module.router for module in (conversations, files, batches)
)
