"""The garbage collector leaves what a start made alone, and works for what comes after it."""

import gc
import importlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from protocol.runtime import collector

WORKERS = ("gateway", "auth_worker", "engine_worker", "toolparser_worker")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_is_there_is_frozen_and_what_comes_is_looked_at() -> None:
    collector.start()
    assert gc.get_threshold()[0] > 10_000
    collector.settle((700, 5, 5))
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold() == (700, 5, 5)


@pytest.mark.parametrize("worker", WORKERS)
def test_importing_a_worker_changes_nothing(worker: str) -> None:
    before = gc.get_threshold()
    importlib.import_module(f"{worker}.__main__")
    assert gc.get_threshold() == before


@pytest.mark.parametrize("worker", WORKERS)
def test_a_worker_tells_the_collector_before_it_imports_anything(worker: str) -> None:
    # Run as `python -m` does, up to the first import of its own that follows.
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            f"""
import gc, runpy, sys
class Ends(Exception): pass
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {WORKERS!r} and "." in name and not name.endswith("__main__"):
            print(gc.get_threshold()[0])
            raise Ends
sys.meta_path.insert(0, Finder())
try:
    runpy.run_module({worker!r}, run_name="__main__")
except Ends:
    pass
""",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert told.stdout == "50000\n"
