"""Error codes to HTTP: statuses, headers, durations."""

import json

import pytest

from gateway.errors import DeniedError, GatewayError
from gateway.http.errors.error_table import (
    ERROR_TABLE,
    format_duration,
    limit_headers,
    render_error,
)
from protocol.errors import ErrorCode
from protocol.wire.messages import Denied, LimitRefusal, LimitState

STATUSES = {
    400: {
        "invalid_request",
        "context_length_exceeded",
        "no_chat_template",
        "template_error",
        "unsupported_parameter",
        "unsupported_grammar",
        "previous_response_not_found",
    },
    401: {"invalid_api_key"},
    402: {"budget_exceeded"},
    403: {"permission_denied", "refused_by_hook"},
    404: {"model_not_found", "not_found"},
    409: {"request_in_progress", "conversation_locked"},
    413: {"request_too_large"},
    422: {"idempotency_key_reused"},
    429: {"rate_limit_exceeded", "insufficient_quota", "too_many_wrong_keys"},
    500: {
        "internal_error",
        "poison_request",
        "version_mismatch",
        "fingerprint_mismatch",
        "unknown_lease",
        "unknown_request",
    },
    503: {"overloaded", "worker_unavailable", "worker_lost", "credit_exceeded"},
    504: {"deadline_exceeded"},
}


def test_each_code_has_the_status_of_the_table() -> None:
    found: dict[int, set[str]] = {}
    for code, row in ERROR_TABLE.items():
        found.setdefault(row.status, set()).add(code.value)
    assert found == STATUSES


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_has_openais_shape(code: ErrorCode) -> None:
    status, body, headers = render_error(GatewayError("why", code=code, param="p"))
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["message"], error["param"]) == ("why", "p")
    assert status == ERROR_TABLE[code].status
    assert ("Retry-After" in headers) == (status in (409, 503))


def test_a_spent_quota_says_that_retrying_is_no_use() -> None:
    for code in (ErrorCode.INSUFFICIENT_QUOTA, ErrorCode.BUDGET_EXCEEDED):
        headers = render_error(GatewayError("spent", code=code))[2]
        assert headers["x-should-retry"] == "false"
        assert "Retry-After" not in headers


def test_what_is_over_the_limit_alone_is_not_to_be_retried() -> None:
    denied = Denied(request_id="r", code=ErrorCode.RATE_LIMIT_EXCEEDED, message="too much")
    headers = render_error(DeniedError.from_message(denied))[2]
    assert headers["x-should-retry"] == "false"
    assert "Retry-After" not in headers


def test_a_rate_limit_says_when_to_come_back() -> None:
    denied = Denied(
        request_id="r",
        code=ErrorCode.RATE_LIMIT_EXCEEDED,
        message="slow down",
        retry_after_s=0.2,
        limits=LimitState(limit_requests=5, remaining_requests=0, reset_requests_s=61),
    )
    status, _, headers = render_error(DeniedError.from_message(denied))
    assert status == 429
    assert headers["Retry-After"] == "1"
    assert headers["x-ratelimit-limit-requests"] == "5"
    assert headers["x-ratelimit-reset-requests"] == "1m1s"


def test_a_budget_that_running_requests_hold_says_when_to_come_back() -> None:
    denied = Denied(
        request_id="r",
        code=ErrorCode.BUDGET_EXCEEDED,
        message="wait",
        retry_after_s=5.0,
        limit=LimitRefusal(
            limit_id="bud_1",
            name="monthly",
            holder="team",
            measure="money",
            window="calendar_month",
            amount=20_000_000,
            used=19_000_000,
            reserved=900_000,
            asked=200_000,
            source="in_flight",
        ),
    )
    status, body, headers = render_error(DeniedError.from_message(denied))
    assert (status, headers["Retry-After"], "x-should-retry" in headers) == (402, "5", False)
    error = json.loads(body)["error"]
    assert error["limit_source"] == "in_flight"
    assert error["limit"]["id"] == "bud_1"
    assert error["limit"]["frees_in_s"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ms"),
        (0.12, "120ms"),
        (1.5, "1.5s"),
        (59.9, "59.9s"),
        (360, "6m0s"),
        (3723, "1h2m3s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_no_limit_means_no_header() -> None:
    assert limit_headers(LimitState()) == {}
