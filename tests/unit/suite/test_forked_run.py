"""`--forks N`: tests run in processes that are forked of the one that collected them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.dealing import groups_of

ROOT = Path(__file__).parents[3]

FIRST = """
import os, signal, sys, time, threading
from pathlib import Path
import pytest

COLLECTED_BY = os.getpid()
HERE = Path(__file__).parent

@pytest.fixture(scope="session")
def ours():
    yield os.getpid()
    (HERE / f"ended-{os.getpid()}").touch()

def test_in_a_fork(ours, tmp_path):
    assert os.getppid() == COLLECTED_BY
    assert ours == os.getpid()
    assert os.environ["PYTEST_XDIST_WORKER"] in tmp_path.parts[-2]
    print("said", end="")

def test_that_fails(ours):
    print("what it said")
    assert ours == 0, "a reason"

def test_that_is_skipped():
    pytest.skip("no need")

@pytest.mark.timeout(0.5)
def test_that_takes_too_long():
    threading.Event().wait()
"""
SECOND = """
import os, signal

def test_before():
    pass

def test_that_kills():
    os.kill(os.getpid(), signal.SIGKILL)

def test_after():
    pass
"""
WITH_A_THREAD = """
import threading

threading.Thread(target=threading.Event().wait, daemon=True).start()

def test_a():
    pass
"""


def run(folder: Path, *options: str, **files: str) -> subprocess.CompletedProcess[str]:
    """`pytest --forks 2` of test files in a folder."""
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "tests.fakes.forked_run", "--forks", "2"]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "-p", "no:schemathesis", *options, str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_tests_find_is_reported_and_a_crash_fails_one_test(tmp_path: Path) -> None:
    done = run(tmp_path, "-rA", "--basetemp", str(tmp_path / "base"), first=FIRST, second=SECOND)
    assert done.returncode == 1
    assert "3 failed, 3 passed, 1 skipped" in done.stdout, done.stdout
    assert "a reason" in done.stdout
    assert "Failed: Timeout" in done.stdout
    assert "what it said" in done.stdout
    assert re.search(
        rf"FAILED test_second.py::test_that_kills - .*signal {signal.SIGKILL:d}", done.stdout
    )
    assert "PASSED test_second.py::test_after" in done.stdout
    # What a fixture of a session began, the process ends in which it began.
    (ended,) = tmp_path.glob("ended-*")
    assert ended.name != f"ended-{os.getpid()}"


def test_after_enough_failures_no_more_tests_run(tmp_path: Path) -> None:
    done = run(tmp_path, "-x", "-rA", first=FIRST, second="def test_a(): pass\n" * 1)
    assert done.returncode == 1
    assert "stopping after 1 failures" in done.stdout
    assert "test_that_is_skipped" not in done.stdout
    assert len(list(tmp_path.glob("ended-*"))) == 1


def test_a_module_that_starts_a_thread_when_it_is_imported_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, thread=WITH_A_THREAD)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "1 threads run once all tests are collected" in done.stderr


def test_groups_and_their_tests_keep_their_order() -> None:
    ids = ["tests/contract/test_a.py::test_a", "tests/e2e/test_x.py::test_a"]
    ids += ["tests/contract/test_a.py::test_b", "tests/e2e/test_y.py::test_a[1]"]
    assert groups_of(ids) == [[0, 2], [1, 3]]
