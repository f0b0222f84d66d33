"""Errors and headers as Anthropic's clients read them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

import orjson

from gateway.http.errors.error_table import ERROR_TABLE, ErrorRow, limit_fields, limit_of
from protocol.errors import ErrorCode, PenstockError
from protocol.wire.messages import LimitRefusal, LimitState

_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_OVERLOADED: Final = 529
"""Anthropic's own status for what HTTP calls 503; their clients try again on both."""


_TOO_LONG: Final = ERROR_TABLE[ErrorCode.CONTEXT_LENGTH_EXCEEDED].code
"""Agents shorten their conversation when a message begins with Anthropic's words for it."""


def status_of(row: ErrorRow) -> int:
    """The HTTP status that their clients expect."""
    return _OVERLOADED if row.status == 503 else row.status


OFFERED: Final = (
    "of Anthropic's API there are /v1/messages, /v1/messages/count_tokens, /v1/models and"
    " /v1/organizations"
)
"""What their clients are told who ask for anything else."""
_THREAD: Final = "thread"
_NO_THREADS: Final = {"error_code": "thread_unsupported_request", "unsupported": [_THREAD]}
"""By these details their client knows that it has to send the whole conversation itself."""


def error_object(
    message: str,
    row: ErrorRow,
    request_id: str,
    limit: LimitRefusal | None = None,
    details: Mapping[str, Any] = MappingProxyType({}),
) -> bytes:
    """Anthropic's error as JSON; its details are the code of the error table, the limit and more.

    Args:
        message: For people.
        row: Of the error table.
        request_id: As the answer's header has it.
        limit: That the error is about.
        details: More of them, which take the place of the others.
    """
    if row.code == _TOO_LONG:
        message = f"prompt is too long: {message}"
    kind = _TYPES.get(row.status, "api_error" if row.status >= 500 else "invalid_request_error")
    error: dict[str, Any] = {
        "type": kind,
        "message": message,
        "details": {
            "error_code": row.code,
            **({} if limit is None else limit_fields(limit)),
            **details,
        },
    }
    return orjson.dumps({"type": "error", "error": error, "request_id": request_id})


def render_error_object(error: PenstockError, request_id: str) -> bytes:
    """The same of an error that was raised."""
    row, details = ERROR_TABLE[error.code], dict[str, Any]()
    if error.code is ErrorCode.UNSUPPORTED_PARAMETER and error.param == _THREAD:
        details = _NO_THREADS
    return error_object(error.message, row, request_id, limit_of(error), details)


def limit_headers(limits: LimitState, now: float) -> dict[str, str]:
    """`anthropic-ratelimit-*`; what has no limit has no header.

    Args:
        limits: Of the caller.
        now: Unix seconds.
    """
    headers: dict[str, str] = {}
    for name, value in (
        ("requests-limit", limits.limit_requests),
        ("requests-remaining", limits.remaining_requests),
        ("tokens-limit", limits.limit_tokens),
        ("tokens-remaining", limits.remaining_tokens),
    ):
        if value is not None:
            headers[f"anthropic-ratelimit-{name}"] = str(max(0, value))
    for name, seconds in (
        ("requests-reset", limits.reset_requests_s),
        ("tokens-reset", limits.reset_tokens_s),
    ):
        if seconds is not None:
            headers[f"anthropic-ratelimit-{name}"] = _time(now + max(0.0, seconds))
    return headers


def _time(at: float) -> str:
    """Unix seconds as RFC 3339, in whole seconds from the next one on."""
    return datetime.fromtimestamp(-(-at // 1), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
