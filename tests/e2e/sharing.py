"""Which deployment a test asks for, and in which order tests come so that none waits for its next
user: idle processes take time, too."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from tests.e2e.harness import Harness, start_harness, stop_harness

FOLDER = "tests/e2e/"
_Test_co = TypeVar("_Test_co", bound="AskingTest")


class AskingTest(Protocol):
    """A `pytest.Item`, as far as it matters here."""

    nodeid: str

    @property
    def fixturenames(self) -> Sequence[str]:
        """All that it asks for, and what that asks for."""
        ...


class SharedDeployment:
    """One deployment of tests that run in one process, as long as the next test is of its users.

    Attributes:
        users: The files with a test that asks for it, which `in_order` puts together.
    """

    def __init__(self) -> None:
        self.users: frozenset[str] = frozenset()
        self._harness: Harness | None = None

    def running(
        self,
        new_data_dir: Callable[[], Path],
        cache_dir: Path,
        *arguments: str,
        **environment: str,
    ) -> Harness:
        """It; started when it is not there, with the parameters of `start_harness`."""
        if self._harness is None:
            self._harness = start_harness(new_data_dir(), cache_dir, *arguments, **environment)
        return self._harness

    def end_unless_wanted(self, next_test: str) -> None:
        """Stop it, with exit code 0, when the next test is of a file without a user of it."""
        harness = self._harness
        if harness is not None and file_of(next_test) not in self.users:
            self._harness = None
            assert stop_harness(harness) == 0


def file_of(nodeid: str) -> str:
    """The path of a test's file."""
    return nodeid.partition("::")[0]


def files_by_fixture(tests: Iterable[AskingTest], names: Iterable[str]) -> dict[str, set[str]]:
    """The files with a test that asks for each of some fixtures."""
    found: dict[str, set[str]] = {name: set() for name in names}
    for test in tests:
        for name in found.keys() & set(test.fixturenames):
            found[name].add(file_of(test.nodeid))
    return found


def in_order(
    tests: Sequence[_Test_co], files: dict[str, set[str]], chain: Sequence[frozenset[str]]
) -> list[_Test_co]:
    """Tests file by file, by what their file shares.

    Args:
        tests: Of the end-to-end tests.
        files: As `files_by_fixture` has them.
        chain: What files may share, in order: each fixture in neighbouring places only, so that its
            users follow each other. What shares nothing comes last: two engines that start at
            once find the programs that one has compiled before them.
    """
    places = {shared: place for place, shared in enumerate((*chain, frozenset[str]()))}

    def place_of(test: AskingTest) -> int:
        path = file_of(test.nodeid)
        return places[frozenset(name for name, users in files.items() if path in users)]

    return sorted(tests, key=place_of)
