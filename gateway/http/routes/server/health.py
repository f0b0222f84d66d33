"""Probes and metrics: is the process alive, can it serve, what has it counted."""

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from gateway.http.access.guard import GuardedRoute
from gateway.http.metrics_json import metrics_json, wants_json
from gateway.http.parts import parts_of
from gateway.http.readiness import ReadinessReport
from gateway.telemetry.metrics import CONTENT_TYPE
from protocol.wire import worker_start

router = APIRouter(route_class=GuardedRoute, tags=["health"])


@router.get("/live")
async def live(_request: Request) -> Response:
    """The process answers."""
    return _json(200, {"status": "live"})


@router.get("/ping")
async def ping(_request: Request) -> Response:
    """The process answers."""
    return _json(200, {"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether this gateway can serve a new request for some model; what load balancers ask."""
    report = parts_of(request).readiness.look()
    return _json(200 if report.can_serve else 503, _shown(report))


@router.get("/health")
async def health(request: Request) -> Response:
    """Whether everything is there that is configured, and if not, what is missing."""
    report = parts_of(request).readiness.look()
    return _json(200 if report.status == "ready" else 503, _shown(report))


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics as Prometheus text, or the most important ones as JSON where that is asked for."""
    if wants_json(request.headers.get("accept", "")):
        return _json(200, metrics_json(parts_of(request)))
    return Response(parts_of(request).metrics.render(), headers={"content-type": CONTENT_TYPE})


@router.get("/load")
async def load(request: Request) -> Response:
    """Requests under way: `server_load` of this gateway, for balancers, and what engines have."""
    parts = parts_of(request)
    engines = [
        {
            "name": peer.instance_id,
            "model": "" if peer.engine is None else peer.engine.model,
            "running": peer.load.num_running,
            "waiting": peer.load.num_waiting,
        }
        for peer in parts.peers()
        if peer.role == "engine"
    ]
    return _json(200, {"server_load": parts.num_active(), "engines": engines})


@router.get("/version")
async def version(_request: Request) -> Response:
    """Which release this is."""
    return _json(200, {"version": worker_start.build()})


def _shown(report: ReadinessReport) -> dict[str, Any]:
    return {
        "status": report.status,
        "missing": list(report.missing),
        "models": list(report.models),
        "workers": list(report.workers),
    }


def _json(status: int, value: dict[str, Any]) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(orjson.dumps(value), status, headers, "application/json")
