"""Records as OpenAI's administrative client reads them; money is in cents there."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway.errors import InvalidRequestError
from gateway.http.schemas.administration.settings import MAX_LIMIT
from protocol.wire.messages import (
    AuditRecord,
    KeyDetails,
    LimitSettings,
    Resource,
    TeamSettings,
    UserSettings,
)

MICROS_PER_CENT: Final = 10_000
RATE_LIMIT_PREFIX: Final = "rl-"

RATE_FIELDS: Final[Mapping[str, tuple[str, str]]] = {
    "max_requests_per_1_minute": ("requests", "minute"),
    "max_tokens_per_1_minute": ("tokens", "minute"),
    "max_requests_per_1_day": ("requests", "day"),
}
"""Which measure and window of ours each of their figures is."""

_RATES_OF_EVERY_MODEL: Final = ("max_requests_per_1_minute", "max_tokens_per_1_minute")
NO_LIMIT: Final = MAX_LIMIT
"""Their clients' types ask for a number also where nothing limits: the largest that can be set."""

_EVENT_OF: Final[Mapping[str, str]] = {
    "key_created": "api_key.created",
    "key_updated": "api_key.updated",
    "key_rotated": "api_key.updated",
    "key_suspended": "api_key.updated",
    "key_reactivated": "api_key.updated",
    "key_revoked": "api_key.deleted",
    "key_deleted": "api_key.deleted",
    "team_created": "project.created",
    "team_updated": "project.updated",
    "team_suspended": "project.archived",
    "team_reactivated": "project.updated",
    "team_deleted": "project.deleted",
    "user_created": "user.added",
    "user_updated": "user.updated",
    "user_suspended": "user.updated",
    "user_reactivated": "user.updated",
    "user_deleted": "user.deleted",
    "member_set": "role.assignment.created",
    "member_removed": "role.assignment.deleted",
    "limit_created": "rate_limit.updated",
    "limit_updated": "rate_limit.updated",
    "limit_deleted": "rate_limit.deleted",
    "token_accepted": "login.succeeded",
    "request_refused": "login.failed",
}
"""Their names of our actions; what has none there keeps its own."""


def project(team: Resource) -> dict[str, Any]:
    """A team."""
    settings = team.settings
    assert isinstance(settings, TeamSettings)
    return {
        "object": "organization.project",
        "id": team.resource_id,
        "name": settings.name,
        "created_at": team.created_at,
        "archived_at": team.suspended_at,
        "status": "active" if team.suspended_at is None else "archived",
    }


def admin_key(key: KeyDetails, secret: str = "") -> dict[str, Any]:
    """A key of role admin; with its secret only when it was made just now."""
    record = {
        "object": "organization.admin_api_key",
        "id": key.key_id,
        "name": key.settings.name,
        "redacted_value": key.hint,
        "created_at": key.created_at,
        "expires_at": key.settings.expires_at,
        "last_used_at": key.last_used_at,
        "owner": {
            "type": "user",
            "object": "organization.user",
            "id": key.settings.user_id or key.key_id,
            "name": key.settings.owner or key.settings.name,
            "created_at": key.created_at,
            "role": "owner",
        },
    }
    return record | ({"value": secret} if secret else {})


def project_key(key: KeyDetails, user: Resource | None, team: Resource) -> dict[str, Any]:
    """A key of a team; one that belongs to nobody shows as its own service account."""
    return {
        "object": "organization.project.api_key",
        "id": key.key_id,
        "name": key.settings.name,
        "redacted_value": key.hint,
        "created_at": key.created_at,
        "expires_at": key.settings.expires_at,
        "last_used_at": key.last_used_at,
        "owner": _key_owner(key, user),
        "owner_project_access": "active" if has_access(key, user, team) else "inactive",
    }


def has_access(key: KeyDetails, user: Resource | None, team: Resource) -> bool:
    """Whether a key of a team opens anything: it, its team and its user are as they should be."""
    if key.status != "active" or team.suspended_at is not None:
        return False
    if not key.settings.user_id:
        return True
    return user is not None and user.suspended_at is None and team.resource_id in user.team_ids


def _key_owner(key: KeyDetails, user: Resource | None) -> dict[str, Any]:
    settings = None if user is None else user.settings
    if user is None or not isinstance(settings, UserSettings):
        account = {
            "id": key.key_id,
            "name": key.settings.name,
            "created_at": key.created_at,
            "role": "member",
        }
        return {"type": "service_account", "service_account": account}
    base = {
        "id": user.resource_id,
        "name": settings.name,
        "created_at": user.created_at,
        "role": "member",
    }
    if settings.kind == "service_account":
        return {"type": "service_account", "service_account": base}
    return {"type": "user", "user": {**base, "email": settings.email}}


def account_key(key: KeyDetails, secret: str) -> dict[str, Any]:
    """The key of a service account that was made just now."""
    return {
        "object": "organization.project.service_account.api_key",
        "id": key.key_id,
        "name": key.settings.name,
        "created_at": key.created_at,
        "expires_at": key.settings.expires_at,
        "value": secret,
    }


def service_account(user: Resource, role: str) -> dict[str, Any]:
    """A user that is no person, in a team."""
    settings = user.settings
    assert isinstance(settings, UserSettings)
    return {
        "object": "organization.project.service_account",
        "id": user.resource_id,
        "name": settings.name,
        "created_at": user.created_at,
        "role": role,
    }


def project_user(user: Resource, role: str, added_at: int) -> dict[str, Any]:
    """A member of a team."""
    settings = user.settings
    assert isinstance(settings, UserSettings)
    return {
        "object": "organization.project.user",
        "id": user.resource_id,
        "name": settings.name,
        "email": settings.email,
        "role": role,
        "added_at": added_at,
    }


def organization_user(user: Resource) -> dict[str, Any]:
    """A user; administrators are owners there."""
    settings = user.settings
    assert isinstance(settings, UserSettings)
    is_on = user.suspended_at is None
    return {
        "object": "organization.user",
        "id": user.resource_id,
        "name": settings.name,
        "email": settings.email,
        "role": "owner" if settings.role == "admin" else "reader",
        "added_at": user.created_at,
        "created": user.created_at,
        "is_service_account": settings.kind == "service_account",
        "projects": {"object": "list", "data": [{"id": team_id} for team_id in user.team_ids]},
        "user": {
            "object": "user",
            "id": user.resource_id,
            "name": settings.name,
            "email": settings.email,
            "enabled": is_on,
            "banned": not is_on,
            "banned_at": user.suspended_at,
        },
    }


def invite(user: Resource, roles: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The invitation that a user came by: accepted when it was made, since nothing is mailed.

    Args:
        user: Of kind person.
        roles: By the projects that it was made a member of; None where they aren't known.
    """
    settings = user.settings
    assert isinstance(settings, UserSettings)
    return {
        "object": "organization.invite",
        "id": user.resource_id,
        "email": settings.email,
        "role": "owner" if settings.role == "admin" else "reader",
        "status": "accepted",
        "created_at": user.created_at,
        "expires_at": None,
        "accepted_at": user.created_at,
        "projects": [
            {"id": team_id, "role": (roles or {}).get(team_id, "member")}
            for team_id in user.team_ids
        ],
    }


def model_of_rate_limit(rate_limit_id: str) -> str:
    """The model of an id of a rate limit.

    Raises:
        InvalidRequestError: It is none.
    """
    model = rate_limit_id.removeprefix(RATE_LIMIT_PREFIX)
    if model == rate_limit_id or not model:
        raise InvalidRequestError(
            f"The id of a rate limit is {RATE_LIMIT_PREFIX} and the model.", param="id"
        )
    return model


def cents_text(micros: int) -> str:
    """Micro-units as cents with three decimals at most, rounded half up."""
    whole, thousandths = divmod((micros * 1000 + MICROS_PER_CENT // 2) // MICROS_PER_CENT, 1000)
    return f"{whole}.{thousandths:03}".rstrip("0").rstrip(".")


def is_rate_limit(limit: LimitSettings, measure: str, window: str, model: str) -> bool:
    """Whether a limit is such a one of a model: one that only warns, or of some routes, is not."""
    return (
        (limit.measure, limit.window, limit.models) == (measure, window, (model,))
        and limit.is_hard
        and limit.endpoints is None
    )


def rate_limit(model: str, limits: Iterable[LimitSettings]) -> dict[str, Any]:
    """The tightest that holds for a team and one model; `NO_LIMIT` without, of a day null."""
    figures: dict[str, int | None] = dict.fromkeys(RATE_FIELDS)
    figures |= dict.fromkeys(_RATES_OF_EVERY_MODEL, NO_LIMIT)
    for limit in limits:
        for name, (measure, window) in RATE_FIELDS.items():
            if is_rate_limit(limit, measure, window, model):
                known = figures[name]
                figures[name] = limit.amount if known is None else min(limit.amount, known)
    return {
        "object": "project.rate_limit",
        "id": f"{RATE_LIMIT_PREFIX}{model}",
        "model": model,
        **figures,
    }


def spend_limit(budget: Resource, kind: str) -> dict[str, Any]:
    """A hard budget a month; `kind` is `organization` or `project`."""
    return {"object": f"{kind}.spend_limit", **_money(budget), "enforcement": _enforcement(budget)}


def spend_alert(budget: Resource, kind: str) -> dict[str, Any]:
    """A soft budget a month; what passes it is in the audit log, which webhooks follow."""
    return {
        "object": f"{kind}.spend_alert",
        "id": budget.resource_id,
        **_money(budget),
        "notification_channel": {"type": "email", "recipients": []},
    }


def _money(budget: Resource) -> dict[str, Any]:
    settings = budget.settings
    assert isinstance(settings, LimitSettings)
    return {
        "currency": "USD",
        "interval": "month",
        "threshold_amount": settings.amount // MICROS_PER_CENT,
    }


def _enforcement(budget: Resource) -> dict[str, str]:
    settings = budget.settings
    assert isinstance(settings, LimitSettings)
    return {"status": "enforcing" if settings.is_hard else "inactive"}


def audit_event(entry: AuditRecord) -> dict[str, Any]:
    """An entry of the audit log; `penstock` has what their shape has no place for."""
    kind = event_type(entry.action)
    return {
        "object": "organization.audit_log",
        "id": f"audit_log-{entry.seq}",
        "type": kind,
        "effective_at": entry.at_ms // 1000,
        "actor": {
            "type": "api_key",
            "api_key": {"id": entry.actor, "type": "service_account"},
            "session": {"ip_address": entry.address},
        },
        kind: {"id": entry.subject},
        "penstock": {
            "action": entry.action,
            "outcome": entry.outcome,
            "request_id": entry.request_id,
        },
    }


def event_type(action: str) -> str:
    """What an action is called there."""
    return _EVENT_OF.get(action, action)


def actions_of(event: str) -> frozenset[str]:
    """The actions that `event_type` calls so."""
    named = frozenset(action for action, theirs in _EVENT_OF.items() if theirs == event)
    return named or frozenset((event,))


def page(records: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A page of a list."""
    return {
        "object": "list",
        "data": records,
        "first_id": records[0]["id"] if records else None,
        "last_id": records[-1]["id"] if records else None,
        "has_more": has_more,
    }


def deleted(kind: str, resource_id: str | None = None) -> dict[str, Any]:
    """What is gone."""
    named = {} if resource_id is None else {"id": resource_id}
    return {"object": f"{kind}.deleted", **named, "deleted": True}
