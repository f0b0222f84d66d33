"""The API's description: the OpenAPI document, and a page of it."""

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from gateway.http.access.guard import GuardedRoute
from gateway.http.parts import parts_of
from gateway.http.render.api_page import api_page

router = APIRouter(route_class=GuardedRoute, include_in_schema=False)

_PATH = "/openapi.json"


async def _document(request: Request) -> dict[str, Any]:
    """The OpenAPI document; the first time it takes a while, during which others are served.

    It is made once, in one thread, however many ask at the same time.
    """
    state = request.app.state
    task: asyncio.Future[dict[str, Any]] | None = getattr(state, "openapi_task", None)
    if task is None or _has_failed(task):
        task = asyncio.ensure_future(asyncio.to_thread(request.app.openapi))
        state.openapi_task = task
    return await asyncio.shield(task)


def _has_failed(task: "asyncio.Future[dict[str, Any]]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


@router.get(_PATH)
async def openapi_document(request: Request) -> Response:
    """The OpenAPI document."""
    return Response(orjson.dumps(await _document(request)), media_type="application/json")


@router.get("/docs")
async def page(request: Request) -> Response:
    """Read about the API in a browser; the page loads nothing from anywhere."""
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    document = await _document(request)
    content = api_page(document, parts_of(request).settings.root_path + _PATH)
    return Response(content, headers=headers, media_type="text/html")
