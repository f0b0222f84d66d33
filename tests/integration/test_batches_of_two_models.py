"""A batch for two models, one of which is away: idle engines answer what is theirs."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

from protocol.wire.messages import Generate
from tests.fakes.running_gateway import RunningGateway, running_gateway

CHAT = "/v1/chat/completions"


def line(name: str, model: Any, **fields: Any) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]} | fields
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": body}).encode()


async def begun(gateway: RunningGateway, *lines: bytes) -> str:
    form: Any = {"file": ("in.jsonl", b"\n".join(lines)), "purpose": (None, "batch")}
    uploaded = (await gateway.client.post("/v1/files", files=form)).json()
    asked = {"input_file_id": uploaded["id"], "endpoint": CHAT, "completion_window": "24h"}
    found: str = (await gateway.client.post("/v1/batches", json=asked)).json()["id"]
    return found


async def counted(gateway: RunningGateway, batch_id: str, **counts: int) -> dict[str, Any]:
    """The batch once that many lines have ended so."""
    async with asyncio.timeout(60):
        while True:
            batch: dict[str, Any] = (await gateway.client.get(f"/v1/batches/{batch_id}")).json()
            if Counter(counts) <= Counter(batch["request_counts"]):
                return batch
            await asyncio.sleep(0.01)


async def test_a_model_that_is_away_holds_up_no_line_of_another_one(socket_dir: Path) -> None:
    async with running_gateway(
        socket_dir,
        models=("demo", "other"),
        max_batch_requests=2,
        model_aliases=("far=other",),
        worker_dead_s=2.0,  # `none` is nobody's name after so long without `other`
    ) as gateway:
        await gateway.auth()
        await gateway.engine()
        away = [line(f"a{number}", "other") for number in range(3)] + [line("b", "far")]
        batch_id = await begun(gateway, *away, line("c", "demo"), line("d", "none"), line("e", 7))
        batch = await counted(gateway, batch_id, completed=1, failed=2)
        assert batch["status"] == "in_progress"
        other = await gateway.engine(model="other")
        batch = await counted(gateway, batch_id, completed=5, failed=2)
        assert len(other.of(Generate)) == 4


async def test_lines_with_token_ids_wait_for_their_model_and_its_fallback_answers_the_others(
    socket_dir: Path,
) -> None:
    async with running_gateway(
        socket_dir,
        models=("demo", "other"),
        max_batch_requests=2,
        model_fallbacks=("other=demo",),
    ) as gateway:
        await gateway.auth()
        demo = await gateway.engine()
        away = [line(f"a{number}", "other", logit_bias={"5": 1}) for number in range(3)]
        batch_id = await begun(gateway, *away, line("b", "demo"), line("c", "other"))
        batch = await counted(gateway, batch_id, completed=2)
        assert (batch["status"], len(demo.of(Generate))) == ("in_progress", 2)
        other = await gateway.engine(model="other")
        await counted(gateway, batch_id, completed=5)
        assert len(other.of(Generate)) == 3


async def test_with_all_engines_away_nothing_is_begun(socket_dir: Path) -> None:
    """Nobody knows then which names are models."""
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        batch_id = await begun(gateway, line("a", "demo"))
        application = gateway.application
        assert application.batches is not None
        await gateway.until(lambda: bool(application.batches.runner._open))
        await gateway.engine()
        batch = await counted(gateway, batch_id, completed=1)
        assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


async def test_after_a_start_a_line_waits_for_an_engine_that_has_not_announced_itself(
    socket_dir: Path,
) -> None:
    """No model is configured, so only engines say which names are models."""
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine(model="demo")
        batch_id = await begun(gateway, line("a", "other"), line("b", "demo"))
        await counted(gateway, batch_id, completed=1)
        other = await gateway.engine(model="other")
        batch = await counted(gateway, batch_id, completed=2)
        assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
        assert len(other.of(Generate)) == 1


async def test_a_name_that_is_nobodys_once_all_have_come_is_answered_with_404(
    socket_dir: Path,
) -> None:
    async with running_gateway(socket_dir, models=("demo",)) as gateway:
        await gateway.auth()
        await gateway.engine(model="demo")
        batch_id = await begun(gateway, line("a", "none"))
        batch = await counted(gateway, batch_id, failed=1)
        while batch["status"] != "completed":
            batch = await counted(gateway, batch_id, failed=1)
        errors = await gateway.client.get(f"/v1/files/{batch['error_file_id']}/content")
        assert json.loads(errors.text)["response"]["status_code"] == 404
