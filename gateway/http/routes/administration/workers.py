"""The workers of this gateway: what runs, how it has done lately; draining one, clearing caches."""

import asyncio
import logging
from typing import Any, Final, TypeVar

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import (
    GatewayError,
    WorkerNotFoundError,
)
from gateway.http.access.guard import GuardedRoute, read_body
from gateway.http.parts import HttpParts, parts_of
from gateway.http.routes.administration.keys import actor_of, admin_json
from gateway.http.schemas.administration.workers import ClearCacheRequest, DrainRequest
from gateway.http.schemas.base.body import RequestModel, body_schema, known_only, load_json_object
from protocol.version import CLEAR_CACHE_VERSION
from protocol.wire.messages import CacheCleared, Load
from protocol.wire.peers import Peer

BodyT = TypeVar("BodyT", bound=RequestModel)

router = APIRouter(route_class=GuardedRoute, tags=["admin"])

DEGRADED_BELOW: Final = 0.95
"""A worker that fails more than one in twenty of its last requests is no healthy one."""
_CLEAR_TIMEOUT_S = 10.0

_logger = logging.getLogger("penstock.gateway.admin")


@router.get("/v1/admin/workers")
async def list_workers(request: Request) -> Response:
    """Every connected worker: what it does, how busy it is, and how it has done lately."""
    parts = parts_of(request)
    data = [_worker(parts, peer) for peer in parts.peers()]
    return admin_json({"object": "list", "data": data})


@router.get("/v1/providers/status")
async def provider_status(request: Request) -> Response:
    """The engines as other servers show their providers."""
    parts = parts_of(request)
    engines = [peer for peer in parts.peers() if peer.role == "engine"]
    data = [_provider(parts, peer) for peer in engines]
    return admin_json({"object": "provider_status", "data": data})


@router.post(
    "/v1/admin/workers/{name}/drain", openapi_extra=body_schema(DrainRequest, is_required=False)
)
async def drain_worker(request: Request, name: str) -> Response:
    """Let a worker finish what it has and end; whatever started it may start it again."""
    body = await _body(request, DrainRequest)
    parts = parts_of(request)
    peer = next((one for one in parts.peers() if one.instance_id == name), None)
    if peer is None:
        raise WorkerNotFoundError(name)
    parts.drain_worker(peer, body.timeout_s)
    _logger.info("worker %s is drained, as %s asked", name, actor_of(request).key_id)
    return admin_json(
        {"object": "worker.drain", "name": name, "timeout_s": body.timeout_s}, status=202
    )


@router.post(
    "/v1/models/invalidate-cache", openapi_extra=body_schema(ClearCacheRequest, is_required=False)
)
async def invalidate_cache(request: Request) -> Response:
    """Forget what is remembered of models and callers.

    That is the computed prompts that engines keep for the next request like them, models that no
    engine serves any more, and who callers were a moment ago.
    """
    model = (await _body(request, ClearCacheRequest)).model
    parts = parts_of(request)
    known = parts.directory.models()
    models = tuple(known) if model is None else (parts.names.offered(model).model,)
    engines = [engine for name in models for engine in parts.directory.engines(name)]
    cleared = await asyncio.gather(
        *(
            _clear(parts, f"{request.state.request_id}-{number}", engine)
            for number, engine in enumerate(engines)
        )
    )
    forgotten = parts.directory.forget_absent(models)
    parts.identities.clear()
    return admin_json(
        {
            "object": "cache.invalidation",
            "engines": cleared,
            "num_blocks": sum(one["num_blocks"] or 0 for one in cleared),
            "models_forgotten": list(forgotten),
        }
    )


async def _clear(parts: HttpParts, question_id: str, engine: Any) -> dict[str, Any]:
    peer: Peer = engine.peer
    row: dict[str, Any] = {"name": peer.instance_id, "model": engine.offer.model}
    if peer.protocol_version < CLEAR_CACHE_VERSION:
        return {**row, "num_blocks": None, "error": "It is of an older release; upgrade it."}
    try:
        answer = parts.engines.ask(engine, bridge.clear_cache(question_id), CacheCleared)
        try:
            async with asyncio.timeout(_CLEAR_TIMEOUT_S):
                cleared = await answer
        finally:
            parts.engines.close(engine, question_id)
    except TimeoutError:
        return {**row, "num_blocks": None, "error": "It did not answer in time."}
    except GatewayError as error:
        return {**row, "num_blocks": None, "error": error.message}
    return {**row, "num_blocks": cleared.num_blocks, "error": None}


def _worker(parts: HttpParts, peer: Peer) -> dict[str, Any]:
    record, now_s = parts.worker_records.of(peer), parts.clock()
    return {
        "object": "worker",
        "name": peer.instance_id,
        "role": peer.role,
        "model": None if peer.engine is None else peer.engine.model,
        "status": _status(parts, peer),
        "phase": peer.phase,
        "fraction": peer.fraction if peer.fraction >= 0 else None,
        "detail": peer.detail,
        "takes_work": peer.takes_work,
        "host": peer.host or None,
        "address": peer.address or None,
        "build": peer.build,
        "protocol_version": str(peer.protocol_version),
        "fingerprint": None if peer.engine is None else peer.engine.fingerprint,
        "epoch": None if peer.auth is None else peer.auth.epoch,
        "load": {name: getattr(peer.load, name) for name in Load.__struct_fields__},
        "num_answered": record.num_answered,
        "num_failed": record.num_failed,
        "success_rate": record.success_rate,
        "latency_ms": {
            "p50": _milliseconds(record.latency_s(0.5)),
            "p99": _milliseconds(record.latency_s(0.99)),
        },
        "last_error": _last_error(parts, peer, now_s),
        "last_heard_at": int(parts.wall_clock() - max(0.0, now_s - peer.last_heard)),
    }


def _provider(parts: HttpParts, peer: Peer) -> dict[str, Any]:
    record, now_s = parts.worker_records.of(peer), parts.clock()
    error = _last_error(parts, peer, now_s)
    return {
        "provider": peer.instance_id,
        "status": _status(parts, peer),
        "latency_ms": _milliseconds(record.latency_s(0.5)),
        "success_rate": record.success_rate,
        "last_check": int(parts.wall_clock() - max(0.0, now_s - peer.last_heard)),
        "error_message": None if error is None else error["message"],
        "models_available": [peer.engine.model] if peer.engine is not None else [],
    }


def _status(parts: HttpParts, peer: Peer) -> str:
    if not peer.takes_work:
        return "unavailable"
    rate = parts.worker_records.of(peer).success_rate
    return "healthy" if rate is None or rate >= DEGRADED_BELOW else "degraded"


def _last_error(parts: HttpParts, peer: Peer, now_s: float) -> dict[str, Any] | None:
    failure = parts.worker_records.of(peer).last_failure
    if failure is None:
        return None
    code, message, at_s = failure
    at = int(parts.wall_clock() - max(0.0, now_s - at_s))
    return {"code": str(code), "message": message, "at": at}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


async def _body(request: Request, model: type[BodyT]) -> BodyT:
    content = await read_body(request)
    value = load_json_object(content) if content else {}
    return known_only(model, value)
