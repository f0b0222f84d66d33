"""What each route asks of its caller: one table, which every route has a line in."""

from enum import Enum
from typing import Final, NamedTuple

from protocol.wire.messages import Scope


class Access(Enum):
    """What a route asks of its caller."""

    OPEN = "open"
    """Nothing: probes."""
    LOCAL = "local"
    """Nothing on a loopback address, a key elsewhere: metrics and documentation."""
    USER = "user"
    """A key."""
    COUNTED = "counted"
    """A key; it counts as a request in its limits, though it costs no worker."""
    METERED = "metered"
    """A key, with an upper bound of what is used; the route reserves it after reading the body."""
    ADMIN = "admin"
    """The key of an administrator, even where no key is needed otherwise."""


class RouteRule(NamedTuple):
    """What a route asks of its caller.

    Attributes:
        scope: What the caller's key must be good for; None on routes that are open to all.
    """

    access: Access
    scope: Scope | None


_PROJECT: Final = "/v1/organization/projects/{project_id}"

ROUTE_RULES: Final[dict[str, RouteRule]] = {
    "/live": RouteRule(Access.OPEN, None),
    "/ready": RouteRule(Access.OPEN, None),
    "/health": RouteRule(Access.OPEN, None),
    "/ping": RouteRule(Access.OPEN, None),
    "/metrics": RouteRule(Access.LOCAL, "admin.metrics"),
    "/load": RouteRule(Access.LOCAL, "admin.metrics"),
    "/version": RouteRule(Access.LOCAL, "docs.read"),
    "/docs": RouteRule(Access.LOCAL, "docs.read"),
    "/openapi.json": RouteRule(Access.LOCAL, "docs.read"),
    "/v1/models": RouteRule(Access.USER, "models.list"),
    "/v1/models/{model_id:path}": RouteRule(Access.USER, "models.list"),
    "/v1/tools": RouteRule(Access.USER, "tools.list"),
    "/v1/chat/completions": RouteRule(Access.METERED, "chat.completions"),
    "/v1/completions": RouteRule(Access.METERED, "completions"),
    "/v1/embeddings": RouteRule(Access.METERED, "embeddings.create"),
    "/v1/decisions": RouteRule(Access.METERED, "decisions"),
    "/v1/systemone": RouteRule(Access.METERED, "decisions"),
    "/v1/rerank": RouteRule(Access.METERED, "rerank"),
    "/v2/rerank": RouteRule(Access.METERED, "rerank"),
    "/v1/score": RouteRule(Access.METERED, "rerank"),
    "/v1/classify": RouteRule(Access.METERED, "rerank"),
    "/v1/files": RouteRule(Access.USER, "files"),
    "/v1/files/{file_id}": RouteRule(Access.USER, "files"),
    "/v1/files/{file_id}/content": RouteRule(Access.USER, "files"),
    "/v1/batches": RouteRule(Access.USER, "batches"),
    "/v1/batches/{batch_id}": RouteRule(Access.USER, "batches"),
    "/v1/batches/{batch_id}/cancel": RouteRule(Access.USER, "batches"),
    "/v1/responses": RouteRule(Access.METERED, "responses"),
    "/v1/responses/input_tokens": RouteRule(Access.METERED, "tokenize"),
    "/v1/responses/compact": RouteRule(Access.METERED, "responses"),
    "/v1/responses/{response_id}": RouteRule(Access.USER, "responses"),
    "/v1/responses/{response_id}/cancel": RouteRule(Access.USER, "responses"),
    "/v1/responses/{response_id}/input_items": RouteRule(Access.USER, "responses"),
    "/v1/conversations": RouteRule(Access.COUNTED, "responses"),
    "/v1/conversations/{conversation_id}": RouteRule(Access.USER, "responses"),
    "/v1/conversations/{conversation_id}/items": RouteRule(Access.COUNTED, "responses"),
    "/v1/conversations/{conversation_id}/items/{item_id}": RouteRule(Access.USER, "responses"),
    "/v1/messages": RouteRule(Access.METERED, "chat.completions"),
    "/v1/messages/count_tokens": RouteRule(Access.METERED, "tokenize"),
    "/tokenizer_info": RouteRule(Access.USER, "tokenize"),
    "/tokenize": RouteRule(Access.METERED, "tokenize"),
    "/detokenize": RouteRule(Access.METERED, "tokenize"),
    "/v1/parse": RouteRule(Access.METERED, "tools.parse"),
    "/v1/tools/execute": RouteRule(Access.METERED, "tools.execute"),
    "/mcp": RouteRule(Access.METERED, "tools.list"),
    "/v1/hooks/{name}/{path:path}": RouteRule(Access.COUNTED, "hooks"),
    "/v1/usage": RouteRule(Access.USER, "usage.read"),
    "/v1/budget/status": RouteRule(Access.USER, "budget.read"),
    "/v1/admin/keys": RouteRule(Access.ADMIN, "admin.keys"),
    "/v1/admin/keys/stats": RouteRule(Access.ADMIN, "admin.keys"),
    "/v1/admin/keys/{key_id}": RouteRule(Access.ADMIN, "admin.keys"),
    "/v1/admin/keys/{key_id}/revoke": RouteRule(Access.ADMIN, "admin.keys"),
    "/v1/admin/keys/{key_id}/suspend": RouteRule(Access.ADMIN, "admin.keys"),
    "/v1/admin/keys/{key_id}/reactivate": RouteRule(Access.ADMIN, "admin.keys"),
    "/v1/admin/keys/{key_id}/rotate": RouteRule(Access.ADMIN, "admin.keys"),
    "/v1/admin/users": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/admin/users/{user_id}": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/admin/users/{user_id}/suspend": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/admin/users/{user_id}/reactivate": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/admin/teams": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/admin/teams/{team_id}": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/admin/teams/{team_id}/suspend": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/admin/teams/{team_id}/reactivate": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/admin/teams/{team_id}/members/{user_id}": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/admin/limits": RouteRule(Access.ADMIN, "admin.limits"),
    "/v1/admin/limits/{limit_id}": RouteRule(Access.ADMIN, "admin.limits"),
    "/v1/admin/budgets": RouteRule(Access.ADMIN, "admin.limits"),
    "/v1/admin/budgets/{budget_id}": RouteRule(Access.ADMIN, "admin.limits"),
    "/v1/admin/budgets/{budget_id}/raise": RouteRule(Access.ADMIN, "admin.limits"),
    "/v1/admin/prices": RouteRule(Access.ADMIN, "admin.prices"),
    "/v1/admin/prices/{price_id}": RouteRule(Access.ADMIN, "admin.prices"),
    "/v1/admin/audit-logs": RouteRule(Access.ADMIN, "admin.audit"),
    "/v1/admin/workers": RouteRule(Access.USER, "admin.status"),
    "/v1/admin/workers/{name}/drain": RouteRule(Access.ADMIN, "admin.workers"),
    "/v1/providers/status": RouteRule(Access.USER, "admin.status"),
    "/v1/models/invalidate-cache": RouteRule(Access.ADMIN, "admin.cache"),
    "/v1/admin/webhooks": RouteRule(Access.ADMIN, "admin.webhooks"),
    "/v1/admin/webhooks/{webhook_id}": RouteRule(Access.ADMIN, "admin.webhooks"),
    "/v1/admin/webhooks/{webhook_id}/suspend": RouteRule(Access.ADMIN, "admin.webhooks"),
    "/v1/admin/webhooks/{webhook_id}/reactivate": RouteRule(Access.ADMIN, "admin.webhooks"),
    "/v1/organization/projects": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/organization/projects/{project_id}": RouteRule(Access.ADMIN, "admin.teams"),
    _PROJECT + "/archive": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/organization/admin_api_keys": RouteRule(Access.ADMIN, "admin.keys"),
    "/v1/organization/admin_api_keys/{key_id}": RouteRule(Access.ADMIN, "admin.keys"),
    _PROJECT + "/api_keys": RouteRule(Access.ADMIN, "admin.keys"),
    _PROJECT + "/api_keys/{key_id}": RouteRule(Access.ADMIN, "admin.keys"),
    _PROJECT + "/service_accounts": RouteRule(Access.ADMIN, "admin.users"),
    _PROJECT + "/service_accounts/{account_id}": RouteRule(Access.ADMIN, "admin.users"),
    _PROJECT + "/service_accounts/{account_id}/api_keys": RouteRule(Access.ADMIN, "admin.keys"),
    _PROJECT + "/users": RouteRule(Access.ADMIN, "admin.teams"),
    _PROJECT + "/users/{user_id}": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/organization/users": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/organization/users/{user_id}": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/organization/invites": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/organization/invites/{invite_id}": RouteRule(Access.ADMIN, "admin.users"),
    _PROJECT + "/rate_limits": RouteRule(Access.ADMIN, "admin.limits"),
    _PROJECT + "/rate_limits/{rate_limit_id:path}": RouteRule(Access.ADMIN, "admin.limits"),
    _PROJECT + "/model_permissions": RouteRule(Access.ADMIN, "admin.teams"),
    _PROJECT + "/spend_limit": RouteRule(Access.ADMIN, "admin.limits"),
    _PROJECT + "/spend_alerts": RouteRule(Access.ADMIN, "admin.limits"),
    _PROJECT + "/spend_alerts/{alert_id}": RouteRule(Access.ADMIN, "admin.limits"),
    "/v1/organization/spend_limit": RouteRule(Access.ADMIN, "admin.limits"),
    "/v1/organization/spend_alerts": RouteRule(Access.ADMIN, "admin.limits"),
    "/v1/organization/spend_alerts/{alert_id}": RouteRule(Access.ADMIN, "admin.limits"),
    "/v1/organization/audit_logs": RouteRule(Access.ADMIN, "admin.audit"),
    "/v1/organization/usage/completions": RouteRule(Access.ADMIN, "usage.read"),
    "/v1/organization/usage/embeddings": RouteRule(Access.ADMIN, "usage.read"),
    "/v1/organization/usage/decisions": RouteRule(Access.ADMIN, "usage.read"),
    "/v1/organization/costs": RouteRule(Access.ADMIN, "usage.read"),
    "/v1/organizations/me": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/organizations/workspaces": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/organizations/workspaces/{workspace_id}": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/organizations/workspaces/{workspace_id}/archive": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/organizations/workspaces/{workspace_id}/members": RouteRule(Access.ADMIN, "admin.teams"),
    "/v1/organizations/workspaces/{workspace_id}/members/{user_id}": RouteRule(
        Access.ADMIN, "admin.teams"
    ),
    "/v1/organizations/workspaces/{workspace_id}/service_accounts": RouteRule(
        Access.ADMIN, "admin.teams"
    ),
    "/v1/organizations/workspaces/{workspace_id}/service_accounts/{account_id}": RouteRule(
        Access.ADMIN, "admin.teams"
    ),
    "/v1/organizations/service_accounts": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/organizations/service_accounts/{account_id}": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/organizations/service_accounts/{account_id}/archive": RouteRule(
        Access.ADMIN, "admin.users"
    ),
    "/v1/organizations/service_accounts/{account_id}/workspaces": RouteRule(
        Access.ADMIN, "admin.teams"
    ),
    "/v1/organizations/service_accounts/{account_id}/workspaces/{workspace_id}": RouteRule(
        Access.ADMIN, "admin.teams"
    ),
    "/v1/organizations/rate_limits": RouteRule(Access.ADMIN, "admin.limits"),
    "/v1/organizations/workspaces/{workspace_id}/rate_limits": RouteRule(
        Access.ADMIN, "admin.limits"
    ),
    "/v1/organizations/workspaces/{workspace_id}/rate_limits/{rate_limit_id:path}": RouteRule(
        Access.ADMIN, "admin.limits"
    ),
    "/v1/organizations/spend_limits/effective": RouteRule(Access.ADMIN, "budget.read"),
    "/v1/organizations/usage_report/messages": RouteRule(Access.ADMIN, "usage.read"),
    "/v1/organizations/cost_report": RouteRule(Access.ADMIN, "usage.read"),
    "/v1/organizations/invites": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/organizations/invites/{invite_id}": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/organizations/api_keys": RouteRule(Access.ADMIN, "admin.keys"),
    "/v1/organizations/api_keys/{key_id}": RouteRule(Access.ADMIN, "admin.keys"),
    "/v1/organizations/users": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/organizations/users/{user_id}": RouteRule(Access.ADMIN, "admin.users"),
    "/v1/admin/profile": RouteRule(Access.ADMIN, "admin.profile"),
}
"""Every route by its template; one that isn't here stops the start. Which roles have which scope is
the auth worker's business."""
RESERVED_FIRST: Final = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/embeddings", "/v1/decisions", "/v1/systemone"),
        *("/v1/rerank", "/v2/rerank", "/v1/score"),
    }
)
"""Metered routes that tell nothing of this server before the reservation."""


def scope_of(endpoint: str) -> Scope:
    """What a key must be good for at a route that asks for one."""
    scope = ROUTE_RULES[endpoint].scope
    assert scope is not None, f"{endpoint} is open to all"
    return scope
