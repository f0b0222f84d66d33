"""The calls of a public leaderboard, written in every tool format and read again, in three cuts.

The package with its data is fetched by name, version and digest; without a registry the suite is
skipped, and says so.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tests.fakes.format_pairs import SOME_TOOLS
from tests.fakes.parsed_text import TOOLS, parse
from tests.suites.bfcl import VERSION, Case, cases
from tests.suites.report import SuiteReport
from toolparser_worker.machine.declarations import ToolFormat
from toolparser_worker.machine.render import render_calls
from toolparser_worker.machine.tool_schemas import ToolSchemas

SHA256: Final = "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"
"""Of the wheel."""
TRIMMED: Final = ("dots", "step3")
"""Formats whose texts stand among white space of the model's own, so that " " can't be told."""
_WHEEL: Final = f"bfcl_eval-{VERSION}-py3-none-any.whl"
_FETCH_TIMEOUT_S: Final = 120.0
_PIECE_CHARACTERS: Final = 4
_MAX_SHOWN: Final = 5


def run(_data: Path) -> list[SuiteReport]:
    """Fetch the calls and try each in every format."""
    title = f"Function calls (bfcl-eval {VERSION})"
    with tempfile.TemporaryDirectory(prefix="bfcl-") as directory:
        folder = fetch(Path(directory))
        if folder is None:
            reason = f"bfcl-eval {VERSION} can't be had from the package index."
            return [SuiteReport(title, skipped=reason)]
        return [judge(title, list(cases(folder)))]


def judge(title: str, tried: Sequence[Case]) -> SuiteReport:
    """What becomes of the calls in each format."""
    report = SuiteReport(title, columns=("format", "answers read as they were written"))
    misread: list[str] = []
    num_exact = 0
    for name in SOME_TOOLS:
        tool_format = TOOLS[name]
        assert tool_format is not None
        fair = [case for case in tried if name not in TRIMMED or not has_blank_text(case)]
        if len(fair) < len(tried):
            left_out = f"{len(tried) - len(fair)} with a text of nothing but white space"
            report.notes.append(f"Left out for {name}: {left_out}, which it can't tell.")
        wrong = [case.id for case in fair if not is_read_again(tool_format, case)]
        if wrong:
            misread += [f"{name}: {case_id}" for case_id in wrong]
            report.rows.append((name, f"{len(tried) - len(wrong)} of {len(tried)}"))
        else:
            num_exact += 1
    others = "other formats" if misread else "formats"
    report.rows.append((f"{num_exact} {others}", f"{len(tried)} of {len(tried)}"))
    report.has_failed = bool(misread)
    num_calls = sum(len(case.calls) for case in tried)
    report.notes.append(
        f"{len(tried)} answers with {num_calls} calls, each whole, character by character and in"
        f" pieces of {_PIECE_CHARACTERS}; names, arguments, their order and the digits of numbers"
        " have to come back, with no text beside them and nothing counted as malformed."
    )
    report.notes += [f"Misread: {one}" for one in misread[:_MAX_SHOWN]]
    return report


def has_blank_text(case: Case) -> bool:
    """Whether an argument is white space and nothing else."""
    values = (value for _, arguments in case.calls for value in arguments.values())
    return any(isinstance(value, str) and value.isspace() for value in values)


def is_read_again(tool_format: ToolFormat, case: Case) -> bool:
    """Whether an answer's calls come back in every cut as they were written."""
    calls = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in case.calls]
    wanted = [(name, _as_written(arguments)) for name, arguments in calls]
    tools = ToolSchemas(case.tools)
    for pieces in _cuts(render_calls(tool_format, calls)):
        parsed = parse(pieces, tool_format, tools=tools)
        found = [(call.name, _as_written(call.arguments)) for call in parsed.calls]
        if found != wanted or parsed.num_malformed or parsed.content:
            return False
    return True


def fetch(folder: Path) -> Path | None:
    """The package's data; None when it can't be had.

    Raises:
        ValueError: The package is another one than it was.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    try:
        subprocess.run(
            [*command, str(folder), f"bfcl-eval=={VERSION}"],
            check=True,
            capture_output=True,
            timeout=_FETCH_TIMEOUT_S,
        )
        wheel = (folder / _WHEEL).read_bytes()
    except (OSError, subprocess.SubprocessError):
        return None
    if hashlib.sha256(wheel).hexdigest() != SHA256:
        raise ValueError(f"{_WHEEL} has another digest than it had.")
    with zipfile.ZipFile(folder / _WHEEL) as package:
        for name in package.namelist():
            if name.startswith("bfcl_eval/data/"):
                package.extract(name, folder)
    return folder / "bfcl_eval" / "data"


def _cuts(text: str) -> Iterator[list[str]]:
    yield [text]
    yield list(text)
    size = _PIECE_CHARACTERS
    yield [text[start : start + size] for start in range(0, len(text), size)]


def _as_written(text: str) -> Any:
    """A JSON value whose numbers are their digits."""
    return json.loads(
        text, parse_int=lambda digits: ("number", digits), parse_float=lambda d: ("number", d)
    )
