"""POST /v1/admin/profile: have an engine record what it does for some seconds."""

import asyncio

import orjson
from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import (
    DeadlineExceededError,
    WorkerUnavailableError,
)
from gateway.http.access.guard import GuardedRoute, read_body
from gateway.http.parts import parts_of
from gateway.http.schemas.administration.profile import ProfileRequest
from gateway.http.schemas.base.body import known_only, load_json_object
from gateway.request.jobs.model_limits import check_version
from protocol.wire.messages import Profiled

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
    value = load_json_object(await read_body(request))
    body = known_only(ProfileRequest, value)
    parts = parts_of(request)
    model = parts.names.offered(body.model).model
    live = [engine for engine in parts.directory.engines(model) if engine.peer.takes_work]
    if not live:
        raise WorkerUnavailableError(f"No engine of `{model}` is there at the moment.")
    busiest = max(live, key=lambda engine: engine.num_unfinished)
    check_version(busiest.peer.protocol_version, "seconds")
    duration_s = _DEFAULT_S if body.seconds is None else body.seconds
    question = bridge.profile(request.state.request_id, duration_s)
    answer_future = parts.engines.ask(busiest, question, Profiled)
    try:
        async with asyncio.timeout(duration_s + _WRITING_S):
            answer = await answer_future
    except TimeoutError:
        raise DeadlineExceededError("The engine took too long to write its recording.") from None
    finally:
        parts.engines.close(busiest, question.request_id)
    content = {
        "object": "profile",
        "model": model,
        "engine": busiest.peer.instance_id,
        "directory": answer.directory,
        "size_bytes": answer.size_bytes,
    }
    return Response(orjson.dumps(content), media_type="application/json")
