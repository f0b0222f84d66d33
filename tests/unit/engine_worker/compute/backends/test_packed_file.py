"""Files of packed weights: read as written, and refused when they are anything else."""

import errno
import fcntl
import os
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
import numpy.typing as npt
import pytest

from engine_worker.compute.backends import packed_file
from engine_worker.compute.backends.packed_file import (
    new_packed_file,
    read_packed,
    remove_abandoned,
)
from engine_worker.compute.backends.packing_plan import PartSpec
from engine_worker.errors import PackedFileBusyError, PackedFileError

ARRAYS: tuple[npt.NDArray[Any], ...] = (
    np.arange(35, dtype=np.uint8).reshape(5, 7),
    np.linspace(-1, 1, 9, dtype=np.float32),
    np.zeros((0,), np.float32),
    np.arange(2**16, dtype=np.int8),
)
PARTS = [PartSpec(array.shape, array.dtype) for array in ARRAYS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "new folder" / "model.packed"
    write(path)
    return path


def write(path: Path, key: str = "key", parts: list[PartSpec] = PARTS) -> None:
    with new_packed_file(path.with_suffix(".new"), parts) as file:
        for array in ARRAYS:
            file.write(array)
        file.finish(path, key)


def test_what_was_written_is_read_to_addresses_that_jax_takes_without_a_copy(path: Path) -> None:
    read = read_packed(path, "key", PARTS)
    for array, expected in zip(read, ARRAYS, strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype
    if jax.default_backend() == "cpu":
        # One behind the other, in one piece of memory: no copy of jax's own.
        places = [array.unsafe_buffer_pointer() for array in read]
        assert (places[1] - places[0], places[3] - places[0]) == (64, 128)


@pytest.mark.parametrize("kept_bytes", [0, 10, 40, 200, 1000])
def test_a_file_that_was_cut_short_is_refused(path: Path, kept_bytes: int) -> None:
    os.truncate(path, kept_bytes)
    with pytest.raises(PackedFileError, match=r"model\.packed"):
        read_packed(path, "key", PARTS)


def test_the_last_missing_byte_is_noticed_and_both_sizes_are_named(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(PackedFileError, match=f"cut short: it has {size - 1} bytes.*{size}"):
        read_packed(path, "key", PARTS)


def test_a_file_that_is_cut_while_it_is_read_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mapped, it ended the process."""
    read_header = packed_file._read_header

    def read_and_cut(stream: IO[bytes]) -> dict[str, Any]:
        header = read_header(stream)
        os.truncate(path, header["parts"][3]["offset"] + 2**15)
        return header

    monkeypatch.setattr(packed_file, "_check", lambda *_: None)
    monkeypatch.setattr(packed_file, "_read_header", read_and_cut)
    with pytest.raises(PackedFileError, match=r"model\.packed: it was cut short while it was read"):
        read_packed(path, "key", PARTS)


def test_a_file_of_other_weights_or_of_another_decoder_is_refused(path: Path) -> None:
    with pytest.raises(PackedFileError, match="other weights or by another version"):
        read_packed(path, "other key", PARTS)
    others = [PartSpec((5, 8), PARTS[0].dtype), *PARTS[1:]]
    with pytest.raises(PackedFileError, match="other arrays"):
        read_packed(path, "key", others)


@pytest.mark.parametrize("content", [b"", b"PENSTOCK PACKED9" + bytes(100), b"{}" * 100])
def test_a_file_that_is_none_of_ours_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(PackedFileError, match="not a file of packed weights"):
        read_packed(path, "key", PARTS)


def test_any_changed_byte_of_the_header_is_noticed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in (17, 30, 60, 120):
        broken = bytearray(content)
        broken[place] ^= 1
        path.write_bytes(broken)
        with pytest.raises(PackedFileError):
            read_packed(path, "key", PARTS)


def test_nothing_is_left_of_a_file_that_could_not_be_finished(tmp_path: Path) -> None:
    def fail_after_the_first() -> None:
        with new_packed_file(tmp_path / "model.new", PARTS) as file:
            file.write(ARRAYS[0])
            raise RuntimeError("out of weights")

    with pytest.raises(RuntimeError):
        fail_after_the_first()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_no_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_packed(tmp_path / "model.packed", "key", PARTS)


def test_a_file_larger_than_what_is_written_at_once_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_file, "_WRITTEN_BYTES", 2 * 4096)
    monkeypatch.setattr(packed_file, "_SYNCED_BYTES", 3 * 4096)
    asked: list[int] = []
    with new_packed_file(tmp_path / "model.new", PARTS, lambda: asked.append(len(asked))) as file:
        for array in ARRAYS:
            file.write(array)
        file.finish(tmp_path / "model.packed", "key")
    # Once for each of the small parts, none for the empty one, eight for the large one.
    assert len(asked) == 2 + 8
    read = read_packed(tmp_path / "model.packed", "key", PARTS)
    for found, expected in zip(read, ARRAYS, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_file_that_isnt_finished_has_no_header_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "model.packed"
    with new_packed_file(tmp_path / "model.new", PARTS) as file:
        for array in ARRAYS:
            file.write(array)
        # As if its writer were killed here, and somebody gave it the name.
        path.write_bytes((tmp_path / "model.new").read_bytes())
        with pytest.raises(PackedFileError, match="not a file of packed weights"):
            read_packed(path, "key", PARTS)
    assert list(tmp_path.iterdir()) == [path]


def test_one_writes_at_a_time_and_what_it_wrote_is_not_touched(tmp_path: Path) -> None:
    place, path = tmp_path / "model.new", tmp_path / "model.packed"
    with new_packed_file(place, PARTS) as first:
        with (
            pytest.raises(PackedFileBusyError, match="another process"),
            new_packed_file(place, PARTS),
        ):
            raise AssertionError("it is being written")
        for array in ARRAYS:
            first.write(array)
        first.finish(path, "key")
        # It has its own name now, and a next one has nothing to do with it.
        with new_packed_file(place, PARTS) as second:
            second.write(ARRAYS[0])
            assert len(read_packed(path, "key", PARTS)) == len(PARTS)
    assert list(tmp_path.iterdir()) == [path]
    assert len(read_packed(path, "key", PARTS)) == len(PARTS)


def test_a_file_that_got_its_name_between_opening_and_locking_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have been cut to nothing under its new name."""
    place, path = tmp_path / "model.new", tmp_path / "model.packed"
    lock, is_first = fcntl.flock, True

    def lock_late(stream: IO[bytes], operation: int) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            place.rename(path)
        lock(stream, operation)

    write(path)
    path.rename(place)
    monkeypatch.setattr(fcntl, "flock", lock_late)
    with new_packed_file(place, PARTS) as file:
        file.write(ARRAYS[0])
    assert len(read_packed(path, "key", PARTS)) == len(PARTS)


def test_without_locks_every_writer_has_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    place, path = tmp_path / "model.new", tmp_path / "model.packed"
    with new_packed_file(place, PARTS) as first, new_packed_file(place, PARTS) as second:
        for array in ARRAYS:
            first.write(array)
            second.write(array)
        first.finish(path, "key")
        second.finish(path, "key")
    assert len(read_packed(path, "key", PARTS)) == len(PARTS)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_stays(
    tmp_path: Path,
) -> None:
    left = tmp_path / "model [8B].packed.1.new"
    left.write_bytes(bytes(100))
    other = tmp_path / "other.packed.1.new"
    other.write_bytes(bytes(100))
    path = tmp_path / "model [8B].packed"
    with new_packed_file(tmp_path / "model [8B].new", PARTS) as file:
        remove_abandoned(tmp_path, "model [8B]")
        for array in ARRAYS:
            file.write(array)
        file.finish(path, "key")
    assert sorted(tmp_path.iterdir()) == sorted([path, other])
    assert len(read_packed(path, "key", PARTS)) == len(PARTS)
    remove_abandoned(tmp_path / "nowhere", "model")
