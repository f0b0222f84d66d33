"""One table from error code to HTTP status, and the one place that writes OpenAI's error body."""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import orjson

from gateway.errors import (
    DeniedError,
    GatewayError,
    OutcomeUnknownError,
    RefusedByHookError,
    ShuttingDownError,
)
from protocol.errors import ErrorCode, PenstockError
from protocol.wire.messages import LimitRefusal, LimitState


class ErrorRow(NamedTuple):
    """How one code is shown: HTTP status, OpenAI's `type`, and OpenAI's `code`."""

    status: int
    type: str
    code: str


_REQUEST: Final = "invalid_request_error"
_SERVER: Final = "server_error"
_IDEMPOTENCY: Final = "idempotency_error"
"""Stripe's word; OpenAI has none."""

ERROR_TABLE: Final[dict[ErrorCode, ErrorRow]] = {
    ErrorCode.INVALID_REQUEST: ErrorRow(400, _REQUEST, "invalid_request"),
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: ErrorRow(400, _REQUEST, "context_length_exceeded"),
    ErrorCode.NO_CHAT_TEMPLATE: ErrorRow(400, _REQUEST, "no_chat_template"),
    ErrorCode.TEMPLATE_ERROR: ErrorRow(400, _REQUEST, "template_error"),
    ErrorCode.UNSUPPORTED_PARAMETER: ErrorRow(400, _REQUEST, "unsupported_parameter"),
    ErrorCode.UNSUPPORTED_GRAMMAR: ErrorRow(400, _REQUEST, "unsupported_grammar"),
    ErrorCode.PREVIOUS_RESPONSE_NOT_FOUND: ErrorRow(400, _REQUEST, "previous_response_not_found"),
    ErrorCode.INVALID_API_KEY: ErrorRow(401, _REQUEST, "invalid_api_key"),
    ErrorCode.BUDGET_EXCEEDED: ErrorRow(402, "insufficient_quota", "budget_exceeded"),
    ErrorCode.PERMISSION_DENIED: ErrorRow(403, "permission_error", "permission_denied"),
    ErrorCode.REFUSED_BY_HOOK: ErrorRow(403, "permission_error", "refused_by_hook"),
    ErrorCode.MODEL_NOT_FOUND: ErrorRow(404, _REQUEST, "model_not_found"),
    ErrorCode.NOT_FOUND: ErrorRow(404, _REQUEST, "not_found"),
    ErrorCode.REQUEST_IN_PROGRESS: ErrorRow(409, _IDEMPOTENCY, "request_in_progress"),
    ErrorCode.IDEMPOTENCY_KEY_REUSED: ErrorRow(422, _IDEMPOTENCY, "idempotency_key_reused"),
    ErrorCode.CONVERSATION_LOCKED: ErrorRow(409, _REQUEST, "conversation_locked"),
    ErrorCode.REQUEST_TOO_LARGE: ErrorRow(413, _REQUEST, "request_too_large"),
    ErrorCode.RATE_LIMIT_EXCEEDED: ErrorRow(429, "rate_limit_error", "rate_limit_exceeded"),
    ErrorCode.INSUFFICIENT_QUOTA: ErrorRow(429, "insufficient_quota", "insufficient_quota"),
    ErrorCode.TOO_MANY_WRONG_KEYS: ErrorRow(429, "rate_limit_error", "too_many_wrong_keys"),
    ErrorCode.INTERNAL_ERROR: ErrorRow(500, _SERVER, "internal_error"),
    ErrorCode.POISON_REQUEST: ErrorRow(500, _SERVER, "poison_request"),
    ErrorCode.OVERLOADED: ErrorRow(503, _SERVER, "overloaded"),
    ErrorCode.WORKER_UNAVAILABLE: ErrorRow(503, _SERVER, "worker_unavailable"),
    ErrorCode.WORKER_LOST: ErrorRow(503, _SERVER, "worker_lost"),
    ErrorCode.CREDIT_EXCEEDED: ErrorRow(503, _SERVER, "overloaded"),
    ErrorCode.DEADLINE_EXCEEDED: ErrorRow(504, _SERVER, "deadline_exceeded"),
    # Between processes only: a client that sees one of these met a bug of ours.
    ErrorCode.VERSION_MISMATCH: ErrorRow(500, _SERVER, "internal_error"),
    ErrorCode.FINGERPRINT_MISMATCH: ErrorRow(500, _SERVER, "internal_error"),
    ErrorCode.UNKNOWN_LEASE: ErrorRow(500, _SERVER, "internal_error"),
    ErrorCode.UNKNOWN_REQUEST: ErrorRow(500, _SERVER, "internal_error"),
}

METHOD_NOT_ALLOWED: Final = ErrorRow(405, _REQUEST, "method_not_allowed")
"""HTTP's own refusal, which has no code on the wire."""
NOT_IMPLEMENTED: Final = ErrorRow(501, _REQUEST, "not_implemented")
"""For routes that this server has nothing to serve with."""
UPGRADE_REQUIRED: Final = ErrorRow(426, _REQUEST, "upgrade_required")
"""A GET of what is a WebSocket."""
HEAD_TOO_LARGE: Final = ErrorRow(431, _REQUEST, "headers_too_large")
"""Likewise."""

_NO_LIMITS: Final = LimitState()
DEFAULT_RETRY_AFTER_S: Final = 2.0
MAX_RETRY_AFTER_S: Final = 60
"""OpenAI's SDKs ignore a longer wait and come back after half a second."""


def error_body(
    message: str, row: ErrorRow, param: str | None = None, limit: LimitRefusal | None = None
) -> bytes:
    """OpenAI's error object as JSON, with the limit that refused the request."""
    error: dict[str, Any] = {
        "message": message,
        "type": row.type,
        "param": param,
        "code": row.code,
    }
    if limit is not None:
        error |= limit_fields(limit)
    return orjson.dumps({"error": error})


def limit_fields(limit: LimitRefusal) -> dict[str, Any]:
    """What an error says of the limit that refused a request; money is in micro-units."""
    return {
        "limit_source": limit.source,
        "limit": {
            "id": limit.limit_id,
            "name": limit.name,
            "scope": limit.holder,
            "measure": limit.measure,
            "window": limit.window,
            "amount": limit.amount,
            "used": limit.used,
            "reserved": limit.reserved,
            "asked": limit.asked,
            "frees_in_s": None if limit.frees_s is None else math.ceil(limit.frees_s),
        },
    }


def render_error(
    error: PenstockError, tell_limits: Callable[[LimitState], dict[str, str]] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and extra headers of an error.

    Args:
        error: What was raised.
        tell_limits: In the words of the API that was asked; None is OpenAI's.
    """
    row = ERROR_TABLE[error.code]
    headers: dict[str, str] = {}
    retry_after_s = error.retry_after_s if isinstance(error, GatewayError) else None
    if isinstance(error, GatewayError) and error.limits is not None:
        headers.update((tell_limits or limit_headers)(error.limits))
    # The auth worker names no time when even an idle key could not be granted so much.
    is_over_limit_alone = row.status in (402, 429) and retry_after_s is None
    if row.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    elif row.status == 413:
        # The rest of the body will not be read.
        headers["Connection"] = "close"
    elif (
        row.code in ("insufficient_quota", "poison_request")
        or is_over_limit_alone
        or isinstance(error, OutcomeUnknownError)
    ):
        # Waiting a little does not help; OpenAI's SDKs obey this header.
        headers["x-should-retry"] = "false"
    elif row.status in (402, 409, 429, 503):
        wait_s = DEFAULT_RETRY_AFTER_S if retry_after_s is None else retry_after_s
        headers["Retry-After"] = str(max(1, min(math.ceil(wait_s), MAX_RETRY_AFTER_S)))
    if isinstance(error, RefusedByHookError) and error.risk_score is not None:
        headers["X-Penstock-Risk-Score"] = f"{error.risk_score:g}"
    if isinstance(error, ShuttingDownError):
        # Whoever stays connected would lose a request to the end of this process.
        headers["Connection"] = "close"
    return row.status, error_body(error.message, row, error.param, limit_of(error)), headers


def limit_of(error: PenstockError) -> LimitRefusal | None:
    """The limit that an error is about."""
    return error.limit if isinstance(error, DeniedError) else None


def render_error_event(error: PenstockError) -> bytes:
    """The error object alone, for an event within a stream whose status is out already."""
    return error_body(error.message, ERROR_TABLE[error.code], error.param, limit_of(error))


def limit_headers(limits: LimitState) -> dict[str, str]:
    """OpenAI's `x-ratelimit-*` headers; what has no limit has no header."""
    headers: dict[str, str] = {}
    if limits == _NO_LIMITS:
        return headers
    for name, value in (
        ("limit-requests", limits.limit_requests),
        ("remaining-requests", limits.remaining_requests),
        ("limit-tokens", limits.limit_tokens),
        ("remaining-tokens", limits.remaining_tokens),
    ):
        if value is not None:
            headers[f"x-ratelimit-{name}"] = str(max(0, value))
    for name, seconds in (
        ("reset-requests", limits.reset_requests_s),
        ("reset-tokens", limits.reset_tokens_s),
    ):
        if seconds is not None:
            headers[f"x-ratelimit-{name}"] = format_duration(seconds)
    return headers


def format_duration(seconds: float) -> str:
    """A duration as OpenAI writes it: `120ms`, `1.5s`, `6m0s`, `1h2m3s`."""
    if seconds < 1:
        return f"{math.ceil(max(0.0, seconds) * 1000)}ms"
    if seconds < 60:
        return f"{round(seconds, 2):g}s"
    minutes, rest_s = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest_s}s" if hours else f"{minutes}m{rest_s}s"
