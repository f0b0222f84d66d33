"""Each example says how what it imports gets into the Python that it names."""

import ast
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.fakes.source_trees import tree_of

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
OURS = {path.parent.name for path in ROOT.glob("*/__init__.py")}
SERVED = set(
    re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements/serve.txt").read_text("utf-8"), re.M)
)
BROUGHT = {"mcp": {"httpx2"}, "openai-agents": {"openai"}}
"""What comes with a package that is installed."""


def imported(tree: ast.Module) -> set[str]:
    """The packages that a module imports, but for Python's own and ours."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - OURS


@cache
def installed() -> Mapping[str, list[str]]:
    """The packages of each module that can be imported here."""
    return packages_distributions()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_an_example_says_what_to_install_and_into_which_python(path: Path) -> None:
    tree = tree_of(path)
    text = ast.get_docstring(tree) or ""
    assert re.findall(r"(?<!\.venv/bin/)\bpip install", text) == []
    assert re.findall(r"(?<!\.venv/bin/)\b(?:python|penstock) (?=\S*[/.])", text) == []
    lines = re.findall(r"^ *\.venv/bin/pip install (.*)$", text, re.MULTILINE)
    said = {re.split(r"[<>=]", word.strip('"'))[0] for line in lines for word in line.split()}
    said |= {name for one in said for name in BROUGHT.get(one, ())}
    owners = installed()
    needed = {owners[name][0].lower().replace("_", "-") for name in imported(tree)}
    assert needed - SERVED - said == set()
