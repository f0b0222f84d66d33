"""Anthropic's organization API: reports of usage and cost, in buckets of time."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from gateway.errors import InvalidRequestError
from gateway.http.access.guard import GuardedRoute
from gateway.http.organization import shapes
from gateway.http.parts import parts_of
from gateway.http.query import check_query, query_number, query_text
from gateway.http.routes.administration.keys import admin_json
from gateway.http.routes.anthropic_organization.workspaces import BASE, time_text
from gateway.http.routes.organization.usage import (
    COST_WIDTHS,
    WIDTHS,
    AskedUsage,
    Width,
    asked_usage,
    buckets_of,
    buckets_of_page,
    counts_as_completion,
    filters_of,
    groups_of,
    groups_told,
    usage_rows,
)
from protocol.wire.messages import UsageRow

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

_USAGE_GROUPS: Final = ("account_id", "api_key_id", "model", "workspace_id")
_COST_GROUPS: Final = ("description", "workspace_id")
_FILTERS: Final = {
    "account_ids[]": "account_id",
    "api_key_ids[]": "api_key_id",
    "models[]": "model",
    "workspace_ids[]": "workspace_id",
}
_COST_WIDTHS: Final = {"1d": COST_WIDTHS["1d"]._replace(most=31)}


@router.get(f"{BASE}/usage_report/messages")
async def messages_usage_report(request: Request) -> Response:
    """Tokens of everything that is neither embeddings nor decisions."""
    asked = _asked(request, WIDTHS, _USAGE_GROUPS, _FILTERS)
    rows = await usage_rows(request, asked)
    return _report(asked, buckets_of(asked, rows, counts_as_completion), _usage)


@router.get(f"{BASE}/cost_report")
async def cost_report(request: Request) -> Response:
    """What was used, by the prices of its time; a description is a model."""
    asked = _asked(request, _COST_WIDTHS, _COST_GROUPS, {})
    rows = await usage_rows(request, asked)
    return _report(asked, buckets_of(asked, rows, lambda endpoint: True), _cost)


def _asked(
    request: Request,
    widths: Mapping[str, Width],
    groups: tuple[str, ...],
    filters: Mapping[str, str],
) -> AskedUsage:
    known = ("starting_at", "ending_at", "bucket_width", "limit", "page", "group_by[]")
    check_query(request, *known, *filters)
    width = widths[query_text(request, "bucket_width", one_of=tuple(widths)) or "1d"]
    start_s, end_s = _moment(request, "starting_at"), _moment(request, "ending_at")
    if start_s is None:
        raise InvalidRequestError(
            "`starting_at` is needed, such as 2026-01-31T00:00:00Z.", param="starting_at"
        )
    now_s = int(parts_of(request).wall_clock())
    begin_s = query_number(request, "page")
    return asked_usage(
        width,
        start_s if begin_s is None else max(start_s, begin_s),
        now_s + 1 if end_s is None else min(end_s, now_s + 1),
        buckets_of_page(request, width),
        groups_of(request, groups),
        filters_of(request, filters),
    )


def _moment(request: Request, name: str) -> int | None:
    """A time of RFC 3339 in Unix seconds, from 1970 on; None when it isn't there."""
    text = query_text(request, name)
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            f"`{name}` must be a time such as 2026-01-31T00:00:00Z.", param=name
        ) from None
    return max(0, int(seconds))


def _report(
    asked: AskedUsage,
    buckets: Mapping[int, Mapping[tuple[str, ...], list[UsageRow]]],
    render: Any,
) -> Response:
    has_more = asked.next_s < asked.end_s
    data = [
        {
            "starting_at": time_text(begins_at),
            "ending_at": time_text(begins_at + asked.width.seconds),
            "results": [
                render(rows, groups_told(asked.groups, names)) for names, rows in groups.items()
            ],
        }
        for begins_at, groups in buckets.items()
    ]
    next_page = str(asked.next_s) if has_more else None
    return admin_json({"data": data, "has_more": has_more, "next_page": next_page})


def _usage(rows: list[UsageRow], named: Mapping[str, str | None]) -> dict[str, Any]:
    """What isn't grouped by, or isn't told apart here, is null there."""
    cached = sum(row.cached_tokens for row in rows)
    return {
        "uncached_input_tokens": sum(row.prompt_tokens for row in rows) - cached,
        "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
        "cache_read_input_tokens": cached,
        "output_tokens": sum(row.completion_tokens for row in rows),
        "server_tool_use": {"web_search_requests": 0},
        **{name: named.get(name) for name in _USAGE_GROUPS},
        "service_account_id": None,
        "service_tier": None,
        "context_window": None,
        "inference_geo": None,
    }


def _cost(rows: list[UsageRow], named: Mapping[str, str | None]) -> dict[str, Any]:
    """In cents; a price isn't split by kinds of tokens."""
    description = named.get("description")
    return {
        "currency": "USD",
        "amount": shapes.cents_text(sum(row.cost_micros for row in rows)),
        "workspace_id": named.get("workspace_id"),
        "description": description,
        "model": description,
        "cost_type": None,
        "token_type": None,
        "service_tier": None,
        "context_window": None,
        "inference_geo": None,
    }
