"""Limits of containers in trees of files as the kernel shows them."""

from pathlib import Path

import pytest

from protocol.runtime.container_limits import (
    free_memory_bytes,
    grant_cores,
    num_usable_cores,
    shares_of_cores,
)

GIB = 2**30
MACHINE = 64 * GIB
V2_MOUNT = "30 23 0:26 {shown} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate"
V1_MOUNT = "{n} 31 0:3{n} {shown} /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}"


def machine(root: Path, *, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A file system with control groups."""
    contents = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    return root


def v2(root: Path, files: dict[str, str], *, group: str = "/", shown: str = "/") -> Path:
    return machine(
        root,
        groups=f"0::{group}",
        mounts=V2_MOUNT.format(shown=shown),
        files={f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    )


def v1(root: Path, files: dict[str, str], *, group: str = "/", shown: str = "/") -> Path:
    return machine(
        root,
        groups=f"5:cpu,cpuacct:{group}\n4:memory:{group}\n0::/",
        mounts="\n".join(
            V1_MOUNT.format(n=n, name=name, shown=shown) for n, name in enumerate(("memory", "cpu"))
        ),
        files={f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    )


def test_a_machine_without_groups_or_limits_gives_what_is_free_on_it(tmp_path: Path) -> None:
    assert free_memory_bytes(MACHINE, tmp_path / "nothing") == MACHINE
    unlimited = {"memory.max": "max", "memory.high": "max", "memory.current": "5"}
    assert free_memory_bytes(MACHINE, v2(tmp_path, unlimited)) == MACHINE


def test_a_v2_container_gives_its_limit_less_what_it_uses(tmp_path: Path) -> None:
    files = {
        "memory.max": str(4 * GIB),
        "memory.high": "max",
        "memory.current": str(3 * GIB),
        "memory.stat": f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB}",
    }
    assert free_memory_bytes(MACHINE, v2(tmp_path, files)) == 2 * GIB


def test_the_machine_may_have_less_than_the_limit(tmp_path: Path) -> None:
    files = {"memory.max": str(4 * GIB), "memory.current": "0"}
    assert free_memory_bytes(GIB, v2(tmp_path, files)) == GIB


def test_a_soft_limit_counts_because_beyond_it_everything_slows_down(tmp_path: Path) -> None:
    files = {"memory.max": "max", "memory.high": str(2 * GIB), "memory.current": str(GIB)}
    assert free_memory_bytes(MACHINE, v2(tmp_path, files)) == GIB


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    """As in a pod, whose limit stands above that of its container."""
    files = {
        "pod/memory.max": str(3 * GIB),
        "pod/memory.current": str(2 * GIB),
        "pod/engine/memory.max": str(8 * GIB),
        "pod/engine/memory.current": str(GIB),
    }
    assert free_memory_bytes(MACHINE, v2(tmp_path, files, group="/pod/engine")) == GIB


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    files = {"memory.max": str(GIB), "memory.current": str(2 * GIB)}
    assert free_memory_bytes(MACHINE, v2(tmp_path, files)) == 0


def test_a_v1_container_gives_its_limit_less_what_it_uses(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": str(4 * GIB),
        "memory/memory.usage_in_bytes": str(3 * GIB),
        "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}",
    }
    assert free_memory_bytes(MACHINE, v1(tmp_path, files)) == 2 * GIB


def test_a_v1_limit_that_is_none_is_a_very_large_number(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": str(3 * GIB),
    }
    assert free_memory_bytes(MACHINE, v1(tmp_path, files)) == MACHINE


@pytest.mark.parametrize("shown", ["/docker/abc", "/docker"])
def test_paths_of_the_host_are_found_below_what_is_mounted(tmp_path: Path, shown: str) -> None:
    """A container without a name space of its own sees the host's path of its group."""
    inner = "" if shown == "/docker/abc" else "abc/"
    files = {
        f"memory/{inner}memory.limit_in_bytes": str(4 * GIB),
        f"memory/{inner}memory.usage_in_bytes": str(GIB),
    }
    root = v1(tmp_path, files, group="/docker/abc", shown=shown)
    assert free_memory_bytes(MACHINE, root) == 3 * GIB


@pytest.mark.parametrize("group", ["/../other", "/elsewhere"])
def test_a_path_that_is_not_mounted_leaves_the_mounted_group(tmp_path: Path, group: str) -> None:
    files = {"memory.max": str(2 * GIB), "memory.current": str(GIB)}
    root = v2(tmp_path, files, group=group, shown="/" if ".." in group else "/pod")
    assert free_memory_bytes(MACHINE, root) == GIB


def test_files_that_make_no_sense_limit_nothing(tmp_path: Path) -> None:
    files = {"memory.max": "much", "memory.current": "", "cpu.max": "a lot"}
    root = v2(tmp_path, files)
    assert free_memory_bytes(MACHINE, root) == MACHINE
    assert num_usable_cores(root, lambda: 8) == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("0 100000", 8),
    ],
)
def test_cores_are_those_it_may_run_on_and_no_more_than_its_share(
    tmp_path: Path, text: str, expected: int
) -> None:
    assert num_usable_cores(v2(tmp_path, {"cpu.max": text}), lambda: 8) == expected


def test_the_tightest_share_of_cores_above_counts(tmp_path: Path) -> None:
    files = {"pod/cpu.max": "300000 100000", "pod/engine/cpu.max": "max 100000"}
    assert num_usable_cores(v2(tmp_path, files, group="/pod/engine"), lambda: 8) == 3


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("150000", 2)])
def test_a_v1_share_of_cores_counts(tmp_path: Path, quota: str, expected: int) -> None:
    files = {"cpu/cpu.cfs_quota_us": quota, "cpu/cpu.cfs_period_us": "100000"}
    assert num_usable_cores(v1(tmp_path, files), lambda: 8) == expected


def test_a_process_takes_no_more_cores_than_it_was_granted(tmp_path: Path) -> None:
    root = v2(tmp_path, {"cpu.max": "300000 100000"})
    try:
        for granted, expected in ((2, 2), (5, 3), (None, 3)):
            grant_cores(granted)
            assert num_usable_cores(root, lambda: 8) == expected
    finally:
        grant_cores(None)


@pytest.mark.parametrize(
    ("num_cores", "num_processes", "expected"),
    [(8, 1, [8]), (8, 3, [3, 3, 2]), (2, 3, [1, 1, 1]), (4, 2, [2, 2])],
)
def test_cores_are_divided_and_nobody_is_left_without(
    num_cores: int, num_processes: int, expected: list[int]
) -> None:
    assert shares_of_cores(num_cores, num_processes) == expected


def test_this_very_machine_has_some_of_both() -> None:
    assert 0 < free_memory_bytes(MACHINE) <= MACHINE
    assert num_usable_cores() >= 1
