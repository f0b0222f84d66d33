"""GET /v1/admin/audit-logs: what administrators did and what was refused, as it was recorded."""

from typing import Any, get_args

import orjson
from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.http.access.guard import GuardedRoute
from gateway.http.parts import parts_of
from gateway.http.query import check_query, page_size, query_number, query_text
from gateway.http.routes.administration.keys import actor_of, admin_json
from protocol.wire.messages import AuditOutcome, AuditPage, AuditRecord

router = APIRouter(route_class=GuardedRoute, tags=["admin"])

_ORDERS = ("desc", "asc")
_FILTERS = ("key_id", "actor", "action", "outcome")


@router.get("/v1/admin/audit-logs")
async def list_entries(request: Request) -> Response:
    """A page of entries, newest first; `after` is `last_id` of the page before."""
    check_query(request, *_FILTERS, "since", "until", "order", "after", "limit")
    order = query_text(request, "order", one_of=_ORDERS)
    since, until = query_number(request, "since"), query_number(request, "until")
    question = bridge.read_audit(
        request.state.request_id,
        actor_of(request),
        key_id=query_text(request, "key_id"),
        actor=query_text(request, "actor"),
        action=query_text(request, "action"),
        outcome=query_text(request, "outcome", one_of=get_args(AuditOutcome)),
        since_ms=None if since is None else since * 1000,
        until_ms=None if until is None else until * 1000,
        after_seq=query_number(request, "after"),
        oldest_first=order == "asc",
        limit=page_size(request),
    )
    page = await parts_of(request).auth.administer(question, AuditPage)
    entries = page.entries
    return admin_json(
        {
            "object": "list",
            "data": [_entry(entry) for entry in entries],
            "first_id": entries[0].seq if entries else None,
            "last_id": entries[-1].seq if entries else None,
            "has_more": page.has_more,
        }
    )


def _entry(entry: AuditRecord) -> dict[str, Any]:
    fields = {name: getattr(entry, name) for name in AuditRecord.__struct_fields__}
    return {
        "object": "audit_log.entry",
        **fields,
        "detail": orjson.loads(entry.detail),
        "previous_hash": entry.previous_hash.hex(),
        "hash": entry.hash.hex(),
    }
