"""OpenAI's own administrative client against a real gateway and a real auth worker process."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from tests.fakes.auth_process import AuthProcess, auth_process
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway

pytestmark = pytest.mark.process


@dataclass
class Harness:
    gateway: RunningGateway
    auth: AuthProcess
    organization: Any
    """`client.admin.organization`; untyped, since bodies here are plain."""

    async def chat(self, key: str, **fields: Any) -> Any:
        async with openai.AsyncOpenAI(
            api_key=key, base_url=f"{self.gateway.client.base_url}/v1", max_retries=0
        ) as client:
            messages: Any = MESSAGES
            return await client.chat.completions.create(model="demo", messages=messages, **fields)


@pytest_asyncio.fixture
async def harness(socket_dir: Path) -> AsyncIterator[Harness]:
    async with (
        running_gateway(socket_dir, require_keys=True) as gateway,
        auth_process(gateway) as auth,
        openai.AsyncOpenAI(
            api_key="unused",
            admin_api_key=auth.admin_key,
            base_url=f"{gateway.client.base_url}/v1",
            max_retries=0,
        ) as client,
    ):
        await gateway.engine()
        yield Harness(gateway, auth, client.admin.organization)


async def test_projects_are_teams_and_their_service_accounts_have_keys(harness: Harness) -> None:
    projects = harness.organization.projects
    project = await projects.create(name="search")
    assert (project.object, project.status, project.archived_at) == (
        "organization.project",
        "active",
        None,
    )
    renamed = await projects.update(project.id, name="search and ads")
    assert (renamed.id, renamed.name) == (project.id, "search and ads")
    assert (await projects.retrieve(project.id)).name == "search and ads"

    account = await projects.service_accounts.create(project.id, name="crawler")
    assert account.role == "member"
    assert (await harness.chat(account.api_key.value)).choices
    again = await projects.service_accounts.api_keys.create(
        account.id, project_id=project.id, name="second", scopes=["models.list"]
    )
    with pytest.raises(openai.PermissionDeniedError):
        await harness.chat(again.value)
    listed = [one async for one in projects.api_keys.list(project.id)]
    assert [key.id for key in listed] == [again.id, account.api_key.id]
    key = await projects.api_keys.retrieve(account.api_key.id, project_id=project.id)
    assert key.owner.type == "service_account"
    assert key.owner.service_account.id == account.id
    assert key.owner_project_access == "active"
    assert account.api_key.value not in key.model_dump_json()

    bare = await projects.service_accounts.create(
        project.id, name="bare", create_service_account_only=True
    )
    assert bare.api_key is None
    other = await projects.create(name="other")
    with pytest.raises(openai.NotFoundError):
        await projects.users.create(other.id, user_id=bare.id, role="member")
    assert [one async for one in projects.service_accounts.list(other.id)] == []
    await projects.archive(other.id)
    accounts = [one.name async for one in projects.service_accounts.list(project.id)]
    assert accounts == ["bare", "crawler"]
    changed = await projects.service_accounts.update(
        bare.id, project_id=project.id, name="empty", role="owner"
    )
    assert (changed.name, changed.role) == ("empty", "owner")

    gone = await projects.api_keys.delete(again.id, project_id=project.id)
    assert (gone.deleted, gone.object) == (True, "organization.project.api_key.deleted")
    assert (await projects.service_accounts.delete(bare.id, project_id=project.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await projects.service_accounts.retrieve(bare.id, project_id=project.id)

    archived = await projects.archive(project.id)
    assert (archived.status, archived.archived_at is None) == ("archived", False)
    with pytest.raises(openai.AuthenticationError):
        await harness.chat(account.api_key.value)
    assert [one.id async for one in projects.list()] == []
    found = [one.id async for one in projects.list(include_archived=True)]
    assert {*found} == {other.id, project.id}


async def test_a_key_of_another_project_is_not_found_in_this_one(harness: Harness) -> None:
    projects = harness.organization.projects
    one, other = await projects.create(name="one"), await projects.create(name="other")
    account = await projects.service_accounts.create(one.id, name="a")
    with pytest.raises(openai.NotFoundError):
        await projects.api_keys.retrieve(account.api_key.id, project_id=other.id)
    with pytest.raises(openai.NotFoundError):
        await projects.api_keys.delete(account.api_key.id, project_id=other.id)
    with pytest.raises(openai.NotFoundError):
        await projects.service_accounts.retrieve(account.id, project_id=other.id)
    with pytest.raises(openai.NotFoundError):
        await projects.service_accounts.create("team_none", name="a")


async def test_pages_follow_one_another_to_the_end(harness: Harness) -> None:
    projects = harness.organization.projects
    made = [(await projects.create(name=f"p{number}")).id for number in range(5)]
    assert [one.id async for one in projects.list(limit=2)] == made[::-1]
    project = made[0]
    accounts = [
        (await projects.service_accounts.create(project, name=f"a{number}")) for number in range(3)
    ]
    keys = [one.id async for one in projects.api_keys.list(project, limit=1)]
    assert keys == [account.api_key.id for account in accounts][::-1]
    listed = [one.id async for one in projects.service_accounts.list(project, limit=2)]
    assert listed == [account.id for account in accounts][::-1]


async def test_users_and_their_places_in_projects(harness: Harness) -> None:
    async with harness.auth.admin(harness.gateway) as admin:
        body = {"name": "Ada", "email": "ada@example.com"}
        user_id = (await admin.post("/v1/admin/users", json=body)).json()["id"]
    users, projects = harness.organization.users, harness.organization.projects
    project = await projects.create(name="search")
    member = await projects.users.create(project.id, user_id=user_id, role="member")
    assert (member.id, member.email, member.role) == (user_id, "ada@example.com", "member")
    assert (await projects.users.update(user_id, project_id=project.id, role="owner")).role == (
        "owner"
    )
    assert (await projects.users.retrieve(user_id, project_id=project.id)).role == "owner"
    assert [one.id async for one in projects.users.list(project.id)] == [user_id]
    user = await users.retrieve(user_id)
    assert (user.role, [one.id for one in user.projects.data]) == ("reader", [project.id])
    assert (await users.update(user_id, role="owner")).role == "owner"
    assert [one.id async for one in users.list()] == [user_id]
    assert (await projects.users.delete(user_id, project_id=project.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await projects.users.retrieve(user_id, project_id=project.id)
    assert (await users.delete(user_id)).deleted
    assert [one.id async for one in users.list()] == []


async def test_limits_of_models_hold_for_a_project(harness: Harness) -> None:
    projects = harness.organization.projects
    project = await projects.create(name="search")
    account = await projects.service_accounts.create(project.id, name="a")
    key = account.api_key.value
    limit = await projects.rate_limits.update_rate_limit(
        "rl-demo", project_id=project.id, max_requests_per_1_minute=2, max_requests_per_1_day=50
    )
    assert (limit.model, limit.max_requests_per_1_minute, limit.max_requests_per_1_day) == (
        "demo",
        2,
        50,
    )
    for _ in range(2):
        await harness.chat(key)
    with pytest.raises(openai.RateLimitError):
        await harness.chat(key)
    changed = await projects.rate_limits.update_rate_limit(
        "rl-demo", project_id=project.id, max_requests_per_1_minute=100
    )
    assert (changed.max_requests_per_1_minute, changed.max_requests_per_1_day) == (100, 50)
    assert (await harness.chat(key)).choices
    listed = [one async for one in projects.rate_limits.list_rate_limits(project.id)]
    assert [(one.model, one.max_tokens_per_1_minute) for one in listed] == [("demo", 2**53 - 1)]

    allowed = await projects.model_permissions.update(
        project.id, mode="allow_list", model_ids=["llama*"]
    )
    assert (allowed.mode, allowed.api_model_ids) == ("allow_list", ["llama*"])
    with pytest.raises(openai.PermissionDeniedError):
        await harness.chat(key)
    assert (await projects.model_permissions.delete(project.id)).deleted
    assert (await projects.model_permissions.retrieve(project.id)).mode == "deny_list"
    assert (await harness.chat(key)).choices
    with pytest.raises(openai.BadRequestError):
        await projects.model_permissions.update(project.id, mode="deny_list", model_ids=["demo"])


@pytest.mark.parametrize("is_project", [True, False])
async def test_spend_limits_and_alerts_are_budgets_of_a_month(
    harness: Harness, is_project: bool
) -> None:
    projects = harness.organization.projects
    project = await projects.create(name="search")
    ids = (project.id,) if is_project else ()
    of_project = {"project_id": project.id} if is_project else {}
    of = projects if is_project else harness.organization
    month = {"currency": "USD", "interval": "month"}
    with pytest.raises(openai.NotFoundError):
        await of.spend_limit.retrieve(*ids)
    limit = await of.spend_limit.update(*ids, **month, threshold_amount=2000)
    assert (limit.threshold_amount, limit.currency, limit.enforcement.status) == (
        2000,
        "USD",
        "enforcing",
    )
    assert (await of.spend_limit.update(*ids, **month, threshold_amount=3000)).threshold_amount == (
        3000
    )
    assert (await of.spend_limit.retrieve(*ids)).threshold_amount == 3000
    async with harness.auth.admin(harness.gateway) as admin:
        (budget,) = (await admin.get("/v1/admin/budgets")).json()["data"]
    assert (budget["amount"], budget["window"], budget["is_hard"]) == (
        30_000_000,
        "calendar_month",
        True,
    )
    channel = {"type": "email", "recipients": []}
    alert = await of.spend_alerts.create(
        *ids, **month, threshold_amount=1500, notification_channel=channel
    )
    assert alert.threshold_amount == 1500
    listed = [one.id async for one in of.spend_alerts.list(*ids)]
    assert listed == [alert.id]
    changed = await of.spend_alerts.update(
        alert.id, **of_project, **month, threshold_amount=500, notification_channel=channel
    )
    assert changed.threshold_amount == 500
    for prefix, ignored in ((None, None), ("Spent:", "notification_channel.subject_prefix")):
        raw = await of.spend_alerts.with_raw_response.update(
            alert.id,
            **of_project,
            **month,
            threshold_amount=600,
            notification_channel={**channel, "subject_prefix": prefix},
        )
        assert raw.parse().threshold_amount == 600
        assert raw.headers.get("x-penstock-ignored-fields") == ignored
    with pytest.raises(openai.BadRequestError) as info:
        await of.spend_alerts.create(
            *ids,
            **month,
            threshold_amount=1,
            notification_channel={"type": "email", "recipients": ["a@b.c"]},
        )
    assert "recipients" in str(info.value.param)
    assert (await of.spend_alerts.delete(alert.id, **of_project)).deleted
    assert (await of.spend_limit.delete(*ids)).deleted
    with pytest.raises(openai.NotFoundError):
        await of.spend_limit.delete(*ids)


async def test_no_list_begins_anew_behind_what_is_not_there(harness: Harness) -> None:
    """Whoever reads page by page would read the first one again and again."""
    organization = harness.organization
    project = await organization.projects.create(name="search")
    month: Any = {"currency": "USD", "interval": "month"}
    channel = {"type": "email", "recipients": []}
    for of, ids in (
        (organization.spend_alerts, ()),
        (organization.projects.spend_alerts, (project.id,)),
    ):
        await of.create(*ids, **month, threshold_amount=800, notification_channel=channel)
    await organization.invites.create(
        email="a@b.c", role="reader", projects=[{"id": project.id, "role": "member"}]
    )
    await organization.projects.service_accounts.create(project.id, name="crawler")
    of_project = f"/v1/organization/projects/{project.id}"
    async with harness.auth.admin(harness.gateway) as admin:
        for path in (
            *("/v1/organization/projects", "/v1/organization/admin_api_keys"),
            *("/v1/organization/users", "/v1/organization/invites"),
            *("/v1/organization/spend_alerts", "/v1/organization/audit_logs"),
            *(f"{of_project}/api_keys", f"{of_project}/service_accounts"),
            *(f"{of_project}/users", f"{of_project}/rate_limits", f"{of_project}/spend_alerts"),
        ):
            first = await admin.get(path)
            assert first.status_code == 200, (path, first.text)
            later = await admin.get(path, params={"after": "zzz"})
            if later.status_code == 200:
                assert later.json()["data"] == [], path
            else:
                assert later.status_code in (400, 404), (path, later.text)
                assert later.json()["error"]["param"] == "after", (path, later.text)


async def test_admin_keys_and_the_audit_log(harness: Harness) -> None:
    keys = harness.organization.admin_api_keys
    made = await keys.create(name="ops", expires_in_seconds=3600)
    # By the gateway's clock, before the auth worker writes down when it was made.
    assert 3540 < made.expires_at - made.created_at <= 3600
    assert (await keys.retrieve(made.id)).redacted_value != made.value
    assert made.id in [one.id async for one in keys.list()]
    project = await harness.organization.projects.create(name="search")
    assert (await keys.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await keys.retrieve(made.id)

    logs = harness.organization.audit_logs
    created = [one async for one in logs.list(event_types=["api_key.created"])]
    assert made.id in [
        one.model_extra["api_key.created"]["id"] for one in created if one.model_extra
    ] or (created[0].api_key_created.id == made.id)
    of_project = [one async for one in logs.list(project_ids=[project.id])]
    assert [one.type for one in of_project] == ["project.created"]
    everything = [one.id async for one in logs.list(limit=2)]
    assert len(everything) == len(set(everything)) >= 4
    assert [one async for one in logs.list(effective_at={"gt": 2**40})] == []
    actors = {one.actor.api_key.id async for one in logs.list(actor_ids=["key_environment"])}
    assert actors == {"key_environment"}


async def test_who_is_no_administrator_gets_nothing(harness: Harness) -> None:
    project = await harness.organization.projects.create(name="search")
    account = await harness.organization.projects.service_accounts.create(project.id, name="a")
    async with openai.AsyncOpenAI(
        api_key="x",
        admin_api_key=account.api_key.value,
        base_url=f"{harness.gateway.client.base_url}/v1",
        max_retries=0,
    ) as client:
        organization: Any = client.admin.organization
        with pytest.raises(openai.PermissionDeniedError):
            await organization.projects.list()
        with pytest.raises(openai.PermissionDeniedError):
            await organization.admin_api_keys.create(name="mine")


async def test_usage_and_costs_are_what_was_computed(harness: Harness) -> None:
    async with harness.auth.admin(harness.gateway) as admin:
        price = {"models": "demo", "prompt": 1_000_000, "completion": 2_000_000}
        assert (await admin.post("/v1/admin/prices", json=price)).status_code == 201
    projects, usage = harness.organization.projects, harness.organization.usage
    one, other = await projects.create(name="one"), await projects.create(name="other")
    keys = [
        (await projects.service_accounts.create(project.id, name="a")).api_key
        for project in (one, other)
    ]
    answers = [await harness.chat(key.value) for key in (keys[0], keys[0], keys[1])]
    await harness.gateway.until(lambda: len(harness.gateway.application.outbox) == 0)
    start = int(time.time()) - 86_400
    of_all = await usage.completions(start_time=start)
    assert [bucket.end_time - bucket.start_time for bucket in of_all.data] == [86_400] * len(
        of_all.data
    )
    results = [result for bucket in of_all.data for result in bucket.results]
    assert sum(result.num_model_requests for result in results) == 3
    prompt = sum(answer.usage.prompt_tokens for answer in answers)
    completion = sum(answer.usage.completion_tokens for answer in answers)
    assert sum(result.input_tokens for result in results) == prompt
    assert sum(result.output_tokens for result in results) == completion

    by_project = await usage.completions(
        start_time=start, group_by=["project_id", "model"], bucket_width="1h", limit=48
    )
    counted = {
        (result.project_id, result.model): result.num_model_requests
        for bucket in by_project.data
        for result in bucket.results
    }
    assert counted == {(one.id, "demo"): 2, (other.id, "demo"): 1}
    only = await usage.completions(start_time=start, api_key_ids=[keys[1].id])
    assert sum(r.num_model_requests for bucket in only.data for r in bucket.results) == 1
    nothing = await usage.embeddings(start_time=start)
    assert [result for bucket in nothing.data for result in bucket.results] == []

    spent = await usage.costs(start_time=start, group_by=["line_item"], line_items=["demo"])
    amounts = [result for bucket in spent.data for result in bucket.results]
    assert [result.line_item for result in amounts] == ["demo"]
    assert amounts[0].amount.value == pytest.approx((prompt + 2 * completion) / 1_000_000)
    assert amounts[0].amount.currency == "usd"

    first = await usage.completions(start_time=start - 5 * 86_400, limit=2)
    pages = [first]
    while pages[-1].has_more:
        pages.append(
            await usage.completions(
                start_time=start - 5 * 86_400, limit=2, page=pages[-1].next_page
            )
        )
    starts = [bucket.start_time for page in pages for bucket in page.data]
    assert starts == sorted(set(starts))
    total = sum(r.num_model_requests for p in pages for b in p.data for r in b.results)
    assert total == 3
    recent = int(time.time()) - 3600
    minutes = await usage.completions(start_time=recent, bucket_width="1m", limit=1440)
    used = [bucket for bucket in minutes.data if bucket.results]
    assert all(bucket.end_time - bucket.start_time == 60 for bucket in minutes.data)
    assert sum(bucket.results[0].num_model_requests for bucket in used) == 3
    with pytest.raises(openai.BadRequestError):
        await usage.costs(start_time=start, bucket_width="1m")


async def test_an_invitation_makes_a_user_with_its_memberships(harness: Harness) -> None:
    organization = harness.organization
    project = await organization.projects.create(name="lab")
    made = await organization.invites.create(
        email="grace@example.org",
        role="reader",
        projects=[{"id": project.id, "role": "owner"}],
    )
    assert (made.object, made.status, made.email) == (
        "organization.invite",
        "accepted",
        "grace@example.org",
    )
    assert [(one.id, one.role) for one in made.projects] == [(project.id, "owner")]
    user = await organization.users.retrieve(made.id)
    assert (user.email, user.role) == ("grace@example.org", "reader")
    assert (await organization.projects.users.retrieve(made.id, project_id=project.id)).role == (
        "owner"
    )
    owner = await organization.invites.create(email="ada@example.org", role="owner")
    assert (await organization.users.retrieve(owner.id)).role == "owner"
    assert [one.id async for one in organization.invites.list(limit=1)] == [owner.id, made.id]
    assert (await organization.invites.retrieve(made.id)).id == made.id
    with pytest.raises(openai.BadRequestError, match="delete the user"):
        await organization.invites.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await organization.invites.create(
            email="x@example.org", role="reader", projects=[{"id": "team_none", "role": "member"}]
        )
    with pytest.raises(openai.BadRequestError, match="email"):
        await organization.invites.create(email="nobody", role="reader")
    await organization.users.delete(made.id)
    assert [one.id async for one in organization.invites.list()] == [owner.id]
    project_user = await organization.projects.service_accounts.create(project.id, name="crawler")
    with pytest.raises(openai.NotFoundError):
        await organization.invites.retrieve(project_user.id)


async def test_an_operator_sets_up_a_team_with_twenty_dollars_a_month(harness: Harness) -> None:
    """The same as in docs/auth.md from a terminal; OpenAI knows no prices and no projection."""
    organization = harness.organization
    async with harness.auth.admin(harness.gateway) as admin:
        price = {"models": "demo", "prompt": 0, "completion": 0, "request": 9_000_000}
        assert (await admin.post("/v1/admin/prices", json=price)).status_code == 201
        lab = await organization.projects.create(name="lab")
        month: Any = {"currency": "USD", "interval": "month"}
        await organization.projects.spend_limit.update(lab.id, **month, threshold_amount=2000)
        await organization.projects.spend_alerts.create(
            lab.id,
            **month,
            threshold_amount=800,
            notification_channel={"type": "email", "recipients": []},
        )
        grace = await organization.invites.create(
            email="grace@example.org",
            role="reader",
            projects=[{"id": lab.id, "role": "member"}],
        )
        members = [one.id async for one in organization.projects.users.list(lab.id)]
        assert members == [grace.id]
        # OpenAI's client makes keys for service accounts only, not for users.
        key = await admin.post(
            "/v1/admin/keys",
            json={"name": "notebook", "user_id": grace.id, "team_id": lab.id},
        )
        assert key.status_code == 201, key.text
        (shown,) = [one async for one in organization.projects.api_keys.list(lab.id)]
        assert shown.owner.user is not None
        assert (shown.id, shown.owner.user.id) == (key.json()["id"], grace.id)

        async def ask() -> httpx.Response:
            return await harness.gateway.client.post(
                "/v1/chat/completions",
                json={"model": "demo", "messages": MESSAGES},
                headers={"Authorization": f"Bearer {key.json()['key']}"},
            )

        answers = []
        for number in range(1, 4):
            answers.append(await ask())
            await harness.gateway.until(lambda: len(harness.gateway.application.outbox) == 0)
            assert answers[-1].status_code == (200 if number < 3 else 402), answers[-1].text
        assert "x-penstock-budget-warning" not in answers[0].headers
        assert "used=9.00" in answers[1].headers["x-penstock-budget-warning"]
        assert answers[2].json()["error"]["code"] == "budget_exceeded"

        told_of = {one.type async for one in organization.audit_logs.list(limit=100)}
        assert {"budget_warned", "budget_exceeded", "login.failed"} <= told_of
        start = int(time.time()) - 3600
        costs = await organization.usage.costs(start_time=start, project_ids=[lab.id])
        amounts = [result.amount.value for bucket in costs.data for result in bucket.results]
        assert sum(amounts) == pytest.approx(18.0)
        told = (await admin.get(f"/v1/budget/status?team_id={lab.id}")).json()["data"]
        (budget,) = [one for one in told["budgets"] if one["remaining_cents"] == 200]
        assert budget["projected_micros"] >= budget["used"] == 18_000_000
