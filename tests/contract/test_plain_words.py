"""Pages, messages and comments use the field's words, none of the idioms that stop readers.

What is recorded as it was (decisions, measurements, the changelog) and code are left out.
"""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tools.wrap_markdown import pages

ROOT: Final = Path(__file__).parents[2]
INSTEAD: Final = {
    r"(?<!set )(?<!set_)(?<!put )aside\b": "ignored, left out, rejected",
    r"\b(?:the|this|a|an|own|one|whole) house\b|\bhouse's\b": "deployment, server, everybody",
    r"\bmoods?\b": "load, variation",
    r"\banew\b": "again",
    r"\bin vain\b": "without effect, unsuccessfully",
    r"\bby the clock\b": "in wall-clock time",
    r"\bkin\b": "the like",
    r"\ball the same(?=[,.;:]|$)": "nevertheless, also",
    r"\bfor ever\b": "forever, without end",
    r"\b(?:let|lets|letting) go of\b": "release, forget, delete",
    r"\bwithout a word\b": "silently, without an error",
    r"\bin silence\b": "silently",
    r"\bat hand\b": "available",
    r"\bto be had\b|\bbe had\b": "available",
    r"\bin good order\b": "cleanly",
    r"\b(?:is|are) heard\b": "is accepted",
    r"\bpatience\b": "timeout",
    r"\blooks? after\b": "supervises, checks",
}
"""What no reader should have to look up, and what the field says."""
BANNED: Final = re.compile("|".join(INSTEAD), re.IGNORECASE)
PAGES: Final = [
    page
    for page in pages()
    if page.name != "CHANGELOG.md" and not {"adr", "measurements"} & set(page.parts)
]
FOLDERS: Final = (
    *("gateway", "engine_worker", "auth_worker", "toolparser_worker", "protocol", "penstock"),
    *("benchmarks", "examples", "tools"),
)
MODULES: Final = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "demo_model" not in path.parts  # whose words the model learns
]
_CODE: Final = re.compile(r"^ *```.*?^ *```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_WRITTEN: Final = frozenset(("COMMENT", "STRING", "FSTRING_MIDDLE"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(page: str) -> str:
    """A page with its code blanked and its lines kept."""
    return _CODE.sub(lambda found: "\n" * found[0].count("\n"), page)


def parts_of(source: str) -> Iterator[tuple[int, str]]:
    """Comments and strings, docstrings among them, with the lines where they begin."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if tokenize.tok_name[token.type] in _WRITTEN:
            yield token.start[0], _CODE.sub(lambda found: "\n" * found[0].count("\n"), token.string)


def found_in(line: int, text: str) -> list[str]:
    return [
        f"line {line + text.count(chr(10), 0, found.start())}: {found[0]!r}"
        for found in BANNED.finditer(text)
    ]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_uses_the_fields_words(page: Path) -> None:
    assert found_in(1, text_of(page.read_text(encoding="utf-8"))) == [], "say it as INSTEAD does"


@pytest.mark.parametrize("folder", FOLDERS)
def test_messages_and_comments_use_the_fields_words(folder: str) -> None:
    found = [
        f"{name(path)} {one}"
        for path in MODULES
        if path.is_relative_to(ROOT / folder)
        for line, text in parts_of(path.read_text(encoding="utf-8"))
        for one in found_in(line, text)
    ]
    assert found == [], "say it as INSTEAD does"


def test_what_is_banned_is_found_and_what_isnt_is_not() -> None:
    page = "The house\nleaves it aside.\n```\nin vain\n```\n`for ever`, set aside\nfor ever"
    assert found_in(1, text_of(page)) == [
        "line 1: 'The house'",
        "line 2: 'aside'",
        "line 7: 'for ever'",
    ]
    source = '"""Of\nall in vain."""\nfor_ever = f"{x} in silence"  # to be had\n'
    found = [one for line, text in parts_of(source) for one in found_in(line, text)]
    assert found == ["line 2: 'in vain'", "line 3: 'in silence'", "line 3: 'to be had'"]
