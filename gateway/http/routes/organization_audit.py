"""OpenAI's organization API: the audit log."""

from typing import Any, Final, NamedTuple

from fastapi import APIRouter, Request, Response

from gateway import bridge
from gateway.errors import InvalidRequestError, RequestTooLargeError
from gateway.http.access.guard import GuardedRoute
from gateway.http.organization import shapes
from gateway.http.parts import parts_of
from gateway.http.query import query_number, query_text
from gateway.http.routes.admin import actor_of, admin_json
from gateway.http.routes.organization_parts import BASE, check_query, limit_of_page
from protocol.wire.messages import AuditPage, AuditRecord

router = APIRouter(route_class=GuardedRoute, tags=["organization"])

_SCANNED_PAGE: Final = 1000
_MAX_SCANNED_PAGES: Final = 20
"""What an audit query with filters that the auth worker doesn't know looks at, at most."""


@router.get(f"{BASE}/audit_logs")
async def list_audit_logs(request: Request) -> Response:
    """A page of the audit log, newest first, filtered as there."""
    check_query(
        request,
        *("limit", "after", "event_types[]", "actor_ids[]", "resource_ids[]", "project_ids[]"),
        *(f"effective_at[{bound}]" for bound in ("gt", "gte", "lt", "lte")),
    )
    query = request.query_params
    wanted = _Wanted(
        types=frozenset(query.getlist("event_types[]")),
        actors=frozenset(query.getlist("actor_ids[]")),
        subjects=frozenset(query.getlist("resource_ids[]") + query.getlist("project_ids[]")),
    )
    limit, after_seq = limit_of_page(request), _seq(query_text(request, "after"))
    since_s, until_s = _effective_at(request)
    found: list[dict[str, Any]] = []
    has_unread = True
    for _ in range(_MAX_SCANNED_PAGES):
        question = bridge.read_audit(
            request.state.request_id,
            actor_of(request),
            since_ms=None if since_s is None else since_s * 1000,
            until_ms=None if until_s is None else until_s * 1000,
            after_seq=after_seq,
            limit=_SCANNED_PAGE if any(wanted) else limit + 1,
            **wanted.as_asked(),
        )
        page = await parts_of(request).auth.administer(question, AuditPage)
        found += [shapes.audit_event(entry) for entry in page.entries if wanted.takes(entry)]
        has_unread = page.has_more
        if len(found) > limit or not has_unread:
            break
        after_seq = page.entries[-1].seq
    if has_unread and not found:
        # A page without entries is the last one to those who read page by page.
        raise RequestTooLargeError(
            f"None of the {_MAX_SCANNED_PAGES * _SCANNED_PAGE} entries that are read for a page"
            " match; name a time with `effective_at`, or one value of each filter."
        )
    return admin_json(shapes.page(found[:limit], has_more=has_unread or len(found) > limit))


class _Wanted(NamedTuple):
    """The filters of a query; an empty one takes everything."""

    types: frozenset[str]
    actors: frozenset[str]
    subjects: frozenset[str]

    def takes(self, entry: AuditRecord) -> bool:
        """Whether an entry is wanted."""
        return (
            (not self.types or shapes.event_type(entry.action) in self.types)
            and (not self.actors or entry.actor in self.actors)
            and (not self.subjects or entry.subject in self.subjects)
        )

    def as_asked(self) -> dict[str, str]:
        """As much of it as the auth worker looks for itself: one value of each, and maybe more."""
        actions = frozenset().union(*map(shapes.actions_of, self.types))
        asked = {"action": actions, "actor": self.actors, "key_id": self.subjects}
        return {name: one for name, values in asked.items() if len(values) == 1 for one in values}


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
