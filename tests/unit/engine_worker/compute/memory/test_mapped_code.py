"""Code of large libraries is let go, and runs on."""

import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from engine_worker.compute.memory.mapped_code import large_code, release_library_code


def mapping(begin: int, access: str, path: str, *, rss_kb: int, anonymous_kb: int = 0) -> str:
    """One of `/proc/self/smaps`, of 16 MiB."""
    return (
        f"{begin:x}-{begin + 2**24:x} {access} 00000000 fe:01 123456      {path}\n"
        "Size:              16384 kB\n"
        f"Rss:               {rss_kb} kB\n"
        f"Pss:               {rss_kb} kB\n"
        f"Anonymous:         {anonymous_kb} kB\n"
        "THPeligible:           0\n"
        "VmFlags: rd ex mr mw me\n"
    )


def test_only_code_that_is_as_in_its_file_and_of_which_much_is_mapped_is_let_go() -> None:
    library = "/usr/lib/python3/lib with blanks/libjax_common.so"
    smaps = "".join(
        (
            mapping(1 << 24, "r-xp", "/opt/libxla.so.1.2", rss_kb=9000),
            mapping(2 << 24, "r--p", "/opt/libxla.so.1.2", rss_kb=9000),
            mapping(3 << 24, "rw-p", "/opt/libxla.so.1.2", rss_kb=9000),
            mapping(4 << 24, "r-xp", "/opt/libxla.so.1.2", rss_kb=9000, anonymous_kb=4),
            mapping(5 << 24, "r-xp", "/opt/small.so", rss_kb=100),
            mapping(6 << 24, "r-xp", "/usr/bin/python3.11", rss_kb=9000),
            mapping(7 << 24, "r-xp", "/opt/libxla.so (deleted)", rss_kb=9000),
            mapping(8 << 24, "r-xp", "", rss_kb=9000),
            mapping(9 << 24, "r-xp", library, rss_kb=4096),
        )
    )
    found = list(large_code(smaps.splitlines()))
    assert found == [(1 << 24, 2 << 24, 9000 << 10), (9 << 24, 10 << 24, 4096 << 10)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_let_go_runs_on_and_takes_less() -> None:
    def mapped() -> int:
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
        return sum(size for _, _, size in large_code(smaps.splitlines()))

    assert int(jnp.arange(5).sum()) == 10
    before = mapped()
    assert release_library_code() >= before // 2 > 0
    assert mapped() < before // 2
    assert int(jnp.arange(6).sum()) == 15
