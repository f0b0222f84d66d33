"""/v1/hooks/{name}/{path}: the routes that hooks of other packages answer."""

from typing import Final

import orjson
from fastapi import APIRouter, Request, Response

from gateway.errors import GatewayError
from gateway.hooks.hook import HookCall
from gateway.http.access.guard import GuardedRoute, caller_of, read_body
from gateway.http.access.hooking import told_headers
from gateway.http.errors.error_table import ERROR_TABLE, error_body
from gateway.http.parts import parts_of
from protocol.errors import ErrorCode

router = APIRouter(route_class=GuardedRoute, tags=["hooks"])

_PATH: Final = "/v1/hooks/{name}/{path:path}"


@router.get(_PATH)
async def get_from_hook(request: Request, name: str, path: str) -> Response:
    """Ask a hook of this server."""
    return await _answer(request, name, path, b"")


@router.post(_PATH)
async def post_to_hook(request: Request, name: str, path: str) -> Response:
    """Give something to a hook of this server."""
    return await _answer(request, name, path, await read_body(request))


async def _answer(request: Request, name: str, path: str, body: bytes) -> Response:
    caller = caller_of(request)
    call = HookCall(
        request_id=request.state.request_id,
        method=request.method,
        path=path,
        query=dict(reversed(request.query_params.multi_items())),
        headers=told_headers(request.headers),
        body=body,
        key_id=request.state.granted.key_id,
        address=caller.address,
    )
    answer = await parts_of(request).hooks.answer(name, call)
    if answer is None:
        row = ERROR_TABLE[ErrorCode.NOT_FOUND]
        content = error_body(f"No hook `{name[:200]}` of this server answers {path[:200]!r}.", row)
        return Response(content, row.status, media_type="application/json")
    try:
        is_raw = isinstance(answer.body, bytes | str)
        content = answer.body if is_raw else orjson.dumps(answer.body)
        return Response(content, int(answer.status), media_type=str(answer.media_type))
    except (TypeError, ValueError) as error:
        raise GatewayError(f"The hook `{name}` of this server gave no answer of JSON.") from error
