"""What RFC 9110, OpenAI's clients and the OpenAPI document expect of any HTTP server."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from gateway.http.access.guard import GuardedRoute
from gateway.http.anthropic.schemas import CountTokensRequest, MessagesRequest
from gateway.http.app import build_api
from gateway.http.mcp.messages import McpRequest
from gateway.http.openapi.document import EXAMPLES
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
    AccountMemberRequest,
    AccountOfWorkspaceRequest,
    AdminKeyRequest,
    AnthropicInviteRequest,
    AnthropicRoleRequest,
    ChangeProjectKeyRequest,
    ChangeProjectUserRequest,
    ChangeServiceAccountRequest,
    ChangeUserRoleRequest,
    ChangeWorkspaceAccountRequest,
    ChangeWorkspaceMemberRequest,
    InviteRequest,
    ModelPermissionsRequest,
    ProjectRequest,
    ProjectUserRequest,
    RateLimitRequest,
    ServiceAccountRequest,
    SpendAlertRequest,
    SpendLimitRequest,
    WorkspaceAccountRequest,
    WorkspaceKeyRequest,
    WorkspaceMemberRequest,
    WorkspaceRateLimitRequest,
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
from gateway.http.schemas.base.body import validate
from gateway.http.schemas.inference.chat import ChatRequest
from gateway.http.schemas.inference.completion import CompletionRequest
from gateway.http.schemas.inference.embedding import EmbeddingRequest
from gateway.http.schemas.inference.tokenize import DetokenizeRequest, TokenizeRequest
from gateway.http.schemas.inference.tools import ExecuteRequest, ParseRequest
from protocol.errors import ErrorCode
from protocol.wire.messages import Prepare
from tests.fakes.raw_http import LIVE, answers, connected, post
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway

ADMIN = {"Authorization": "Bearer psk-admin"}


def get_paths(gateway: RunningGateway) -> list[str]:
    """A path that each GET route answers."""
    paths = []
    for route in build_api(gateway.application.parts).routes:
        assert isinstance(route, GuardedRoute)
        if "GET" in (route.methods or ()):
            paths.append(route.path.replace("{model_id:path}", "demo"))
    return paths


async def test_head_is_answered_as_get_without_the_body(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        paths = get_paths(gateway)
        assert len(paths) >= 11
        for path in paths:
            got = await gateway.client.get(path, headers=ADMIN)
            head = await gateway.client.head(path, headers=ADMIN)
            assert head.status_code == got.status_code, path
            assert head.content == b""
            assert head.headers["content-type"] == got.headers["content-type"], path


async def test_nothing_follows_the_head_of_a_head_answer_on_the_wire(socket_dir: Path) -> None:
    head = b"HEAD /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with running_gateway(socket_dir) as gateway, connected(gateway) as connection:
        ((status, answer),) = answers(await connection.until_closed(head))
        assert status == 200
        assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/responses/compact", "POST"),
        ("/v1/responses/resp_1", "DELETE, GET, HEAD"),
        ("/v1/admin/keys/stats", "GET, HEAD"),
        ("/v1/admin/keys/key_1", "DELETE, GET, HEAD, PATCH"),
        ("/v1/models/invalidate-cache", "POST"),
        ("/v1/chat/completions", "POST"),
    ],
)
async def test_a_405_lists_each_method_of_its_own_path(
    socket_dir: Path, path: str, allowed: str
) -> None:
    async with running_gateway(socket_dir) as gateway:
        response = await gateway.client.put(path, json={})
        assert (response.status_code, response.headers["allow"]) == (405, allowed)
        if "GET" not in allowed:
            assert (await gateway.client.get(path)).status_code == 405


async def test_a_flag_in_a_query_is_true_or_false(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        for path in ("/v1/organization/projects", "/v1/organizations/workspaces"):
            for value, status in (("True", 200), ("false", 200), ("yes", 400)):
                asked = f"{path}?include_archived={value}"
                response = await gateway.client.get(asked, headers=ADMIN)
                assert response.status_code == status, response.text


async def test_the_document_knows_whose_errors_a_path_has(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        paths = (await gateway.client.get("/openapi.json")).json()["paths"]
        for path, name in (("/v1/messages", "AnthropicError"), ("/v1/responses", "Error")):
            error = paths[path]["post"]["responses"]["default"]["content"]["application/json"]
            assert error["schema"] == {"$ref": f"#/components/schemas/{name}"}
        assert set(paths["/v1/responses"]["get"]["responses"]) == {"101", "426", "default"}
        body = paths["/v1/admin/keys/{key_id}"]["patch"]["requestBody"]["content"]
        assert body["application/json"]["schema"]["minProperties"] == 1


async def test_head_where_there_is_no_get_is_a_405(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        response = await gateway.client.head("/v1/chat/completions")
        assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/nothing", 404),
        ("PUT", "/health", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/chat/completions", 400),
    ],
)
async def test_the_kind_of_body_is_looked_at_once_the_route_is_known(
    socket_dir: Path, method: str, path: str, status: int
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        files = {"file": ("a.jsonl", b"{}")}
        response = await gateway.client.request(method, path, files=files)
        assert response.status_code == status
        packed = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        response = await gateway.client.request(method, path, content=b"\x1f\x8b", headers=packed)
        assert response.status_code == status


@pytest.mark.parametrize(("wait_s", "shown"), [(0.2, "1"), (59.2, "60"), (86_400.0, "60")])
async def test_retry_after_is_never_above_a_minute(
    socket_dir: Path, wait_s: float, shown: str
) -> None:
    async with running_gateway(socket_dir) as gateway:
        auth = await gateway.auth()
        await gateway.engine()
        auth.denial, auth.retry_after_s = ErrorCode.RATE_LIMIT_EXCEEDED, wait_s
        response = await gateway.chat()
        assert (response.status_code, response.headers["retry-after"]) == (429, shown)


async def test_a_refusal_of_the_assistants_reaches_the_model_as_text(socket_dir: Path) -> None:
    refusal = {"type": "refusal", "refusal": "I can't."}
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "Do it."},
            {"role": "assistant", "content": [refusal, {"type": "text", "text": "Sorry."}]},
            {"role": "user", "content": "Why?"},
        ]
        response = await gateway.chat(messages=messages)
        assert response.status_code == 200, response.text
        assert "x-penstock-ignored-fields" not in response.headers
        (prepare,) = engine.of(Prepare)
        assert orjson.loads(prepare.messages_json)[1]["content"] == [
            {"type": "text", "text": "I can't."},
            {"type": "text", "text": "Sorry."},
        ]
        messages[0]["content"] = [refusal]
        response = await gateway.chat(messages=messages)
        assert response.json()["error"]["param"] == "messages[0].content[0].type"
        messages[0]["content"], messages[1]["content"] = "x", [{"type": "refusal", "refusal": 1}]
        response = await gateway.chat(messages=messages)
        assert response.json()["error"]["param"] == "messages[1].content[0].refusal"


async def test_a_predicted_output_is_accepted_and_changes_nothing(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        response = await gateway.chat(prediction={"type": "content", "content": "Hello, world"})
        assert response.status_code == 200
        assert "x-penstock-ignored-fields" not in response.headers
        assert response.json()["choices"][0]["message"]["content"] == "Hello, world"


async def test_the_document_says_what_routes_answer_and_who_needs_a_key(socket_dir: Path) -> None:
    key: list[dict[str, Any]] = [{"bearer": []}, {"api_key": []}]
    async with running_gateway(socket_dir) as gateway:
        document = (await gateway.client.get("/openapi.json")).json()
        paths = document["paths"]
        assert set(paths["/v1/admin/keys"]["post"]["responses"]) == {"201", "default"}
        assert set(paths["/v1/chat/completions"]["post"]["responses"]["200"]["content"]) == {
            "application/json",
            "text/event-stream",
        }
        assert set(paths["/metrics"]["get"]["responses"]["200"]["content"]) == {
            "text/plain",
            "application/json",
        }
        assert set(paths["/ready"]["get"]["responses"]) == {"200", "503", "default"}
        assert document["security"] == [{}, *key]
        assert paths["/metrics"]["get"]["security"] == []
        assert paths["/v1/admin/keys"]["get"]["security"] == key
        names = [one["name"] for one in paths["/v1/admin/keys"]["get"]["parameters"]]
        assert names[:5] == ["limit", "after", "role", "status", "owner"]
        assert names[5:] == ["user_id", "team_id", "tag"]
    async with running_gateway(socket_dir, require_keys=True, host="0.0.0.0") as gateway:
        await gateway.auth(allow_anonymous=False)
        response = await gateway.client.get("/openapi.json", headers=ADMIN)
        document = response.json()
        assert document["security"] == key
        assert "security" not in document["paths"]["/metrics"]["get"]


EXAMPLE_MODELS: list[tuple[str, type[BaseModel]]] = [
    ("/v1/chat/completions", ChatRequest),
    ("/v1/completions", CompletionRequest),
    ("/v1/responses", ResponsesRequest),
    ("/v1/responses/input_tokens", InputTokensRequest),
    ("/v1/responses/compact", CompactRequest),
    ("/v1/conversations", ConversationRequest),
    ("/v1/conversations/{conversation_id}", ConversationUpdateRequest),
    ("/v1/conversations/{conversation_id}/items", ConversationItemsRequest),
    ("/v1/messages", MessagesRequest),
    ("/v1/messages/count_tokens", CountTokensRequest),
    ("/v1/embeddings", EmbeddingRequest),
    ("/tokenize", TokenizeRequest),
    ("/detokenize", DetokenizeRequest),
    ("/v1/parse", ParseRequest),
    ("/v1/tools/execute", ExecuteRequest),
    ("/v1/admin/keys", CreateKeyRequest),
    ("/v1/admin/keys/{key_id}", ChangeKeyRequest),
    ("/v1/admin/keys/{key_id}/rotate", RotateKeyRequest),
    ("/v1/admin/users", CreateUserRequest),
    ("/v1/admin/users/{user_id}", ChangeUserRequest),
    ("/v1/admin/teams", CreateTeamRequest),
    ("/v1/admin/teams/{team_id}", ChangeTeamRequest),
    ("/v1/admin/teams/{team_id}/members/{user_id}", SetMemberRequest),
    ("/v1/admin/limits", CreateLimitRequest),
    ("/v1/admin/limits/{limit_id}", ChangeLimitRequest),
    ("/v1/admin/budgets", CreateBudgetRequest),
    ("/v1/admin/budgets/{budget_id}", ChangeLimitRequest),
    ("/v1/admin/budgets/{budget_id}/raise", RaiseBudgetRequest),
    ("/v1/admin/prices", CreatePriceRequest),
    ("/v1/admin/prices/{price_id}", ChangePriceRequest),
    ("/v1/admin/webhooks", CreateWebhookRequest),
    ("/v1/admin/webhooks/{webhook_id}", ChangeWebhookRequest),
    ("/v1/organization/projects", ProjectRequest),
    ("/v1/organization/projects/{project_id}", ProjectRequest),
    ("/v1/organization/admin_api_keys", AdminKeyRequest),
    ("/v1/organization/projects/{project_id}/api_keys/{key_id}", ChangeProjectKeyRequest),
    ("/v1/organization/projects/{project_id}/service_accounts", ServiceAccountRequest),
    (
        "/v1/organization/projects/{project_id}/service_accounts/{account_id}",
        ChangeServiceAccountRequest,
    ),
    (
        "/v1/organization/projects/{project_id}/service_accounts/{account_id}/api_keys",
        AccountKeyRequest,
    ),
    ("/v1/organization/projects/{project_id}/users", ProjectUserRequest),
    ("/v1/organization/projects/{project_id}/users/{user_id}", ChangeProjectUserRequest),
    ("/v1/organization/users/{user_id}", ChangeUserRoleRequest),
    (
        "/v1/organization/projects/{project_id}/rate_limits/{rate_limit_id:path}",
        RateLimitRequest,
    ),
    ("/v1/organization/projects/{project_id}/model_permissions", ModelPermissionsRequest),
    ("/v1/organization/projects/{project_id}/spend_limit", SpendLimitRequest),
    ("/v1/organization/projects/{project_id}/spend_alerts", SpendAlertRequest),
    ("/v1/organization/projects/{project_id}/spend_alerts/{alert_id}", SpendAlertRequest),
    ("/v1/organization/spend_limit", SpendLimitRequest),
    ("/v1/organization/spend_alerts", SpendAlertRequest),
    ("/v1/organization/spend_alerts/{alert_id}", SpendAlertRequest),
    ("/v1/organizations/workspaces", WorkspaceRequest),
    ("/v1/organizations/workspaces/{workspace_id}", WorkspaceRequest),
    ("/v1/organizations/api_keys/{key_id}", WorkspaceKeyRequest),
    ("/v1/organizations/workspaces/{workspace_id}/members", WorkspaceMemberRequest),
    (
        "/v1/organizations/workspaces/{workspace_id}/members/{user_id}",
        ChangeWorkspaceMemberRequest,
    ),
    ("/v1/organizations/workspaces/{workspace_id}/service_accounts", AccountOfWorkspaceRequest),
    (
        "/v1/organizations/workspaces/{workspace_id}/service_accounts/{account_id}",
        ChangeWorkspaceMemberRequest,
    ),
    (
        "/v1/organizations/workspaces/{workspace_id}/rate_limits/{rate_limit_id:path}",
        WorkspaceRateLimitRequest,
    ),
    ("/v1/organizations/service_accounts", WorkspaceAccountRequest),
    ("/v1/organizations/service_accounts/{account_id}", ChangeWorkspaceAccountRequest),
    ("/v1/organizations/service_accounts/{account_id}/workspaces", AccountMemberRequest),
    ("/v1/organizations/invites", AnthropicInviteRequest),
    ("/v1/organizations/users/{user_id}", AnthropicRoleRequest),
    ("/v1/organization/invites", InviteRequest),
    ("/mcp", McpRequest),
    ("/v1/admin/profile", ProfileRequest),
    ("/v1/admin/workers/{name}/drain", DrainRequest),
    ("/v1/models/invalidate-cache", ClearCacheRequest),
]
"""What the body of each route is checked against; scoring and files have readers of their own."""


@pytest.mark.parametrize(("path", "model"), EXAMPLE_MODELS)
def test_every_example_of_the_document_is_a_good_body(path: str, model: type[BaseModel]) -> None:
    validate(model, EXAMPLES[path])  # type: ignore[type-var]  # each is a RequestModel


def test_no_example_is_left_out() -> None:
    checked = {path for path, _ in EXAMPLE_MODELS}
    assert EXAMPLES.keys() - checked == {
        "/v1/decisions",
        "/v1/systemone",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/score",
        "/v1/classify",
        "/v1/files",
        "/v1/batches",
    }


async def test_every_route_with_a_body_has_an_example(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        routes = build_api(gateway.application.parts).routes
        with_body = {
            route.path
            for route in routes
            if isinstance(route, GuardedRoute) and {"POST", "PATCH"} & set(route.methods or ())
        }
        # What a hook reads is its own business.
        without = ("/suspend", "/reactivate", "/archive", "/cancel", "/{path:path}")
        assert {path for path in with_body if not path.endswith(without)} == {
            path
            for path in EXAMPLES
            if not path.startswith("/v1/admin/teams/{team_id}/members/")  # it is put
        }


async def test_a_request_of_http_1_0_is_answered_and_its_connection_ends(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        for stream in (False, True):
            body = {"model": "demo", "messages": MESSAGES, "stream": stream}
            data = post(orjson.dumps(body))
            async with connected(gateway) as old:
                answer = await old.until_closed(data.replace(b"HTTP/1.1", b"HTTP/1.0"))
                assert answer.split(b" ", 2)[1] == b"200"
                assert b"world" in answer
                assert b"transfer-encoding" not in answer.lower()
                assert answer.endswith(b"data: [DONE]\n\n" if stream else b"}")
        async with connected(gateway) as old:
            answer = await old.until_closed(LIVE.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n")
            assert answer.split(b" ", 2)[1] == b"200"
