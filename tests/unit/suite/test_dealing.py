"""How test files are dealt out, and what is left of a process that crashed."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.dealing import TOGETHER, group_of
from tests.fakes.left_behind import RUN, WORKER, end_left_behind
from tests.fakes.order import SMALL_UNITS

ROOT = Path(__file__).parents[3]


def test_what_shares_a_deployment_or_a_runner_goes_together() -> None:
    assert group_of("tests/e2e/test_readme.py::test_a") == group_of(
        "tests/e2e/test_tools.py::test_b"
    )
    shared = "tests/unit/engine_worker/core/test_sampling_parameters.py::test_a[1]"
    assert group_of(shared) == "shared runners"


def test_other_files_go_alone_and_large_ones_function_by_function() -> None:
    assert group_of("tests/unit/a/test_b.py::test_c[d::e]") == "tests/unit/a/test_b.py"
    law = "tests/unit/toolparser_worker/test_parser_laws.py::test_no_text_raises"
    assert group_of(f"{law}[hermes-think]") == group_of(f"{law}[none-none]") == law


@pytest.mark.parametrize("start", [*TOGETHER, *SMALL_UNITS])
def test_every_rule_is_about_files_that_exist(start: str) -> None:
    assert list(ROOT.glob(f"{start}*"))


def test_all_who_share_runners_are_in_their_group() -> None:
    """A file left out compiles the session's runners again."""
    for path in (ROOT / "tests/unit/engine_worker").rglob("test_*.py"):
        source = path.read_text(encoding="utf-8")
        if re.search(r"\b(bucket_runner|deterministic_runner|runner_of_engines)\b", source):
            assert group_of(f"{path.relative_to(ROOT)}::test_a") == "shared runners"


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """A process of a crashed test process, and one of another."""
    command = [sys.executable, "-S", "-c", "print(end='.', flush=True); input()"]
    found = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, RUN: "a run of this test", WORKER: worker},
        )
        for worker in ("gw7", "gw8")
    ]
    yield found
    for process in found:
        process.kill()
        process.communicate()


def test_what_a_crashed_process_left_behind_is_ended_and_nothing_else(
    sleepers: list[subprocess.Popen[bytes]],
) -> None:
    orphan, other = sleepers
    for process in sleepers:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"."
    assert end_left_behind("a run of this test", "gw7") == [orphan.pid]
    assert orphan.wait(60) != 0
    assert other.poll() is None
