"""The tool that measures parity, and the page that it wrote."""

import re
from pathlib import Path

import pytest

from tests.fakes.model_families import CASES
from tests.fakes.packed_decoder import needs_native
from tests.parity import __main__ as parity
from tests.parity.__main__ import Results, main
from tests.parity.measurement import (
    KINDS,
    WAYS,
    Agreement,
    agreements,
    expected_of,
)
from tests.parity.page import Measured, page, read_page

PAGE = Path(__file__).parents[3] / "docs" / "measurements" / "parity.md"
CASE = "qwen2_with_windows"


def sections() -> dict[str, dict[str, list[str]]]:
    """By heading the cells of each case's row."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        title = part.splitlines()[0]
        found[title] = {
            name: cells.split(" | ")
            for name, cells in re.findall(r"^\| `(\w+)` \| (.+) \|$", part, re.MULTILINE)
        }
    return found


def test_the_page_has_or_names_every_case_and_float32_agrees_everywhere() -> None:
    tables = sections()
    assert len(tables) in (2, 4)
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    for title, rows in tables.items():
        missing = [case for case in CASES if case not in rows]
        assert list(rows) == [case for case in CASES if case in rows], title
        assert not missing or ", ".join(f"`{case}`" for case in missing) in text, title
        for case, cells in rows.items():
            if title.endswith("%"):
                assert {cell.split()[0] for cell in cells} <= {"100", "–"}, case
            elif cells[0] != "–":
                assert float(cells[0]) <= 1e-3, case


@needs_native
def test_a_models_float32_logits_are_transformers_in_every_way() -> None:
    found = agreements(expected_of(CASES[CASE]), "cpu_native", "float32")
    assert tuple(found) == WAYS
    assert all(one.percent == 100 for one in found.values())
    assert 0 < max(one.difference for one in found.values()) <= 1e-3
    assert [one.num_tokens for one in found.values()] == [48, 48, 32, 24, 32]


def some_results() -> dict[tuple[str, str, str], Measured]:
    values = {way: Agreement(47, 48, 0.0125) for way in WAYS}
    return {("one", *kind): Measured(values, "2026-11-29") for kind in KINDS}


def test_shares_are_rounded_down_and_differences_are_the_largest() -> None:
    results = some_results()
    others = results["one", "xla", "int8"].ways
    ways = {**others, "cached": Agreement(1, 3, 2)}
    results["one", "xla", "int8"] = Measured(ways, "2026-12-01")
    text = page(["one"], results, machine="", num_prompt=3, num_output=4)
    assert "| `one` | 97 97 97 97 | 97 97 97 97 |" in text
    assert "| `one` | 97 97 97 | 97 97 97 | 97 97 97 | 97 97 33 | 97 97 97 |" in text
    assert "| `one` | 0.013 | 0.013 | 0.013 | 0.013 | 2026-11-29 |" in text
    assert "| `one` | 0.013 | 0.013 | 2 | 2026-12-01 |" in text


def test_a_page_that_is_read_back_has_the_same_rows() -> None:
    results = some_results()
    del results["one", "cpu_native", "int8"]
    results["one", "xla", "int8"] = Measured(results["one", "xla", "int8"].ways, "2026-12-01")
    text = page(["one", "two"], results, machine="", num_prompt=3, num_output=4)
    again = read_page(text)
    assert again.keys() == results.keys()
    assert page(["one", "two"], again, machine="", num_prompt=3, num_output=4) == text
    # Those of the project's own page, too.
    own = PAGE.read_text(encoding="utf-8")
    rows = [line for line in own.splitlines() if line.startswith("| `")]
    written = page(list(CASES), read_page(own), machine="", num_prompt=3, num_output=4)
    assert [line for line in written.splitlines() if line.startswith("| `")] == rows


def test_only_what_a_page_lacks_is_measured_and_the_rest_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [CASE, "qwen3"]
    there = {(CASE, *kind): one for kind, one in zip(KINDS, some_results().values(), strict=True)}
    del there[CASE, "xla", "int8"]
    path = tmp_path / "page.md"
    path.write_text(page(cases, there, machine="", num_prompt=3, num_output=4), encoding="utf-8")
    measured = []

    def compute(_: object, backend: str, weight_type: str) -> dict[str, Agreement]:
        measured.append((backend, weight_type))
        return {way: Agreement(1, 2, 0.5) for way in WAYS}

    monkeypatch.setattr(parity, "expected_of", lambda _: None)
    monkeypatch.setattr(parity, "agreements", compute)
    monkeypatch.setattr(parity, "CASES", dict.fromkeys(cases))
    results = ["--results", str(tmp_path / "results.jsonl")]
    main([*cases[:1], "--missing-in", str(path), "--report", str(path), *results])
    assert measured == [("xla", "int8")]
    text = path.read_text(encoding="utf-8")
    assert f"| `{CASE}` | 97 97 50 | 97 97 50 |" in text
    assert f"| `{CASE}` | 97 97 97 97 | 97 97 97 97 |" in text
    assert "Not measured: `qwen3`." in text


def test_what_was_measured_is_found_again_unless_the_code_changed(tmp_path: Path) -> None:
    path = tmp_path / "there" / "results.jsonl"
    results = Results(path, "this code")
    for key, values in some_results().items():
        results.add(*key, dict(values.ways))
    assert Results(path, "this code").found == results.found
    assert {key: one.ways for key, one in results.found.items()} == {
        key: one.ways for key, one in some_results().items()
    }
    assert Results(path, "another one").found == {}


def test_what_was_not_measured_is_named() -> None:
    results = some_results()
    del results["one", "cpu_native", "int8"]
    for _, weight_type in KINDS:
        results.pop(("one", "xla", weight_type), None)
    text = page(["one", "two"], results, machine="", num_prompt=3, num_output=4)
    assert "| `one` | 97 97 – 97 | 97 97 – 97 |" in text
    assert "| `one` | 0.013 | 0.013 | – | 0.013 | 2026-11-29 |" in text
    assert "Not measured: `two`." in text
    assert "Not measured: `xla`." in text


def test_a_case_that_isnt_there_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["no_such_case"])
