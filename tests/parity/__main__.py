"""Measures every case of `tests/fakes/model_families.py` and writes docs/measurements/parity.md.

    python -m tests.parity                      # all cases, or those that a stopped run left
    python -m tests.parity 'qwen3*' --kinds xla:float32
    python -m tests.parity --report docs/measurements/parity.md --machine "two cores of …"
    python -m tests.parity --missing-in docs/measurements/parity.md --report …

One model and one type at a time, each of which is kept in a file as soon as it is there: a run that
is stopped goes on where it was, unless the code of `engine_worker` or the tests' models changed
meanwhile. A page that is there keeps the rows that weren't measured again, each with its date, and
says what was never measured.
"""

import argparse
import fnmatch
import hashlib
import json
import sys
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.fakes.model_families import CASES
from tests.parity.measurement import (
    KINDS,
    NUM_PROMPT,
    NUM_TOKENS,
    WAYS,
    Agreement,
    agreements,
    agreements_of,
    expected_of,
    record_of,
)
from tests.parity.page import Measured, page, read_page

_ROOT: Final = Path(__file__).parents[2]
_CODE: Final = (
    "engine_worker/compute",
    *(f"tests/fakes/{name}_families.py" for name in ("model", "dense", "expert")),
    *("tests/fakes/family_case.py", "tests/fakes/parity.py", "tests/parity/measurement.py"),
)
Found = dict[tuple[str, str, str], Measured]


class Results:
    """What was measured so far, in a file with a line each.

    Args:
        path: Of the file.
        code: What the results are of; those of another one are not taken.
    """

    def __init__(self, path: Path, code: str) -> None:
        self._path, self._code = path, code
        self.found: Found = {}
        if not path.exists():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["code"] == code:
                key = record["case"], record["backend"], record["type"]
                self.found[key] = Measured(agreements_of(record["ways"]), record["date"])

    def add(self, case: str, backend: str, weight_type: str, found: dict[str, Agreement]) -> None:
        """Keeps one more, of today."""
        date = f"{datetime.now(UTC):%Y-%m-%d}"
        self.found[case, backend, weight_type] = Measured(found, date)
        record = {
            "code": self._code,
            "case": case,
            "backend": backend,
            "type": weight_type,
            "date": date,
            "ways": record_of(found),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def code_digest() -> str:
    """Differs where what is measured does."""
    digest = hashlib.sha256()
    for name in _CODE:
        place = _ROOT / name
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.suffix in {".py", ".h", ".cc"}:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def measure(
    cases: Sequence[str],
    kinds: Sequence[tuple[str, str]],
    results: Results,
    known: Collection[tuple[str, str, str]] = (),
) -> None:
    """Measures what is neither there yet nor known, with a line each."""
    for index, case in enumerate(cases):
        keys = [(case, *kind) for kind in kinds]
        missing = [key[1:] for key in keys if key not in results.found and key not in known]
        if not missing:
            continue
        expected = expected_of(CASES[case])
        for backend, weight_type in missing:
            started = time.perf_counter()
            found = agreements(expected, backend, weight_type)
            results.add(case, backend, weight_type, found)
            shares = " ".join(f"{way} {found[way].percent} %" for way in WAYS)
            print(
                f"{index + 1}/{len(cases)} {case}, {backend} {weight_type}: {shares}"
                f" ({time.perf_counter() - started:.1f} s)",
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; write the page where it is asked for."""
    parser = argparse.ArgumentParser(
        prog="tests.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names, also with * and ?")
    names = {f"{backend}:{weight_type}": (backend, weight_type) for backend, weight_type in KINDS}
    parser.add_argument("--kinds", nargs="+", choices=names, default=list(names))
    parser.add_argument("--results", type=Path, default=_ROOT / "build" / "parity.jsonl")
    parser.add_argument("--missing-in", type=Path, help="measure only what this page hasn't")
    parser.add_argument("--report", type=Path, help="write the page, or these results into it")
    parser.add_argument("--machine", default="machine not said", help="for the page")
    options = parser.parse_args(arguments)
    patterns = options.cases or ["*"]
    cases = [case for case in CASES if any(fnmatch.fnmatchcase(case, one) for one in patterns)]
    if not cases:
        parser.error(f"no case is called {', '.join(patterns)}")
    results = Results(options.results, code_digest())
    known = _results_in(options.missing_in)
    measure(cases, [names[name] for name in options.kinds], results, known)
    if options.report is not None:
        text = page(
            list(CASES),
            _results_in(options.report) | results.found,
            machine=options.machine,
            num_prompt=NUM_PROMPT,
            num_output=NUM_TOKENS - NUM_PROMPT,
        )
        options.report.write_text(text, encoding="utf-8")
    return 0


def _results_in(path: Path | None) -> Found:
    """Those of a page; none where there is no page."""
    if path is None or not path.exists():
        return {}
    return read_page(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
