"""Each test that docs/measurements/faults.md names is there."""

import ast
import re
from functools import cache
from pathlib import Path

from tests.contract.test_imports import ROOT
from tests.fakes.source_trees import tree_of

_PAGE = ROOT / "docs/measurements/faults.md"
_NAMED = re.compile(r"`(tests/[\w/]+\.py)`|`(test_\w+)")


@cache
def names_in(path: Path) -> frozenset[str]:
    """The names of a file's tests."""
    nodes = ast.walk(tree_of(path))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return frozenset(node.name for node in nodes if isinstance(node, functions))


def test_every_test_that_the_page_names_is_in_its_file() -> None:
    missing, num_named, path = [], 0, Path()
    for match in _NAMED.finditer(_PAGE.read_text(encoding="utf-8")):
        if match[1]:
            path = ROOT / match[1]
            if not path.exists():
                missing.append(match[1])
        elif path.exists():
            num_named += 1
            if match[2] not in names_in(path):
                missing.append(f"{path.name}::{match[2]}")
    assert missing == []
    assert num_named > 500
