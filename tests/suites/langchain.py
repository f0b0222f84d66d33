"""LangChain's Responses mode, and LangGraph on it, against the bundled model.

The client is a real one, in an environment of its own, by the versions and digests of
`requirements/langchain.txt`; it talks to a `penstock serve` of its own and to nothing else. Without
a package index the suite is skipped, and says so.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.e2e.harness import start_harness, stop_harness
from tests.suites.report import SuiteReport
from tools.lock import FOLDER, pins

_LOCK: Final = FOLDER / "langchain.txt"
_CHECKS: Final = Path(__file__).parent / "langchain_checks.py"
_MODEL: Final = "penstock-demo"
_INSTALL_TIMEOUT_S: Final = 600.0
_RUN_TIMEOUT_S: Final = 900.0


def run() -> list[SuiteReport]:
    """Install the client, serve the bundled model, and let the one ask the other."""
    versions = pins(_LOCK)
    title = f"LangChain in Responses mode: langchain-openai {versions['langchain-openai']}"
    with tempfile.TemporaryDirectory(prefix="langchain-") as directory:
        folder = Path(directory)
        python = install(folder)
        if python is None:
            reason = "its packages can't be had from the package index."
            return [SuiteReport(title, skipped=reason)]
        harness = start_harness(folder / "data", folder / "cache")
        try:
            found = _check(python, f"{harness.url}/v1", folder)
        finally:
            stop_harness(harness)
    return [judge(title, versions, found)]


def install(folder: Path) -> Path | None:
    """The Python of an environment with the client; None where no index has its packages."""
    environment = folder / "environment"
    python = environment / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(_LOCK)]
    for command in ([sys.executable, "-m", "venv", str(environment)], pip):
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL_TIMEOUT_S)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
    return python


def _check(python: Path, url: str, folder: Path) -> list[tuple[str, str]]:
    done = subprocess.run(
        [str(python), str(_CHECKS), url, _MODEL],
        check=True,
        stdout=subprocess.PIPE,  # what went wrong, at length, goes to the terminal
        text=True,
        timeout=_RUN_TIMEOUT_S,
        # Nothing is told to LangChain's own service.
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "LANGSMITH_TRACING": "false"},
    )
    return [(name, error) for name, error in json.loads(done.stdout)]


def judge(title: str, versions: dict[str, str], found: Sequence[tuple[str, str]]) -> SuiteReport:
    """What the checks showed.

    Raises:
        ValueError: None was made, so none failed either.
    """
    if not found:
        raise ValueError("no check was made")
    report = SuiteReport(title, columns=("check", "holds"))
    report.rows = [(name, f"**no: {error}**" if error else "yes") for name, error in found]
    report.has_failed = any(error for _, error in found)
    named = ("langchain-core", "langgraph", "openai")
    report.notes.append(f"With {', '.join(f'{name} {versions[name]}' for name in named)}.")
    return report
