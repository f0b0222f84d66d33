"""OpenAI's organization API, told of the users, teams, keys and limits that there are here.

A file a resource; `parts.py` has what they share.
Others use `ROUTERS`.
May import every room before `gateway.http.routes`, and `gateway.http.routes.administration`.
"""

from typing import Final

from fastapi import APIRouter

from gateway.http.routes.organization import (
    audit,
    invites,
    limits,
    people,
    projects,
    usage,
)

ROUTERS: Final[tuple[APIRouter, ...]] = tuple(
    module.router for module in (projects, people, invites, audit, limits, usage)
)
