"""GET /v1/tools, POST /v1/tools/execute and POST /v1/parse: tool calling, for people."""

import asyncio
import difflib
from collections.abc import Iterable
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from gateway.errors import DeadlineExceededError, InvalidRequestError, ModelNotFoundError
from gateway.http.access import GuardedRoute, services_of
from gateway.http.error_table import NOT_IMPLEMENTED, error_body
from gateway.http.schemas.body import dump_json, load_json_object, unknown_keys, validate
from gateway.http.schemas.messages import clean_tools
from gateway.http.schemas.tools import ExecuteRequest, ParseRequest
from gateway.request.services import Services
from gateway.request.text_parse import TextParse
from gateway.workers.parsers import knows_format
from protocol.wire.messages import OpenParse

router = APIRouter(route_class=GuardedRoute, tags=["tools"])


def _schema(name: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {"requestBody": {"required": True, "content": content}}


@router.get("/v1/tools")
async def list_tools(request: Request) -> Response:
    """The tools of this server, the formats that are served and which model uses which."""
    services = services_of(request)
    toolbox = services.toolbox
    tools = [] if toolbox is None else await toolbox.tools()
    offers = services.engines.models()
    models = [
        {
            "id": name,
            "tool_format": offers[name].tool_format,
            "reasoning_format": offers[name].reasoning_format,
            "format_evidence": offers[name].format_evidence,
        }
        for name in sorted(offers)
    ]
    return _json(
        {
            "object": "list",
            "data": [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.parameters,
                    },
                }
                for tool in tools
            ],
            "enabled": services.settings.tools,
            "tool_formats": _served(services, "tool_formats"),
            "reasoning_formats": _served(services, "reasoning_formats"),
            "models": models,
        }
    )


@router.post("/v1/tools/execute", openapi_extra=_schema("ExecuteRequest"))
async def execute_tool(request: Request) -> Response:
    """Run a tool of this server; what goes wrong within the tool is a result, too."""
    services = services_of(request)
    if services.toolbox is None:
        message = (
            "No tools are registered on this server; packages add some with the entry point "
            "`penstock.tools`."
            if services.settings.tools
            else "Tool calling is switched off on this server."
        )
        body = error_body(message, NOT_IMPLEMENTED)
        return Response(body, NOT_IMPLEMENTED.status, media_type="application/json")
    value = load_json_object(await request.body())
    _refuse_unknown(value, ExecuteRequest.known_fields)
    body_model = validate(ExecuteRequest, value)
    result = await services.toolbox.execute(body_model.name, _arguments(body_model.arguments))
    return _json({"object": "tool.result", "name": body_model.name, **result.as_json()})


@router.post("/v1/parse", openapi_extra=_schema("ParseRequest"))
async def parse_text(request: Request) -> Response:
    """Tell content, reasoning and tool calls apart in a model's text."""
    services = services_of(request)
    value = load_json_object(await request.body())
    _refuse_unknown(value, ParseRequest.known_fields)
    body = validate(ParseRequest, value)
    opening = _opening(services, body, value.get("tools"), request.state.request_id)
    parse = TextParse(services.parsers, opening)
    try:
        async with asyncio.timeout(services.settings.request_timeout_s):
            await parse.run(body.text)
    except TimeoutError:
        raise DeadlineExceededError("Parsing took longer than a request may.") from None
    return _json(
        {
            "object": "parsed_text",
            "format": opening.tool_format,
            "reasoning_format": opening.reasoning_format,
            "content": "".join(parse.content) or None,
            "reasoning": "".join(parse.reasoning) or None,
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(call.arguments)},
                }
                for call in parse.calls
            ],
            "num_malformed": parse.num_malformed,
        }
    )


def _opening(services: Services, body: ParseRequest, raw_tools: Any, request_id: str) -> OpenParse:
    """The parser session that a text needs.

    Raises:
        InvalidRequestError: A format that no parser knows.
        ModelNotFoundError: No such model.
    """
    tool_format, reasoning_format = body.format, body.reasoning_format
    if body.model is not None:
        offer = services.engines.offer(body.model)
        if offer is None:
            raise ModelNotFoundError(body.model, tuple(sorted(services.engines.models())))
        tool_format = tool_format or offer.tool_format
        reasoning_format = reasoning_format or offer.reasoning_format
    _check_format(tool_format, _served(services, "tool_formats"), "format")
    _check_format(reasoning_format, _served(services, "reasoning_formats"), "reasoning_format")
    return OpenParse(
        request_id=request_id,
        attempt=1,
        tool_format=tool_format,
        reasoning_format=reasoning_format,
        tools_json=None if body.tools is None else dump_json(clean_tools(raw_tools), "tools"),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        prompt_tail=body.prompt_tail or "",
    )


def _check_format(name: str | None, served: list[str], param: str) -> None:
    if name is None or knows_format(name, served) or not served:
        return  # Without any parser there is a clearer error to come.
    closest = difflib.get_close_matches(name, served, n=1)
    hint = f" Did you mean `{closest[0]}`?" if closest else ""
    raise InvalidRequestError(
        f"No format is called `{name}`.{hint} GET /v1/tools lists all.", param=param
    )


def _served(services: Services, attribute: str) -> list[str]:
    """The formats that the parsers which are there know, sorted."""
    offers = (peer.parser for peer in services.peers())
    found: Iterable[tuple[str, ...]] = (
        getattr(offer, attribute) for offer in offers if offer is not None
    )
    return sorted({name for names in found for name in names})


def _arguments(arguments: dict[str, Any] | str) -> dict[str, Any]:
    """Arguments as an object.

    Raises:
        InvalidRequestError: Their text is no JSON object.
    """
    if isinstance(arguments, dict):
        return arguments
    try:
        value = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(
            f"`arguments` is not valid JSON: {error}.", param="arguments"
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequestError("`arguments` must be a JSON object.", param="arguments")
    return value


def _refuse_unknown(value: dict[str, Any], known: frozenset[str]) -> None:
    unknown = unknown_keys(value, known)
    if unknown:
        raise InvalidRequestError(f"Unknown field: `{unknown[0]}`.", param=unknown[0])


def _json(value: dict[str, Any]) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
