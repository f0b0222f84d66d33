"""POST /v1/admin/profile: have an engine record what it does for some seconds."""

import asyncio

import orjson
from fastapi import APIRouter, Request, Response

from gateway.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    WorkerUnavailableError,
)
from gateway.http.access import GuardedRoute, services_of
from gateway.http.responses import DisconnectGuard
from gateway.http.schemas.body import load_json_object, unknown_keys, validate
from gateway.http.schemas.profile import ProfileRequest
from gateway.request.model_limits import check_version
from protocol.wire.messages import Profile

router = APIRouter(route_class=GuardedRoute, tags=["admin"])

_DEFAULT_S = 5.0
_WRITING_S = 60.0
"""A trace takes a while to be written after its time."""
_SCHEMA = {"$ref": f"#/components/schemas/{ProfileRequest.__name__}"}


@router.post(
    "/v1/admin/profile",
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}
    },
)
async def profile(request: Request) -> Response:
    """Record one engine of a model; the answer says where the recording lies on its machine."""
    value = load_json_object(await request.body())
    body = validate(ProfileRequest, value)
    unknown = unknown_keys(value, ProfileRequest.known_fields)
    if unknown:
        raise InvalidRequestError(f"Unknown field: `{unknown[0]}`.", param=unknown[0])
    engines = services_of(request).engines
    models = engines.models()
    if body.model not in models:
        raise ModelNotFoundError(body.model, tuple(sorted(models)))
    live = [engine for engine in engines.engines(body.model) if engine.peer.takes_work]
    if not live:
        raise WorkerUnavailableError(f"No engine of `{body.model}` is there at the moment.")
    busiest = max(live, key=lambda engine: engine.num_unfinished)
    check_version(busiest.peer.protocol_version, "seconds")
    duration_s = _DEFAULT_S if body.seconds is None else body.seconds
    question = Profile(request_id=request.state.request_id, duration_s=duration_s)
    try:
        async with asyncio.timeout(duration_s + _WRITING_S), DisconnectGuard(request.receive):
            answer = await engines.profile(busiest, question)
    except TimeoutError:
        raise DeadlineExceededError("The engine took too long to write its recording.") from None
    content = {
        "object": "profile",
        "model": body.model,
        "engine": busiest.peer.instance_id,
        "directory": answer.directory,
        "size_bytes": answer.size_bytes,
    }
    return Response(orjson.dumps(content), media_type="application/json")
