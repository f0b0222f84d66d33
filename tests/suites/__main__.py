"""Runs public suites and prints what they show; `--report FILE` also writes a page.

Each suite is a module with a `run` that takes the folder of data; a new one is named in `SUITES`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from tests.suites import function_calls, json_schema, llmprobe, mcp_conformance


class Report(Protocol):
    """What one suite showed."""

    @property
    def has_failed(self) -> bool:
        """Whether it showed what must not be."""
        ...

    def markdown(self) -> str:
        """A section of a page."""
        ...


SUITES: Final[dict[str, Callable[[Path], Sequence[Report]]]] = {
    "json-schema": json_schema.run,
    "function-calls": function_calls.run,
    "llmprobe": lambda _data: llmprobe.run(),
    "mcp": lambda _data: mcp_conformance.run(),
}

_DATA: Final = Path(__file__).parents[3] / "shared"
_HEAD: Final = """# Public suites

Written by `make suites ARGS="--report docs/measurements/suites.md"`: what public suites show of the
code as it is. Their data isn't part of the project; without it a suite is skipped.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the suites; 1 when one found what must not be."""
    parser = argparse.ArgumentParser(prog="tests.suites", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--report", type=Path, help="write a page")
    parser.add_argument("--data", type=Path, default=_DATA, help=f"folder of data ({_DATA})")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.suites if name not in SUITES]
    if unknown:
        parser.error(f"there is no suite {unknown[0]!r}, but {', '.join(SUITES)}")
    reports = [
        report
        for name, run in SUITES.items()
        if name in (options.suites or SUITES)
        for report in run(options.data)
    ]
    page = "\n".join([_HEAD, *(report.markdown() for report in reports)])
    print(page)
    if options.report is not None:
        options.report.write_text(page, encoding="utf-8")
    return int(any(report.has_failed for report in reports))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
