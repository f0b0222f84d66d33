"""docs/performance.md says of each figure when it was measured, and by which command."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
DATE = re.compile(r"20\d\d-\d\d-\d\d")
COMMAND = re.compile(r"`(?:--\w|benchmarks\.(\w+(?:\.\w+)?)|penstock )")
SECTIONS = {
    text.split("\n", 1)[0]: text
    for text in re.split(r"^#{2,} ", PAGE, flags=re.MULTILINE)[1:]
    if "\n|---" in text
}


def test_the_sections_with_tables_are_found() -> None:
    assert len(SECTIONS) >= 7


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_with_figures_has_their_date_and_their_command(title: str) -> None:
    assert DATE.search(SECTIONS[title])
    assert COMMAND.search(SECTIONS[title])


@pytest.mark.parametrize("title", SECTIONS)
def test_a_row_with_a_column_for_its_date_has_one(title: str) -> None:
    rows = [line for line in SECTIONS[title].splitlines() if line.startswith("|")]
    if "| measured |" not in rows[0]:
        return
    assert [row for row in rows[2:] if not DATE.search(row)] == []


def test_the_benchmarks_of_the_page_are_there() -> None:
    named = {name for name in COMMAND.findall(PAGE) if name}
    assert len(named) > 8
    assert {name for name in named if find_spec(f"benchmarks.{name}") is None} == set()
