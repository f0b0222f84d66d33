"""A deployment that tests share lives from its first user to its last one."""

import ast
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import conftest, harness
from tests.e2e.harness import SharedDeployment
from tests.fakes.source_trees import tree_of

FOLDER = Path(__file__).parents[2] / "e2e"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def last_user(*names: str) -> str:
    """The last file with a test that takes one of these fixtures, and that does not define it."""
    users = []
    for path in FOLDER.glob("test_*.py"):
        functions = [one for one in tree_of(path).body if isinstance(one, FUNCTIONS)]
        taken = {
            argument.arg
            for function in functions
            if function.name.startswith("test_")
            for argument in function.args.args
        }
        if taken & set(names) - {function.name for function in functions}:
            users.append(f"tests/e2e/{path.name}")
    return max(users)


def test_each_is_kept_until_its_last_user() -> None:
    assert conftest.SHARED.last_user == last_user("harness", "client")
    assert conftest.MORTAL.last_user == last_user("mortal")
    assert conftest.LOCKED.last_user == last_user("locked")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to deployments."""
    told: list[str] = []

    def start(data_dir: Path, *_: Any) -> str:
        told.append(f"start {data_dir}")
        return str(data_dir)

    def stop(name: str) -> int:
        told.append(f"stop {name}")
        return 0

    monkeypatch.setattr(harness, "start_harness", start)
    monkeypatch.setattr(harness, "stop_harness", stop)
    return told


def test_it_is_started_once_and_stopped_when_nobody_may_come_any_more(told: list[str]) -> None:
    shared = SharedDeployment(last_user="tests/e2e/test_b.py")
    numbers = iter("123")

    def ask() -> None:
        shared.running(lambda: Path(next(numbers)), Path("cache"))

    shared.end_unless_wanted("tests/e2e/test_a.py::test_x")
    ask()
    shared.end_unless_wanted("tests/e2e/test_a.py::test_y")
    ask()
    shared.end_unless_wanted("tests/e2e/test_b.py::test_x")
    assert told == ["start 1"]
    shared.end_unless_wanted("tests/e2e/test_c.py::test_x")
    assert told == ["start 1", "stop 1"]
    ask()
    shared.end_unless_wanted("tests/integration/test_a.py::test_x")
    ask()
    shared.end_unless_wanted("")
    assert told[2:] == ["start 2", "stop 2", "start 3", "stop 3"]
