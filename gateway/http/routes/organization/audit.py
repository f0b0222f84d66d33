"""OpenAI's organization API: the audit log."""

from typing import Final

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import InvalidRequestError
from gateway.http.access.guard import GuardedRoute
from gateway.http.organization import shapes
from gateway.http.parts import parts_of
from gateway.http.query import check_query, query_number, query_text
from gateway.http.routes.administration.keys import actor_of, admin_json
from gateway.http.routes.organization.parts import BASE, limit_of_page
from protocol.wire.messages import AuditPage

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

_MAX_VALUES: Final = 100
"""Of one filter; the auth worker takes no more."""


@router.get(f"{BASE}/audit_logs")
async def list_audit_logs(request: Request) -> Response:
    """A page of the audit log, newest first, filtered as there."""
    check_query(
        request,
        *("limit", "after", "event_types[]", "actor_ids[]", "resource_ids[]", "project_ids[]"),
        *(f"effective_at[{bound}]" for bound in ("gt", "gte", "lt", "lte")),
    )
    since_s, until_s = _effective_at(request)
    question = bridge.read_audit(
        request.state.request_id,
        actor_of(request),
        since_ms=None if since_s is None else since_s * 1000,
        until_ms=None if until_s is None else until_s * 1000,
        after_seq=_seq(query_text(request, "after")),
        limit=limit_of_page(request),
        actors=_values(request, "actor_ids[]"),
        actions=tuple(
            sorted(
                action
                for event in _values(request, "event_types[]")
                for action in shapes.actions_of(event)
            )
        ),
        subjects=_values(request, "resource_ids[]", "project_ids[]"),
    )
    page = await parts_of(request).auth.administer(question, AuditPage)
    events = [shapes.audit_event(entry) for entry in page.entries]
    return admin_json(shapes.page(events, has_more=page.has_more))


def _values(request: Request, *names: str) -> tuple[str, ...]:
    """The values of a filter, each once."""
    values = {value for name in names for value in request.query_params.getlist(name)}
    if len(values) > _MAX_VALUES:
        raise InvalidRequestError(f"A filter takes at most {_MAX_VALUES} values.", param=names[0])
    return tuple(sorted(values))


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
