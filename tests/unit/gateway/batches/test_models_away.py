"""Lines of models that are away or busy hold up no line of others, and are answered later."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.batches import line_room, line_runs, lines
from gateway.batches.line_room import LineAnswer
from gateway.batches.lines import BatchLine
from gateway.batches.records import Batch
from tests.unit.gateway.batches.test_runner import CHAT, Harness, bad, good


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_runs, "_FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(line_room, "_PAUSE_S", 0.001)


@pytest.fixture
def num_readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An item for each time that the input is read from its first line."""
    readings, real = list[int](), lines.left

    def left(path: Path, endpoint: str, done: set[int]) -> Iterator[BatchLine]:
        readings.append(len(done))
        return real(path, endpoint, done)

    monkeypatch.setattr(lines, "left", left)
    return readings


def created(harness: Harness, *models: str) -> Batch:
    """A batch with a line for each of these models, called by their numbers."""
    return harness.create_of(
        [
            json.dumps(
                {"custom_id": f"c{number}", "method": "POST", "url": CHAT}
                | {"body": {"user": f"c{number}", "model": model}}
            )
            for number, model in enumerate(models)
        ]
    )


async def until(harness: Harness, fact: Callable[[], bool]) -> None:
    """Until a fact holds; seconds pass, so that counts are saved."""
    async with asyncio.timeout(60):
        while not fact():
            harness.monotonic.now += 1
            await asyncio.sleep(0.001)


async def test_lines_of_other_models_go_on_and_the_rest_follows_when_its_model_is_back(
    tmp_path: Path,
) -> None:
    harness = Harness(tmp_path)
    harness.away = {"gone"}
    batch = created(harness, *["gone"] * 7, "here", "here", "gone", "here")
    harness.runner.look()
    await until(harness, lambda: len(harness.asked) == 3)
    await until(harness, lambda: harness.store.find("t", batch.id).counts.completed == 3)
    assert harness.asked == ["c7", "c8", "c10"]
    harness.away.clear()
    ended = await harness.until_ended(batch)
    assert ended["request_counts"] == {"total": 11, "completed": 11, "failed": 0}
    assert sorted(harness.asked) == sorted(f"c{number}" for number in range(11))
    assert set(harness.ledger.used().values()) == {1}


async def test_lines_whose_model_went_while_they_were_asked_give_their_places_up(
    tmp_path: Path,
) -> None:
    harness = Harness(tmp_path)

    have_all_begun = asyncio.Event()

    async def answer(custom_id: str) -> LineAnswer:
        if custom_id in ("c0", "c1", "c2") and not harness.away and not have_all_begun.is_set():
            if len(harness.asked) == 3:
                harness.away = {"gone"}
                have_all_begun.set()
            await have_all_begun.wait()
            return bad(503, **{"retry-after": "60"})
        return good()

    harness.answer = answer
    batch = created(harness, *["gone"] * 3, "here", "here")
    harness.runner.look()
    await until(harness, lambda: harness.store.find("t", batch.id).counts.completed == 2)
    assert harness.store.find("t", batch.id).status == "in_progress"
    harness.away.clear()
    ended = await harness.until_ended(batch)
    assert ended["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert set(harness.ledger.used().values()) == {1}


async def test_a_busy_model_holds_up_no_line_of_an_idle_one(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.busy = {"busy"}
    batch = created(harness, *["busy"] * 7, "idle", "busy", "idle")
    harness.runner.look()
    await until(harness, lambda: harness.store.find("t", batch.id).counts.completed == 2)
    assert harness.asked == ["c7", "c9"]
    harness.busy.clear()
    ended = await harness.until_ended(batch)
    assert ended["request_counts"] == {"total": 10, "completed": 10, "failed": 0}
    assert harness.asked[2:] == [f"c{number}" for number in (0, 1, 2, 3, 4, 5, 6, 8)]


async def test_lines_that_are_to_be_asked_again_give_their_places_up_while_their_model_is_busy(
    tmp_path: Path,
) -> None:
    harness = Harness(tmp_path)
    have_all_begun = asyncio.Event()

    async def answer(custom_id: str) -> LineAnswer:
        if custom_id in ("c0", "c1", "c2") and harness.asked.count(custom_id) == 1:
            if len(harness.asked) == 3:
                harness.busy = {"busy"}
                have_all_begun.set()
            # None is asked again before the model is busy.
            await have_all_begun.wait()
            return bad(503)
        return good()

    harness.answer = answer
    batch = created(harness, *["busy"] * 3, "idle", "idle")
    harness.runner.look()
    await until(harness, lambda: harness.store.find("t", batch.id).counts.completed == 2)
    assert harness.store.find("t", batch.id).status == "in_progress"
    harness.busy.clear()
    ended = await harness.until_ended(batch)
    assert ended["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert set(harness.ledger.used().values()) == {1}


async def test_the_input_is_read_once_however_often_a_model_goes_and_comes_back(
    tmp_path: Path, num_readings: list[int]
) -> None:
    harness = Harness(tmp_path)
    harness.away = {"gone"}

    def answer(custom_id: str) -> LineAnswer:
        harness.away = {"gone"} if "gone" not in harness.away else set()
        return good()

    harness.answer = answer
    batch = created(harness, *["gone", "here"] * 10)
    harness.runner.look()
    await until(harness, lambda: len(harness.asked) >= 10)
    async with asyncio.timeout(60):
        while harness.store.find("t", batch.id).status != "completed":
            harness.away.clear()
            harness.monotonic.now += 1
            await asyncio.sleep(0.001)
    await harness.runner.stop()
    assert num_readings == [0]
    assert set(harness.ledger.used().values()) == {1}


async def test_so_many_models_at_most_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_runs, "_MAX_PASSED_OVER", 2)
    harness = Harness(tmp_path)
    harness.away = {"a", "b"}
    batch = created(harness, "a", "b", "here")
    harness.runner.look()
    await until(harness, lambda: harness.store.find("t", batch.id).status == "in_progress")
    await until(harness, lambda: harness.monotonic.now > 50)
    assert harness.asked == []
    harness.away = {"a"}
    await until(harness, lambda: harness.asked == ["c1", "c2"])
    harness.away.clear()
    assert (await harness.until_ended(batch))["request_counts"]["completed"] == 3


async def test_a_line_under_way_is_not_begun_again_when_a_model_is_back(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.away = {"gone"}
    is_back = asyncio.Event()

    async def answer(custom_id: str) -> LineAnswer:
        if custom_id == "c1":
            await is_back.wait()
        is_back.set()
        return good()

    harness.answer = answer
    batch = created(harness, "gone", "here")
    harness.runner.look()
    await until(harness, lambda: harness.asked == ["c1"])
    harness.away.clear()
    ended = await harness.until_ended(batch)
    assert ended["request_counts"]["completed"] == 2
    assert harness.asked == ["c1", "c0"]


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_a_batch_whose_model_stays_away_ends_in_time_and_when_it_is_cancelled(
    tmp_path: Path, end: str
) -> None:
    harness = Harness(tmp_path)
    harness.away = {"gone"}
    batch = created(harness, "gone", "here")
    harness.runner.look()
    await until(harness, lambda: harness.asked == ["c1"])
    if end == "cancelled":
        harness.store.cancel("t", batch.id)
    else:
        harness.clock.now += 24 * 3600
    ended = await harness.until_ended(batch)
    assert ended["status"] == end
    assert ended["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert harness.told(ended["error_file_id"])["c0"]["error"]["code"] == f"batch_{end}"


async def test_a_gateway_that_stops_waits_for_no_model(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.away = {"gone"}
    batch = created(harness, "gone")
    harness.runner.look()
    await until(harness, lambda: harness.store.find("t", batch.id).status == "in_progress")
    async with asyncio.timeout(60):
        await harness.runner.stop()
    assert harness.store.find("t", batch.id).status == "in_progress"
