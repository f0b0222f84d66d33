"""What fails again and again ends: a line as its own answer, a batch as `failed`."""

import asyncio
import errno
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.batches.journal import Journal
from gateway.batches.line_room import LineAnswer
from gateway.batches.runner import MAX_TRIES
from gateway.batches.store import Claim
from gateway.request.callers.caller import Caller
from tests.unit.gateway.batches.test_runner import CHAT, Harness, good

LIMIT_S = 60
"""Of a test that would never end with what it is about."""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.batches.runner.FIRST_PAUSE_S", 0.0)


def nested(custom_id: str, num_levels: int) -> str:
    inner = "[" * num_levels + "]" * num_levels
    body = f'{{"user": "{custom_id}", "x": {inner}}}'
    return f'{{"custom_id": "{custom_id}", "method": "POST", "url": "{CHAT}", "body": {body}}}'


@pytest.mark.parametrize("num_levels", [254, 900])
async def test_a_line_nested_too_deeply_is_its_own_400(tmp_path: Path, num_levels: int) -> None:
    harness = Harness(tmp_path)
    texts = [*harness.texts(2), nested("deep", num_levels)]
    async with asyncio.timeout(LIMIT_S):
        batch = await harness.until_ended(harness.create_of([texts[0], texts[2], texts[1]]))
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    told = harness.told(batch["error_file_id"])["deep"]["response"]
    assert told["status_code"] == 400
    assert told["body"]["error"]["code"] == "invalid_request"
    assert "254 levels" in told["body"]["error"]["message"]
    assert sorted(harness.asked) == ["c0", "c1"]


async def test_the_deepest_line_that_can_be_written_is_asked(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    async with asyncio.timeout(LIMIT_S):
        batch = await harness.until_ended(harness.create_of([nested("deep", 253)]))
    assert batch["request_counts"]["completed"] == 1


async def test_a_line_whose_request_raises_is_a_500_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harness = Harness(tmp_path)

    def answer(custom_id: str) -> LineAnswer:
        if custom_id == "c1":
            raise RuntimeError("a bug before anything was answered")
        return good()

    harness.answer = answer
    async with asyncio.timeout(LIMIT_S):
        batch = await harness.until_ended(harness.create(4))
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    told = harness.told(batch["error_file_id"])["c1"]["response"]
    assert (told["status_code"], told["body"]["error"]["code"]) == (500, "internal_error")
    assert "a bug before anything was answered" in caplog.text
    assert harness.asked.count("c1") == 1


async def test_a_line_that_raises_at_the_end_of_the_process_is_run_again(tmp_path: Path) -> None:
    harness, has_asked = Harness(tmp_path), asyncio.Event()

    async def ask(path: str, body: bytes, caller: Caller) -> LineAnswer:
        harness.runner.begin_to_stop()
        has_asked.set()
        raise RuntimeError("the server stops")

    asking, harness.ask = harness.ask, ask  # type: ignore[method-assign]
    harness.open()
    batch = harness.create(1)
    harness.runner.look()
    async with asyncio.timeout(LIMIT_S):
        await has_asked.wait()
    await harness.runner.stop()
    assert harness.store.find("t", batch.id).status == "in_progress"
    harness.ask = asking  # type: ignore[method-assign]
    harness.open()
    ended = await harness.until_ended(batch)
    assert ended["request_counts"]["completed"] == 1


async def test_a_batch_that_keeps_failing_ends_with_the_answers_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    harness, num_tries = Harness(tmp_path), 0
    real = Journal.note_done

    def broken(journal: Journal, line: int, *rest: Any) -> None:
        nonlocal num_tries
        if line == 2:
            num_tries += 1
            raise RuntimeError("a bug")
        real(journal, line, *rest)

    monkeypatch.setattr(Journal, "note_done", broken)
    async with asyncio.timeout(LIMIT_S):
        batch = await harness.until_ended(harness.create(2))
    assert batch["status"] == "failed"
    assert batch["failed_at"] is not None
    (error,) = batch["errors"]["data"]
    assert error["code"] == "internal_error"
    assert f"{MAX_TRIES} times" in error["message"]
    assert MAX_TRIES <= num_tries <= MAX_TRIES + 1  # the first one beside an answer
    assert set(harness.told(batch["output_file_id"])) == {"c0"}
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 0}
    assert "a bug" in caplog.text
    assert not list(tmp_path.glob("batches/*/*/*.jsonl"))  # noqa: ASYNC240


async def test_a_batch_that_goes_on_meanwhile_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, failed = Harness(tmp_path), set[int]()
    real = Journal.note_done

    def broken(journal: Journal, line: int, *rest: Any) -> None:
        if line not in failed:
            failed.add(line)
            raise RuntimeError("a bug at the first try of each line")
        real(journal, line, *rest)

    monkeypatch.setattr(Journal, "note_done", broken)
    harness.num_free = 1
    async with asyncio.timeout(LIMIT_S):
        batch = await harness.until_ended(harness.create(3 * MAX_TRIES))
    assert batch["status"] == "completed"
    assert batch["request_counts"]["completed"] == 3 * MAX_TRIES


async def test_a_full_disk_is_waited_for_until_the_window_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, num_tries = Harness(tmp_path), 0

    def full(journal: Journal, line: int, lease_id: str) -> None:
        nonlocal num_tries
        num_tries += 1
        if num_tries > 3 * MAX_TRIES:
            harness.clock.now += 25 * 3600
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "note_lease", full)
    async with asyncio.timeout(LIMIT_S):
        batch = await harness.until_ended(harness.create(1))
    assert num_tries == 3 * MAX_TRIES + 1
    assert batch["status"] == "failed"


async def test_an_input_that_vanished_is_not_waited_for(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    batch = harness.create(1)
    (input_path,) = tmp_path.glob("batches/*/*/input.jsonl")  # noqa: ASYNC240
    claim = harness.store.claim("t", batch.id)
    assert claim is not None
    claim.batch.status = "in_progress"
    claim.save()
    claim.release()
    input_path.unlink()
    async with asyncio.timeout(LIMIT_S):
        ended = await harness.until_ended(batch)
    assert ended["status"] == "failed"


def take_up(harness: Harness, texts: list[str]) -> tuple[Any, Path]:
    """A batch whose lines were checked, as an earlier gateway left it."""
    batch = harness.create_of(texts)
    claim: Claim | None = harness.store.claim("t", batch.id)
    assert claim is not None
    claim.batch.status = "in_progress"
    claim.batch.counts.total = len(texts)
    claim.save()
    claim.release()
    return batch, claim.input_path


async def test_a_line_longer_than_today_s_bound_is_its_own_refusal(tmp_path: Path) -> None:
    """The bound of a body was lowered after the check, and the route refuses that line."""
    harness = Harness(tmp_path)
    long = json.loads(harness.texts(1, custom_id="long")[0])
    long["body"]["x"] = "y" * 20_000
    harness.answer = lambda custom_id: (
        good()._replace(status=413) if custom_id == "long" else good()
    )
    long["body"]["user"] = "long"
    batch, _ = take_up(harness, [*harness.texts(2), json.dumps(long)])
    async with asyncio.timeout(LIMIT_S):
        ended = await harness.until_ended(batch)
    assert ended["status"] == "completed"
    assert ended["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert harness.told(ended["error_file_id"])["long"]["response"]["status_code"] == 413


async def test_an_input_that_was_changed_fails_its_batch_at_once(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    batch, path = take_up(harness, harness.texts(1))
    path.write_text("x")
    async with asyncio.timeout(LIMIT_S):
        ended = await harness.until_ended(batch)
    assert ended["status"] == "failed"
    (error,) = ended["errors"]["data"]
    assert (error["code"], error["line"]) == ("invalid_json_line", 1)
