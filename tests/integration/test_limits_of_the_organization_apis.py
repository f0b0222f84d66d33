"""Limits of the organization APIs among those that administrators made elsewhere."""

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.auth_process import auth_process
from tests.fakes.running_gateway import running_gateway

pytestmark = pytest.mark.process
PATH = "/v1/organization/spend_limit"


async def test_a_budget_of_a_week_or_of_some_models_or_that_only_warns_is_no_spend_limit(
    socket_dir: Path,
) -> None:
    of_house: dict[str, Any] = {"name": "spend_limit", "holder": "house", "amount": 7_000_000}
    async with (
        running_gateway(socket_dir, require_keys=True) as gateway,
        auth_process(gateway) as auth,
        auth.admin(gateway) as admin,
    ):
        for more in (
            {"window": "calendar_week"},
            {"window": "calendar_month", "models": ["demo"]},
            {"window": "calendar_month", "endpoints": ["/v1/embeddings"]},
            {"window": "calendar_month", "is_hard": False},
            {"window": "calendar_month", "name": "spend_alert"},
        ):
            made = await admin.post("/v1/admin/budgets", json=of_house | more)
            assert made.status_code == 201, made.text
        assert (await admin.get(PATH)).status_code == 404
        assert (await admin.get("/v1/organization/spend_alerts")).json()["data"] == []
        month = {"currency": "USD", "interval": "month", "threshold_amount": 2000}
        assert (await admin.post(PATH, json=month)).json()["threshold_amount"] == 2000
        assert (await admin.get(PATH)).json()["threshold_amount"] == 2000
        assert (await admin.delete(PATH)).json()["deleted"]
        left = (await admin.get("/v1/admin/budgets")).json()["data"]
        assert [one["amount"] for one in left] == [7_000_000] * 5


async def test_a_limit_that_is_set_holds_alone_and_none_is_left_when_it_is_deleted(
    socket_dir: Path,
) -> None:
    async with (
        running_gateway(socket_dir, require_keys=True) as gateway,
        auth_process(gateway) as auth,
        auth.admin(gateway) as admin,
    ):

        async def budgets(*cents: int) -> None:
            for amount in cents:
                body = {"name": "spend_limit", "holder": "house", "amount": amount * 10_000}
                made = await admin.post(
                    "/v1/admin/budgets", json=body | {"window": "calendar_month"}
                )
                assert made.status_code == 201, made.text

        async def amounts() -> list[int]:
            left = (await admin.get("/v1/admin/budgets")).json()["data"]
            return [one["amount"] // 10_000 for one in left]

        await budgets(300, 500)
        assert (await admin.get(PATH)).json()["threshold_amount"] == 300
        month = {"currency": "USD", "interval": "month", "threshold_amount": 900}
        assert (await admin.post(PATH, json=month)).json()["threshold_amount"] == 900
        assert await amounts() == [900]
        await budgets(300)
        assert (await admin.delete(PATH)).json()["deleted"]
        assert await amounts() == []


async def test_a_rate_that_is_set_for_a_model_holds_alone(socket_dir: Path) -> None:
    async with (
        running_gateway(socket_dir, require_keys=True) as gateway,
        auth_process(gateway) as auth,
        auth.admin(gateway) as admin,
    ):
        team = (await admin.post("/v1/admin/teams", json={"name": "search"})).json()["id"]
        for amount in (10, 20):
            body = {"name": f"of {amount}", "holder": "team", "holder_id": team, "amount": amount}
            more = {"measure": "requests", "window": "minute", "models": ["demo"]}
            made = await admin.post("/v1/admin/limits", json=body | more)
            assert made.status_code == 201, made.text
        rates = f"/v1/organization/projects/{team}/rate_limits"
        (listed,) = (await admin.get(rates)).json()["data"]
        assert listed["max_requests_per_1_minute"] == 10
        changed = await admin.post(f"{rates}/rl-demo", json={"max_requests_per_1_minute": 100})
        assert changed.json()["max_requests_per_1_minute"] == 100
        left = (await admin.get("/v1/admin/limits")).json()["data"]
        assert [one["amount"] for one in left] == [100]
        twice = [{"type": "tokens_per_day", "value": value} for value in (1, 2)]
        refused = await admin.post(
            f"/v1/organizations/workspaces/{team}/rate_limits/rl-demo", json={"limits": twice}
        )
        assert refused.status_code == 400, refused.text
        assert len((await admin.get("/v1/admin/limits")).json()["data"]) == 1
