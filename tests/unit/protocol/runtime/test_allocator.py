"""What was large and is freed is the system's again, whatever small things were made meanwhile."""

import os
import subprocess
import sys
import threading

import pytest

from protocol.runtime import allocator
from protocol.runtime.allocator import (
    ENOUGH_BYTES,
    Heap,
    HeapKeeper,
    HeapTrimmer,
    return_large_blocks,
    trim_in_background,
)
from protocol.runtime.large_pages import LargePages, Stretch

_PROGRAM = """
import os
import sys
from pathlib import Path
from protocol.runtime.allocator import return_large_blocks

def resident_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

if sys.argv[1] == "told" and not return_large_blocks({}):
    sys.exit(3)
del_me = bytes(24 * 2**20)  # the allocator learns from this one
del del_me
before = resident_mb()
blocks = []
small = []
for _ in range(64):
    blocks.append(b"x" * 2**20)
    small.append(b"y" * 2000)
del blocks
print(resident_mb() - before)
"""


def megabytes_kept(how: str) -> float:
    environ = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    command = [sys.executable, "-c", _PROGRAM, how]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode == 3:
        pytest.skip("this C library can't be told")
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_blocks_go_back_to_the_system() -> None:
    assert megabytes_kept("told") < 8


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_somebody_told_the_allocator_counts(name: str) -> None:
    assert not return_large_blocks({name: "1"})


class _Process:
    """One whose heap a test changes."""

    def __init__(self) -> None:
        self.resident = 10 * ENOUGH_BYTES
        self.used = 8 * ENOUGH_BYTES
        self.num_trims = 0

    def measure(self) -> Heap:
        return Heap(self.resident, self.used)

    def trim(self) -> None:
        self.num_trims += 1
        self.resident = self.used


def trimmed_after_the_start(process: _Process) -> HeapTrimmer:
    trimmer = HeapTrimmer(process.measure, process.trim)
    for _ in range(3):
        trimmer.look()
    assert process.num_trims == 2  # what the start has left, and once more
    process.num_trims = 0
    return trimmer


def test_a_heap_is_trimmed_twice_when_the_process_has_grown_since_the_last_time() -> None:
    process = _Process()
    trimmer = trimmed_after_the_start(process)
    process.resident += ENOUGH_BYTES
    trimmer.look()
    assert process.num_trims == 0
    process.resident += 1
    for _ in range(3):
        trimmer.look()
    assert process.num_trims == 2


def test_a_heap_is_trimmed_when_much_of_it_was_freed_though_the_process_is_as_large() -> None:
    process = _Process()
    trimmer = trimmed_after_the_start(process)
    process.used -= ENOUGH_BYTES
    trimmer.look()
    assert process.num_trims == 0
    process.used -= 1
    trimmer.look()
    assert process.num_trims == 1


def test_what_went_away_by_itself_counts_as_growth_when_it_comes_again() -> None:
    process = _Process()
    trimmer = trimmed_after_the_start(process)
    process.resident -= 2 * ENOUGH_BYTES
    trimmer.look()
    process.resident += ENOUGH_BYTES + 1
    trimmer.look()
    assert process.num_trims == 1


def test_where_the_heap_cannot_be_measured_nothing_is_trimmed() -> None:
    process = _Process()
    HeapTrimmer(lambda: None, process.trim).look()
    assert process.num_trims == 0


def test_a_large_process_is_trimmed_for_a_change_that_is_large_to_it() -> None:
    process = _Process()
    process.resident *= 100
    process.used *= 100
    trimmer = trimmed_after_the_start(process)
    process.resident += 10 * ENOUGH_BYTES
    trimmer.look()
    assert process.num_trims == 0
    process.resident += 30 * ENOUGH_BYTES
    trimmer.look()
    assert process.num_trims == 1


def test_what_a_look_raises_ends_no_further_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(allocator, "TRIM_INTERVAL_S", 0.0)
    looks: list[None] = []
    again = threading.Event()

    class Trimmer(HeapTrimmer):
        def look(self) -> bool:
            looks.append(None)
            if len(looks) == 1:
                raise OSError("no memory to measure")
            again.set()
            threading.Event().wait()  # the thread ends with the process
            return False

    trim_in_background(Trimmer())
    assert again.wait(60)
    assert "no memory to measure" in caplog.text


def test_what_is_in_use_is_looked_at_after_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "TRIM_INTERVAL_S", 0.0)
    looks: list[str] = []
    both = threading.Event()

    class Trimmer(HeapTrimmer):
        def look(self) -> bool:
            looks.append("free")
            return False

    class Pages(LargePages):
        def look(self) -> bool:
            looks.append("in use")
            both.set()
            threading.Event().wait()  # the thread ends with the process
            return False

    trim_in_background(Trimmer(), Pages())
    assert both.wait(60)
    assert looks == ["free", "in use"]


def test_large_pages_wait_until_nothing_is_given_back_and_are_not_given_back_themselves() -> None:
    process = _Process()
    trimmer = trimmed_after_the_start(process)
    collapsed: list[int] = []

    def collapse(stretch: Stretch) -> None:
        collapsed.append(stretch.begin)
        process.resident += 3 * ENOUGH_BYTES  # holes are filled

    pages = LargePages(lambda: process.resident, lambda: [Stretch(7, 1)], collapse)
    keeper = HeapKeeper(trimmer, pages)
    keeper.look()
    assert (collapsed, process.num_trims) == ([7], 0)
    for _ in range(3):
        keeper.look()
    assert (collapsed, process.num_trims) == ([7], 0)
    process.resident += 3 * ENOUGH_BYTES
    keeper.look()
    keeper.look()
    assert (collapsed, process.num_trims) == ([7], 2)
    keeper.look()
    process.resident += ENOUGH_BYTES
    process.used += ENOUGH_BYTES
    keeper.look()
    assert (collapsed, process.num_trims) == ([7, 7], 2)


_SMALL_PIECES = """
from protocol.runtime import allocator
trimmer = allocator.HeapTrimmer()
pieces = [b"x" * 5000 for _ in range(10_000)]
kept = pieces[::1000] + [pieces[-1]]
before = allocator._measure()
if before is None:
    raise SystemExit(3)
del pieces
trimmer.look()
print((before.resident_bytes - allocator._measure().resident_bytes) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_small_pieces_that_were_freed_below_one_that_stays_go_back() -> None:
    command = [sys.executable, "-c", _SMALL_PIECES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("this C library can't be told")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 30
