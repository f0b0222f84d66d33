"""Files on disk: each tenant's own, bounded, and gone in time."""

import errno
import json
import os
from pathlib import Path

import pytest

from gateway.batches import folders
from gateway.batches.files import FileBounds, FileStore, StoredFile
from gateway.errors import GatewayError, InvalidRequestError, ResourceNotFoundError


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def store_at(folder: Path, clock: Clock, **bounds: float) -> FileStore:
    values = {"max_files": 3, "max_bytes": 100, "max_file_bytes": 60, "max_age_s": 5000.0, **bounds}
    return FileStore(folder, FileBounds(**values), clock)  # type: ignore[arg-type]


def listed(store: FileStore, tenant: str = "t") -> list[StoredFile]:
    return store.page(tenant, "", "", 1000, newest_first=False)[0]


def put(
    store: FileStore, data: bytes = b"x", tenant: str = "t", lifetime_s: float | None = None
) -> StoredFile:
    file_id, path = store.begin(tenant)
    path.write_bytes(data)
    return store.finish(tenant, file_id, "a.jsonl", "batch", lifetime_s)


def test_a_file_is_found_by_its_tenant_alone(tmp_path: Path) -> None:
    store = store_at(tmp_path, Clock())
    stored = put(store, b"hello")
    assert store.find("t", stored.id) == stored
    assert store.content_path("t", stored.id).read_bytes() == b"hello"
    for call in (store.find, store.content_path, store.remove):
        with pytest.raises(ResourceNotFoundError):
            call("other", stored.id)
    assert listed(store, "other") == []
    # Another process of the same folder finds it as well.
    assert listed(store_at(tmp_path, Clock())) == [stored]


def test_a_file_that_can_not_be_read_for_a_moment_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(tmp_path, Clock())
    stored = put(store)
    with monkeypatch.context() as patch:

        def fails(_: Path) -> bytes:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        patch.setattr(Path, "read_bytes", fails)
        with pytest.raises(GatewayError, match="Too many open files") as caught:
            store.find("t", stored.id)
    assert not isinstance(caught.value, ResourceNotFoundError)
    assert store.find("t", stored.id) == stored


@pytest.mark.parametrize(
    "file_id",
    ["", "file-", "../x", "file-../../../etc/passwd", "file-" + "g" * 24, "batch_" + "0" * 24],
)
def test_what_is_no_id_is_no_path(tmp_path: Path, file_id: str) -> None:
    with pytest.raises(ResourceNotFoundError):
        store_at(tmp_path, Clock()).find("t", file_id)


def test_a_tenant_may_have_so_many_files_and_bytes(tmp_path: Path) -> None:
    store = store_at(tmp_path, Clock())
    put(store, b"x" * 60)
    with pytest.raises(InvalidRequestError, match="120"):
        put(store, b"x" * 60)
    put(store, b"x" * 40)
    with pytest.raises(InvalidRequestError, match="100"):
        put(store)
    put(store, tenant="other")
    small = store_at(tmp_path, Clock(), max_bytes=1000)
    put(small)
    with pytest.raises(InvalidRequestError, match="3 files"):
        put(small)


def test_an_upload_under_way_counts_and_one_that_never_ended_is_swept(tmp_path: Path) -> None:
    clock = Clock()
    store = store_at(tmp_path, clock)
    _, path = store.begin("t")
    path.write_bytes(b"x" * 100)
    with pytest.raises(InvalidRequestError):
        store.begin("t")
    assert listed(store) == []
    assert store.sweep() == 0
    clock.now = path.stat().st_mtime + 25 * 3600
    assert store.sweep() == 1
    assert not list(tmp_path.iterdir())


def test_a_file_ends_with_its_time_and_never_lives_longer_than_all(tmp_path: Path) -> None:
    clock = Clock()
    store = store_at(tmp_path, clock)
    short, long = put(store, lifetime_s=3600), put(store, lifetime_s=1e9)
    assert (short.expires_at, long.expires_at) == (1_003_600, 1_005_000)
    clock.now += 4000
    assert listed(store) == [long]
    with pytest.raises(ResourceNotFoundError):
        store.find("t", short.id)
    assert store.sweep() == 1
    clock.now += 4000
    assert store.sweep() == 1


def test_the_result_of_a_batch_is_kept_whatever_there_is_and_only_once(tmp_path: Path) -> None:
    store = store_at(tmp_path, Clock())
    put(store, b"x" * 60)
    file_id = "file-" + "0" * 24
    store.new_path("t", file_id).write_bytes(b"y" * 60)
    first = store.finish("t", file_id, "out", "batch_output", is_ours=True)
    again = store.finish("t", file_id, "other", "batch_output", is_ours=True)
    assert first == again
    assert first.filename == "out"


@pytest.mark.parametrize("change", [{"sha256": "of a later release"}, {"expires_at": None}, None])
def test_what_another_release_says_of_a_file_removes_nothing(
    tmp_path: Path, change: dict[str, object] | None
) -> None:
    clock = Clock()
    store = store_at(tmp_path, clock)
    stored = put(store, b"precious")
    path = store.content_path("t", stored.id)
    described = path.with_suffix(".json")
    told = json.loads(described.read_bytes())
    described.write_text(json.dumps({"version": 2} if change is None else told | change))
    os.utime(described, (clock.now, clock.now))
    is_known = change is not None and "sha256" in change
    assert listed(store) == ([stored] if is_known else [])
    assert store.sweep() == 0
    assert path.read_bytes() == b"precious"
    clock.now += 5000  # what it says doesn't matter any more
    assert store.sweep() == 1
    assert not list(tmp_path.iterdir())


def test_a_description_that_is_no_json_takes_its_file_along(tmp_path: Path) -> None:
    store = store_at(tmp_path, Clock())
    path = store.content_path("t", put(store).id)
    path.with_suffix(".json").write_bytes(b"\0" * 100)
    assert store.sweep() == 1
    assert not path.exists()


def test_a_page_reads_what_it_shows_and_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    store = store_at(tmp_path, clock, max_files=30)
    stored = []
    for _ in range(20):
        clock.now += 1
        stored.append(put(store))
    num_read = 0

    def read(path: Path) -> dict[str, object] | None:
        nonlocal num_read
        num_read += 1
        return folders.read_json(path)

    monkeypatch.setattr("gateway.batches.files.read_json", read)
    assert store.page("t", "", "", 2, newest_first=True) == (stored[:-3:-1], True)
    assert num_read == 3  # one tells whether there are more
    everything = (stored, False)
    for _ in range(3):
        assert store.page("t", "batch", "", 20, newest_first=False) == everything
    assert num_read == 20
    after = stored[16].id
    assert store.page("t", "", after, 20, newest_first=False) == (stored[17:], False)
    assert store.page("t", "evals", "", 20, newest_first=False) == ([], False)
    # Another process of the same folder removes one, and it is in no list any more.
    store_at(tmp_path, clock).remove("t", after)
    assert len(listed(store)) == 19
    for wrong in ("../x", "file-", "batch_" + "0" * 24):
        with pytest.raises(InvalidRequestError, match="`after` names nothing"):
            store.page("t", "", wrong, 20, newest_first=True)
    clock.now += 10_000
    assert listed(store) == []


@pytest.mark.parametrize("newest_first", [True, False])
def test_who_deletes_what_a_list_shows_goes_on_where_that_was(
    tmp_path: Path, newest_first: bool
) -> None:
    clock = Clock()
    store = store_at(tmp_path, clock, max_files=30)
    for _ in range(7):
        clock.now += 1
        put(store)
    left, after, num_pages = listed(store), "", 0
    while left:
        shown, has_more = store.page("t", "batch", after, 3, newest_first=newest_first)
        assert shown == (left[:-4:-1] if newest_first else left[:3])
        for one in shown:
            store.remove("t", one.id)
        after, left, num_pages = shown[-1].id, listed(store), num_pages + 1
        assert has_more == bool(left)
    assert num_pages == 3
