"""What runs, how it has done, and what can be done about it: workers over HTTP."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ErrorCode
from protocol.wire.messages import CacheCleared, ClearCache, EngineCommand, Generate
from tests.fakes.fake_workers import FakeEngine
from tests.fakes.running_gateway import RunningGateway, running_gateway


async def workers(gateway: RunningGateway) -> dict[str, dict[str, Any]]:
    response = await gateway.client.get("/v1/admin/workers", headers={"X-API-Key": "k"})
    assert response.status_code == 200, response.text
    return {one["role"]: one for one in response.json()["data"]}


async def test_every_worker_is_listed_with_what_it_did(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        await gateway.parser()
        for _ in range(3):
            assert (await gateway.chat()).status_code == 200
        listed = await workers(gateway)
        assert set(listed) == {"auth", "engine", "toolparser"}
        row = listed["engine"]
        assert row["name"] == engine.worker.instance_id
        assert (row["model"], row["phase"], row["status"]) == ("demo", "ready", "healthy")
        assert row["fingerprint"] == engine.offer.fingerprint
        # Three prompts and three choices.
        assert (row["num_answered"], row["num_failed"], row["success_rate"]) == (6, 0, 1.0)
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
        assert row["last_error"] is None
        assert (row["host"], row["address"]) == (socket.gethostname(), None)
        assert listed["auth"]["num_answered"] >= 3
        assert listed["auth"]["epoch"] is not None
        assert listed["toolparser"]["success_rate"] is None


async def test_failures_of_a_worker_show_and_those_of_requests_do_not(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, request_timeout_s=5.0) as gateway:
        auth = await gateway.auth()
        engine = await gateway.engine()
        auth.denial = ErrorCode.PERMISSION_DENIED
        assert (await gateway.chat()).status_code == 403
        auth.denial = None
        engine.generate_failure = ErrorCode.INTERNAL_ERROR
        assert (await gateway.chat()).status_code == 500
        listed = await workers(gateway)
        assert listed["auth"]["num_failed"] == 0
        row = listed["engine"]
        assert row["num_failed"] == 1
        assert row["status"] == "degraded"
        assert row["last_error"]["code"] == "internal_error"
        response = await gateway.client.get("/v1/providers/status", headers={"X-API-Key": "k"})
        (provider,) = response.json()["data"]
        assert set(provider) == {
            *("provider", "status", "latency_ms", "success_rate", "last_check"),
            *("error_message", "models_available"),
        }
        assert provider["provider"] == engine.worker.instance_id
        assert (provider["status"], provider["models_available"]) == ("degraded", ["demo"])
        assert provider["error_message"]


async def test_a_worker_is_drained_by_its_name(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        staying, leaving = await gateway.engine(), await gateway.engine(text=None)
        name = leaving.worker.instance_id
        answer = await gateway.client.post(
            f"/v1/admin/workers/{name}/drain", json={"timeout_s": 30}, headers={"X-API-Key": "k"}
        )
        assert (answer.status_code, answer.json()["name"]) == (202, name)
        await gateway.until(lambda: not gateway.is_known(leaving))
        assert gateway.is_known(staying)
        assert await asyncio.to_thread(leaving.worker.wait) == 0
        assert (await gateway.chat()).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/admin/workers/nobody/drain", {}, 404),
        ("/v1/admin/workers/nobody/drain", {"timeout_s": -1}, 400),
        ("/v1/admin/workers/nobody/drain", {"timeout": 1}, 400),
        ("/v1/models/invalidate-cache", {"model": "none"}, 404),
        ("/v1/models/invalidate-cache", {"models": ["demo"]}, 400),
    ],
)
async def test_what_is_wrong_is_named(
    socket_dir: Path, path: str, body: dict[str, Any], status: int
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        answer = await gateway.client.post(path, json=body, headers={"X-API-Key": "k"})
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["param"]


def clearing(engine: FakeEngine, num_blocks: int) -> None:
    """Let a scripted engine forget so many blocks."""
    answer = engine.answer

    def clear(command: EngineCommand) -> None:
        if isinstance(command, ClearCache):
            engine.send(CacheCleared(request_id=command.request_id, num_blocks=num_blocks))
        else:
            answer(command)

    engine.answer = clear  # type: ignore[method-assign]


async def test_caches_are_cleared_in_every_engine_and_absent_models_are_forgotten(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        one, two = await gateway.engine(), await gateway.engine(model="other")
        gone = await gateway.engine(model="gone")
        clearing(one, 5)
        clearing(two, 7)
        await gateway.departure(gone)
        await gateway.until(lambda: not gateway.application.directory.engines("gone"))

        async def models() -> list[str]:
            listed = await gateway.client.get("/v1/models")
            return [model["id"] for model in listed.json()["data"]]

        assert await models() == ["demo", "gone", "other"]
        headers = {"X-API-Key": "k"}
        answer = await gateway.client.post(
            "/v1/models/invalidate-cache", json={"model": "other"}, headers=headers
        )
        assert answer.json()["num_blocks"] == 7
        assert answer.json()["models_forgotten"] == []
        answer = await gateway.client.post("/v1/models/invalidate-cache", json={}, headers=headers)
        assert answer.json()["num_blocks"] == 12
        assert answer.json()["models_forgotten"] == ["gone"]
        assert await models() == ["demo", "other"]
        assert len(one.of(ClearCache)) == 1


async def test_figures_as_json_agree_with_what_was_done(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        for _ in range(2):
            assert (await gateway.chat()).status_code == 200
        engine.generate_failure = ErrorCode.INTERNAL_ERROR
        assert (await gateway.chat()).status_code == 500
        await gateway.until(lambda: len(gateway.application.sessions) == 0)
        found = await gateway.client.get("/metrics", headers={"Accept": "application/json"})
        figures = found.json()
        assert {
            name: figures[name]
            for name in ("total_requests", "successful_requests", "failed_requests")
        } == {"total_requests": 3, "successful_requests": 2, "failed_requests": 1}
        assert figures["total_tokens_generated"] == 4
        assert figures["average_tokens_per_second"] > 0
        assert (figures["active_requests"], figures["models"]) == (0, ["demo"])
        assert (figures["models_loaded"], figures["status"]) == (1, "degraded")
        assert figures["auth_stats"]["connected"] is True
        assert figures["uptime_seconds"] > 0
        assert len(engine.of(Generate)) == 3
        for accept in ("*/*", "", "text/plain;version=0.0.4", "application/json, text/plain"):
            text = await gateway.client.get("/metrics", headers={"Accept": accept})
            assert text.text.startswith("# HELP")
