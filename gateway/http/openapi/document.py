"""The OpenAPI document of routes that read their bodies, and write their answers, themselves."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.http.access.route_rules import ROUTE_RULES, Access
from gateway.http.anthropic.schemas import CountTokensRequest, MessagesRequest
from gateway.http.errors.error_shape import SHARED_PATHS, is_anthropic_path
from gateway.http.mcp.messages import MCP_PATH, McpRequest
from gateway.http.openapi import answers, errors
from gateway.http.openapi.queries import QUERIES
from gateway.http.openapi.shapes import TEXT, Answers, either, ref
from gateway.http.openresponses.schemas import (
    CompactRequest,
    ConversationItemsRequest,
    ConversationRequest,
    ConversationUpdateRequest,
    InputTokensRequest,
    ResponsesRequest,
)
from gateway.http.schemas.administration.keys import (
    ChangeKeyRequest,
    CreateKeyRequest,
    RotateKeyRequest,
)
from gateway.http.schemas.administration.organization import (
    AccountKeyRequest,
    AdminKeyRequest,
    ChangeProjectKeyRequest,
    ChangeProjectUserRequest,
    ChangeServiceAccountRequest,
    ChangeUserRoleRequest,
    ModelPermissionsRequest,
    ProjectRequest,
    ProjectUserRequest,
    RateLimitRequest,
    ServiceAccountRequest,
    SpendAlertRequest,
    SpendLimitRequest,
    WorkspaceKeyRequest,
    WorkspaceRequest,
)
from gateway.http.schemas.administration.profile import ProfileRequest
from gateway.http.schemas.administration.resources import (
    ChangeLimitRequest,
    ChangePriceRequest,
    ChangeTeamRequest,
    ChangeUserRequest,
    ChangeWebhookRequest,
    CreateBudgetRequest,
    CreateLimitRequest,
    CreatePriceRequest,
    CreateTeamRequest,
    CreateUserRequest,
    CreateWebhookRequest,
    RaiseBudgetRequest,
    SetMemberRequest,
)
from gateway.http.schemas.administration.workers import ClearCacheRequest, DrainRequest
from gateway.http.schemas.inference.batches import BatchRequest
from gateway.http.schemas.inference.chat import ChatRequest
from gateway.http.schemas.inference.completion import CompletionRequest
from gateway.http.schemas.inference.embedding import EmbeddingRequest
from gateway.http.schemas.inference.tokenize import DetokenizeRequest, TokenizeRequest
from gateway.http.schemas.inference.tools import ExecuteRequest, ParseRequest
from gateway.http.scoring.classify import ClassifyRequest
from gateway.http.scoring.decision_schemas import DecisionRequest, SystemoneRequest
from gateway.http.scoring.rerank import RerankRequest, ScoreRequest

_BODIES: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
    InputTokensRequest,
    CompactRequest,
    ConversationRequest,
    ConversationUpdateRequest,
    ConversationItemsRequest,
    MessagesRequest,
    CountTokensRequest,
    TokenizeRequest,
    EmbeddingRequest,
    DecisionRequest,
    SystemoneRequest,
    RerankRequest,
    ScoreRequest,
    ClassifyRequest,
    BatchRequest,
    ProfileRequest,
    DetokenizeRequest,
    CreateKeyRequest,
    ChangeKeyRequest,
    RotateKeyRequest,
    CreateUserRequest,
    ChangeUserRequest,
    CreateTeamRequest,
    ChangeTeamRequest,
    SetMemberRequest,
    CreateLimitRequest,
    ChangeLimitRequest,
    CreateBudgetRequest,
    RaiseBudgetRequest,
    CreatePriceRequest,
    ChangePriceRequest,
    ExecuteRequest,
    ParseRequest,
    McpRequest,
    DrainRequest,
    ClearCacheRequest,
    CreateWebhookRequest,
    ChangeWebhookRequest,
    AccountKeyRequest,
    AdminKeyRequest,
    ChangeProjectKeyRequest,
    ChangeProjectUserRequest,
    ChangeServiceAccountRequest,
    ChangeUserRoleRequest,
    ModelPermissionsRequest,
    ProjectRequest,
    ProjectUserRequest,
    RateLimitRequest,
    ServiceAccountRequest,
    SpendAlertRequest,
    SpendLimitRequest,
    WorkspaceRequest,
    WorkspaceKeyRequest,
)
_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer psk-…"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_KEY: Final[list[dict[str, Any]]] = [{"bearer": []}, {"api_key": []}]
_KEY_IF_ANY: Final[list[dict[str, Any]]] = [{}, *_KEY]

_TWENTY_DOLLARS: Final = {"currency": "USD", "interval": "month", "threshold_amount": 2000}
_ALERT: Final = {
    **_TWENTY_DOLLARS,
    "notification_channel": {"type": "email", "recipients": []},
}
_RERANK_EXAMPLE: Final = {
    "model": "demo",
    "query": "What is a penstock?",
    "documents": ["A pipe to a turbine.", "A kind of duck."],
    "top_n": 1,
}
EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "/v1/chat/completions": {
        "model": "demo",
        "messages": [{"role": "user", "content": "What is a penstock?"}],
        "max_completion_tokens": 64,
    },
    "/v1/completions": {"model": "demo", "prompt": "A penstock is", "max_tokens": 16},
    "/v1/responses": {"model": "demo", "input": "What is a penstock?"},
    "/v1/responses/input_tokens": {"model": "demo", "input": "What is a penstock?"},
    "/v1/responses/compact": {"model": "demo", "input": "What is a penstock?"},
    "/v1/conversations": {
        "items": [{"role": "user", "content": "What is a penstock?"}],
        "metadata": {"topic": "water"},
    },
    "/v1/conversations/{conversation_id}": {"metadata": {"topic": "power"}},
    "/v1/conversations/{conversation_id}/items": {
        "items": [{"role": "user", "content": "And what is a sluice?"}]
    },
    "/v1/messages": {
        "model": "demo",
        "max_tokens": 64,
        "messages": [{"role": "user", "content": "What is a penstock?"}],
    },
    "/v1/messages/count_tokens": {
        "model": "demo",
        "messages": [{"role": "user", "content": "What is a penstock?"}],
    },
    "/v1/embeddings": {"model": "demo", "input": ["a text", "another one"]},
    "/v1/decisions": {
        "model": "demo",
        "input": "My invoice is wrong and I want my money back.",
        "questions": [
            {"type": "predicate", "name": "refund", "instructions": "The customer wants a refund."},
            {
                "type": "choice",
                "name": "team",
                "instructions": "Who should answer?",
                "choices": [{"value": "billing"}, {"value": "support"}],
            },
            {
                "type": "score",
                "name": "anger",
                "instructions": "How angry is the customer?",
                "levels": [{"label": "calm"}, {"label": "annoyed"}, {"label": "furious"}],
            },
        ],
    },
    "/v1/systemone": {
        "model": "demo",
        "state": {"message": "My invoice is wrong."},
        "questions": {
            "team": {
                "type": "choice",
                "instructions": "Who should answer?",
                "criteria": {"billing": "money", "support": None},
            }
        },
    },
    "/v1/files": {"purpose": "batch", "file": "requests.jsonl"},
    "/v1/batches": {
        "input_file_id": "file-000000000000000000000000",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "/v1/rerank": _RERANK_EXAMPLE,
    "/v2/rerank": _RERANK_EXAMPLE,
    "/v1/score": {
        "model": "demo",
        "text_1": "What is a penstock?",
        "text_2": ["A pipe to a turbine.", "A kind of duck."],
    },
    "/v1/classify": {"model": "demo", "input": ["I love it.", "Never again."]},
    "/tokenize": {"model": "demo", "prompt": "A penstock is"},
    "/detokenize": {"model": "demo", "tokens": [1, 2, 3]},
    "/v1/parse": {"format": "hermes", "text": "Let me see."},
    "/v1/tools/execute": {"name": "now", "arguments": {}},
    "/mcp": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
    "/v1/admin/keys": {
        "name": "ci",
        "role": "service",
        "scopes": ["chat.completions", "models.list"],
        "requests_per_minute": 60,
        "allowed_models": ["demo*"],
    },
    "/v1/admin/keys/{key_id}": {"requests_per_minute": 0, "expires_at": None},
    "/v1/admin/keys/{key_id}/rotate": {"overlap_s": 3600},
    "/v1/admin/users": {"name": "Ada", "email": "ada@example.com"},
    "/v1/admin/users/{user_id}": {"role": "readonly", "email": None},
    "/v1/admin/teams": {"name": "search", "allowed_models": ["demo*"], "tenant_is_shared": True},
    "/v1/admin/teams/{team_id}": {"allowed_models": None},
    "/v1/admin/teams/{team_id}/members/{user_id}": {"role": "owner"},
    "/v1/admin/limits": {
        "name": "tokens a day",
        "holder": "team",
        "holder_id": "team_0123456789abcdef",
        "measure": "tokens",
        "amount": 1_000_000,
        "window": "day",
    },
    "/v1/admin/limits/{limit_id}": {"amount": 2_000_000},
    "/v1/admin/budgets": {
        "name": "search, monthly",
        "holder": "team",
        "holder_id": "team_0123456789abcdef",
        "amount": 20_000_000,
        "window": "calendar_month",
        "time_zone": "Europe/Berlin",
        "thresholds": [80, 95],
    },
    "/v1/admin/budgets/{budget_id}": {"amount": 30_000_000, "is_hard": False},
    "/v1/admin/budgets/{budget_id}/raise": {"by": 5_000_000, "until": 1_900_000_000},
    "/v1/admin/prices": {"models": "demo*", "prompt": 150_000, "completion": 600_000},
    "/v1/admin/prices/{price_id}": {"completion": 500_000, "valid_from": 1_900_000_000},
    "/v1/admin/webhooks": {
        "name": "budgets",
        "url": "https://hooks.example/penstock",
        "events": ["budget_*", "key_revoked"],
    },
    "/v1/admin/webhooks/{webhook_id}": {"events": ["budget_*"]},
    "/v1/organization/projects": {"name": "search"},
    "/v1/organization/projects/{project_id}": {"name": "search and ads"},
    "/v1/organization/admin_api_keys": {"name": "ops", "expires_in_seconds": 86_400},
    "/v1/organization/projects/{project_id}/api_keys/{key_id}": {"expires_in_seconds": 3600},
    "/v1/organization/projects/{project_id}/service_accounts": {"name": "crawler"},
    "/v1/organization/projects/{project_id}/service_accounts/{account_id}": {"role": "owner"},
    "/v1/organization/projects/{project_id}/service_accounts/{account_id}/api_keys": {
        "name": "second"
    },
    "/v1/organization/projects/{project_id}/users": {"user_id": "user_1", "role": "member"},
    "/v1/organization/projects/{project_id}/users/{user_id}": {"role": "owner"},
    "/v1/organization/users/{user_id}": {"role": "reader"},
    "/v1/organization/invites": {
        "email": "grace@example.org",
        "role": "reader",
        "projects": [{"id": "team_1", "role": "member"}],
    },
    "/v1/organization/projects/{project_id}/rate_limits/{rate_limit_id:path}": {
        "max_requests_per_1_minute": 60
    },
    "/v1/organization/projects/{project_id}/model_permissions": {
        "mode": "allow_list",
        "model_ids": ["demo"],
    },
    "/v1/organization/projects/{project_id}/spend_limit": _TWENTY_DOLLARS,
    "/v1/organization/projects/{project_id}/spend_alerts": _ALERT,
    "/v1/organization/projects/{project_id}/spend_alerts/{alert_id}": _ALERT,
    "/v1/organization/spend_limit": _TWENTY_DOLLARS,
    "/v1/organization/spend_alerts": _ALERT,
    "/v1/organization/spend_alerts/{alert_id}": _ALERT,
    "/v1/organizations/workspaces": {"name": "search"},
    "/v1/organizations/workspaces/{workspace_id}": {"name": "search and ads"},
    "/v1/organizations/workspaces/{workspace_id}/members": {
        "user_id": "user_1",
        "workspace_role": "workspace_developer",
    },
    "/v1/organizations/workspaces/{workspace_id}/members/{user_id}": {
        "workspace_role": "workspace_admin"
    },
    "/v1/organizations/workspaces/{workspace_id}/service_accounts": {
        "service_account_id": "user_1",
        "workspace_role": "workspace_developer",
    },
    "/v1/organizations/workspaces/{workspace_id}/service_accounts/{account_id}": {
        "workspace_role": "workspace_admin"
    },
    "/v1/organizations/service_accounts": {"name": "crawler", "description": "reads the wiki"},
    "/v1/organizations/service_accounts/{account_id}": {"description": "reads two wikis"},
    "/v1/organizations/service_accounts/{account_id}/workspaces": {
        "workspace_id": "team_1",
        "workspace_role": "workspace_developer",
    },
    "/v1/organizations/workspaces/{workspace_id}/rate_limits/{rate_limit_id:path}": {
        "limits": [{"type": "requests_per_minute", "value": 60}]
    },
    "/v1/organizations/invites": {"email": "grace@example.org", "role": "user"},
    "/v1/organizations/users/{user_id}": {"role": "user"},
    "/v1/organizations/api_keys/{key_id}": {"status": "inactive"},
    "/v1/admin/profile": {"model": "demo", "seconds": 5},
    "/v1/admin/workers/{name}/drain": {"timeout_s": 60},
    "/v1/models/invalidate-cache": {"model": "demo"},
}
"""A body for each route that takes one."""

_OTHERS: Final[dict[str, dict[str, Any]]] = {
    "GET /metrics": {"text/plain": {"schema": TEXT}},
    "GET /v1/files/{file_id}/content": {"application/octet-stream": {}},
    "GET /v1/hooks/{name}/{path}": {"*/*": {}},
    "POST /v1/hooks/{name}/{path}": {"*/*": {}},
}
"""What answers are beside JSON of a known shape: of hooks other packages know it."""
_CREATED: Final = (
    *("/v1/admin/keys", "/v1/admin/users", "/v1/admin/teams"),
    *("/v1/admin/limits", "/v1/admin/budgets", "/v1/admin/prices", "/v1/admin/webhooks"),
)
_PROBES: Final = ("/ready", "/health")
_WEBSOCKET: Final = ("get", "/v1/responses")
_DRAIN: Final = "/v1/admin/workers/{name}/drain"
_SOMETHING: Final = {"minProperties": 1}
"""A change names something."""


def _error(path: str) -> dict[str, Any]:
    """An error in the words of its path; of paths of both APIs, in those of whoever asks."""
    if path == MCP_PATH:
        schema = ref("McpError")
    elif is_anthropic_path(path):
        schema = ref("AnthropicError")
    elif path.startswith(SHARED_PATHS):
        schema = either(ref("Error"), ref("AnthropicError"))
    else:
        schema = ref("Error")
    return {"description": "An error.", "content": {"application/json": {"schema": schema}}}


def describe(
    app: FastAPI,
    *,
    requires_keys: bool,
    is_local: bool,
    title: str = "Penstock",
    root_path: str = "",
) -> dict[str, Any]:
    """The document as it is true for one server.

    Args:
        app: With all routes.
        requires_keys: Whether callers need a key.
        is_local: Whether only this machine reaches the server, so that local routes are open.
        title: What the server is called.
        root_path: Below which a proxy serves it; empty for none.
    """
    document = get_openapi(
        title=title,
        version="1",
        summary="Language models over the OpenAI API.",
        routes=app.routes,
        servers=[{"url": root_path}] if root_path else None,
    )
    _, definitions = models_json_schema(
        [(model, "validation") for model in _BODIES],
        ref_template="#/components/schemas/{model}",
    )
    components = document.setdefault("components", {})
    # FastAPI's own validation errors are never sent; every error has OpenAI's shape.
    components["schemas"] = {**definitions["$defs"], **answers.SCHEMAS, **errors.SCHEMAS}
    components["securitySchemes"] = _SCHEMES
    document["security"] = _KEY if requires_keys else _KEY_IF_ANY
    # The document names path parameters without their converters.
    rules = {path.replace(":path}", "}"): rule for path, rule in ROUTE_RULES.items()}
    examples = {path.replace(":path}", "}"): example for path, example in EXAMPLES.items()}
    for path, operations in document["paths"].items():
        access = rules[path].access
        for method, operation in operations.items():
            operation["responses"] = _responses(method, path)
            body = operation.get("requestBody")
            if body is not None:
                for kind in body["content"].values():
                    kind["example"] = examples[path]
                    if method == "patch":
                        kind["schema"] = {**kind["schema"], **_SOMETHING}
            if access is Access.OPEN or (access is Access.LOCAL and is_local):
                operation["security"] = []
            elif access is Access.ADMIN:
                operation["security"] = _KEY
    for path, parameters in QUERIES.items():
        operation = document["paths"][path]["get"]
        of_path = [one for one in operation.get("parameters", ()) if one["in"] == "path"]
        operation["parameters"] = [*of_path, *parameters]
    return document


def _content(route: str) -> dict[str, Any]:
    """What an answer is, by its media type."""
    found = answers.ROUTES.get(route) or Answers(None)
    content: dict[str, Any] = {}
    if found.body is not None:
        content["application/json"] = {"schema": found.body}
    if found.event is not None:
        content["text/event-stream"] = {"itemSchema": _event(found.event)}
    return {**_OTHERS.get(route, {}), **content}


def _event(data: dict[str, Any]) -> dict[str, Any]:
    """A server-sent event, in the words of OpenAPI 3.2, which readers of 3.1 pass over."""
    return {
        "type": "object",
        "required": ["data"],
        "properties": {
            "event": TEXT,
            "data": {
                "type": "string",
                "description": "JSON; of OpenAI's routes the last one is `[DONE]`.",
                "anyOf": [
                    {"const": "[DONE]"},
                    {"contentMediaType": "application/json", "contentSchema": data},
                ],
            },
        },
    }


def _responses(method: str, path: str) -> dict[str, Any]:
    error = _error(path)
    if (method, path) == _WEBSOCKET:
        refused = {**error, "description": "No upgrade to a WebSocket was asked for."}
        return {"101": {"description": "A WebSocket."}, "426": refused, "default": error}
    content = _content(f"{method.upper()} {path}")
    if not content:
        return {"default": error}
    is_creation = method == "post" and path in _CREATED
    done = {"description": "Created." if is_creation else "Done.", "content": content}
    responses = {"201" if is_creation else "200": done, "default": error}
    if path == MCP_PATH:
        responses["202"] = {"description": "A notification, which nothing answers."}
    if path == _DRAIN:
        responses = {"202": done, "default": error}
    if path in _PROBES:
        responses["503"] = {"description": "What is missing.", "content": content}
    return responses
