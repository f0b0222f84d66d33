"""In whose words a request's errors are told: OpenAI's, Anthropic's or JSON-RPC's, by its path."""

import time
from functools import partial

import orjson
from starlette.types import Scope

from gateway.http.anthropic import errors as anthropic
from gateway.http.anthropic.models import VERSION_HEADER
from gateway.http.errors.error_table import ERROR_TABLE, ErrorRow, error_body, render_error
from gateway.http.mcp.messages import INTERNAL_ERROR, MCP_PATH, REFUSED, error_message
from gateway.request.jobs.job import MESSAGES_ENDPOINT
from protocol.errors import PenstockError

SHARED_PATHS = ("/v1/models", "/v1/files")
"""Whoever asks there with a version of Anthropic's gets errors in their words."""
_ORGANIZATIONS = "/v1/organizations/"
_VERSION = VERSION_HEADER.encode("ascii")


def is_anthropic(scope: Scope) -> bool:
    """Whether a request is for Anthropic's API: by its path, or by its header.

    The header counts where both APIs have the path, and where there is no route.
    """
    path: str = scope["path"]
    if is_anthropic_path(path):
        return True
    may_be = path.startswith(SHARED_PATHS) or scope.get("route") is None
    return may_be and any(name == _VERSION for name, _ in scope["headers"])


def is_anthropic_path(path: str) -> bool:
    """Whether a path belongs to Anthropic's API alone."""
    return f"{path}/".startswith((_ORGANIZATIONS, f"{MESSAGES_ENDPOINT}/"))


def error_answer(
    scope: Scope, message: str, row: ErrorRow, param: str | None = None
) -> tuple[int, bytes]:
    """Status and body of an error that is no exception of ours."""
    if is_anthropic(scope):
        return anthropic.status_of(row), anthropic.error_object(message, row, _request_id(scope))
    body = error_body(message, row, param)
    return row.status, _as_mcp(scope, row.status, body) if scope["path"] == MCP_PATH else body


def raised_answer(scope: Scope, error: PenstockError) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and extra headers of an error that was raised."""
    if is_anthropic(scope):
        tell_limits = partial(anthropic.limit_headers, now=time.time())
        headers = render_error(error, tell_limits)[2]
        body = anthropic.render_error_object(error, _request_id(scope))
        return anthropic.status_of(ERROR_TABLE[error.code]), body, headers
    status, body, headers = render_error(error)
    if scope["path"] == MCP_PATH:
        body = _as_mcp(scope, status, body)
    return status, body, headers


def _as_mcp(scope: Scope, status: int, body: bytes) -> bytes:
    """An error of JSON-RPC, with OpenAI's error object as its data."""
    error = orjson.loads(body)["error"]
    code = INTERNAL_ERROR if status >= 500 else REFUSED
    return error_message(code, error["message"], scope.get("state", {}).get("mcp_id", ""), error)


def _request_id(scope: Scope) -> str:
    state = scope.get("state", {})
    return str(state.get("trace_id") or state.get("request_id", ""))
