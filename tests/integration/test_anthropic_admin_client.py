"""Anthropic's own administrative client against a real gateway and a real auth worker process."""

from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.fakes.auth_process import auth_process
from tests.fakes.running_gateway import running_gateway

pytestmark = pytest.mark.process


async def test_workspaces_keys_and_users(socket_dir: Path) -> None:
    async with (
        running_gateway(socket_dir, require_keys=True) as gateway,
        auth_process(gateway) as auth,
        auth.admin(gateway) as admin,
        anthropic.AsyncAnthropic(
            api_key=auth.admin_key, base_url=str(gateway.client.base_url), max_retries=0
        ) as client,
    ):
        organization: Any = client.organization
        assert (await organization.retrieve()).type == "organization"
        made = [await organization.workspaces.create(name=f"w{number}") for number in range(3)]
        assert [one.id async for one in organization.workspaces.list(limit=2)] == [
            one.id for one in made[::-1]
        ]
        workspace = made[0]
        renamed = await organization.workspaces.update(workspace.id, name="search")
        assert (renamed.name, renamed.archived_at) == ("search", None)
        assert (await organization.workspaces.retrieve(workspace.id)).name == "search"

        user = (await admin.post("/v1/admin/users", json={"name": "Ada", "email": "a@b.c"})).json()
        body = {"name": "k", "team_id": workspace.id}
        key = (await admin.post("/v1/admin/keys", json=body)).json()
        listed = [one async for one in organization.api_keys.list(workspace_id=workspace.id)]
        assert [(one.id, one.status, one.scope.workspace_id) for one in listed] == [
            (key["id"], "active", workspace.id)
        ]
        assert key["key"] not in listed[0].model_dump_json()
        changed = await organization.api_keys.update(key["id"], name="new", status="inactive")
        assert (changed.name, changed.status) == ("new", "inactive")
        opened = await gateway.client.get("/v1/models", headers={"X-API-Key": key["key"]})
        assert opened.status_code == 401
        assert (await organization.api_keys.update(key["id"], status="active")).status == "active"
        ended = await organization.api_keys.update(key["id"], status="archived")
        assert ended.status == "archived"
        assert (await organization.api_keys.retrieve(key["id"])).created_by.id == "key_environment"

        found = [one async for one in organization.users.list()]
        assert [(one.id, one.email, one.role) for one in found] == [(user["id"], "a@b.c", "user")]
        assert (await organization.users.remove(user["id"])).id == user["id"]
        with pytest.raises(anthropic.NotFoundError) as info:
            await organization.users.retrieve(user["id"])
        body_of_error: Any = info.value.body
        assert body_of_error["type"] == "error"
        archived = await organization.workspaces.archive(workspace.id)
        assert archived.archived_at is not None
        with pytest.raises(anthropic.BadRequestError):
            await organization.workspaces.create(name="x", display_color="red")


async def test_members_and_invitations(socket_dir: Path) -> None:
    async with (
        running_gateway(socket_dir, require_keys=True) as gateway,
        auth_process(gateway) as auth,
        anthropic.AsyncAnthropic(
            api_key=auth.admin_key, base_url=str(gateway.client.base_url), max_retries=0
        ) as client,
    ):
        organization: Any = client.organization
        workspace = await organization.workspaces.create(name="search")
        invites = [
            await organization.invites.create(email=f"{name}@example.org", role="user")
            for name in ("ada", "grace", "mary")
        ]
        assert {(one.status, one.role, one.type) for one in invites} == {
            ("accepted", "user", "invite")
        }
        ids = [one.id for one in invites]
        assert [one.id async for one in organization.invites.list(limit=2)] == ids[::-1]
        assert (await organization.invites.retrieve(ids[0])).email == "ada@example.org"
        with pytest.raises(anthropic.BadRequestError, match="remove the user"):
            await organization.invites.delete(ids[0])
        with pytest.raises(anthropic.BadRequestError):
            await organization.invites.create(email="x@example.org", role="billing")

        members = organization.workspaces.members
        added = [
            await members.add(workspace.id, user_id=one, workspace_role="workspace_developer")
            for one in ids
        ]
        assert (added[0].user_id, added[0].workspace_role) == (ids[0], "workspace_developer")
        changed = await members.update(
            ids[0], workspace_id=workspace.id, workspace_role="workspace_admin"
        )
        assert changed.workspace_role == "workspace_admin"
        found = [one async for one in members.list(workspace.id, limit=2)]
        assert {(one.user_id, one.workspace_role) for one in found} == {
            (ids[0], "workspace_admin"),
            (ids[1], "workspace_developer"),
            (ids[2], "workspace_developer"),
        }
        assert (await members.remove(ids[1], workspace_id=workspace.id)).user_id == ids[1]
        with pytest.raises(anthropic.NotFoundError):
            await members.retrieve(ids[1], workspace_id=workspace.id)
        with pytest.raises(anthropic.NotFoundError):
            await members.update(
                ids[1], workspace_id=workspace.id, workspace_role="workspace_admin"
            )
        assert (await organization.users.update(ids[1], role="user")).role == "user"
