"""Every page of the repository: lines and rows that aren't too long, links that lead somewhere."""

import re
from functools import cache
from pathlib import Path

from tools.wrap_markdown import MAX_COLUMNS, pages

ROOT = Path(__file__).parents[2]
PAGES = pages()
MAX_ROW_COLUMNS = 220
"""A row can't be broken as a line can; what is longer hides its columns."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """Fenced blocks and code spans blanked, so that what looks like a link in them is none."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(`+)[^`].*?\1", "", text)


@cache
def anchors(page: Path) -> set[str]:
    """The fragments by which the headings of a page are reached, as GitHub makes them."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        twin = next(n for n in range(len(found) + 1) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{twin}" if twin else slug)
    return found


def too_long(text: str) -> list[int]:
    """Numbers of the lines that ought to be broken: no table, and no address that fills them."""
    return [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > MAX_COLUMNS
        and not line.lstrip().startswith("|")
        and not re.fullmatch(r"\s*(?:[-*] )?\S*://\S+", line)
    ]


def test_a_page_is_wrapped_at_100_columns() -> None:
    found = {name(page): too_long(text_of(page)) for page in PAGES}
    assert {page: lines for page, lines in found.items() if lines} == {}, "`make format` wraps it"


def too_wide(text: str) -> list[int]:
    """Numbers of the table rows that ought to be a list, or say more below the table.

    Code spans don't count: lists of routes and fields can't be said shorter.
    """
    return [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if line.lstrip().startswith("|") and len(re.sub(r"`[^`]*`", "", line)) > MAX_ROW_COLUMNS
    ]


def test_no_row_of_a_page_is_much_wider_than_a_line() -> None:
    found = {name(page): too_wide(text_of(page)) for page in PAGES}
    wide = {page: rows for page, rows in found.items() if rows}
    assert wide == {}, "make it a list, or say it below"


def test_no_list_of_a_page_explains_a_field_twice() -> None:
    twice = [
        (name(page), field)
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for section in re.split(r"^#+ ", text_of(page), flags=re.MULTILINE)
        for fields in [re.findall(r"^- (`[^`\n]+`)[: ]", section, re.MULTILINE)]
        for field in sorted(set(fields))
        if fields.count(field) > 1
    ]
    assert twice == []


def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_exist() -> None:
    dead = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))):
            if "://" in target or target.startswith("mailto:"):
                continue
            path, _, fragment = target.partition("#")
            leads_to = (page.parent / path).resolve() if path else page
            if not leads_to.exists() or (fragment and fragment not in anchors(leads_to)):
                dead.append((name(page), target))
    assert dead == []


def test_what_the_rules_are_for_is_found() -> None:
    assert len(PAGES) > 40
    assert too_long(f"{'word ' * 21}\n| {'cell ' * 30} |\nhttps://example.org/{'a' * 100}") == [1]
    assert too_wide(f"| {'word ' * 60} |\n| `{'/path' * 60}` |\n{'word ' * 60}") == [1]
    assert "log-fields" in anchors(ROOT / "docs" / "operations.md")
