"""The API's description: the OpenAPI document, and a page of it."""

import orjson
from fastapi import APIRouter, Request, Response

from gateway.http.access.guard import GuardedRoute
from gateway.http.parts import parts_of
from gateway.http.render.api_page import api_page

router = APIRouter(route_class=GuardedRoute, include_in_schema=False)

_PATH = "/openapi.json"


@router.get(_PATH)
async def openapi_document(request: Request) -> Response:
    """The OpenAPI document."""
    return Response(orjson.dumps(request.app.openapi()), media_type="application/json")


@router.get("/docs")
async def page(request: Request) -> Response:
    """Read about the API in a browser; the page loads nothing from anywhere."""
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    content = api_page(request.app.openapi(), parts_of(request).settings.root_path + _PATH)
    return Response(content, headers=headers, media_type="text/html")
