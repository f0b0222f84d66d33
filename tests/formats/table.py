"""Prints how the sample cases of all formats fare: `python -m tests.formats.table [GLOB ...]`.

Each case is fed whole, character by character, in random pieces and in pieces of 3 to 7 characters,
and must give the expected content, reasoning and calls each time (white space aside). The columns:
n cases, ok, ws (ok but for white space), fail; then failures in each kind of cut; order (a call's
events out of order, ids or arguments that are not valid); inv (cases whose result depends on the
cut); early (% of the content's and the arguments' characters that leave before the text ends).
"""

import argparse
import fnmatch
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.formats.adapter import Event, create

CORPUS = Path(__file__).parents[1] / "unit" / "toolparser_worker" / "corpus"
NOT_COPIED = {
    "tool.minicpm5/025-test_alias_get_line_details": "one benchmark's tool names, hard-coded",
}
"""Unambiguous cases that are no part of any format."""

_COLUMNS = ("n", "ok", "ws", "fail", "whole", "char", "rand", "p37", "order", "inv")
_SIZES = (1, 1, 2, 3, 5, 8, 13, 21, 40)
_NUM_RANDOM = 5
Case = dict[str, Any]


@dataclass
class Result:
    """What came out of one text.

    Attributes:
        calls: Name, id and arguments of each.
        problems: What was wrong with the events themselves.
    """

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, events: Sequence[Event]) -> None:
        """Takes the adapter's events."""
        for kind, *rest in events:
            if kind == "content":
                self.content += rest[0]
            elif kind == "reasoning":
                self.reasoning += rest[0]
            elif kind == "tool_start":
                index, call_id, name = rest
                ids = [call[1] for call in self.calls]
                if index != len(self.calls) or not name or not call_id or call_id in ids:
                    self.problems.append(f"wrong start of call {index}")
                self.calls.append([name, call_id, ""])
            elif rest[0] != len(self.calls) - 1:
                self.problems.append(f"arguments of call {rest[0]} out of order")
            else:
                self.calls[-1][2] += rest[1]

    def values(self) -> list[dict[str, Any]]:
        """The calls with their arguments' values."""
        found = []
        for name, _, arguments in self.calls:
            try:
                value = json.loads(arguments)
            except ValueError:
                self.problems.append(f"arguments of {name} are no JSON")
                value = arguments
            found.append({"name": name, "arguments": value})
        return found

    @property
    def num_chars(self) -> tuple[int, int]:
        """Characters of content, and of arguments."""
        return len(self.content), sum(len(call[2]) for call in self.calls)


def cuts(case: Case) -> Iterator[tuple[str, list[str]]]:
    """The case's text in every kind of pieces."""
    text = case["text"]
    yield "whole", [text]
    yield "char", list(text)
    for seed in range(_NUM_RANDOM):
        yield "rand", _pieces(text, random.Random(f"{case['id']}/{seed}"), _SIZES)
    yield "p37", _pieces(text, random.Random(f"{case['id']}/p"), range(3, 8))


def _pieces(text: str, generator: random.Random, sizes: Sequence[int]) -> list[str]:
    pieces = []
    start = 0
    while start < len(text):
        size = generator.choice(sizes)
        pieces.append(text[start : start + size])
        start += size
    return pieces


def squeezed(text: str) -> str:
    """The text with all white space alike."""
    return " ".join(text.split())


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def judge(case: Case, result: Result) -> tuple[list[str], bool]:
    """What differs from the expected outcome, and whether white space does."""
    expected = case["expected"]
    wrong = []
    exact = True
    for channel in ("content", "reasoning"):
        got: str = getattr(result, channel)
        accepted = [expected[channel] or "", *expected.get(f"{channel}_any", [])]
        exact = exact and got in accepted
        if squeezed(got) not in map(squeezed, accepted):
            wrong.append(f"{channel} {got[:200]!r} instead of {expected[channel]!r}")
    if not same(result.values(), expected["tool_calls"]):
        wrong.append(f"calls {result.values()} instead of {expected['tool_calls']}")
    return [*wrong, *result.problems], exact


def replay(case: Case, pieces: list[str]) -> tuple[Result, tuple[int, int]]:
    """What comes out, and how many characters of it do before the text ends."""
    adapter = create(
        case["parser"],
        case["tools"],
        kind=case["kind"],
        reasoning=case["reasoning_parser"],
        options=case["options"],
    )
    result = Result()
    for piece in pieces:
        result.add(adapter.feed(piece))
    early = result.num_chars
    result.add(adapter.finish())
    return result, early


def run(cases: Sequence[Case], early: Counter[str]) -> tuple[Counter[str], list[str]]:
    """Replays the cases of one format.

    Returns:
        The counts of the columns, and a line for each case that failed.
    """
    counts: Counter[str] = Counter()
    failures = []
    for case in cases:
        counts["n"] += 1
        wrong: list[str] = []
        exact = True
        seen = set()
        for kind, pieces in cuts(case):
            result, before = replay(case, pieces)
            differences, is_exact = judge(case, result)
            exact = exact and is_exact
            counts[kind] += bool(differences)
            counts["order"] += bool(result.problems)
            wrong += differences
            seen.add(repr((result.content, result.reasoning, result.values())))
            if kind == "char":
                for name, size, total in zip(
                    ("content", "args"), before, result.num_chars, strict=True
                ):
                    early[name] += size
                    early[f"all {name}"] += total
        counts["inv"] += len(seen) > 1
        counts["fail" if wrong else "ok"] += 1
        counts["ws"] += not wrong and not exact
        if wrong:
            failures.append(f"  {case['id']}: {wrong[0]}")
    return counts, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table.

    Returns:
        1 if a case failed.
    """
    parser = argparse.ArgumentParser(description="Replays the sample cases of the formats.")
    parser.add_argument("globs", nargs="*", metavar="GLOB", help="such as 'tool.hermes'")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="a folder of *.jsonl files")
    options = parser.parse_args(arguments)
    print(f"{'format':44}{''.join(f'{name:>6}' for name in _COLUMNS)}  early content/args")
    total: Counter[str] = Counter()
    for path in sorted(options.corpus.glob("*.jsonl")):
        if options.globs and not any(fnmatch.fnmatch(path.stem, glob) for glob in options.globs):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        cases = [
            case
            for case in map(json.loads, lines)
            if case["tier"] == 1 and case["id"] not in NOT_COPIED
        ]
        if not cases:
            continue
        early: Counter[str] = Counter()
        counts, failures = run(cases, early)
        row = "".join(f"{counts[name]:6}" for name in _COLUMNS)
        print(f"{path.stem:44}{row}{_share(early, 'content'):>15} / {_share(early, 'args')}")
        print("".join(f"{line}\n" for line in failures), end="")
        total.update(counts)
    print(f"{'all':44}{''.join(f'{total[name]:6}' for name in _COLUMNS)}")
    return int(bool(total["fail"]) or not total["n"])


def _share(early: Counter[str], name: str) -> str:
    whole = early[f"all {name}"]
    return f"{100 * early[name] // whole}%" if whole else "-"


if __name__ == "__main__":
    sys.exit(main())
