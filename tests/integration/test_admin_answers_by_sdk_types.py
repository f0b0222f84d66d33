"""Every administrative answer has what the official clients' own types require of it.

Their clients build answers without looking, unless they are told to validate; here they are.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import httpx
import openai
import pytest
from openai.types.admin.organization import AuditLogListResponse

from gateway.http.access.guard import GuardedRoute
from gateway.http.app import build_api
from gateway.http.organization import shapes
from tests.fakes.auth_process import auth_process
from tests.fakes.late import anthropic
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway

pytestmark = pytest.mark.process

REFUSED = {
    ("DELETE", "/v1/organization/invites/{invite_id}"),
    ("DELETE", "/v1/organizations/invites/{invite_id}"),
}
"""An invitation is accepted when it is made: taking it back is always a 400."""
IN_NO_CLIENT = {
    ("GET", "/v1/organizations/usage_report/messages"),
    ("GET", "/v1/organizations/cost_report"),
}
THEIR_EVENTS = sorted(set(shapes._EVENT_OF.values()))
MONTH: dict[str, Any] = {"currency": "USD", "interval": "month"}
NOBODY = {"type": "email", "recipients": []}


@dataclass
class Harness:
    """A gateway with an administrator, and which requests its clients had answered."""

    gateway: RunningGateway
    admin: httpx.AsyncClient
    admin_key: str
    answered: set[tuple[str, str]] = field(default_factory=set)

    async def note(self, response: Any) -> None:
        """A hook of the clients' HTTP."""
        if response.status_code < 300:
            self.answered.add((response.request.method, response.request.url.path))

    def unseen(self, prefix: str) -> set[tuple[str, str]]:
        """Methods and routes below a path that answered nothing yet."""
        routes = [
            (method, route)
            for route in build_api(self.gateway.application.parts).routes
            if isinstance(route, GuardedRoute) and route.path.startswith(prefix)
            for method in route.methods or ()
        ]
        assert len(routes) > 30
        return {
            (method, route.path)
            for method, route in routes
            if not any(
                method == done and route.path_regex.match(path) for done, path in self.answered
            )
        }


@asynccontextmanager
async def a_harness(socket_dir: Path) -> AsyncIterator[Harness]:
    async with (
        running_gateway(socket_dir, require_keys=True) as gateway,
        auth_process(gateway) as auth,
        auth.admin(gateway) as admin,
    ):
        await gateway.engine()
        yield Harness(gateway, admin, auth.admin_key)


def test_names_of_events_are_theirs() -> None:
    known = get_args(AuditLogListResponse.model_fields["type"].annotation)
    assert set(THEIR_EVENTS) <= set(known)


async def listed(pages: Any) -> list[Any]:
    """All items, over as many pages as there are."""
    return [one async for one in pages]


async def test_openai(socket_dir: Path) -> None:
    async with (
        a_harness(socket_dir) as harness,
        openai.AsyncOpenAI(
            api_key="unused",
            admin_api_key=harness.admin_key,
            base_url=f"{harness.gateway.client.base_url}/v1",
            max_retries=0,
            _strict_response_validation=True,
        ) as client,
    ):
        client._client.event_hooks["response"].append(harness.note)
        organization: Any = client.admin.organization
        await walk_openai(harness, organization)
        assert harness.unseen("/v1/organization/") == {
            one for one in REFUSED if "ations" not in one[1]
        }


async def walk_openai(harness: Harness, organization: Any) -> None:
    projects = organization.projects
    project = await projects.create(name="search")
    of_project = {"project_id": project.id}
    await projects.update(project.id, name="search and ads")
    await projects.retrieve(project.id)
    assert await listed(projects.list(limit=1))

    invited = await organization.invites.create(
        email="ada@example.org", role="reader", projects=[{"id": project.id, "role": "member"}]
    )
    await organization.invites.retrieve(invited.id)
    assert await listed(organization.invites.list())
    other = await organization.invites.create(email="b@example.org", role="owner")
    members = projects.users
    await members.create(project.id, user_id=other.id, role="member")
    await members.retrieve(other.id, **of_project)
    await members.update(other.id, **of_project, role="owner")
    assert len(await listed(members.list(project.id, limit=1))) == 2
    await members.delete(other.id, **of_project)
    users = organization.users
    await users.retrieve(invited.id)
    await users.update(invited.id, role="reader")
    assert len(await listed(users.list(limit=1))) == 2
    await users.delete(other.id)

    accounts = projects.service_accounts
    account = await accounts.create(project.id, name="crawler")
    bare = await accounts.create(project.id, name="bare", create_service_account_only=True)
    await accounts.retrieve(account.id, **of_project)
    await accounts.update(account.id, **of_project, name="crawlers", role="owner")
    assert len(await listed(accounts.list(project.id, limit=1))) == 2
    further = await accounts.api_keys.create(account.id, **of_project, name="second")
    keys = projects.api_keys
    # Of an account, of a person, and of nobody.
    body = {"name": "k", "team_id": project.id}
    assert (await harness.admin.post("/v1/admin/keys", json=body)).status_code == 201
    body["user_id"] = invited.id
    assert (await harness.admin.post("/v1/admin/keys", json=body)).status_code == 201
    owners = {one.owner.type for one in await listed(keys.list(project.id, limit=1))}
    assert owners == {"service_account", "user"}
    await keys.retrieve(further.id, **of_project)
    await keys.update(further.id, **of_project, scopes=["models.list"])
    await keys.delete(further.id, **of_project)
    await accounts.delete(bare.id, **of_project)

    admin_keys = organization.admin_api_keys
    ops = await admin_keys.create(name="ops", expires_in_seconds=3600)
    await admin_keys.retrieve(ops.id)
    assert await listed(admin_keys.list(limit=1))
    await admin_keys.delete(ops.id)

    rates = projects.rate_limits
    await rates.update_rate_limit("rl-demo", **of_project, max_requests_per_1_minute=60)
    assert await listed(rates.list_rate_limits(project.id))
    permissions = projects.model_permissions
    await permissions.update(project.id, mode="allow_list", model_ids=["demo"])
    await permissions.retrieve(project.id)
    await permissions.delete(project.id)
    await permissions.retrieve(project.id)

    await chat(harness, account.api_key.value)
    for of, ids, named in ((organization, (), {}), (projects, (project.id,), of_project)):
        await of.spend_limit.update(*ids, **MONTH, threshold_amount=2000)
        await of.spend_limit.retrieve(*ids)
        alert = await of.spend_alerts.create(
            *ids, **MONTH, threshold_amount=800, notification_channel=NOBODY
        )
        await of.spend_alerts.update(
            alert.id, **named, **MONTH, threshold_amount=900, notification_channel=NOBODY
        )
        await of.spend_alerts.retrieve(alert.id, **named)
        assert await listed(of.spend_alerts.list(*ids))

    since = int(time.time()) - 86_400
    groups: list[Any] = ["project_id", "user_id", "api_key_id"]
    for usage in (
        organization.usage.completions,
        organization.usage.embeddings,
        organization.usage.decisions,
    ):
        await usage(start_time=since)
        await usage(start_time=since, group_by=[*groups, "model"])
    told = await organization.usage.completions(start_time=since, group_by=groups)
    results = [one for bucket in told.data for one in bucket.results]
    # The administrator's key is of no team and of no user.
    assert {one.project_id for one in results} == {project.id, None}
    assert {one.user_id for one in results} == {account.id, None}
    await organization.usage.costs(start_time=since, group_by=["project_id", "line_item"])
    # Actions that have no name there keep their own, which no type of theirs knows.
    events = await listed(organization.audit_logs.list(limit=5, event_types=THEIR_EVENTS))
    assert {event.type for event in events} >= {"project.created", "api_key.created", "user.added"}

    for of, ids, named in ((organization, (), {}), (projects, (project.id,), of_project)):
        (alert,) = await listed(of.spend_alerts.list(*ids))
        await of.spend_alerts.delete(alert.id, **named)
        await of.spend_limit.delete(*ids)
    await projects.archive(project.id)


async def chat(harness: Harness, key: str) -> None:
    """A request of a key, and one of the administrator, who is in no team."""
    for secret in (key, harness.admin_key):
        answer = await harness.gateway.client.post(
            "/v1/chat/completions",
            json={"model": "demo", "messages": MESSAGES},
            headers={"Authorization": f"Bearer {secret}"},
        )
        assert answer.status_code == 200, answer.text


async def test_anthropic(socket_dir: Path) -> None:
    async with (
        a_harness(socket_dir) as harness,
        anthropic.AsyncAnthropic(
            api_key=harness.admin_key,
            base_url=str(harness.gateway.client.base_url),
            max_retries=0,
            _strict_response_validation=True,
        ) as client,
    ):
        client._client.event_hooks["response"].append(harness.note)
        await walk_anthropic(harness, client.organization)
        refused = {one for one in REFUSED if "ations" in one[1]}
        assert harness.unseen("/v1/organizations/") == refused | IN_NO_CLIENT


async def walk_anthropic(harness: Harness, organization: Any) -> None:
    await organization.retrieve()
    workspaces = organization.workspaces
    workspace = await workspaces.create(name="search")
    of_workspace = {"workspace_id": workspace.id}
    await workspaces.update(workspace.id, name="search and ads")
    await workspaces.retrieve(workspace.id)
    assert await listed(workspaces.list(limit=1))

    invited = await organization.invites.create(email="ada@example.org", role="user")
    await organization.invites.retrieve(invited.id)
    assert await listed(organization.invites.list())
    users = organization.users
    await users.retrieve(invited.id)
    await users.update(invited.id, role="user")
    assert await listed(users.list(limit=1))
    members = workspaces.members
    await members.add(workspace.id, user_id=invited.id, workspace_role="workspace_developer")
    await members.retrieve(invited.id, **of_workspace)
    await members.update(invited.id, **of_workspace, workspace_role="workspace_admin")
    assert await listed(members.list(workspace.id))

    accounts = organization.service_accounts
    account = await accounts.create(name="crawler", description="reads")
    await accounts.retrieve(account.id)
    await accounts.update(account.id, description=None)
    assert await listed(accounts.list(limit=1))
    await accounts.workspaces.add(account.id, **of_workspace, workspace_role="workspace_developer")
    assert await listed(accounts.workspaces.list(account.id))
    await accounts.workspaces.remove(workspace.id, service_account_id=account.id)
    of_accounts = workspaces.service_accounts
    await of_accounts.add(
        workspace.id, service_account_id=account.id, workspace_role="workspace_developer"
    )
    await of_accounts.retrieve(account.id, **of_workspace)
    await of_accounts.update(account.id, **of_workspace, workspace_role="workspace_admin")
    assert await listed(of_accounts.list(workspace.id))

    # Of a person, of an account, of nobody in a workspace, and of nobody at all.
    names = [
        {"name": "person", "user_id": invited.id},
        {"name": "account", "user_id": account.id, "team_id": workspace.id},
        {"name": "team", "team_id": workspace.id},
        {"name": "bare", "expires_at": int(time.time()) + 86_400},
    ]
    for body in names:
        answer = await harness.admin.post("/v1/admin/keys", json=body)
        assert answer.status_code == 201, answer.text
    keys = await listed(organization.api_keys.list(limit=1))
    shown = {key.name: key for key in keys}
    assert shown["person"].principal.type == "user_actor"
    assert shown["account"].principal.type == "service_account_actor"
    assert shown["team"].principal is None
    assert shown["bare"].expires_at is not None
    await organization.api_keys.retrieve(keys[0].id)
    await organization.api_keys.update(keys[0].id, status="inactive")

    body = {"name": "b", "holder": "user", "holder_id": invited.id, "amount": 20_000_000}
    budget = await harness.admin.post("/v1/admin/budgets", json=body | {"window": "calendar_month"})
    assert budget.status_code == 201, budget.text
    assert await listed(organization.spend_limits.effective.list())

    rates = workspaces.rate_limits
    body = {
        "name": "l",
        "holder": "house",
        "measure": "tokens",
        "amount": 10**6,
        "window": "minute",
    }
    assert (await harness.admin.post("/v1/admin/limits", json=body)).status_code == 201
    await rates.update(
        "rl-demo", **of_workspace, limits=[{"type": "requests_per_minute", "value": 60}]
    )
    assert await listed(rates.list(workspace.id, include_inherited=True))
    assert await listed(organization.rate_limits.list())

    await of_accounts.remove(account.id, **of_workspace)
    await accounts.archive(account.id)
    await members.remove(invited.id, **of_workspace)
    await users.remove(invited.id)
    await workspaces.archive(workspace.id)
