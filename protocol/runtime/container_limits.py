"""What a process may use of its machine: memory and cores by its control groups, v2 and v1.

`/proc/meminfo` and the number of cores are the machine's, also within a container; whoever believes
them is killed by the kernel, or waits for its turn. Formats: https://docs.kernel.org/admin-guide/cgroup-v2.html
and https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

_ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True)
class _MemoryFiles:
    """Where one version of control groups says what.

    Attributes:
        controller: Name in `/proc/self/cgroup`; empty in version 2.
        limits: Files with one number each, the most that may be used.
        usage: File with what is used.
        inactive_file: Line of `memory.stat` with the file pages that nobody touched lately.
    """

    controller: str
    limits: tuple[str, ...]
    usage: str
    inactive_file: str


_MEMORY: Final = (
    _MemoryFiles("", ("memory.max", "memory.high"), "memory.current", "inactive_file"),
    _MemoryFiles(
        "memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"
    ),
)
_CORE_CONTROLLERS: Final = ("", "cpu")


@dataclass(slots=True)
class _Granted:
    """What this process was given of the cores that it could use; None is all of them."""

    num_cores: int | None = None


_granted: Final = _Granted()


def free_memory_bytes(machine_bytes: int, root: Path = _ROOT) -> int:
    """What this process may still take, bytes.

    Of every group that it is in, up to the outermost one that is seen from here, the limit less
    what is used; file pages that nobody touched lately count as free, as the kernel takes them
    back first.

    Args:
        machine_bytes: What is free on the machine.
        root: Of the file system; tests have their own.
    """
    free_bytes = machine_bytes
    for files in _MEMORY:
        for folder in _folders(files.controller, root):
            limits = [_number(folder / name) for name in files.limits]
            used = _number(folder / files.usage)
            limit = min((one for one in limits if one is not None), default=None)
            if limit is not None and used is not None:
                reclaimable = _field(folder / "memory.stat", files.inactive_file)
                free_bytes = min(free_bytes, limit - max(0, used - reclaimable))
    return max(0, free_bytes)


def num_usable_cores(root: Path = _ROOT, num_schedulable: Callable[[], int] | None = None) -> int:
    """How many cores this process is to keep busy.

    No more than it may run on, than its groups' share of time allows, and than it was granted.

    Args:
        root: As above.
        num_schedulable: Cores that this process may run on; asks the system when None.
    """
    share = math.inf
    for controller in _CORE_CONTROLLERS:
        for folder in _folders(controller, root):
            share = min(share, _core_share(folder))
    num_cores = (num_schedulable or num_schedulable_cores)()
    if _granted.num_cores is not None:
        num_cores = min(num_cores, _granted.num_cores)
    return max(1, min(num_cores, math.ceil(share) if share < math.inf else num_cores))


def grant_cores(num_cores: int | None) -> None:
    """Leaves the other cores to processes beside this one; the system doesn't hold it to that.

    Args:
        num_cores: The most that `num_usable_cores` says from now on; None is no such limit.
    """
    _granted.num_cores = num_cores


def shares_of_cores(num_cores: int, num_processes: int) -> list[int]:
    """The cores of each of some processes; where there are fewer cores, one each."""
    each, rest = divmod(num_cores, num_processes)
    return [max(1, each + (index < rest)) for index in range(num_processes)]


def num_schedulable_cores() -> int:
    """How many cores this process may run on, whatever its share of their time."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the groups that this process is in, the innermost first."""
    own, mount = _own_group(controller, root), _mount(controller, root)
    if own is None or mount is None:
        return
    top, shown = mount
    # In a container without a name space of its own, paths are the host's and only the end of them
    # is mounted; if not even that fits, the mounted folder is the container's own group.
    folder = top / own.relative_to(shown) if own.is_relative_to(shown) else top
    while True:
        yield folder
        if folder == top:
            return
        folder = folder.parent


def _own_group(controller: str, root: Path) -> PurePosixPath | None:
    """The path of this process's group, of `/proc/self/cgroup`."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller in controllers.split(","):
            # Outside of what its name space shows a path climbs: then what is mounted counts.
            return PurePosixPath("/" if ".." in path else path)
    return None


def _mount(controller: str, root: Path) -> tuple[Path, PurePosixPath] | None:
    """Where the groups are mounted, and which of them is the mounted folder itself."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        kind, options = kinds[0], kinds[2].split(",")
        if kind == ("cgroup" if controller else "cgroup2") and (
            not controller or controller in options
        ):
            return root / fields[4].lstrip("/"), PurePosixPath(fields[3])
    return None


def _core_share(folder: Path) -> float:
    """Cores' worth of time that a group gets; infinite without a limit."""
    words = " ".join(_lines(folder / "cpu.max")).split()
    if not words:
        words = [str(_number(folder / f"cpu.cfs_{name}_us") or -1) for name in ("quota", "period")]
    if len(words) != 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        return math.inf
    return int(words[0]) / int(words[1])


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none, or `max`."""
    text = " ".join(_lines(file)).strip()
    return int(text) if text.isdecimal() else None


def _field(file: Path, name: str) -> int:
    """A number of a file of names and numbers; 0 where it is missing."""
    for line in _lines(file):
        words = line.split()
        if len(words) == 2 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return 0


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
