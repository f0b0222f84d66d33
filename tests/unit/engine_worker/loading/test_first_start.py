"""A first start: each byte read once, served from memory, and written for later starts behind it.

Nothing here waits for a time: what is written waits for events.
"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.weights import file_digests
from engine_worker.compute.weights.fingerprint import fingerprint
from engine_worker.loading.weights import load_for_backend
from engine_worker.loading.write_behind import WriteBehind
from tests.fakes.tiny_checkpoint import TINY_LLAMA, write_checkpoint

ROOT = Path(__file__).parents[4]
PATIENCE_S = 60.0


class Held(WriteBehind):
    """Stops at the first piece until it is let go, or cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = threading.Event()
        self._may_go_on = threading.Event()

    def let_go(self) -> None:
        self._may_go_on.set()
        assert self.wait(PATIENCE_S)

    def cancel(self) -> None:
        self._is_cancelled.set()
        self._may_go_on.set()
        super().cancel()

    def _check(self) -> None:
        self.has_begun.set()
        assert self._may_go_on.wait(PATIENCE_S)
        super()._check()


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digests, "_known", {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_checkpoint(folder, TINY_LLAMA)
    return folder


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.cancel()


def load(
    folder: Path, cache_dir: Path | None, behind: WriteBehind | None = None
) -> tuple[list[npt.NDArray[Any]], list[str]]:
    """The leaves, and what was told meanwhile."""
    told: list[str] = []
    backend = XlaBackend(declare(load_spec(folder), "float32"), "int8")
    decoder = load_for_backend(
        folder, backend, cache_dir, lambda done, text: told.append(text), None, behind
    )
    return [np.array(leaf) for leaf in decoder.leaves], told


def names(cache_dir: Path) -> list[str]:
    """Ends of the files that are there."""
    return sorted(path.suffix for path in cache_dir.iterdir() if path.is_file())


def assert_same(ours: list[npt.NDArray[Any]], theirs: list[npt.NDArray[Any]]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where hashing read, and how much."""
    found: list[tuple[int, int]] = []
    read = os.pread

    def pread(descriptor: int, size: int, start: int) -> bytes:
        data = read(descriptor, size, start)
        found.append((start, len(data)))
        return data

    monkeypatch.setattr(os, "pread", pread)
    return found


def test_every_byte_is_hashed_once_while_it_is_packed(
    folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole file was read before, and once more to pack it."""
    monkeypatch.setattr(file_digests, "_PIECE_BYTES", 1000)
    found = counted(monkeypatch)
    size = (folder / "model.safetensors").stat().st_size
    _, told = load(folder, cache_dir)
    assert sum(length for _, length in found) == size
    # Packing had begun: a hash of everything was not there before.
    assert told[0].startswith("packed ")
    fingerprint(folder, {}, cache_dir=cache_dir)
    load(folder, cache_dir)
    assert sum(length for _, length in found) == size


def test_hashing_follows_what_is_read_and_runs_only_a_little_ahead(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_PIECE_BYTES", 1000)
    found = counted(monkeypatch)
    file = folder / "model.safetensors"
    with file_digests.FileHashes((file,)) as hashes:
        hashes.want(file, 5500, 6500)
        for waiting in list(hashes._waiting):
            waiting.result()
        pieces = {start // 1000 for start, length in found if length}
        assert pieces == {5, 6, *range(7, 7 + file_digests._AHEAD)}
        hashes.finish(lambda done, name: None)
        digest = hashes.digest(file)
    with file_digests.FileHashes((file,)) as hashes:
        hashes.finish(lambda done, name: None)
        assert hashes.digest(file) == digest
    assert sum(length for _, length in found) == file.stat().st_size


def test_a_first_start_serves_from_memory_and_the_file_comes_behind(
    folder: Path, cache_dir: Path, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    """A start waited until as much again was written to the disk."""
    with caplog.at_level(logging.INFO):
        first, _ = load(folder, cache_dir, held)
        assert held.has_begun.wait(PATIENCE_S)
        assert names(cache_dir) == [".new"]
        held.let_go()
    assert names(cache_dir) == [".packed"]
    assert "for later starts, while the engine works" in caplog.text
    assert "are written: later starts read" in caplog.text
    again, told = load(folder, cache_dir, Held())
    assert told == []
    assert_same(again, first)
    assert_same(first, load(folder, None)[0])


def test_an_engine_that_stops_leaves_nothing_of_what_it_was_writing(
    folder: Path, cache_dir: Path, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        load(folder, cache_dir, held)
        assert held.has_begun.wait(PATIENCE_S)
        held.cancel()
    assert names(cache_dir) == []
    assert "not written, because the engine stops" in caplog.text
    assert held.wait(0)


def test_two_engines_that_start_together_write_one_file(
    folder: Path, cache_dir: Path, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = load(folder, cache_dir, held)
    assert held.has_begun.wait(PATIENCE_S)
    other = WriteBehind()
    with caplog.at_level(logging.INFO):
        second, told = load(folder, cache_dir, other)
        assert other.wait(PATIENCE_S)
    assert told
    assert "another process writes it" in caplog.text
    assert names(cache_dir) == [".new"]
    # One that would rather have written it stays in memory, too.
    third, _ = load(folder, cache_dir)
    held.let_go()
    assert names(cache_dir) == [".packed"]
    written = next(cache_dir.glob("*.packed")).stat()
    late = Held()
    load(folder, cache_dir, late)
    assert late.wait(0)
    assert next(cache_dir.glob("*.packed")).stat().st_mtime_ns == written.st_mtime_ns
    assert_same(second, first)
    assert_same(third, first)


def test_a_file_that_another_engine_finished_meanwhile_is_not_written_again(
    folder: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Late(WriteBehind):
        """Another engine is faster."""

        def start(self, what: str, write: Callable[[Callable[[], None]], None]) -> None:
            load(folder, cache_dir)
            super().start(what, write)

        def _check(self) -> None:
            raise AssertionError("it is there")

    late = Late()
    load(folder, cache_dir, late)
    assert late.wait(PATIENCE_S)
    assert "it is there" not in caplog.text
    assert names(cache_dir) == [".packed"]


def test_a_damaged_file_is_replaced_behind_too(folder: Path, cache_dir: Path) -> None:
    first, _ = load(folder, cache_dir)
    (file,) = cache_dir.glob("*.packed")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.chmod(0o600)
    file.write_bytes(content)
    behind = WriteBehind()
    second, told = load(folder, cache_dir, behind)
    assert behind.wait(PATIENCE_S)
    assert told
    assert_same(second, first)
    assert load(folder, cache_dir)[1] == []


def test_a_disk_that_is_full_is_told_and_costs_nothing_else(
    folder: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(WriteBehind):
        def _check(self) -> None:
            raise OSError(28, "No space left on device")

    full = Full()
    with caplog.at_level(logging.WARNING):
        leaves, _ = load(folder, cache_dir, full)
        assert full.wait(PATIENCE_S)
    assert f"can't be kept in {cache_dir} (No space left on device)" in caplog.text
    assert names(cache_dir) == []
    assert_same(leaves, load(folder, None)[0])


def test_what_writing_raises_is_told_and_ends_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: Callable[[], None]) -> None:
        raise RuntimeError("a bug")

    behind = WriteBehind()
    behind.start("the file", fail)
    assert behind.wait(PATIENCE_S)
    assert "the file: not written" in caplog.text
    assert "a bug" in caplog.text


KILLED = """
import sys, threading
from pathlib import Path
from tests.unit.engine_worker.loading.test_first_start import Held, load

held = Held()
load(Path(sys.argv[1]), Path(sys.argv[2]), held)
held.has_begun.wait()
print("writing", flush=True)
threading.Event().wait()
"""


def test_what_a_kill_leaves_of_a_file_is_trusted_by_no_later_start(
    folder: Path, cache_dir: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(cache_dir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        child.kill()
        child.wait()
    assert names(cache_dir) == [".new"]
    behind = WriteBehind()
    leaves, told = load(folder, cache_dir, behind)
    assert behind.wait(PATIENCE_S)
    assert any(text.startswith("packed ") for text in told)
    assert names(cache_dir) == [".packed"]
    assert_same(leaves, load(folder, None)[0])
    assert_same(leaves, load(folder, cache_dir)[0])


MEMORY = """
import sys
from pathlib import Path
import jax
from engine_worker.compute.memory.host_memory import trim_heap
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.loading.weights import load_for_backend
from engine_worker.loading.write_behind import WriteBehind

def resident(kind):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind + ":"):
            return int(line.split()[1]) * 1024

folder, cache_dir = map(Path, sys.argv[1:])
backend = XlaBackend(declare(load_spec(folder), "float32"), "int8")
jax.device_put(0).block_until_ready()
before, behind = resident("RssAnon"), WriteBehind()
decoder = load_for_backend(folder, backend, cache_dir, lambda *_: None, None, behind)
behind.wait()
trim_heap()
print(resident("RssAnon") - before, decoder.size_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_in_memory_once_at_the_first_start_and_later(
    tmp_path: Path, cache_dir: Path
) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    values = {"hidden_size": 1024, "intermediate_size": 2048, "vocab_size": 8192}
    write_checkpoint(folder, {**TINY_LLAMA, **values})

    def check() -> None:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(folder), str(cache_dir)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        taken, size = map(int, done.stdout.split())
        assert size > 20 * 2**20
        # And a little for threads, and for what the heap keeps.
        assert size * 0.9 < taken < size * 1.4
        assert names(cache_dir) == [".packed"]

    check()
    check()
