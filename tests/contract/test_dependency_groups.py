"""`project.dependencies` is the union of what the processes declare in their groups."""

import tomllib
from pathlib import Path
from typing import Any

PROCESSES = ("protocol", "gateway", "engine", "auth", "toolparser", "cli")


def expand(groups: dict[str, list[Any]], name: str) -> set[str]:
    """A group's requirements, includes resolved."""
    found: set[str] = set()
    for entry in groups[name]:
        found |= expand(groups, entry["include-group"]) if isinstance(entry, dict) else {entry}
    return found


def test_the_wheel_depends_on_exactly_what_the_processes_need() -> None:
    path = Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    union = set().union(*(expand(groups, name) for name in PROCESSES))
    assert set(project["project"]["dependencies"]) == union
