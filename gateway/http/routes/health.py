"""Probes and metrics: is the process alive, can it serve, what has it counted."""

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from gateway.http.access import GuardedRoute, services_of
from gateway.request.services import Services
from gateway.telemetry.metrics import CONTENT_TYPE

router = APIRouter(route_class=GuardedRoute, tags=["health"])


@router.get("/live")
async def live() -> Response:
    """The process answers."""
    return _json(200, {"status": "live"})


@router.get("/ping")
async def ping() -> Response:
    """The process answers."""
    return _json(200, {"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether every configured model can be served, and if not, what is missing."""
    return _readiness(services_of(request))


@router.get("/health")
async def health(request: Request) -> Response:
    """The same as /ready."""
    return _readiness(services_of(request))


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics as Prometheus text."""
    return Response(services_of(request).metrics.render(), headers={"content-type": CONTENT_TYPE})


def _readiness(services: Services) -> Response:
    missing = missing_parts(services)
    status = "draining" if services.is_draining else "starting" if missing else "ready"
    workers = [
        {
            "role": peer.role,
            "instance_id": peer.instance_id,
            "model": peer.engine.model if peer.engine is not None else None,
            "phase": peer.phase,
            "fraction": peer.fraction,
            "detail": peer.detail,
        }
        for peer in services.peers()
    ]
    body = {"status": status, "missing": missing, "workers": workers}
    return _json(200 if status == "ready" else 503, body)


def missing_parts(services: Services) -> list[str]:
    """What is not there yet, in words."""
    engines = services.engines
    models = services.settings.models or tuple(sorted(engines.models()))
    missing = [f"engine of model {name}" for name in models if not engines.is_serving(name)]
    if not models:
        missing.append("engine")
    if not services.auth.is_ready:
        missing.append("auth worker")
    if not services.parsers.is_ready:
        missing.append("toolparser worker")
    return missing


def _json(status: int, value: dict[str, Any]) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(orjson.dumps(value), status, headers, "application/json")
