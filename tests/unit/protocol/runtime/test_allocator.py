"""What was large and is freed is the system's again, whatever small things were made meanwhile."""

import os
import subprocess
import sys

import pytest

from protocol.runtime.allocator import return_large_blocks

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
