"""Batches on disk: what a tenant may have there, and what it costs to look at them."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.batches import folders
from gateway.batches.files import FileBounds, FileStore
from gateway.batches.records import Batch
from gateway.batches.store import BatchStore
from gateway.errors import InvalidRequestError
from tests.unit.gateway.batches.test_runner import CHAT, Harness, bad


async def test_a_batch_of_a_file_for_something_else_is_refused(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    file_id, path = harness.files.begin("t")
    path.write_text("x")
    harness.files.finish("t", file_id, "x", "user_data")
    with pytest.raises(InvalidRequestError, match="user_data"):
        harness.store.create(
            "t",
            key_digest="",
            key_id="",
            address="",
            endpoint=CHAT,
            input_file_id=file_id,
            metadata=None,
            output_lifetime_s=None,
        )


async def test_inputs_are_bounded_also_when_their_files_are_deleted(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    wrong = harness.create(3, url="/v1/embeddings")
    harness.files.remove("t", wrong.input_file_id)
    assert (await harness.until_ended(wrong))["status"] == "failed"
    assert not list(tmp_path.glob("batches/*/*/input.jsonl"))  # noqa: ASYNC240
    harness.open()
    size = harness.create(20).input_file_id
    bounds = FileBounds(100, 2 * harness.files.find("t", size).num_bytes, 10**8, 86_400)
    harness.files = FileStore(tmp_path / "files", bounds, harness.clock)
    harness.store = BatchStore(tmp_path / "batches", harness.files, 86_400, harness.clock)
    harness.files.remove("t", size)
    harness.files.remove("t", harness.create(20).input_file_id)
    with pytest.raises(InvalidRequestError, match="bytes of input"):
        harness.create(20)


@pytest.mark.parametrize("bound", ["files", "bytes"])
async def test_results_that_are_kept_are_bounded_by_refusing_more_batches(
    tmp_path: Path, bound: str
) -> None:
    """The same wrong lines again and again cost no token, and each has an answer on the disk."""
    harness = Harness(tmp_path)
    harness.answer = lambda _id: bad()
    first = harness.create(5)
    assert (await harness.until_ended(first))["request_counts"]["failed"] == 5
    held = sum(path.stat().st_size for path in tmp_path.glob("files/*/*.data"))  # noqa: ASYNC240
    is_of_files = bound == "files"
    bounds = FileBounds(2 if is_of_files else 100, 10**9 if is_of_files else held, 10**8, 86_400)
    harness.open_with(FileStore(tmp_path / "files", bounds, harness.clock))
    ended = await harness.until_ended(harness.create_again(first.input_file_id))
    assert ended["status"] == "completed"  # what was begun is kept, and now there is too much
    with pytest.raises(InvalidRequestError, match="results of batches among them.*delete some"):
        harness.create_again(first.input_file_id)
    harness.create(1, "other")
    harness.files.remove("t", ended["error_file_id"])
    harness.create_again(first.input_file_id)


class Reads:
    """Counts the records of batches that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._num = 0
        monkeypatch.setattr("gateway.batches.store.read_json", self._read)

    def _read(self, path: Path) -> dict[str, Any] | None:
        self._num += path.name == "batch.json"
        return folders.read_json(path)

    def since(self) -> int:
        """How many since the last time."""
        num, self._num = self._num, 0
        return num


def end_all(harness: Harness) -> None:
    """All batches of all tenants have ended."""
    for batch in harness.store.unfinished():
        claim = harness.store.claim(batch.tenant, batch.id)
        assert claim is not None
        claim.save(status="completed")
        claim.release()


def test_what_has_ended_is_not_read_again_whenever_work_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, ended = Harness(tmp_path), list[Batch]()
    for tenant in ("one", "two"):
        first = harness.create(1, tenant)
        ended += [first, *(harness.create_again(first.input_file_id, tenant) for _ in range(9))]
    end_all(harness)
    harness.open()  # a gateway that has seen none of them
    reads = Reads(monkeypatch)
    assert harness.store.unfinished() == []
    assert reads.since() == 20
    assert harness.store.unfinished() == []
    assert reads.since() == 0
    # What has begun since then is found, whichever gateway began it, until it has ended as well.
    other = BatchStore(tmp_path / "batches", harness.files, 86_400, harness.clock)
    store, own = harness.store, harness.create(1, "one")
    assert reads.since() == 0  # to make one takes none of those that have ended
    harness.store = other
    harness.clock.now += 1
    begun = [own, harness.create_again(ended[10].input_file_id, "two")]
    harness.store = store
    reads.since()
    for _ in range(2):
        assert [batch.id for batch in store.unfinished()] == [batch.id for batch in begun]
        assert reads.since() == 2
    end_all(harness)
    assert store.unfinished() == []
    reads.since()
    assert store.unfinished() == []
    assert reads.since() == 0


def test_a_page_of_batches_reads_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(tmp_path)
    made = [harness.create(1)]
    for _ in range(19):
        harness.clock.now += 1
        made.insert(0, harness.create_again(made[0].input_file_id))
    reads = Reads(monkeypatch)
    shown, has_more = harness.store.page("t", "", 2)
    assert ([batch.id for batch in shown], has_more) == ([batch.id for batch in made[:2]], True)
    assert reads.since() == 3  # one tells whether there are more
    shown, has_more = harness.store.page("t", made[17].id, 2)
    assert ([batch.id for batch in shown], has_more) == ([batch.id for batch in made[18:]], False)
    assert reads.since() == 2
    # It may be forgotten by now.
    shutil.rmtree(next(tmp_path.glob(f"batches/*/{made[17].id}")))
    shown, has_more = harness.store.page("t", made[17].id, 2)
    assert ([batch.id for batch in shown], has_more) == ([batch.id for batch in made[18:]], False)
    for wrong in ("../x", "batch_", "file-" + "0" * 24):
        with pytest.raises(InvalidRequestError, match="`after` names nothing"):
            harness.store.page("t", wrong, 2)


def test_a_request_that_is_repeated_finds_its_batch_whether_it_has_ended_or_not(
    tmp_path: Path,
) -> None:
    harness = Harness(tmp_path)
    first = harness.create_again(harness.create(1).input_file_id, made_id="made-1")
    assert harness.create_again(first.input_file_id, made_id="made-1").id == first.id
    end_all(harness)
    for _ in range(2):
        again = harness.create_again(first.input_file_id, made_id="made-1")
        assert (again.id, again.status) == (first.id, "completed")
    assert harness.create_again(first.input_file_id, made_id="made-2").id != first.id


def test_a_batch_that_can_not_be_read_for_a_moment_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever polls it takes a 404 for its end, and one that is not seen would be made again."""
    harness = Harness(tmp_path)
    first = harness.create(1)
    batch = harness.create_again(first.input_file_id, made_id="made-1")
    file_id, has_read = first.input_file_id, Path.read_bytes

    def fails(path: Path) -> bytes:
        if path.name == "batch.json":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return has_read(path)

    store = BatchStore(tmp_path / "batches", harness.files, 86_400, harness.clock)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fails)
        calls: list[Callable[[], object]] = [
            lambda: store.find("t", batch.id),
            lambda: store.page("t", "", 10),
            lambda: store.cancel("t", batch.id),
            lambda: harness.create_again(file_id, made_id="made-1"),
            lambda: store.claim("t", batch.id),
        ]
        for call in calls:
            with pytest.raises(OSError, match="Too many open files"):
                call()
        assert store.unfinished() == []  # it costs those that can be read nothing
        assert store.sweep() == 0
    assert harness.create_again(file_id, made_id="made-1").id == batch.id
    claim = store.claim("t", batch.id)
    assert claim is not None  # nothing holds its lock
    claim.release()


async def test_a_batch_is_cancelling_from_then_on_and_ends_before_others_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may wait for its place for minutes, while nobody works on it."""
    monkeypatch.setattr("gateway.batches.runner.MAX_OPEN_A_TENANT", 1)
    harness = Harness(tmp_path)
    first = harness.create(1)
    harness.clock.now += 1
    last = harness.create_again(first.input_file_id)
    harness.clock.now += 7
    told = harness.store.cancel("t", last.id)
    harness.clock.now += 60
    (shown,) = [one for one in harness.store.page("t", "", 10)[0] if one.id == last.id]
    for batch in (
        told,
        harness.store.find("t", last.id),
        shown,
        harness.store.cancel("t", last.id),
    ):
        assert (batch.status, batch.stamps["cancelling_at"]) == ("cancelling", 1_000_008)
    # Those that are to end take no time of others.
    ended = await harness.until_ended(last)
    assert (ended["status"], ended["cancelling_at"]) == ("cancelled", 1_000_008)
    assert harness.asked == []


def test_what_a_kill_left_of_a_batch_is_swept(tmp_path: Path) -> None:
    """It holds its input, and no list shows it."""
    harness = Harness(tmp_path)
    batch = harness.create(1)
    (folder,) = tmp_path.glob(f"batches/*/{batch.id}")
    left, young, unreadable = (folder.with_name(f"batch_{digit * 24}") for digit in "123")
    for one in (left, young, unreadable):
        one.mkdir()
        os.link(folder / "input.jsonl", one / "input.jsonl")
    (unreadable / "batch.json").write_text('{"of": "another release"}')
    for one, age_s in ((left, 90_000), (young, 80_000), (unreadable, 90_000)):
        os.utime(one, (harness.clock.now - age_s,) * 2)
    assert harness.store.sweep() == 1
    assert [one.exists() for one in (left, young, unreadable, folder)] == [False, True, True, True]
    other = harness.create(1, "other")
    (theirs,) = tmp_path.glob(f"batches/*/{other.id}")
    shutil.rmtree(theirs)
    harness.store.sweep()
    assert not theirs.parent.exists()  # each is looked into again and again


def test_beyond_the_bound_the_oldest_that_have_ended_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.batches.store.MAX_BATCHES", 3)
    harness = Harness(tmp_path)
    made = [harness.create(1)]
    for number in range(5):
        if number < 3:
            end_all(harness)
        harness.clock.now += 1
        made.append(harness.create_again(made[0].input_file_id))
    kept = harness.store.page("t", "", 10)[0]
    # Of those that haven't ended none is forgotten.
    assert [batch.id for batch in kept] == [batch.id for batch in made[:2:-1]]
