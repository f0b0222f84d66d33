"""Penstock's own administration: keys, users, teams, limits, prices, audit, usage, workers.

A file a subject; `keys.py` also has what all of them share (who acts, what is answered).
Others use `ROUTERS`.
May import every room before `gateway.http.routes`, and no other folder of routes.
"""

from typing import Final

from fastapi import APIRouter

from gateway.http.routes.administration import (
    audit,
    keys,
    profile,
    resources,
    usage,
    workers,
)

ROUTERS: Final[tuple[APIRouter, ...]] = tuple(
    module.router for module in (keys, resources, audit, profile, workers, usage)
)
