"""`penstock run-batch` as a process at a gateway: killed, told to stop, beside the API itself."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.batches.records import ENDED
from protocol.wire.messages import Generate
from tests.fakes.fake_workers import FakeEngine
from tests.fakes.running_gateway import RunningGateway, running_gateway

pytestmark = pytest.mark.process
CHAT = "/v1/chat/completions"
NUM_LINES = 40
NUM_FREE = 10


def request_line(number: int, **body: Any) -> str:
    messages = [{"role": "user", "content": f"q{number}"}]
    body = {"model": "demo", "messages": messages, **body}
    line = {"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body}
    return f"{json.dumps(line)}\n"


async def start(gateway: RunningGateway, source: Path, target: Path) -> asyncio.subprocess.Process:
    command = ["-m", "penstock", "run-batch", str(source), str(target)]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *(*command, "--url", str(gateway.client.base_url)),
        stderr=asyncio.subprocess.PIPE,
    )


async def told(process: asyncio.subprocess.Process) -> tuple[int, str]:
    async with asyncio.timeout(60):
        _, text = await process.communicate()
    assert process.returncode is not None
    return process.returncode, text.decode()


async def batches(gateway: RunningGateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await gateway.client.get("/v1/batches")).json()["data"]
    return found


async def until(gateway: RunningGateway, fact: Callable[[list[dict[str, Any]]], bool]) -> None:
    async with asyncio.timeout(60):
        while not fact(await batches(gateway)):  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.01)


def hold(engine: FakeEngine) -> None:
    """Let it answer so many lines, and keep the others waiting."""
    engine.text, engine.script = None, [("ok",)] * NUM_FREE


def go_on(engine: FakeEngine) -> None:
    """Let it answer those that wait, and all that come."""
    engine.text = ("ok",)
    for generate in engine.of(Generate)[NUM_FREE:]:
        engine.emit(generate, "ok")
        engine.finish(generate)


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(map(request_line, range(NUM_LINES))), encoding="utf-8")
    return path


async def test_killed_in_the_middle_it_takes_its_batch_up_and_nothing_is_asked_twice(
    socket_dir: Path, tmp_path: Path, source: Path
) -> None:
    target = tmp_path / "out.jsonl"
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        hold(engine)
        first = await start(gateway, source, target)
        await until(gateway, lambda found: len(engine.of(Generate)) > NUM_FREE)
        first.kill()
        await first.communicate()
        go_on(engine)
        code, text = await told(await start(gateway, source, target))
        assert code == 0, text
        assert f"{NUM_LINES} answered, 0 failed, 0 were answered before" in text
        assert ids_in(target) == [f"c{number}" for number in range(NUM_LINES)]
        assert len(engine.of(Generate)) == NUM_LINES
        assert len(await batches(gateway)) == 1
        assert (await gateway.client.get("/v1/files")).json()["data"] == []


async def test_told_to_stop_it_cancels_and_the_next_run_asks_for_the_rest(
    socket_dir: Path, tmp_path: Path, source: Path
) -> None:
    target = tmp_path / "out.jsonl"
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        engine = await gateway.engine()
        hold(engine)
        first = await start(gateway, source, target)
        await until(gateway, lambda found: len(engine.of(Generate)) > NUM_FREE)
        first.send_signal(signal.SIGINT)
        await until(gateway, lambda found: found[0]["status"] in ("cancelling", *ENDED))
        go_on(engine)
        code, text = await told(first)
        assert code == 1
        assert "Stopped; run the same command to continue." in text
        num_kept = len(ids_in(target))
        assert NUM_FREE <= num_kept < NUM_LINES
        code, text = await told(await start(gateway, source, target))
        assert code == 0, text
        assert f"{NUM_LINES - num_kept} answered, 0 failed, {num_kept} were answered" in text
        assert ids_in(target) == [f"c{number}" for number in range(NUM_LINES)]
        assert len(engine.of(Generate)) == NUM_LINES


async def test_a_file_gives_the_same_lines_as_through_the_api(
    socket_dir: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [request_line(0), request_line(1, n=0), request_line(2, seed=2**53), "\n"]
    lines.append(request_line(3, model="none"))
    source.write_text("".join(lines), encoding="utf-8")
    async with running_gateway(socket_dir, models=("demo",)) as gateway:
        await gateway.auth()
        await gateway.engine()
        code, text = await told(await start(gateway, source, target))
        assert code == 1, text
        form: Any = {"file": ("in.jsonl", source.read_bytes()), "purpose": (None, "batch")}
        uploaded = (await gateway.client.post("/v1/files", files=form)).json()
        asked = {"input_file_id": uploaded["id"], "endpoint": CHAT, "completion_window": "24h"}
        await gateway.client.post("/v1/batches", json=asked)
        await until(gateway, lambda found: found[0]["status"] == "completed")
        batch = (await batches(gateway))[0]
        texts = [
            (await gateway.client.get(f"/v1/files/{batch[name]}/content")).text
            for name in ("output_file_id", "error_file_id")
        ]
    ours = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    theirs = [json.loads(line) for line in "".join(texts).splitlines()]
    by_id = {one["custom_id"]: comparable(one) for one in theirs}
    assert [one["custom_id"] for one in ours] == ["c0", "c1", "c2", "c3"]
    assert [comparable(one) for one in ours] == [by_id[one["custom_id"]] for one in ours]
    assert [one["response"]["status_code"] for one in ours] == [200, 400, 200, 404]


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A line without the names and times that each request has of its own."""
    assert set(record) == {"id", "custom_id", "response", "error"}
    assert record.pop("id").startswith("batch_req_")
    assert record["response"].pop("request_id")
    for name in ("id", "created"):
        record["response"]["body"].pop(name, None)
    return record
