"""A disk that doesn't take the end of a batch: it waits, and no answer is lost or made up."""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.batches import files as files_module
from gateway.batches import store as store_module
from gateway.batches.files import FileStore
from gateway.batches.folders import replace_json
from gateway.batches.journal import Journal
from gateway.batches.line_room import LineAnswer, LineRoom
from gateway.batches.records import ENDED, Batch
from gateway.batches.runner import MAX_TRIES
from tests.unit.gateway.batches.test_failing_batches import LIMIT_S, take_up
from tests.unit.gateway.batches.test_runner import Harness, good

FAILURES = 3 * MAX_TRIES


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.batches.runner.FIRST_PAUSE_S", 0.0)


def no_space() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def fill_disk(
    monkeypatch: pytest.MonkeyPatch, statuses: tuple[str, ...], num_failures: int = FAILURES
) -> list[str]:
    """Records of batches of these statuses, and of files, can't be written so many times."""
    refused: list[str] = []

    def write(path: Path, value: Any) -> None:
        what = value.get("status", "file")
        is_output = value.get("purpose") == "batch_output"
        if (what in statuses or is_output) and len(refused) < num_failures:
            refused.append(what)
            raise no_space()
        replace_json(path, value)

    monkeypatch.setattr(store_module, "replace_json", write)
    monkeypatch.setattr(files_module, "replace_json", write)
    return refused


def late(harness: Harness, num_lines: int) -> Callable[[str], LineAnswer]:
    """Answers; the window is over with the last one."""

    def answer(custom_id: str) -> LineAnswer:
        if len(harness.asked) == num_lines:
            harness.clock.now = 1_000_000.0 + 25 * 3600
        return good(custom_id)

    return answer


@pytest.mark.parametrize("statuses", [("finalizing", *ENDED), ENDED])
async def test_a_disk_that_is_full_at_the_end_of_a_batch_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statuses: tuple[str, ...]
) -> None:
    harness = Harness(tmp_path)
    harness.answer = late(harness, 3)
    batch = harness.create(3)
    refused = fill_disk(monkeypatch, statuses)
    async with asyncio.timeout(LIMIT_S):
        ended = await harness.until_ended(batch)
    assert len(refused) == FAILURES
    assert (ended["status"], ended["errors"]) == ("completed", None)
    assert set(harness.told(ended["output_file_id"])) == {"c0", "c1", "c2"}
    assert sorted(harness.asked) == ["c0", "c1", "c2"]
    assert not list(tmp_path.glob("batches/*/*/*.jsonl"))  # noqa: ASYNC240


@pytest.mark.parametrize("step", ["new_path", "finish"])
@pytest.mark.parametrize("error", [OSError(errno.EROFS, "Read-only"), RuntimeError("a bug")])
async def test_answers_that_can_t_be_handed_over_are_kept_until_they_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    harness, num_tries = Harness(tmp_path), 0
    harness.answer = late(harness, 2)
    batch = harness.create(2)
    real = getattr(FileStore, step)

    def broken(*args: Any, **options: Any) -> Any:
        nonlocal num_tries
        num_tries += 1
        if num_tries <= FAILURES:
            (kept,) = tmp_path.glob("batches/*/*/output.jsonl")
            assert kept.read_bytes().count(b"\n") == 2
            raise error
        return real(*args, **options)

    monkeypatch.setattr(FileStore, step, broken)
    async with asyncio.timeout(LIMIT_S):
        ended = await harness.until_ended(batch)
    assert num_tries > FAILURES
    assert (ended["status"], ended["errors"]) == ("completed", None)
    assert set(harness.told(ended["output_file_id"])) == {"c0", "c1"}


async def test_a_sweep_takes_no_answers_of_a_batch_that_can_t_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content without a description is an upload that never ended, after a day."""
    harness, num_swept = Harness(tmp_path), 0
    batch = harness.create(2)
    real = FileStore.finish

    def broken(files: FileStore, *args: Any, **options: Any) -> Any:
        nonlocal num_swept
        if not num_swept:
            harness.clock.now = 1e10
            num_swept = files.sweep()
            raise no_space()
        return real(files, *args, **options)

    monkeypatch.setattr(FileStore, "finish", broken)
    async with asyncio.timeout(LIMIT_S):
        ended = await harness.until_ended(batch)
    assert num_swept
    assert ended["status"] == "completed"
    assert set(harness.told(ended["output_file_id"])) == {"c0", "c1"}


def test_a_sweep_takes_no_file_that_can_t_be_read_at_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many files are open, for instance."""
    harness = Harness(tmp_path)
    file_id = harness.create(1).input_file_id

    def broken(_path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", broken)
        assert harness.files.sweep() == 0
    assert harness.files.find("t", file_id).id == file_id


async def test_a_batch_whose_output_is_gone_fails_in_words_and_keeps_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(tmp_path)
    harness.answer = lambda custom_id: good()._replace(status=400 if custom_id == "c1" else 200)
    batch = harness.create(2)
    real = FileStore.new_path

    def broken(files: FileStore, tenant: str, file_id: str) -> Path:
        for path in tmp_path.glob("batches/*/*/output.jsonl"):
            path.unlink()
        return real(files, tenant, file_id)

    monkeypatch.setattr(FileStore, "new_path", broken)
    async with asyncio.timeout(LIMIT_S):
        ended = await harness.until_ended(batch)
    assert (ended["status"], ended["output_file_id"]) == ("failed", None)
    (error,) = ended["errors"]["data"]
    assert "output file" in error["message"]
    assert set(harness.told(ended["error_file_id"])) == {"c1"}


async def test_answers_that_can_t_be_read_stay_on_the_disk(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    batch, path = take_up(harness, harness.texts(2))
    journal = Journal(path.parent)
    journal.note_done(1, "output", {"custom_id": "c0"}, None)
    journal.close()
    with (path.parent / "journal.jsonl").open("a") as file:
        file.write('{"neither": 1}\n')
    async with asyncio.timeout(LIMIT_S):
        ended = await harness.until_ended(batch)
    assert ended["status"] == "failed"
    assert "can't read the answers" in ended["errors"]["data"][0]["message"]
    assert (path.parent / "output.jsonl").read_bytes() == b'{"custom_id":"c0"}\n'
    assert not path.exists()


def note_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []

    async def pause(_room: LineRoom, duration_s: float) -> None:
        if duration_s >= 1.0:
            pauses.append(duration_s)
        await asyncio.sleep(0)

    monkeypatch.setattr(LineRoom, "pause", pause)
    monkeypatch.setattr("gateway.batches.runner.FIRST_PAUSE_S", 1.0)
    return pauses


async def test_a_changed_input_s_end_that_can_t_be_written_is_paused_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(tmp_path)
    batch, path = take_up(harness, harness.texts(1))
    path.write_text("x")
    fill_disk(monkeypatch, ("finalizing", *ENDED), 7)
    pauses = note_pauses(monkeypatch)
    async with asyncio.timeout(LIMIT_S):
        ended = await harness.until_ended(batch)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert ended["status"] == "failed"
    assert ended["errors"]["data"][0]["code"] == "invalid_json_line"


async def test_a_give_up_that_can_t_be_written_is_paused_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(tmp_path)

    def full(*_args: Any) -> None:
        harness.clock.now = 1_000_000.0 + 25 * 3600
        raise no_space()

    monkeypatch.setattr(Journal, "note_lease", full)
    monkeypatch.setattr(Journal, "note_done", full)
    batch = harness.create(1)
    fill_disk(monkeypatch, ("finalizing", *ENDED), 4)
    pauses = note_pauses(monkeypatch)
    async with asyncio.timeout(LIMIT_S):
        ended = await harness.until_ended(batch)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert ended["status"] == "failed"


async def test_a_disk_may_be_full_for_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness(tmp_path)
    batch = harness.create(1)
    harness.runner._failures._tries[batch.id] = (0, 5000)
    pauses, num_tries = note_pauses(monkeypatch), 0
    real = Journal.note_lease

    def full(journal: Journal, line: int, lease_id: str) -> None:
        nonlocal num_tries
        num_tries += 1
        if num_tries <= 2:
            raise no_space()
        real(journal, line, lease_id)

    monkeypatch.setattr(Journal, "note_lease", full)
    async with asyncio.timeout(LIMIT_S):
        ended = await harness.until_ended(batch)
    assert pauses == [30, 30]
    assert ended["status"] == "completed"


def claimed(harness: Harness, batch: Batch) -> store_module.Claim:
    claim = harness.store.claim("t", batch.id)
    assert claim is not None
    return claim


def test_a_save_that_fails_changes_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(tmp_path)
    claim = claimed(harness, harness.create(1))
    fill_disk(monkeypatch, ("in_progress",), 1)
    with pytest.raises(OSError, match="No space"):
        claim.save(status="in_progress", outcome="completed")
    assert (claim.batch.status, claim.batch.outcome) == ("validating", "")
    claim.save(status="in_progress", outcome="completed")
    claim.release()
    found = harness.store.find("t", claim.batch.id)
    assert found == claim.batch
    assert (found.status, found.outcome) == ("in_progress", "completed")


def test_a_batch_that_can_t_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(tmp_path)
    fill_disk(monkeypatch, ("validating",), 1)
    with pytest.raises(OSError, match="No space"):
        harness.create(1)
    assert not list(tmp_path.glob("batches/*/*"))
    assert harness.create(1).status == "validating"
