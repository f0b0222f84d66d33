"""The spend limit of OpenAI's organization API among budgets that others gave its name."""

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
