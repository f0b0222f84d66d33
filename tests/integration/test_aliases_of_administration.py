"""Administration takes an alias for the model that it stands for, in whosever words."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.auth_process import auth_process
from tests.fakes.running_gateway import MESSAGES, RunningGateway, running_gateway

pytestmark = pytest.mark.process
ALIAS = "gpt-4o"


@asynccontextmanager
async def a_harness(socket_dir: Path) -> AsyncIterator[tuple[RunningGateway, httpx.AsyncClient]]:
    """A gateway with an engine and an alias of its model, and an administrator."""
    async with (
        running_gateway(socket_dir, require_keys=True, model_aliases=(f"{ALIAS}=demo",)) as gateway,
        auth_process(gateway) as auth,
        auth.admin(gateway) as admin,
    ):
        await gateway.engine()
        yield gateway, admin


async def made(admin: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    answer = await admin.post(path, json=body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def test_limits_and_permissions_by_an_alias_hold_for_its_model(socket_dir: Path) -> None:
    async with a_harness(socket_dir) as (gateway, admin):
        project = await made(admin, "/v1/organization/projects", {"name": "search"})
        base = f"/v1/organization/projects/{project['id']}"
        limit = await made(
            admin, f"{base}/rate_limits/rl-{ALIAS}", {"max_requests_per_1_minute": 3}
        )
        assert (limit["id"], limit["model"]) == ("rl-demo", "demo")
        assert limit["max_requests_per_1_minute"] == 3
        allowed = {"mode": "allow_list", "model_ids": [ALIAS, "x*"]}
        permissions = await made(admin, f"{base}/model_permissions", allowed)
        assert permissions["model_ids"] == ["demo", "x*"]
        account = await made(admin, f"{base}/service_accounts", {"name": "crawler"})
        headers = {"Authorization": f"Bearer {account['api_key']['value']}"}
        body = {"model": ALIAS, "messages": MESSAGES}
        answer = await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-ratelimit-limit-requests"] == "3"

        start = int(time.time()) - 86_400
        for model, num_requests in ((ALIAS, 1), ("demo", 1), ("gpt-5", 0)):
            query: dict[str, str | int] = {"start_time": start, "models[]": model}
            used = await admin.get("/v1/organization/usage/completions", params=query)
            results = [one for bucket in used.json()["data"] for one in bucket["results"]]
            assert sum(one["num_model_requests"] for one in results) == num_requests, model


async def test_workspaces_limits_by_an_alias_are_those_of_its_model(socket_dir: Path) -> None:
    async with a_harness(socket_dir) as (_, admin):
        base = "/v1/organizations"
        workspace = await made(admin, f"{base}/workspaces", {"name": "search"})
        limits = {"limits": [{"type": "requests_per_minute", "value": 5}]}
        path = f"{base}/workspaces/{workspace['id']}/rate_limits"
        entry = await made(admin, f"{path}/rl-{ALIAS}", limits)
        assert entry["models"] == ["demo"]
        listed = (await admin.get(path)).json()["data"]
        assert [one["models"] for one in listed] == [["demo"]]
        found = await admin.get(f"{base}/rate_limits", params={"model": ALIAS})
        assert [one["models"] for one in found.json()["data"]] == [["demo"]]
        missing = await admin.get(f"{base}/rate_limits", params={"model": "gpt-5"})
        assert missing.status_code == 404


async def test_prices_budgets_and_models_of_keys_named_by_an_alias_hold_for_its_model(
    socket_dir: Path,
) -> None:
    async with a_harness(socket_dir) as (gateway, admin):
        price = {"models": ALIAS, "prompt": 0, "completion": 0, "request": 700}
        made_price = await made(admin, "/v1/admin/prices", price)
        assert made_price["models"] == "demo"
        rules = {"name": "app", "allowed_models": [ALIAS, "demo", "x*"]}
        key = await made(admin, "/v1/admin/keys", rules)
        assert key["allowed_models"] == ["demo", "x*"]
        budget = await made(
            admin,
            "/v1/admin/budgets",
            {
                "name": "a day",
                "holder": "key",
                "holder_id": key["id"],
                "amount": 1500,
                "window": "day",
                "models": [ALIAS],
            },
        )
        assert budget["models"] == ["demo"]
        body = {"model": ALIAS, "messages": MESSAGES}
        headers = {"Authorization": f"Bearer {key['key']}"}
        for status in (200, 200, 402):
            answer = await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == status, answer.text
        query: dict[str, str] = {"key_id": key["id"], "by": "total"}
        used = (await admin.get("/v1/usage", params=query)).json()
        assert used["data"][0]["cost_micros"] == 1400

        team = await made(admin, "/v1/admin/teams", {"name": "t", "allowed_models": ["x*"]})
        path = f"/v1/admin/teams/{team['id']}"
        changed = await admin.patch(path, json={"allowed_models": [ALIAS]})
        assert changed.json()["allowed_models"] == ["demo"]
        path = f"/v1/admin/keys/{key['id']}"
        changed = await admin.patch(path, json={"allowed_models": ["x*", ALIAS]})
        assert changed.json()["allowed_models"] == ["x*", "demo"]
        limit = {"name": "r", "holder": "house", "measure": "requests", "amount": 1}
        rate = await made(
            admin, "/v1/admin/limits", {**limit, "window": "minute", "models": ["x*"]}
        )
        path = f"/v1/admin/limits/{rate['id']}"
        changed = await admin.patch(path, json={"models": [ALIAS]})
        assert changed.json()["models"] == ["demo"]
