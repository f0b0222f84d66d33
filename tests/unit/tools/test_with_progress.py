"""What `make` shows while it installs and compiles."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from tools.with_progress import MAX_LINES, Progress, detail_of

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tools" / "with_progress.py"
CLEARED = "\r\x1b[K"


class Shown:
    """A progress with its clock and what it wrote."""

    def __init__(self, *, is_terminal: bool, columns: int = 80) -> None:
        self.now_s = 100.0
        self.out = io.StringIO()
        self.progress = Progress(
            "Compiling",
            self.out,
            is_terminal=is_terminal,
            columns=columns,
            clock=lambda: self.now_s,
        )

    def at(self, seconds: float) -> str:
        """What is new on the screen so long after the beginning."""
        before = len(self.out.getvalue())
        self.now_s = 100.0 + seconds
        self.progress.show()
        return self.out.getvalue()[before:]


def test_a_log_has_a_line_after_two_seconds_and_then_every_fifteen() -> None:
    shown = Shown(is_terminal=False)
    assert shown.at(1.9) == ""
    assert shown.at(2.1) == "Compiling: 2 s\n"
    shown.progress.take("native kernels: 2 of 6 levels compiled\n")
    assert shown.at(16) == ""
    assert shown.at(18) == "Compiling: 18 s, native kernels: 2 of 6 levels compiled\n"


def test_a_terminal_has_one_line_that_never_wraps() -> None:
    shown = Shown(is_terminal=True, columns=30)
    assert shown.at(0) == f"{CLEARED}Compiling: 0 s"
    shown.progress.take("native kernels: 2 of 6 levels compiled\n")
    assert shown.at(1) == f"{CLEARED}Compiling: 1 s, native kernels"[: len(CLEARED) + 29]
    before = len(shown.out.getvalue())
    shown.progress.end(0)
    assert shown.out.getvalue()[before:] == CLEARED
    shown.now_s = 165.0
    shown.progress.end(0)
    assert shown.out.getvalue().endswith(f"{CLEARED}Compiling: done in 65 s\n")


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ("  Downloading jax-0.11.2.whl (3 MB)\n", "Downloading jax-0.11.2.whl (3 MB)"),
        ("Installing collected packages: " + "x, " * 99, "Installing collected packages"),
        ("g++ " + "-O3 " * 99, ""),
        ("x" * 200 + ": y", ""),
        ("\x1b[2Jevil", "[2Jevil"),
        ("", ""),
    ],
)
def test_a_detail_is_a_short_line_of_printable_text(line: str, detail: str) -> None:
    assert detail_of(line) == detail


def test_output_is_shown_when_the_command_fails_and_else_its_warnings_alone() -> None:
    long = f"warning: {'x' * 200}"
    for status, expected in (
        (0, f"WARNING: old\n{long[:160]}…\n"),
        (1, f"one\nWARNING: old\n{long}\nCompiling: failed after 0 s\n"),
    ):
        shown = Shown(is_terminal=False)
        for line in ("one\n", "WARNING: old\n", long):
            shown.progress.take(line)
        shown.progress.end(status)
        assert shown.out.getvalue() == expected


def test_only_the_end_of_a_long_output_is_kept() -> None:
    shown = Shown(is_terminal=False)
    for number in range(2 * MAX_LINES):
        shown.progress.take(f"{number}\n")
    shown.progress.end(1)
    assert shown.out.getvalue().startswith(f"{MAX_LINES}\n")


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        ("print('all is well')", 0, ""),
        ("import sys; print('no compiler'); sys.exit(3)", 3, "no compiler"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143, "failed"),
    ],
)
def test_the_exit_status_is_the_commands(code: str, status: int, word: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "Trying", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert word in done.stderr
    assert "all is well" not in done.stderr
