"""Anthropic's own administrative client against a real gateway and a real auth worker process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.auth_process import auth_process
from tests.fakes.late import anthropic
from tests.fakes.running_gateway import RunningGateway, running_gateway

pytestmark = pytest.mark.process


@asynccontextmanager
async def a_harness(
    socket_dir: Path,
) -> AsyncIterator[tuple[RunningGateway, httpx.AsyncClient, Any]]:
    """A gateway with an engine, this server's administrator, and Anthropic's `organization`."""
    async with (
        running_gateway(socket_dir, require_keys=True) as gateway,
        auth_process(gateway) as auth,
        auth.admin(gateway) as admin,
        anthropic.AsyncAnthropic(
            api_key=auth.admin_key, base_url=str(gateway.client.base_url), max_retries=0
        ) as client,
    ):
        await gateway.engine()
        yield gateway, admin, client.organization


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


async def test_rate_limits_of_a_workspace_hold_and_show_beside_those_of_the_deployment(
    socket_dir: Path,
) -> None:
    async with a_harness(socket_dir) as (gateway, admin, organization):
        body = {"name": "all", "holder": "house", "measure": "requests", "window": "minute"}
        for fields in ({"amount": 100}, {"amount": 90, "models": ["demo"]}):
            made = await admin.post("/v1/admin/limits", json=body | fields)
            assert made.status_code == 201, made.text
        (entry,) = [one async for one in organization.rate_limits.list()]
        assert (entry.type, entry.models, entry.group.type) == (
            "rate_limit",
            ["demo"],
            "model_group",
        )
        assert [(one.type, one.value) for one in entry.limits] == [("requests_per_minute", 90)]
        assert [one.id async for one in organization.rate_limits.list(model="demo")] == [entry.id]
        assert [one async for one in organization.rate_limits.list(group_type="batch")] == []
        with pytest.raises(anthropic.NotFoundError):
            await organization.rate_limits.list(model="another")

        workspace = await organization.workspaces.create(name="search")
        rates = organization.workspaces.rate_limits
        assert [one async for one in rates.list(workspace.id)] == []
        limits = [
            {"type": "requests_per_minute", "value": 2},
            {"type": "tokens_per_day", "value": 5000},
        ]
        changed = await rates.update(entry.id, workspace_id=workspace.id, limits=limits)
        told = [(one.type, one.value, one.org_limit, one.source.type) for one in changed.limits]
        assert sorted(told) == [
            ("requests_per_minute", 2, 90, "workspace"),
            ("tokens_per_day", 5000, None, "workspace"),
        ]
        key = {"name": "k", "team_id": workspace.id}
        secret = (await admin.post("/v1/admin/keys", json=key)).json()["key"]
        gateway.client.headers["X-API-Key"] = secret
        assert [(await gateway.chat()).status_code for _ in range(3)] == [200, 200, 429]

        clear = [{"type": name, "value": None} for name in ("requests_per_minute",)]
        await rates.update(entry.id, workspace_id=workspace.id, limits=clear)
        inherited = [one async for one in rates.list(workspace.id, include_inherited=True)]
        assert [(one.type, one.value, one.source.type) for one in inherited[0].limits] == [
            ("tokens_per_day", 5000, "workspace"),
            ("requests_per_minute", 90, "organization"),
        ]
        for wrong in (
            [{"type": "fast_otpm", "value": 1}],
            [{"type": "requests_per_minute", "value": -1}],
            [],
        ):
            with pytest.raises(anthropic.BadRequestError):
                await rates.update(entry.id, workspace_id=workspace.id, limits=wrong)
        with pytest.raises(anthropic.BadRequestError, match="rl-"):
            await rates.update("demo", workspace_id=workspace.id, limits=clear)
        with pytest.raises(anthropic.NotFoundError):
            await rates.update(entry.id, workspace_id="team_9", limits=clear)


async def test_entries_of_rate_limits_come_in_pages(socket_dir: Path) -> None:
    async with a_harness(socket_dir) as (_, admin, organization):
        body = {"holder": "house", "measure": "tokens", "window": "minute", "amount": 9}
        for model in ("b", "a/b", "c*"):
            made = await admin.post(
                "/v1/admin/limits", json=body | {"name": model, "models": [model]}
            )
            assert made.status_code == 201
        found = [one async for one in organization.rate_limits.list(limit=1)]
        assert [one.id for one in found] == ["rl-a/b", "rl-b", "rl-demo"]
        workspace = await organization.workspaces.create(name="w")
        changed = await organization.workspaces.rate_limits.update(
            "rl-a/b",
            workspace_id=workspace.id,
            limits=[{"type": "output_tokens_per_minute", "value": 7}],
        )
        assert (changed.rate_limit_id, changed.limits[0].value) == ("rl-a/b", 7)


async def test_service_accounts_live_and_are_in_workspaces(socket_dir: Path) -> None:
    async with a_harness(socket_dir) as (gateway, admin, organization):
        accounts = organization.service_accounts
        await admin.post("/v1/admin/users", json={"name": "Ada"})
        made = [
            await accounts.create(name=f"a{number}", description="reads") for number in range(3)
        ]
        assert (made[0].type, made[0].organization_role, made[0].description) == (
            "service_account",
            "developer",
            "reads",
        )
        assert [one.id async for one in accounts.list(limit=2)] == [one.id for one in made[::-1]]
        first = made[0].id
        assert (await accounts.update(first, description=None)).description is None
        assert (await accounts.retrieve(first)).name == "a0"
        spaces = [await organization.workspaces.create(name=name) for name in ("x", "y", "z")]
        for space in spaces:
            member = await accounts.workspaces.add(
                first, workspace_id=space.id, workspace_role="workspace_developer"
            )
        assert (member.service_account_id, member.workspace_id) == (first, spaces[2].id)
        listed = [one.workspace_id async for one in accounts.workspaces.list(first, limit=2)]
        assert listed == sorted(space.id for space in spaces)

        of_space = organization.workspaces.service_accounts
        for account in made[1:]:
            await of_space.add(
                spaces[0].id, service_account_id=account.id, workspace_role="workspace_user"
            )
        changed = await of_space.update(
            first, workspace_id=spaces[0].id, workspace_role="workspace_admin"
        )
        assert changed.workspace_role == "workspace_admin"
        found = {
            one.service_account_id: one.workspace_role
            async for one in of_space.list(spaces[0].id, limit=1)
        }
        assert found == {first: "workspace_admin"} | {
            account.id: "workspace_developer" for account in made[1:]
        }
        assert [one async for one in organization.workspaces.members.list(spaces[0].id)] == []
        await of_space.remove(made[1].id, workspace_id=spaces[0].id)
        await accounts.workspaces.remove(spaces[1].id, service_account_id=first)
        with pytest.raises(anthropic.NotFoundError):
            await of_space.retrieve(made[1].id, workspace_id=spaces[0].id)

        body = {"name": "k", "user_id": first, "team_id": spaces[0].id}
        secret = (await admin.post("/v1/admin/keys", json=body)).json()["key"]
        opened = {"X-API-Key": secret}
        assert (await gateway.client.get("/v1/models", headers=opened)).status_code == 200
        assert (await accounts.archive(first)).archived_at is not None
        assert (await gateway.client.get("/v1/models", headers=opened)).status_code == 401
        assert first not in [one.id async for one in accounts.list()]
        assert first in [one.id async for one in accounts.list(include_archived=True)]
        people = await admin.get("/v1/admin/users")
        person = next(one["id"] for one in people.json()["data"] if one["kind"] == "person")
        for call in (
            accounts.retrieve(person),
            accounts.archive(person),
            of_space.add(spaces[0].id, service_account_id=person, workspace_role="workspace_user"),
            # Nor does an account come or go by the routes of people.
            organization.workspaces.members.add(
                spaces[1].id, user_id=made[2].id, workspace_role="workspace_user"
            ),
            organization.workspaces.members.remove(made[2].id, workspace_id=spaces[0].id),
        ):
            with pytest.raises(anthropic.NotFoundError):
                await call
        left = [one.service_account_id async for one in of_space.list(spaces[0].id)]
        assert made[2].id in left
        assert [one async for one in of_space.list(spaces[1].id)] == []
        late = {"name": "late", "expires_at": 1_893_456_000_000}  # milliseconds
        refused = await admin.post("/v1/admin/keys", json=late)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "expires_at")
        with pytest.raises(anthropic.BadRequestError):
            await accounts.create(name="x", organization_role="admin")


async def test_usage_cost_and_spend_are_what_was_computed(socket_dir: Path) -> None:
    async with a_harness(socket_dir) as (gateway, admin, organization):
        price = {"models": "demo", "prompt": 1_000_000, "completion": 2_000_000, "request": 333}
        assert (await admin.post("/v1/admin/prices", json=price)).status_code == 201
        space = await organization.workspaces.create(name="lab")
        user = (await admin.post("/v1/admin/users", json={"name": "Ada", "email": "a@b.c"})).json()
        await organization.workspaces.members.add(
            space.id, user_id=user["id"], workspace_role="workspace_developer"
        )
        for name, window, amount, more in (
            ("month", "calendar_month", 20_000_000, {}),
            ("tighter", "calendar_month", 9_000_000, {}),
            ("of one model", "calendar_month", 1_000_000, {"models": ["demo"]}),
            ("soft", "calendar_day", 1, {"is_hard": False}),
        ):
            body = {"name": name, "holder": "user", "holder_id": user["id"], "amount": amount}
            made = await admin.post("/v1/admin/budgets", json=body | {"window": window} | more)
            assert made.status_code == 201, made.text
        body = {"name": "k", "user_id": user["id"], "team_id": space.id}
        key = (await admin.post("/v1/admin/keys", json=body)).json()
        gateway.client.headers["X-API-Key"] = key["key"]
        used = [(await gateway.chat()).json()["usage"] for _ in range(2)]
        await gateway.until(lambda: len(gateway.application.outbox) == 0)
        prompt = sum(one["prompt_tokens"] for one in used)
        completion = sum(one["completion_tokens"] for one in used)
        micros = prompt + 2 * completion + 2 * 333

        async def report(path: str, **params: Any) -> Any:
            begins = datetime.now(UTC) - timedelta(days=1)
            params = {"starting_at": begins.isoformat().replace("+00:00", "Z"), **params}
            answer = await admin.get(f"/v1/organizations/{path}", params=params)
            assert answer.status_code == 200, answer.text
            return [result for one in answer.json()["data"] for result in one["results"]]

        (told,) = await report(
            "usage_report/messages", **{"group_by[]": ["model", "workspace_id", "account_id"]}
        )
        assert (told["uncached_input_tokens"] + told["cache_read_input_tokens"]) == prompt
        assert told["output_tokens"] == completion
        assert (told["model"], told["workspace_id"], told["account_id"], told["api_key_id"]) == (
            "demo",
            space.id,
            user["id"],
            None,
        )
        only = {"api_key_ids[]": [key["id"]], "bucket_width": "1h", "limit": "48"}
        assert len(await report("usage_report/messages", **only)) == 1
        assert await report("usage_report/messages", **{"models[]": ["another"]}) == []
        (cost,) = await report("cost_report", **{"group_by[]": ["description"]})
        assert (cost["description"], cost["currency"], cost["workspace_id"]) == (
            "demo",
            "USD",
            None,
        )
        assert float(cost["amount"]) == pytest.approx(micros / 10_000, abs=0.0005)

        found = [one async for one in organization.spend_limits.effective.list()]
        assert [(one.period, one.amount, one.actor.user_id) for one in found] == [
            ("monthly", "900", user["id"])
        ]
        assert float(found[0].period_to_date_spend) == pytest.approx(micros / 10_000, abs=0.0005)
        of_one = organization.spend_limits.effective.list(user_ids=[user["id"]], period=["daily"])
        assert [one async for one in of_one] == []

        for path, params in (
            ("usage_report/messages", {}),
            ("usage_report/messages", {"starting_at": "yesterday"}),
            ("usage_report/messages", {"starting_at": "2026-01-01", "group_by[]": "speed"}),
            ("usage_report/messages", {"starting_at": "2026-01-01", "limit": "32"}),
            ("cost_report", {"starting_at": "2026-01-01", "bucket_width": "1h"}),
            ("cost_report", {"starting_at": "2026-01-01", "models[]": "demo"}),
            ("spend_limits/effective", {"period[]": "yearly"}),
        ):
            wrong = await admin.get(f"/v1/organizations/{path}", params=params)
            assert wrong.status_code == 400, (path, params, wrong.text)
        for user_id in ("", "nobody"):
            params = {"user_ids[]": user_id}
            missing = await admin.get("/v1/organizations/spend_limits/effective", params=params)
            assert missing.status_code == 404, missing.text
