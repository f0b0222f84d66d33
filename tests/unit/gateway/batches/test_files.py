"""Files on disk: each tenant's own, bounded, and gone in time."""

from pathlib import Path

import pytest

from gateway.batches.files import FileBounds, FileStore, StoredFile
from gateway.errors import InvalidRequestError, ResourceNotFoundError


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def store_at(folder: Path, clock: Clock, **bounds: float) -> FileStore:
    values = {"max_files": 3, "max_bytes": 100, "max_file_bytes": 60, "max_age_s": 5000.0, **bounds}
    return FileStore(folder, FileBounds(**values), clock)  # type: ignore[arg-type]


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
    assert store.list("other") == []
    # Another process of the same folder finds it as well.
    assert store_at(tmp_path, Clock()).list("t") == [stored]


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
    assert store.list("t") == []
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
    assert store.list("t") == [long]
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
