"""Messages of MCP over streamable HTTP: 2026-07-28 without, older ones with a handshake.

Nothing is kept between two requests, which either kind of version allows: see ADR 56, and
https://modelcontextprotocol.io/specification/2026-07-28/basic/transports/streamable-http
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import Field

from gateway.errors import InvalidRequestError
from gateway.http.schemas.base.body import RequestModel, dump_json, load_json_object, validate
from gateway.http.schemas.base.ranges import MAX_TOOL_NAME_CHARACTERS
from gateway.tools.mcp_client import mirrored_parameters
from protocol.wire import worker_start

MCP_PATH: Final = "/mcp"
NEWEST: Final = "2026-07-28"
LEGACY: Final = ("2025-11-25", "2025-06-18")
"""With a handshake, newest first. 2025-03-26 isn't among them: it asks for batches."""
SUPPORTED: Final = (NEWEST, *LEGACY)

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
HEADER_MISMATCH: Final = -32020
UNSUPPORTED_VERSION: Final = -32022
REFUSED: Final = -32000
"""What the HTTP status says: no key, no permission, over a limit, too full."""

_META: Final = "io.modelcontextprotocol/"
_MAX_ID: Final = 2**53 - 1
_MAX_ID_CHARACTERS: Final = 1024


class McpRequest(RequestModel):
    """A message of MCP: a JSON-RPC request, or a notification where it has no `id`.

    Attributes:
        jsonrpc: The version of JSON-RPC.
        id: Comes back with the answer.
        method: `server/discover`, `initialize`, `ping`, `tools/list` or `tools/call`.
        params: Of the method; in 2026-07-28 with `_meta`.
    """

    jsonrpc: Literal["2.0"]
    id: (
        Annotated[str, Field(max_length=_MAX_ID_CHARACTERS)]
        | Annotated[int, Field(ge=-_MAX_ID, le=_MAX_ID)]
    ) = ""
    method: Annotated[str, Field(min_length=1, max_length=256)]
    params: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class McpMessage:
    """What a body says.

    Attributes:
        id_json: Of a request; empty for what is answered with nothing.
        method: Empty for a client's own response.
        version: Of `_meta`; empty without.
        has_capabilities: Whether `_meta` says what the client can do.
        proposed: The version that `initialize` proposes.
        has_cursor: Whether a page is asked for.
        name: Of the tool.
        arguments_json: By name, a JSON object; empty where they are something else.
        code: Of JSON-RPC; other than 0 where the body is no message.
        wrong: What is wrong with it.
    """

    id_json: str = ""
    method: str = ""
    version: str = ""
    has_capabilities: bool = False
    proposed: str = ""
    has_cursor: bool = False
    name: str = ""
    arguments_json: str = "{}"
    code: int = 0
    wrong: str = ""


class McpRefusedError(Exception):
    """A message is refused in the words of JSON-RPC.

    Attributes:
        code: Of JSON-RPC.
        data: More of it.
    """

    def __init__(self, code: int, message: str, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


def parse_message(body: bytes) -> McpMessage:
    """What a body says; one that is no message is none of the errors of other routes."""
    try:
        value = load_json_object(body)
        if "method" not in value and ("result" in value or "error" in value):
            return McpMessage()  # an answer to something that was never asked
        request = validate(McpRequest, value)
        params, meta = request.params, request.params.get("_meta")
        meta = meta if isinstance(meta, dict) else {}
        arguments = params.get("arguments", {})
        return McpMessage(
            id_json=dump_json(request.id, "id") if "id" in value else "",
            method=request.method,
            version=_text(meta.get(f"{_META}protocolVersion")),
            has_capabilities=isinstance(meta.get(f"{_META}clientCapabilities"), dict),
            proposed=_text(params.get("protocolVersion")),
            has_cursor=params.get("cursor") is not None,
            name=_text(params.get("name")),
            arguments_json=dump_json(arguments, "params") if isinstance(arguments, dict) else "",
        )
    except InvalidRequestError as error:
        is_json = not isinstance(error.__cause__, orjson.JSONDecodeError)
        return McpMessage(code=INVALID_REQUEST if is_json else PARSE_ERROR, wrong=error.message)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def checked_version(message: McpMessage, headers: Mapping[str, str]) -> str:
    """The version that a request is made in; one of the handshake's is the newest of them.

    Args:
        message: Of the body.
        headers: By lower-case names.

    Raises:
        McpRefusedError: It is none that is spoken, or the headers say something else than the body.
    """
    told = headers.get("mcp-protocol-version", "").strip()
    if not message.version and told != NEWEST:
        if told and told not in LEGACY:
            raise _unsupported(told)
        return LEGACY[0]
    if not message.id_json:
        return NEWEST  # nothing is done for a notification
    if not message.version or not message.has_capabilities:
        raise McpRefusedError(
            INVALID_PARAMS,
            f"`_meta` needs `{_META}protocolVersion` and `{_META}clientCapabilities`.",
        )
    _check_header("MCP-Protocol-Version", told, message.version)
    if message.version != NEWEST:
        raise _unsupported(message.version)
    _check_header("Mcp-Method", headers.get("mcp-method", "").strip(), message.method)
    if message.method == "tools/call":
        _check_header("Mcp-Name", _decoded("Mcp-Name", headers), message.name)
    return NEWEST


def _unsupported(version: str) -> McpRefusedError:
    shown = version[:MAX_TOOL_NAME_CHARACTERS]
    supported = [one for one in SUPPORTED if one != version]
    return McpRefusedError(
        UNSUPPORTED_VERSION,
        f"MCP {shown!r} is not spoken here, but {', '.join(supported)}.",
        {"supported": supported, "requested": version},
    )


def _check_header(name: str, told: str, said: str) -> None:
    if told != said:
        raise McpRefusedError(
            HEADER_MISMATCH,
            f"The header {name} must say what the body says; it "
            + ("is missing." if not told else "says something else."),
        )


def check_mirrored(
    schema: Mapping[str, Any], arguments: Mapping[str, Any], headers: Mapping[str, str]
) -> None:
    """That the headers say what the arguments say, for those that travel in both (`x-mcp-header`).

    Raises:
        McpRefusedError: They don't.
    """
    try:
        mirrored = mirrored_parameters(schema)
    except ValueError:
        return  # clients leave such a tool out, or mirror nothing of it
    for name, path in mirrored:
        value: Any = arguments
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        said = "" if value is None else value if isinstance(value, str) else _plain(value)
        _check_header(f"Mcp-Param-{name}", _decoded(f"Mcp-Param-{name}", headers), said)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _decoded(name: str, headers: Mapping[str, str]) -> str:
    told = headers.get(name.lower(), "").strip()
    if not (told.startswith("=?base64?") and told.endswith("?=") and len(told) >= 11):
        return told
    try:
        return base64.b64decode(told[9:-2], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise McpRefusedError(HEADER_MISMATCH, f"The header {name} is no Base64.") from None


def result_answer(
    message: McpMessage, version: str, result: Mapping[str, Any], *, is_listing: bool = False
) -> bytes:
    """A result in the words of a version.

    Args:
        message: That it answers.
        version: As `checked_version` says.
        result: Without what only the newest version has.
        is_listing: Whether clients may keep it for a while.
    """
    told = dict(result)
    if version == NEWEST:
        told["resultType"] = "complete"
        told["_meta"] = {**told.get("_meta", {}), f"{_META}serverInfo": server_info()}
        if is_listing:
            # What is offered depends on the key, and on which engines are there.
            told |= {"ttlMs": 30_000, "cacheScope": "private"}
    fragment = orjson.Fragment(message.id_json.encode())
    return orjson.dumps({"jsonrpc": "2.0", "id": fragment, "result": told})


def refusal_answer(
    message: McpMessage, refusal: McpRefusedError, version: str = ""
) -> tuple[int, bytes]:
    """Status and body of a refusal.

    Args:
        message: That it answers.
        refusal: Why.
        version: As `checked_version` says, where it came so far. Before 2026-07-28 errors of
            JSON-RPC have no status of their own.
    """
    is_legacy = version not in ("", NEWEST)
    status = 200 if is_legacy else 404 if refusal.code == METHOD_NOT_FOUND else 400
    return status, error_message(refusal.code, str(refusal), message.id_json, refusal.data)


def error_message(
    code: int, text: str, id_json: str = "", data: Mapping[str, Any] | None = None
) -> bytes:
    """An error of JSON-RPC; without an id where the request's isn't known."""
    error: dict[str, Any] = {"code": code, "message": text}
    if data is not None:
        error["data"] = data
    fragment = orjson.Fragment((id_json or "null").encode())
    return orjson.dumps({"jsonrpc": "2.0", "id": fragment, "error": error})


def server_info() -> dict[str, str]:
    """Who answers."""
    return {"name": "penstock", "version": worker_start.build()}
