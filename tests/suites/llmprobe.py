"""llmprobe, a public conformance suite for OpenAI-compatible servers, against the bundled model.

    python -m tests.suites.llmprobe [--report FILE]

Its MUST checks count; what the model can't do says nothing about the server. It is an npm package
under Apache-2.0, of one version and digest, run with `node` against a `penstock serve` of its own,
without network but that and with nothing of the environment but PATH. Without node, npm or the
registry the suite is skipped, and says so.
"""

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.e2e.harness import start_harness, stop_harness

VERSION: Final = "0.6.12"
SHA512: Final = (
    "j0EJ9AIF0/IeA2ulu9WEWlsExXHyijtMVopJJudqojFaIQwZGVtixAfelxeLfJDLMVfr4OWie1EfdI8T9ubKEw=="
)
"""Of the package, as the registry's `dist.integrity`."""

EXCEPTIONS: Final[Mapping[str, str]] = {
    "messages-cache-bound": (
        "`input_tokens` of Anthropic's Messages API leaves out what was read from the cache, so it "
        "may be less than `cache_read_input_tokens`"
    ),
}
"""MUST checks that ask for what the API's own description doesn't say, and why."""

WEAKNESSES: Final[Mapping[str, str]] = {
    "responses-chain-remembers": (
        "a chat with the same turns in one request has the same tokens and the same answer"
    ),
}
"""MUST checks of what the bundled model remembers or knows, and why the server isn't to blame."""

WISHES: Final[Mapping[str, str]] = {
    "at least one trial carries the delimiter-bearing content byte-exact": (
        "the bundled model calls, but copies no text that it doesn't know into the arguments"
    ),
    "a cache_control block is accepted": (
        "the block is taken; with the suite's text it is longer than the bundled model's context"
    ),
    "the count is within ~10% of what /v1/messages reports as usage": (
        "`input_tokens` leaves out what was read from the cache; with `cache_read_input_tokens` it "
        "is the count"
    ),
}
"""SHOULD assertions that don't hold, by their labels, and why."""

_MODEL: Final = "penstock-demo"
_SCRIPT: Final = "package/bin/dist/llmprobe.mjs"
_FETCH_TIMEOUT_S: Final = 60.0
_RUN_TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run showed.

    Attributes:
        passed: MUST assertions that hold, by surface.
        total: MUST assertions that were tried, by surface.
        failures: MUST assertions that don't hold: check, assertion and the suite's words.
        excepted: Those that `EXCEPTIONS` explains.
        inconclusive: Checks in which the model didn't bring the server to what was to be tried.
        warnings: SHOULD assertions that don't hold.
        skipped: Why nothing was tried; empty when something was.
    """

    passed: Mapping[str, int] = field(default_factory=dict)
    total: Mapping[str, int] = field(default_factory=dict)
    failures: Sequence[str] = ()
    excepted: Sequence[str] = ()
    inconclusive: Sequence[str] = ()
    warnings: Sequence[str] = ()
    skipped: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether something doesn't hold that must."""
        return bool(self.failures)

    def markdown(self) -> str:
        """A section of a page."""
        lines = [f"## llmprobe {VERSION}", ""]
        if self.skipped:
            return "\n".join([*lines, f"Skipped: {self.skipped}", ""])
        lines += ["| surface | MUST assertions that hold |", "|---|---|"]
        lines += [f"| {name} | {self.passed[name]} of {self.total[name]} |" for name in self.total]
        lines.append("")
        lines += [f"- **Fails:** {text}" for text in self.failures]
        lines += [f"- Not counted: {text}" for text in self.excepted]
        lines += [f"- The model didn't lead to it: {text}" for text in self.inconclusive]
        lines += [f"- SHOULD: {text}" for text in self.warnings]
        return "\n".join([*lines, ""])


def judge(report: Mapping[str, Any]) -> Verdict:
    """The verdict of a report as `--save` writes it.

    Raises:
        ValueError: Nothing was measured in it, so that nothing failed either.
    """
    conformance = report["conformance"]
    surfaces = {one["surface"]: one for one in conformance["bySurface"]}
    if not any(surface["total"] for surface in surfaces.values()):
        raise ValueError("llmprobe measured nothing; did the server answer?")
    failures: list[str] = []
    excepted: list[str] = []
    weaknesses: list[str] = []
    num_excepted: Counter[str] = Counter()
    for check in conformance["results"]:
        for failure in check["failures"]:
            if failure["severity"] != "MUST":
                continue
            text = f"{check['name']}: {failure['label']} ({failure['message']})"
            if (reason := EXCEPTIONS.get(failure["id"])) is not None:
                excepted.append(f"{text}: {reason}")
            elif (reason := WEAKNESSES.get(failure["id"])) is not None:
                weaknesses.append(f"{text}: {reason}")
            else:
                failures.append(text)
                continue
            num_excepted[check["surface"]] += 1
    return Verdict(
        passed={name: surface["passed"] for name, surface in surfaces.items()},
        total={name: surface["total"] - num_excepted[name] for name, surface in surfaces.items()},
        failures=failures,
        excepted=excepted,
        inconclusive=[
            *weaknesses,
            *(f"{one['name']} ({one['reason']})" for one in conformance["inconclusive"]),
        ],
        warnings=[_wish(one["label"], one["message"]) for one in conformance["warnings"]],
    )


def _wish(label: str, message: str) -> str:
    reason = WISHES.get(label)
    return f"{label} ({message})" + (f": {reason}" if reason else "")


def run() -> list[Verdict]:
    """Fetch the package, serve the bundled model, and let the one probe the other."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        return [Verdict(skipped=f"{' and '.join(missing)} missing on this machine.")]
    with tempfile.TemporaryDirectory(prefix="llmprobe-") as directory:
        folder = Path(directory)
        script = fetch(folder)
        if script is None:
            return [Verdict(skipped=f"llmprobe {VERSION} can't be had from the npm registry.")]
        harness = start_harness(folder / "data", folder / "cache")
        try:
            return [judge(_probe(script, harness.url, folder))]
        finally:
            stop_harness(harness)


def fetch(folder: Path) -> Path | None:
    """The suite's one file, from the registry; None when it doesn't answer.

    Raises:
        ValueError: What came is another package than the one that was looked at.
    """
    command = ["npm", "pack", f"llmprobe@{VERSION}", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_FETCH_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    package = folder / f"llmprobe-{VERSION}.tgz"
    return unpack(package, folder)


def unpack(package: Path, folder: Path) -> Path:
    """The suite's file out of its package.

    Raises:
        ValueError: The package is not the one that was looked at.
    """
    content = package.read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
        raise ValueError(f"{package.name} has another SHA-512 than {SHA512}")
    script = folder / "llmprobe.mjs"
    with tarfile.open(package) as archive:
        source = archive.extractfile(_SCRIPT)
        if source is None:
            raise ValueError(f"{package.name} has no file {_SCRIPT}")
        script.write_bytes(source.read())
    return script


def _probe(script: Path, url: str, folder: Path) -> Any:
    report = folder / "report.json"
    subprocess.run(
        [
            *("node", str(script), f"{url}/v1", "--model", _MODEL, "--full"),
            *("--no-bench", "--no-save", "--no-color", "--save", str(report)),
        ],
        check=False,  # 1 says that something failed, which the report says better
        timeout=_RUN_TIMEOUT_S,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )
    return json.loads(report.read_text(encoding="utf-8"))


def main(arguments: Sequence[str]) -> int:
    """Run the suite; 1 when something doesn't hold that must."""
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
