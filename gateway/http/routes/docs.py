"""The API's description: the OpenAPI document, and a page of it, with both key schemes."""

from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.http.access import ROUTE_ACCESS, Access, GuardedRoute
from gateway.http.render.api_page import api_page
from gateway.http.schemas.chat import ChatRequest
from gateway.http.schemas.completion import CompletionRequest
from gateway.http.schemas.embedding import EmbeddingRequest
from gateway.http.schemas.keys import CreateKeyRequest
from gateway.http.schemas.profile import ProfileRequest
from gateway.http.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from gateway.http.schemas.tools import ExecuteRequest, ParseRequest

router = APIRouter(route_class=GuardedRoute, include_in_schema=False)

_TITLE = "Penstock"
_BODIES: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    TokenizeRequest,
    EmbeddingRequest,
    ProfileRequest,
    DetokenizeRequest,
    CreateKeyRequest,
    ExecuteRequest,
    ParseRequest,
)
_PATH = "/openapi.json"
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer psk-…"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@router.get(_PATH)
async def openapi_document(request: Request) -> Response:
    """The OpenAPI document."""
    return Response(orjson.dumps(request.app.openapi()), media_type="application/json")


@router.get("/docs")
async def page(request: Request) -> Response:
    """Read about the API in a browser; the page loads nothing from anywhere."""
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    content = api_page(request.app.openapi(), _PATH)
    return Response(content, headers=headers, media_type="text/html")


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of an app whose routes read their bodies themselves."""
    document = get_openapi(
        title=_TITLE,
        version="1",
        summary="Language models over the OpenAI API.",
        routes=app.routes,
    )
    _, definitions = models_json_schema(
        [(model, "validation") for model in _BODIES],
        ref_template="#/components/schemas/{model}",
    )
    components = document.setdefault("components", {})
    # FastAPI's own validation errors are never sent; every error has OpenAI's shape.
    components["schemas"] = {**definitions["$defs"], "Error": _ERROR_SCHEMA}
    components["securitySchemes"] = _SCHEMES
    document["security"] = [{"bearer": []}, {"api_key": []}]
    error = {
        "description": "An error.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = error
            if ROUTE_ACCESS.get(path) is Access.OPEN:
                operation["security"] = []
    return document
