"""Users, teams, budgets, prices and usage over HTTP, by a gateway and a real auth worker."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.http.openapi.queries import QUERIES
from tests.fakes.fork_server import AUTH_WORKER, Forked
from tests.fakes.running_gateway import RunningGateway, running_gateway

ADMIN_SECRET = "psk-Zk3vPq8Rw1Xy6Tn4Lm9Bd2Gf7Hc5"
ADMIN = {"X-API-Key": ADMIN_SECRET}
WAIT_S = 60.0
pytestmark = pytest.mark.process


@asynccontextmanager
async def a_harness(socket_dir: Path, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway with an engine and an auth worker process."""
    environment = {
        **os.environ,
        "PENSTOCK_AUTH_ENDPOINT": f"ipc://{socket_dir}/auth",
        "PENSTOCK_DATA_DIR": str(tmp_path / "data"),
        "PENSTOCK_ADMIN_KEY": ADMIN_SECRET,
    }
    async with running_gateway(socket_dir, require_keys=True) as gateway:
        worker = Forked("auth_worker", preloaded=AUTH_WORKER, environ=environment, stderr=2)
        try:
            await gateway.until(
                lambda: any(
                    peer.role == "auth" and peer.takes_work for peer in gateway.application.peers()
                ),
                timeout_s=WAIT_S,
            )
            await gateway.engine()
            yield gateway
        finally:
            worker.terminate()
            await asyncio.to_thread(worker.wait, WAIT_S)


class Admin:
    """Asks as the administrator, and expects a status."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def __call__(self, method: str, path: str, status: int = 200, body: Any = None) -> Any:
        answer = await self._client.request(method, f"/v1/admin/{path}", json=body, headers=ADMIN)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def refused(self, method: str, path: str, status: int, body: Any = None) -> Any:
        """The field that the error names."""
        return (await self(method, path, status, body))["error"]["param"]


async def test_users_and_teams_live_over_http(socket_dir: Path, tmp_path: Path) -> None:
    async with a_harness(socket_dir, tmp_path) as gateway:
        admin = Admin(gateway.client)
        user = await admin("POST", "users", 201, {"name": " Ada ", "email": "a@b.c", "tags": ["x"]})
        assert (user["object"], user["name"], user["status"]) == ("user", "Ada", "active")
        assert (user["role"], user["kind"], user["team_ids"]) == ("user", "person", [])
        team = await admin("POST", "teams", 201, {"name": "search", "allowed_models": ["other*"]})
        members = f"teams/{team['id']}/members/{user['id']}"
        assert (await admin("PUT", members, body={"role": "owner"}))["members"][0][
            "role"
        ] == "owner"
        assert (await admin("PUT", members))["members"][0]["role"] == "member"
        key = await admin(
            "POST", "keys", 201, {"name": "k", "user_id": user["id"], "team_id": team["id"]}
        )
        headers = {"Authorization": f"Bearer {key['key']}"}

        async def models() -> tuple[int, Any]:
            answer = await gateway.client.get("/v1/models", headers=headers)
            return answer.status_code, answer.json()

        assert [one["id"] for one in (await models())[1]["data"]] == []
        changed = await admin("PATCH", f"teams/{team['id']}", body={"allowed_models": None})
        assert changed["allowed_models"] is None
        assert [one["id"] for one in (await models())[1]["data"]] == ["demo"]
        for resource in (f"users/{user['id']}", f"teams/{team['id']}"):
            assert (await admin("POST", f"{resource}/suspend"))["status"] == "suspended"
            status, answer = await models()
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
            assert "suspended" in answer["error"]["message"]
            assert (await admin("POST", f"{resource}/reactivate"))["status"] == "active"
        assert (await models())[0] == 200
        cleared = await admin("PATCH", f"users/{user['id']}", body={"email": None, "tags": None})
        assert (cleared["email"], cleared["tags"], cleared["name"]) == ("", [], "Ada")
        assert (await admin("GET", f"users?team_id={team['id']}"))["data"][0]["id"] == user["id"]
        (listed,) = (await admin("GET", f"teams?user_id={user['id']}"))["data"]
        assert "members" not in listed, "they are told of one team alone"
        await admin("DELETE", f"users/{user['id']}")
        assert (await models())[0] == 401
        assert (await admin("GET", f"keys/{key['id']}"))["status"] == "revoked"
        assert await admin.refused("GET", f"users/{user['id']}", 404) == "id"
        await _queries_are_heeded_or_refused(gateway)


async def _queries_are_heeded_or_refused(gateway: RunningGateway) -> None:
    """A misspelt filter would list everything, to whoever deletes what is listed."""
    for path, parameters in QUERIES.items():
        if not path.startswith(("/v1/admin", "/v1/usage", "/v1/budget")):
            continue
        answer = await gateway.client.get(path, params={"teams": "x"}, headers=ADMIN)
        assert answer.status_code == 400, path
        assert answer.json()["error"]["param"] == "teams", path
        for parameter in parameters:
            name = parameter["name"]
            answer = await gateway.client.get(path, params={name: "7"}, headers=ADMIN)
            assert "has no meaning" not in answer.text, (path, name)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("users", {}, "name"),
    ("users", {"name": "x", "role": "root"}, "role"),
    ("users", {"name": "x", "rolle": "user"}, "rolle"),
    ("teams", {"name": "x", "allowed_models": [""]}, "allowed_models[0]"),
    ("budgets", {"name": "x", "holder": "house", "window": "day"}, "amount"),
    ("budgets", {"name": "x", "holder": "house", "window": "day", "amount": 1.5}, "amount"),
    ("budgets", {"name": "x", "holder": "house", "window": "days", "amount": 1}, "window"),
    ("budgets", {"name": "x", "holder": "team", "window": "day", "amount": 1}, "holder_id"),
    (
        "budgets",
        {"name": "x", "holder": "house", "window": "day", "amount": 1, "measure": "tokens"},
        "measure",
    ),
    (
        "limits",
        {"name": "x", "holder": "house", "window": "day", "amount": 1, "measure": "money"},
        "measure",
    ),
    ("prices", {"models": "x", "prompt": -1, "completion": 1}, "prompt"),
    ("prices", {"models": "x", "prompt": 1}, "completion"),
    ("prices", {"models": "x", "prompt": 1, "completion": 1, "valid_from": 1}, "valid_from"),
    ("keys", {"name": "x", "team_id": "team_9"}, "team_id"),
]


async def test_a_wrong_definition_is_a_400_that_names_the_field(
    socket_dir: Path, tmp_path: Path
) -> None:
    async with a_harness(socket_dir, tmp_path) as gateway:
        admin = Admin(gateway.client)
        for path, body, param in WRONG:
            assert await admin.refused("POST", path, 400, body) == param, body


async def test_a_caller_sees_what_it_used_and_has_left(socket_dir: Path, tmp_path: Path) -> None:
    async with a_harness(socket_dir, tmp_path) as gateway:
        admin = Admin(gateway.client)
        price = await admin(
            "POST", "prices", 201, {"models": "*", "prompt": 0, "completion": 0, "request": 500_000}
        )
        assert (price["version"], price["is_ended"]) == (1, False)
        changed = await admin("PATCH", f"prices/{price['id']}", body={"prompt": 0})
        assert (changed["version"], changed["earlier"][0]["version"]) == (2, 1)
        key = await admin(
            "POST", "keys", 201, {"name": "k", "requests_per_minute": 9, "scopes": None}
        )
        budget = await admin(
            "POST",
            "budgets",
            201,
            {
                "name": "b",
                "holder": "key",
                "holder_id": key["id"],
                "amount": 2_000_000,
                "window": "total",
                "thresholds": [20],
            },
        )
        raised = await admin("POST", f"budgets/{budget['id']}/raise", body={"by": 1_000_000})
        assert (raised["amount"], raised["raised_by"]) == (2_000_000, 1_000_000)
        headers = {"X-API-Key": key["key"]}
        gateway.client.headers.update(headers)
        assert (await gateway.chat()).status_code == 200

        async def status() -> Any:
            answer = await gateway.client.get("/v1/budget/status")
            assert answer.status_code == 200, answer.text
            return answer.json()

        # The answer comes before the settlement is durable.
        async with asyncio.timeout(WAIT_S):
            told = await status()
            while not told["data"]["total_usage_micros"]:
                told = await status()
        assert told["object"] == "budget_status"
        (one,) = told["data"]["budgets"]
        assert {
            name: one[name] for name in ("budget_id", "limit_cents", "current_usage_cents")
        } == {
            "budget_id": budget["id"],
            "limit_cents": 300,
            "current_usage_cents": 50,
        }
        assert (one["remaining"], one["usage_percentage"]) == (2_500_000, 16.67)
        assert (one["is_exceeded"], one["is_warning"], one["period_end"]) == (False, False, None)
        assert set(told["data"]["projections"]) == {
            "daily_burn_rate",
            "projected_monthly",
            "days_remaining",
        }
        assert told["data"]["total_usage"] == 0.5
        assert told["data"]["warnings"] == []
        used = (await gateway.client.get("/v1/usage?by=total&group_by=model,key")).json()
        assert used["object"] == "usage"
        assert (used["api_key_id"], used["api_key_name"]) == (key["id"], "k")
        assert (used["total_requests"], used["total_cost_cents"]) == (1, 50)
        assert used["rate_limits"] == {"per_minute": 9, "per_hour": None, "per_day": None}
        assert used["permissions"]["enable_streaming"] is True
        assert "usage.read" in used["scopes"]
        remaining = {one["measure"]: one["remaining"] for one in used["limits"]}
        assert remaining == {"requests": 8, "money": 2_500_000}
        (row,) = used["data"]
        assert (row["model"], row["key_id"], row["num_requests"]) == ("demo", key["id"], 1)
        assert row["cost_micros"] == 500_000
        assert (used["has_more"], used["next"]) == (False, None)
        foreign = await gateway.client.get("/v1/usage?key_id=key_environment")
        assert foreign.status_code == 403
        for query, param in (
            ("group_by=colour", "group_by"),
            ("by=week", "by"),
            ("since=now", "since"),
            ("limit=0", "limit"),
            ("since=9&until=8", "until"),
        ):
            wrong = await gateway.client.get(f"/v1/usage?{query}")
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, param)
        everybody = await gateway.client.get("/v1/usage?of=all&by=hour&group_by=key", headers=ADMIN)
        assert [one["key_id"] for one in everybody.json()["data"]] == [key["id"]]
