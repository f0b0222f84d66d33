"""Runs public suites and prints what they show; `--report FILE` also writes it into a page.

What the page says of other suites stays, and so does what it says of one that is skipped now.

Each suite is a module with a `run` that takes the folder of data; a new one is named in `SUITES`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final, Protocol

from tests.suites import function_calls, json_schema, langchain, llmprobe, mcp_conformance


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
    "langchain": lambda _data: langchain.run(),
    "mcp": lambda _data: mcp_conformance.run(),
}

_DATA: Final = Path(__file__).parents[3] / "shared"
_HEAD: Final = """# Public suites

Written by `make suites ARGS="--report docs/measurements/suites.md"`: what public suites show of the
code as it was on the day that stands there. Their data isn't part of the project; without it a
suite is skipped. Names of suites write their sections alone, as `make conformance` does.
"""
_SKIPPED: Final = "\n\nSkipped: "


def page_of(sections: Iterable[str], before: str, today: date) -> str:
    """A page with these sections in place of those of the same suites.

    Args:
        sections: Each begins with its heading.
        before: The page as it was; empty where there is none.
        today: When they were run.
    """
    known = {_name(one): one.strip() for one in re.split(r"^(?=## )", before, flags=re.M)[1:]}
    for section in sections:
        name = _name(section)
        if _SKIPPED in section and name in known:
            continue
        heading, _, rest = section.strip().partition("\n")
        known[name] = f"{heading}\n\nRun on {today.isoformat()}.\n\n{rest.strip()}".strip()
    return "\n\n".join([_HEAD.strip(), *known.values()]) + "\n"


def _name(section: str) -> str:
    """Of a section's suite, whatever its version."""
    heading = section.lstrip().partition("\n")[0]
    return re.sub(r" \d[\d.]*$", "", heading)


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
    sections = [report.markdown() for report in reports]
    today = datetime.now(UTC).date()
    print(page_of(sections, "", today))
    page: Path | None = options.report
    if page is not None:
        before = page.read_text(encoding="utf-8") if page.exists() else ""
        page.write_text(page_of(sections, before, today), encoding="utf-8")
    return int(any(report.has_failed for report in reports))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
