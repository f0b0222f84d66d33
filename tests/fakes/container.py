"""A file system in which a container finds its limits."""

from pathlib import Path


def v2_container(root: Path, *, limit_bytes: int, used_bytes: int) -> None:
    """Writes the files of a group of version 2 whose folder is mounted as the topmost one."""
    mount = "30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw"
    contents = {
        "proc/self/cgroup": "0::/",
        "proc/self/mountinfo": mount,
        "sys/fs/cgroup/memory.max": str(limit_bytes),
        "sys/fs/cgroup/memory.current": str(used_bytes),
    }
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
