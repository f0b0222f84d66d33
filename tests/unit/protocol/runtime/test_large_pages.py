"""What a process holds lies in large pages once it is looked at, and nothing else does."""

import subprocess
import sys
from pathlib import Path

import pytest

from protocol.runtime.large_pages import (
    ENOUGH_BYTES,
    LargePages,
    Stretch,
    dense_stretches,
    large_page_bytes,
)

_MIB = 2**20


def mapping(begin: int, end: int, used_kib: int, *, rest: str = "rw-p 00000000 00:00 0") -> str:
    """A mapping as `/proc/self/smaps` tells of it."""
    size_kib = (end - begin) // 1024
    return f"{begin:012x}-{end:012x} {rest}\nSize: {size_kib} kB\nRss: {used_kib} kB\n"


def found(*mappings: str) -> list[Stretch]:
    return list(dense_stretches("".join(mappings).splitlines(), 2 * _MIB))


def test_what_is_nearly_all_in_use_is_found_by_whole_large_pages() -> None:
    begin = 0x7F0000000000
    assert found(mapping(begin + 4096, begin + 9 * _MIB, 8 * 1024)) == [
        Stretch(begin + 2 * _MIB, 6 * _MIB)
    ]


def test_the_heap_of_the_c_library_is_found_too() -> None:
    heap = "rw-p 00000000 00:00 0                          [heap]"
    assert found(mapping(4 * _MIB, 8 * _MIB, 4096, rest=heap)) == [Stretch(4 * _MIB, 4 * _MIB)]


@pytest.mark.parametrize(
    "rest",
    [
        "---p 00000000 00:00 0",
        "r--p 00000000 00:00 0",
        "rw-s 00000000 00:00 0",
        "rw-p 00002000 fe:00 26933   /usr/lib/libpython3.11.so.1.0",
        "rw-p 00000000 00:00 0   [stack]",
    ],
)
def test_what_is_not_the_heap_of_the_process_is_passed_over(rest: str) -> None:
    assert not found(mapping(4 * _MIB, 8 * _MIB, 4096, rest=rest))


def test_a_stack_of_which_little_is_in_use_is_passed_over() -> None:
    assert not found(mapping(4 * _MIB, 12 * _MIB, 16))
    assert not found(mapping(4 * _MIB, 8 * _MIB, 3071))
    assert found(mapping(4 * _MIB, 8 * _MIB, 3072))


def test_what_holds_no_whole_large_page_is_passed_over() -> None:
    assert not found(mapping(5 * _MIB, 7 * _MIB, 2048))


class _Process:
    """One whose memory a test changes."""

    def __init__(self) -> None:
        self.resident: int | None = 10 * ENOUGH_BYTES
        self.collapsed: list[Stretch] = []

    def large_pages(self) -> LargePages:
        stretches = [Stretch(0, 2 * _MIB), Stretch(8 * _MIB, 4 * _MIB)]
        return LargePages(
            lambda: self.resident, lambda: stretches, lambda stretch: self.collapsed.append(stretch)
        )


def test_a_process_is_looked_at_once_and_again_when_it_has_grown() -> None:
    process = _Process()
    pages = process.large_pages()
    pages.look()
    assert len(process.collapsed) == 2
    assert process.resident is not None
    process.resident += ENOUGH_BYTES - 1
    pages.look()
    assert len(process.collapsed) == 2
    process.resident += 1
    pages.look()
    assert len(process.collapsed) == 4


def test_what_was_given_back_meanwhile_counts_as_growth_when_it_comes_again() -> None:
    process = _Process()
    pages = process.large_pages()
    pages.look()
    assert process.resident is not None
    process.resident -= ENOUGH_BYTES
    pages.look()
    process.resident += ENOUGH_BYTES
    pages.look()
    assert len(process.collapsed) == 4


def test_where_memory_cannot_be_measured_nothing_is_done() -> None:
    process = _Process()
    process.resident = None
    process.large_pages().look()
    assert not process.collapsed


@pytest.mark.parametrize(
    ("enabled", "num_bytes"),
    [
        ("always [madvise] never", 2 * _MIB),
        ("[always] madvise never", 2 * _MIB),
        ("always madvise [never]", 0),
    ],
)
def test_an_administrator_who_wants_no_large_pages_gets_none(
    tmp_path: Path, enabled: str, num_bytes: int
) -> None:
    (tmp_path / "enabled").write_text(f"{enabled}\n")
    (tmp_path / "hpage_pmd_size").write_text(f"{2 * _MIB}\n")
    assert large_page_bytes(tmp_path) == num_bytes


def test_a_system_without_large_pages_has_none(tmp_path: Path) -> None:
    assert large_page_bytes(tmp_path) == 0


_PROGRAM = """
import sys
from pathlib import Path
from protocol.runtime import large_pages

def in_large_pages():
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(3)

failed = []

def collapse(stretch):
    if large_pages._madvise()(stretch.begin, stretch.num_bytes, 25):
        failed.append(stretch)

held = [str(number) * 8 for number in range(600_000)]
before = in_large_pages()
large_pages.LargePages(collapse=collapse).look()
if failed or not large_pages.large_page_bytes():
    raise SystemExit(3)  # an old kernel, or no memory that lies together
print(in_large_pages() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_objects_that_stay_lie_in_large_pages_after_a_look() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False
    )
    if done.returncode == 3:
        pytest.skip("this system makes no large pages")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 16 * _MIB
