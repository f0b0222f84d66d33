"""POST /mcp: this server's tools and models for clients that speak MCP."""

from collections.abc import Iterable
from functools import partial
from typing import Any, Final

import orjson
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from gateway.errors import (
    ClientDisconnectedError,
    DeniedError,
    GatewayError,
    InvalidRequestError,
    ModelNotFoundError,
    ToolNotFoundError,
)
from gateway.http.access.guard import (
    GuardedRoute,
    caller_of,
    key_id_of,
    parsed,
    parsed_body,
    tenant_of,
)
from gateway.http.access.hooking import shown_to_hooks
from gateway.http.answers.answer_headers import answer_headers
from gateway.http.answers.answering import UnstoredShape, answer
from gateway.http.answers.responses import run_to_end
from gateway.http.bodies.parsers import CHAT, MCP
from gateway.http.errors.error_table import ERROR_TABLE
from gateway.http.mcp.messages import (
    INVALID_PARAMS,
    LEGACY,
    MCP_PATH,
    METHOD_NOT_FOUND,
    NEWEST,
    SUPPORTED,
    McpMessage,
    McpRefusedError,
    check_mirrored,
    checked_version,
    refusal_answer,
    result_answer,
    server_info,
)
from gateway.http.mcp.tools import (
    GENERATE,
    GenerateArguments,
    GenerateCollector,
    chat_body,
    failed,
    generate_tool,
    registered,
    told_result,
)
from gateway.http.parts import parts_of
from gateway.http.render.stream import StreamRenderer
from gateway.http.response_turns.tool_asking import EXECUTE_ENDPOINT
from gateway.http.schemas.base.body import validate
from gateway.http.schemas.base.shapes import given_fields, unknown_keys
from gateway.request.jobs.job import CHAT_ENDPOINT
from gateway.request.kinds.generation import GenerationWork
from gateway.request.lifecycle.request import Request
from protocol.errors import ErrorCode

router = APIRouter(route_class=GuardedRoute, tags=["tools"])

_CAPABILITIES: Final[dict[str, Any]] = {"tools": {}}
_SCHEMA: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/McpRequest"}}},
    }
}


@router.post(MCP_PATH, openapi_extra=_SCHEMA)
async def speak_mcp(request: HttpRequest) -> Response:
    """Answer a message of the Model Context Protocol (2026-07-28, 2025-11-25, 2025-06-18)."""
    message = await parsed_body(request, MCP)
    if message.code:
        return _refused(message, McpRefusedError(message.code, message.wrong))
    # An error that is raised from here on is told with the id of its request.
    request.scope["state"]["mcp_id"] = message.id_json
    version = ""
    try:
        version = checked_version(message, request.headers)
        if not message.id_json:
            return Response(status_code=202)
        return await _answered(request, message, version)
    except McpRefusedError as refusal:
        return _refused(message, refusal, version)
    except ClientDisconnectedError:
        return Response(status_code=499)


async def _answered(request: HttpRequest, message: McpMessage, version: str) -> Response:
    """The answer to a request.

    Raises:
        McpRefusedError: There is none.
        GatewayError: It could not be made.
    """
    if message.method == "tools/call":
        return await _called(request, message, version)
    is_listing = False
    result: dict[str, Any]
    if message.method == "tools/list":
        if message.has_cursor:
            raise McpRefusedError(
                INVALID_PARAMS, "All tools come on one page, so there is no cursor."
            )
        result, is_listing = {"tools": await _tools(request)}, True
    elif message.method == "server/discover" and version == NEWEST:
        result, is_listing = {"supportedVersions": SUPPORTED, "capabilities": _CAPABILITIES}, True
    elif message.method == "initialize" and version != NEWEST:
        spoken = message.proposed if message.proposed in LEGACY else LEGACY[0]
        result = {
            "protocolVersion": spoken,
            "capabilities": _CAPABILITIES,
            "serverInfo": server_info(),
        }
    elif message.method == "ping" and version != NEWEST:
        result = {}
    else:
        raise McpRefusedError(METHOD_NOT_FOUND, "Method not found")
    return _json(result_answer(message, version, result, is_listing=is_listing))


async def _tools(request: HttpRequest) -> list[dict[str, Any]]:
    """What the caller may use."""
    parts = parts_of(request)
    found: list[dict[str, Any]] = []
    if parts.toolbox is not None and await _may(request, EXECUTE_ENDPOINT):
        cards = await parts.toolbox.tools(caller_of(request).name)
        found += map(registered, cards)
    models = await _models(request)
    if models and all(tool["name"] != GENERATE for tool in found):
        found.append(generate_tool(models, needs_model=_only(request, models) is None))
    return found


async def _models(request: HttpRequest) -> list[str]:
    """The models that the caller may chat with."""
    if not await _may(request, CHAT_ENDPOINT):
        return []
    parts = parts_of(request)
    identity = parts.identities.known(caller_of(request).key_digest)
    offers = parts.directory.models()
    return sorted(
        name
        for name in {*offers, *parts.names.aliases}
        if (offer := offers.get(parts.names.served(name))) is not None
        and "chat" in offer.capabilities
        and (identity is None or identity.may_see(offer.model))
    )


def _only(request: HttpRequest, models: Iterable[str]) -> str | None:
    """The one model that all of these are names of; None where there are more, or none."""
    served = {parts_of(request).names.served(name) for name in models}
    return served.pop() if len(served) == 1 else None


async def _may(request: HttpRequest, endpoint: str) -> bool:
    """Whether the caller's key is good for a route.

    Raises:
        DeniedError: It is good for nothing any more.
    """
    try:
        await tenant_of(request, endpoint)
    except DeniedError as error:
        if error.code is not ErrorCode.PERMISSION_DENIED:
            raise
        return False
    return True


async def _called(request: HttpRequest, message: McpMessage, version: str) -> Response:
    """The answer to a call of a tool.

    Raises:
        McpRefusedError: There is no such tool.
        GatewayError: The caller may not, or something is full or away.
    """
    if not message.name or not message.arguments_json:
        raise McpRefusedError(
            INVALID_PARAMS, "A call has the `name` of a tool and an object `arguments`."
        )
    try:
        return await _call(request, message, version)
    except ToolNotFoundError as error:
        raise McpRefusedError(INVALID_PARAMS, error.message) from error
    except GatewayError as error:
        # What the caller may change is told to the model that called, not to its program.
        is_wrong = isinstance(error, InvalidRequestError | ModelNotFoundError)
        if not is_wrong and ERROR_TABLE[error.code].status not in (400, 413):
            raise
        request.state.log.error_code = str(error.code)
        return _json(result_answer(message, version, failed(error.message)))


async def _call(request: HttpRequest, message: McpMessage, version: str) -> Response:
    parts, arguments = parts_of(request), orjson.loads(message.arguments_json)
    name = caller_of(request).name
    cards = () if parts.toolbox is None else await parts.toolbox.tools(name)
    card = next((one for one in cards if one.name == message.name), None)
    if card is None and message.name == GENERATE:
        return await _generated(request, message, version, arguments)
    if card is None or parts.toolbox is None:
        # Who may not use tools isn't told which ones there are.
        await tenant_of(request, EXECUTE_ENDPOINT)
        raise ToolNotFoundError(message.name, tuple(one.name for one in cards))
    if version == NEWEST:
        check_mirrored(card.parameters, arguments, request.headers)
    call, work = parts.requests.tool(
        EXECUTE_ENDPOINT,
        parts.toolbox,
        message.name,
        message.arguments_json,
        caller_of(request),
        request.state.request_id,
    )
    await run_to_end(request, call)
    result = told_result(work.result, parts.settings.max_tool_output_bytes)
    return _json(result_answer(message, version, result), answer_headers(call.lease))


async def _generated(
    request: HttpRequest, message: McpMessage, version: str, arguments: dict[str, Any]
) -> Response:
    """What a model answers; hooks, limits and budgets see the chat that it is.

    Raises:
        GatewayError: It could not be made.
    """
    unknown = unknown_keys(given_fields(arguments), GenerateArguments.known_fields)
    if unknown:
        raise InvalidRequestError(f"Unknown argument: `{unknown[0]}`.", param=unknown[0])
    asked = validate(GenerateArguments, arguments)
    model = asked.model
    if model is None:
        models = await _models(request)
        model = _only(request, models)
        if model is None:
            raise InvalidRequestError(
                f"Missing argument: `model`, one of {', '.join(models) or 'none at present'}.",
                param="model",
            )
    hooks, caller, record = parts_of(request).hooks, caller_of(request), request.state.log
    body = chat_body(asked, model)
    if hooks:
        identify = partial(key_id_of, request, MCP_PATH)
        body = await shown_to_hooks(
            hooks, body, request, caller, record, identify, endpoint=CHAT_ENDPOINT
        )
    generation = await parsed(request, body, CHAT)
    return await answer(request, generation, _GenerateShape(message, version))


class _GenerateShape(UnstoredShape):
    """How a call of `generate` is answered."""

    def __init__(self, message: McpMessage, version: str) -> None:
        self._message = message
        self._version = version

    def collector(self, _request: Request, work: GenerationWork) -> GenerateCollector:
        """For the whole answer."""
        return GenerateCollector(self._message, self._version, work.model)

    def renderer(self, _request: Request, _work: GenerationWork) -> StreamRenderer:
        """There are no streams: a hook that asks for one has changed too much.

        Raises:
            GatewayError: Always.
        """
        raise GatewayError("A hook of this server asked for a stream, which MCP doesn't take.")


def _refused(message: McpMessage, refusal: McpRefusedError, version: str = "") -> Response:
    status, body = refusal_answer(message, refusal, version)
    return Response(body, status, media_type="application/json")


def _json(body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, headers=headers, media_type="application/json")
