"""GET /v1/tools, POST /v1/tools/execute and POST /v1/parse: tool calling, for people."""

import difflib
from collections.abc import Iterable

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import (
    ClientDisconnectedError,
    InvalidRequestError,
    ModelNotFoundError,
)
from gateway.http.access.guard import GuardedRoute, caller_of, parsed_body
from gateway.http.answers.answer_headers import answer_headers, ignored_headers
from gateway.http.answers.responses import json_answer, run_to_end
from gateway.http.bodies.parsed_bodies import (
    ParseBody,
)
from gateway.http.bodies.parsers import (
    EXECUTE,
    PARSE,
)
from gateway.http.errors.error_table import NOT_IMPLEMENTED, error_body
from gateway.http.parts import HttpParts, parts_of
from gateway.http.render.custom_calls import tool_call
from gateway.http.routes.server.models import visible_models
from gateway.http.schemas.base.body import body_schema
from gateway.http.schemas.inference.tools import ExecuteRequest, ParseRequest
from gateway.request.callers.caller import Caller
from gateway.workers.parsers import knows_format
from protocol.wire.messages import OpenParse

router = APIRouter(route_class=GuardedRoute, tags=["tools"])


@router.get("/v1/tools")
async def list_tools(request: Request) -> Response:
    """The tools of this server, the formats that are served and which model uses which."""
    parts = parts_of(request)
    toolbox = parts.toolbox
    tools = [] if toolbox is None else await toolbox.tools(caller_of(request).name)
    offers = visible_models(request)
    models = [
        {
            "id": name,
            "tool_format": offers[name].tool_format,
            "reasoning_format": offers[name].reasoning_format,
            "format_evidence": offers[name].format_evidence,
        }
        for name in sorted(offers)
    ]
    return json_answer(
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
            "enabled": parts.settings.tools,
            "tool_formats": _served(parts, "tool_formats"),
            "reasoning_formats": _served(parts, "reasoning_formats"),
            "models": models,
        }
    )


_EXECUTE = "/v1/tools/execute"
_PARSE = "/v1/parse"


@router.post(_EXECUTE, openapi_extra=body_schema(ExecuteRequest))
async def execute_tool(request: Request) -> Response:
    """Run a tool of this server; what goes wrong within the tool is a result, too."""
    parts = parts_of(request)
    if parts.toolbox is None:
        message = (
            "No tools are registered on this server; packages add some with the entry point "
            "`penstock.tools`."
            if parts.settings.tools
            else "Tool calling is switched off on this server."
        )
        content = error_body(message, NOT_IMPLEMENTED)
        return Response(content, NOT_IMPLEMENTED.status, media_type="application/json")
    body = await parsed_body(request, EXECUTE)
    call, work = parts.requests.tool(
        _EXECUTE,
        parts.toolbox,
        body.name,
        body.arguments_json,
        caller_of(request),
        request.state.request_id,
    )
    try:
        await run_to_end(request, call)
    except ClientDisconnectedError:
        return Response(status_code=499)
    answer = {"object": "tool.result", "name": body.name, **work.result.as_json()}
    return json_answer(answer, answer_headers(call.lease))


@router.post(_PARSE, openapi_extra=body_schema(ParseRequest))
async def parse_text(request: Request) -> Response:
    """Tell content, reasoning and tool calls apart in a model's text."""
    parts, caller = parts_of(request), caller_of(request)
    body = await parsed_body(request, PARSE)
    ignored = ignored_headers(body.ignored, strict=parts.settings.strict_fields)
    opening = _opening(request, body, caller)
    call, work = parts.requests.parse(_PARSE, opening, body.text, caller)
    try:
        await run_to_end(request, call)
    except ClientDisconnectedError:
        return Response(status_code=499)
    parse = work.parse
    return json_answer(
        {
            "object": "parsed_text",
            "format": opening.tool_format,
            "reasoning_format": opening.reasoning_format,
            "content": "".join(parse.content) or None,
            "reasoning": "".join(parse.reasoning) or None,
            "tool_calls": [
                tool_call(call.id, call.name, "".join(call.arguments), body.custom_tools)
                for call in parse.calls
            ],
            "num_malformed": parse.num_malformed,
        },
        answer_headers(call.lease) | ignored,
    )


def _opening(request: Request, body: ParseBody, caller: Caller) -> OpenParse:
    """The parser session that a text needs.

    Raises:
        InvalidRequestError: A format that no parser knows.
        ModelNotFoundError: No such model, or none that the caller may use.
    """
    parts = parts_of(request)
    tool_format, reasoning_format = body.format, body.reasoning_format
    if body.model is not None:
        offer = parts.names.offered(body.model)
        identity = parts.identities.known(caller.key_digest)
        if identity is not None and not identity.may_see(offer.model):
            raise ModelNotFoundError(body.model, tuple(sorted(parts.directory.models())))
        tool_format = tool_format or offer.tool_format
        reasoning_format = reasoning_format or offer.reasoning_format
    _check_format(tool_format, _served(parts, "tool_formats"), "format")
    _check_format(reasoning_format, _served(parts, "reasoning_formats"), "reasoning_format")
    return bridge.open_parse(
        request.state.request_id,
        trace_id=caller.trace_id,
        tool_format=tool_format,
        reasoning_format=reasoning_format,
        tools_json=body.tools_json,
        parallel_tool_calls=body.is_parallel,
        prompt_tail=body.prompt_tail,
    )


def _check_format(name: str | None, served: list[str], param: str) -> None:
    if name is None or knows_format(name, served) or not served:
        return  # Without any parser there is a clearer error to come.
    closest = difflib.get_close_matches(name, served, n=1)
    hint = f" Did you mean `{closest[0]}`?" if closest else ""
    raise InvalidRequestError(
        f"No format is called `{name}`.{hint} GET /v1/tools lists all.", param=param
    )


def _served(parts: HttpParts, attribute: str) -> list[str]:
    """The formats that the parsers which are there know, sorted."""
    offers = (peer.parser for peer in parts.peers())
    found: Iterable[tuple[str, ...]] = (
        getattr(offer, attribute) for offer in offers if offer is not None
    )
    return sorted({name for names in found for name in names})
