"""OpenAI's organization API: the audit log."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.access import GuardedRoute
from gateway.http.organization import shapes
from gateway.http.parts import parts_of
from gateway.http.query import query_number, query_text
from gateway.http.routes.admin import actor_of, admin_json
from gateway.http.routes.organization_parts import BASE, check_query, limit_of_page
from protocol.wire.messages import AuditPage

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

_MAX_SCANNED_PAGES: Final = 20
"""Of a thousand entries each: what an audit query with filters looks at, at most."""


@router.get(f"{BASE}/audit_logs")
async def list_audit_logs(request: Request) -> Response:
    """A page of the audit log, newest first, filtered as there."""
    check_query(
        request,
        *("limit", "after", "event_types[]", "actor_ids[]", "resource_ids[]", "project_ids[]"),
        *(f"effective_at[{bound}]" for bound in ("gt", "gte", "lt", "lte")),
    )
    query = request.query_params
    wanted = {
        "type": set(query.getlist("event_types[]")),
        "actor": set(query.getlist("actor_ids[]")),
        "subject": set(query.getlist("resource_ids[]")) | set(query.getlist("project_ids[]")),
    }
    limit, after_seq = limit_of_page(request), _seq(query_text(request, "after"))
    since_s, until_s = _effective_at(request)
    found: list[dict[str, Any]] = []
    for _ in range(_MAX_SCANNED_PAGES):
        question = bridge.read_audit(
            request.state.request_id,
            actor_of(request),
            since_ms=None if since_s is None else since_s * 1000,
            until_ms=None if until_s is None else until_s * 1000,
            after_seq=after_seq,
            limit=1000 if any(wanted.values()) else limit + 1,
        )
        page = await parts_of(request).auth.administer(question, AuditPage)
        found += [
            shapes.audit_event(entry)
            for entry in page.entries
            if (not wanted["type"] or shapes.event_type(entry.action) in wanted["type"])
            and (not wanted["actor"] or entry.actor in wanted["actor"])
            and (not wanted["subject"] or entry.subject in wanted["subject"])
        ]
        if len(found) > limit or not page.has_more:
            break
        after_seq = page.entries[-1].seq
    return admin_json(shapes.page(found[:limit], has_more=len(found) > limit))


def _effective_at(request: Request) -> tuple[int | None, int | None]:
    """From when on, and before when, in Unix seconds."""
    gt, gte, lt, lte = (
        query_number(request, f"effective_at[{bound}]") for bound in ("gt", "gte", "lt", "lte")
    )
    since = [one for one in (gte, None if gt is None else gt + 1) if one is not None]
    until = [one for one in (lt, None if lte is None else lte + 1) if one is not None]
    return max(since, default=None), min(until, default=None)


def _seq(audit_id: str) -> int | None:
    if not audit_id:
        return None
    number = audit_id.removeprefix("audit_log-")
    if not (number.isascii() and number.isdecimal() and len(number) <= 15):
        raise InvalidRequestError("`after` must be the id of an entry.", param="after")
    return int(number)
