"""A deployment that tests share lives from its first user to its last one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import sharing
from tests.e2e.conftest import CHAIN, DEPLOYMENTS
from tests.e2e.sharing import SharedDeployment, files_by_fixture, in_order


@dataclass
class Test:
    """As pytest knows one."""

    __test__ = False

    nodeid: str
    fixturenames: tuple[str, ...] = ()


def test_files_that_share_a_deployment_follow_each_other() -> None:
    tests = [
        Test("tests/e2e/a.py::x", ("harness", "cache_dir")),
        Test("tests/e2e/b.py::x", ("locked",)),
        Test("tests/e2e/b.py::y", ("harness",)),
        Test("tests/e2e/c.py::x"),
        Test("tests/e2e/d.py::x", ("pair",)),
        Test("tests/e2e/e.py::x", ("pair", "harness")),
        Test("tests/e2e/f.py::x", ("locked",)),
        Test("tests/e2e/g.py::x", ("client", "harness")),
        Test("tests/e2e/g.py::y"),
    ]
    files = files_by_fixture(tests, DEPLOYMENTS)
    order = [test.nodeid.removeprefix("tests/e2e/") for test in in_order(tests, files, CHAIN)]
    assert order == [
        *("f.py::x", "b.py::x", "b.py::y", "a.py::x", "g.py::x", "g.py::y", "e.py::x"),
        *("d.py::x", "c.py::x"),
    ]


def test_each_deployment_has_its_place_in_the_order() -> None:
    """Its users follow each other: what they share with others comes right before or after."""
    for name in DEPLOYMENTS:
        places = [place for place, shared in enumerate(CHAIN) if name in shared]
        assert places
        assert places == list(range(places[0], places[-1] + 1))


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

    monkeypatch.setattr(sharing, "start_harness", start)
    monkeypatch.setattr(sharing, "stop_harness", stop)
    return told


def test_it_is_started_once_and_stopped_when_nobody_may_come_any_more(told: list[str]) -> None:
    shared = SharedDeployment()
    shared.users = frozenset({"tests/e2e/test_a.py", "tests/e2e/test_b.py"})
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
