"""Anthropic's organization API, told of the users, teams, keys and limits that there are here.

A file a resource; `workspaces.py` also has what they share.
Others use `ROUTERS`.
May import every room before `gateway.http.routes`, and `gateway.http.routes.organization`.
"""

from typing import Final

from fastapi import APIRouter

from gateway.http.routes.anthropic_organization import (
    accounts,
    limits,
    members,
    usage,
    workspaces,
)

ROUTERS: Final[tuple[APIRouter, ...]] = tuple(
    module.router for module in (workspaces, members, accounts, limits, usage)
)
