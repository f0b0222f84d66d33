"""What may stand in the query of each GET, for the OpenAPI document."""

from collections.abc import Sequence
from typing import Any, Final, get_args

from gateway.http.anthropic.models import STAGES
from gateway.http.query import (
    DEFAULT_ITEMS_PAGE,
    DEFAULT_PAGE,
    MAX_DIGITS,
    MAX_ITEMS_PAGE,
    MAX_PAGE,
    MAX_TEXT_CHARACTERS,
)
from protocol.wire.messages import AuditOutcome, KeyStatus, LimitHolder, PrincipalRole

Parameter = dict[str, Any]
_MAX_NUMBER: Final = 10**MAX_DIGITS - 1


def _text(
    name: str, description: str, one_of: Sequence[str] = (), *, is_bounded: bool = True
) -> Parameter:
    """A text; an empty one is the same as none."""
    schema: Parameter = {"type": "string"}
    if one_of:
        schema["enum"] = list(one_of)
    elif is_bounded:
        schema["maxLength"] = MAX_TEXT_CHARACTERS
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _number(
    name: str,
    description: str,
    *,
    least: int = 0,
    most: int = _MAX_NUMBER,
    default: int | None = None,
) -> Parameter:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    if default is not None:
        schema["default"] = default
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _moment(name: str, description: str) -> Parameter:
    """A time of RFC 3339."""
    schema = {"type": "string", "format": "date-time"}
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _texts(name: str, description: str, one_of: Sequence[str] = ()) -> Parameter:
    """A name that may come several times."""
    item = {"type": "string", "enum": list(one_of)} if one_of else {"type": "string"}
    schema = {"type": "array", "items": item}
    return {"name": name, "in": "query", "description": description, "schema": schema}


_LIMIT: Final = _number("limit", "Entries of a page.", least=1, most=MAX_PAGE, default=DEFAULT_PAGE)
_SMALL_PAGE: Final = _number(
    "limit",
    "Entries of a page.",
    least=1,
    most=MAX_ITEMS_PAGE,
    default=DEFAULT_ITEMS_PAGE,
)
_AFTER: Final = _text("after", "The last id of the page before.")
_OF_WHOM: Final = [
    _text("key_id", "Of this key."),
    _text("user_id", "Of this user."),
    _text("team_id", "Of this team."),
    _text("end_user", "Of this end user."),
]
_OF_PEOPLE: Final = [
    _LIMIT,
    _AFTER,
    _text("status", "Only those of this status.", ("active", "suspended")),
    _text("tag", "Only those with this tag."),
]
_OF_LIMITS: Final = [
    _LIMIT,
    _AFTER,
    _text("holder", "Only those of such holders.", get_args(LimitHolder)),
    _text("holder_id", "Only those of this key, user or team."),
]
_ITEMS_PAGE: Final = [
    _SMALL_PAGE,
    _AFTER,
    _text("order", "Newest (the default) or oldest first.", ("desc", "asc")),
]
_THEIR_PAGE: Final = [_SMALL_PAGE, _AFTER]
_ANTHROPIC_PAGE: Final = [_SMALL_PAGE, _text("after_id", "The last id of the page before.")]
_CURSOR: Final = _text("page", "`next_page` of the page before.")
_ACCOUNTS_PAGE: Final = [_SMALL_PAGE, _CURSOR]
_RATES_PAGE: Final = [
    _number("limit", "Entries of a page; all.", least=1, most=1000),
    _CURSOR,
    _text(
        "group_type",
        "Only such entries; here all are of models.",
        ("batch", "files", "model_group", "skills", "token_count", "web_search"),
    ),
]
_NEWEST_FIRST: Final = _text("order", "Newest first, the only order there is.", ("desc",))
_ARCHIVED: Final = _text("include_archived", "Also archived ones.", ("true", "false"))


def _usage(
    most: int, default: int, widths: Sequence[str], groups: Sequence[str]
) -> list[Parameter]:
    start = _number("start_time", "Unix seconds, inclusive.")
    return [
        {**start, "required": True},
        _number("end_time", "Unix seconds, exclusive; now."),
        _text("bucket_width", "Of a bucket; `1d`.", widths),
        _number("limit", "Buckets of a page.", least=1, most=most, default=default),
        _number("page", "`next_page` of the page before."),
        _texts("group_by[]", "Results of their own for each of these.", groups),
        *(
            _texts(f"{name}s[]", "Only these.")
            for name in ("project_id", "user_id", "api_key_id", "model")
        ),
    ]


_USAGE: Final = _usage(
    1440, 7, ("1m", "1h", "1d"), ("project_id", "user_id", "api_key_id", "model")
)


def _report(
    most: int, widths: Sequence[str], groups: Sequence[str], filters: Sequence[str]
) -> list[Parameter]:
    start = _moment("starting_at", "Inclusive.")
    return [
        {**start, "required": True},
        _moment("ending_at", "Exclusive; now."),
        _text("bucket_width", "Of a bucket; `1d`.", widths),
        _number("limit", "Buckets of a page.", least=1, most=most, default=7),
        _number("page", "`next_page` of the page before."),
        _texts("group_by[]", "Results of their own for each of these.", groups),
        *(_texts(f"{name}s[]", "Only these.") for name in filters),
    ]


QUERIES: Final[dict[str, list[Parameter]]] = {
    "/v1/files": [
        _number("limit", "Files of a page.", least=1, most=10_000, default=10_000),
        _text("after", "The last id of the page before."),
        _text("order", "By creation.", ("asc", "desc")),
        _text("purpose", "Only files of this purpose."),
    ],
    "/v1/batches": [
        _SMALL_PAGE,
        _text("after", "The last id of the page before."),
    ],
    "/v1/admin/keys": [
        _LIMIT,
        _AFTER,
        _text("role", "Only keys of this role.", get_args(PrincipalRole)),
        _text("status", "Only keys of this status.", get_args(KeyStatus)),
        _text("owner", "Only keys of this owner."),
        _text("user_id", "Only keys of this user."),
        _text("team_id", "Only keys of this team."),
        _text("tag", "Only keys with this tag."),
    ],
    "/v1/usage": [
        *_OF_WHOM,
        _text("model", "Only this model."),
        _text("of", "Of everybody, for administrators.", ("all",)),
        _number("since", "Unix seconds, down to the full hour; 30 days ago."),
        _number("until", "Unix seconds, up to the full hour; now."),
        _text("by", "A row for each hour or day (UTC).", ("hour", "day", "total")),
        _text("group_by", "Rows of their own for each of these: a list with commas."),
        _LIMIT,
        _number("after", "Rows that were read before."),
    ],
    "/v1/budget/status": _OF_WHOM,
    "/v1/admin/users": [*_OF_PEOPLE, _text("team_id", "Only members of this team.")],
    "/v1/admin/teams": [*_OF_PEOPLE, _text("user_id", "Only teams of this user.")],
    "/v1/admin/limits": _OF_LIMITS,
    "/v1/admin/budgets": _OF_LIMITS,
    "/v1/admin/prices": [_LIMIT, _AFTER],
    "/v1/admin/webhooks": [
        _LIMIT,
        _AFTER,
        _text("status", "Only those of this status.", ("active", "suspended")),
    ],
    "/v1/responses/{response_id}": [
        _text("stream", "`true` tells the response as events.", ("true", "false")),
        _number("starting_after", "The sequence number of the last event that is known."),
    ],
    "/v1/responses/{response_id}/input_items": _ITEMS_PAGE,
    "/v1/conversations/{conversation_id}/items": _ITEMS_PAGE,
    "/v1/admin/audit-logs": [
        _LIMIT,
        _number("after", "`last_id` of the page before."),
        _text("order", "Newest or oldest first.", ("desc", "asc")),
        _text("key_id", "What this key did, and what was done to it."),
        _text("actor", "What this key did."),
        _text("action", "Only this action."),
        _text("outcome", "Only what was done, or refused.", get_args(AuditOutcome)),
        _number("since", "Unix seconds, inclusive."),
        _number("until", "Unix seconds, exclusive."),
    ],
    # Of Anthropic's list; OpenAI's has one page and looks at none of them.
    "/v1/models": [
        _text("limit", "With `anthropic-version`: 1 to 1000, or 20.", is_bounded=False),
        _text("after_id", "Likewise: the last id of the page before.", is_bounded=False),
        _text("before_id", "Likewise: the first id of the page behind.", is_bounded=False),
        _texts("lifecycle[]", "Likewise: stages; all models are `active`.", STAGES),
    ],
    "/tokenizer_info": [
        _text("model", "May be left out when one is served.", is_bounded=False),
    ],
    "/v1/organization/projects": [*_THEIR_PAGE, _ARCHIVED],
    "/v1/organization/admin_api_keys": [*_THEIR_PAGE, _NEWEST_FIRST],
    "/v1/organization/projects/{project_id}/api_keys": [
        *_THEIR_PAGE,
        _text("owner_project_access", "Only keys that work.", ("active", "any")),
    ],
    "/v1/organization/projects/{project_id}/service_accounts": _THEIR_PAGE,
    "/v1/organization/projects/{project_id}/users": _THEIR_PAGE,
    "/v1/organization/projects/{project_id}/rate_limits": _THEIR_PAGE,
    "/v1/organization/projects/{project_id}/spend_alerts": [*_THEIR_PAGE, _NEWEST_FIRST],
    "/v1/organization/spend_alerts": [*_THEIR_PAGE, _NEWEST_FIRST],
    "/v1/organization/users": _THEIR_PAGE,
    "/v1/organization/invites": _THEIR_PAGE,
    "/v1/organization/audit_logs": [
        *_THEIR_PAGE,
        *(
            _texts(f"{name}[]", "Only these.")
            for name in ("event_types", "actor_ids", "resource_ids", "project_ids")
        ),
        *(
            _number(f"effective_at[{bound}]", "A bound of their time, Unix seconds.")
            for bound in ("gt", "gte", "lt", "lte")
        ),
    ],
    "/v1/organization/usage/completions": _USAGE,
    "/v1/organization/usage/decisions": _USAGE,
    "/v1/organization/usage/embeddings": _USAGE,
    "/v1/organization/costs": [
        *_usage(180, 7, ("1d",), ("project_id", "user_id", "api_key_id", "line_item")),
        _texts("line_items[]", "Only these."),
    ],
    "/v1/organizations/workspaces": [*_ANTHROPIC_PAGE, _ARCHIVED],
    "/v1/organizations/api_keys": [
        *_ANTHROPIC_PAGE,
        _text("status", "Only keys of this status.", ("active", "inactive", "archived", "expired")),
        _text("workspace_id", "Only keys of this workspace."),
    ],
    "/v1/organizations/users": _ANTHROPIC_PAGE,
    "/v1/organizations/invites": _ANTHROPIC_PAGE,
    "/v1/organizations/workspaces/{workspace_id}/members": _ANTHROPIC_PAGE,
    "/v1/organizations/workspaces/{workspace_id}/service_accounts": _ACCOUNTS_PAGE,
    "/v1/organizations/service_accounts": [*_ACCOUNTS_PAGE, _ARCHIVED],
    "/v1/organizations/service_accounts/{account_id}/workspaces": _ACCOUNTS_PAGE,
    "/v1/organizations/rate_limits": [*_RATES_PAGE, _text("model", "Only this model.")],
    "/v1/organizations/workspaces/{workspace_id}/rate_limits": [
        *_RATES_PAGE,
        _text("include_inherited", "Also what the deployment limits.", ("true", "false")),
    ],
    "/v1/organizations/spend_limits/effective": [
        *_ACCOUNTS_PAGE,
        _texts("period[]", "Only these.", ("daily", "weekly", "monthly")),
        _texts("user_ids[]", "Only these, a hundred at most."),
    ],
    "/v1/organizations/usage_report/messages": _report(
        1440,
        ("1m", "1h", "1d"),
        ("account_id", "api_key_id", "model", "workspace_id"),
        ("account_id", "api_key_id", "model", "workspace_id"),
    ),
    "/v1/organizations/cost_report": _report(31, ("1d",), ("description", "workspace_id"), ()),
}
"""By the path of the document."""
