"""What no release note of another project covers is used only under a pin of its minor version.

A minor release may change or drop a private interface, and then the server would not start. The
pin makes that a change of pyproject.toml, which the tests of what uses it see first.
"""

import ast
import re
from pathlib import Path

from packaging.requirements import Requirement

from tests.contract.test_dependency_groups import pyproject
from tests.fakes.source_trees import tree_of

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocol", "gateway", "engine_worker", "auth_worker", "toolparser_worker", "penstock")
UNDOCUMENTED = {
    "uvicorn.protocols": "gateway/http/connections/http_protocol.py derives from its HTTP protocol"
}
"""Public by name, but in no documentation of the project."""


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports from elsewhere."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def private_interfaces() -> set[str]:
    """Distributions of which something private is imported."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name in imported(path):
                top = name.split(".")[0]
                # `_typeshed` is never there at run time; `__future__` is Python's own.
                is_private = re.search(r"\._[a-z]", name) and top not in (*PACKAGES, "_typeshed")
                if is_private or any(name.startswith(f"{one}.") for one in UNDOCUMENTED):
                    found.add(top)
    return found


def test_a_private_interface_is_used_under_a_pin_of_the_minor_version() -> None:
    requirements = [Requirement(line) for line in pyproject()["project"]["dependencies"]]
    found = private_interfaces()
    assert "uvicorn" in found
    for distribution in found:
        (asked,) = [one for one in requirements if one.name == distribution]
        lowest = next(str(one.version) for one in asked.specifier if one.operator == ">=")
        major, minor = (int(part) for part in lowest.split(".")[:2])
        assert asked.specifier.contains(f"{major}.{minor}.999"), distribution
        assert not asked.specifier.contains(f"{major}.{minor + 1}.0"), distribution
