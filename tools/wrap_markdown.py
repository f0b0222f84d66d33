"""Wraps paragraphs and list items of Markdown at 100 columns; `make format` runs it on every page.

Only a paragraph that has a longer line is touched. Tables, headings, fenced code and comments stay
as they are, and a code span of up to 60 characters is not broken.
"""

import re
import sys
import textwrap
from pathlib import Path

MAX_COLUMNS = 100
ROOT = Path(__file__).parents[1]
_ITEM = re.compile(r"^(\s*)([-*+]|\d+\.)(\s+)")
_VERBATIM = ("|", "#", "<!--", "```", "> ", "[^")
_BEGINS_SOMETHING_ELSE = re.compile(r"^\s*([-*+]|\d+\.|#|>|\|)\s")
_MAX_UNBROKEN_CODE = 60


def pages() -> list[Path]:
    """Every page of the repository."""
    folders = ("docs", "deploy", "examples", "requirements")
    nested = [path for folder in folders for path in (ROOT / folder).rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *nested])


def _is_verbatim(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith(_VERBATIM)


def _wrapped(block: list[str]) -> list[str]:
    """One paragraph or list item, filled again; as it is where a line would begin another."""
    item = _ITEM.match(block[0])
    first = item[0] if item else re.match(r"\s*", block[0])[0]  # type: ignore[index]
    later = " " * len(first)
    text = " ".join([block[0][len(first) :], *(line.strip() for line in block[1:])])
    parts = re.split(r"(`[^`]*`)", text)
    kept = [
        part.replace(" ", "\0")
        if part.startswith("`") and len(part) <= _MAX_UNBROKEN_CODE
        else part
        for part in parts
    ]
    lines = textwrap.wrap(
        "".join(kept),
        width=MAX_COLUMNS,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if any(_BEGINS_SOMETHING_ELSE.match(line) for line in lines[1:]):
        return block
    return [line.replace("\0", " ") for line in lines]


def wrapped(text: str) -> str:
    """A page with no paragraph wider than 100 columns."""
    found: list[str] = []
    lines = text.split("\n")
    in_code, at = False, 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if line.lstrip().startswith("```"):
            in_code = not in_code
        if in_code or _is_verbatim(line):
            found.append(line)
            continue
        block = [line]
        while at < len(lines) and not _is_verbatim(lines[at]) and not _ITEM.match(lines[at]):
            block.append(lines[at])
            at += 1
        is_wide = any(len(one) > MAX_COLUMNS for one in block)
        found += _wrapped(block) if is_wide else block
    return "\n".join(found)


def main() -> None:
    """Wrap the named pages, or all of them."""
    for path in [Path(name) for name in sys.argv[1:]] or pages():
        text = path.read_text(encoding="utf-8")
        new = wrapped(text)
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"wrapped {path}")


if __name__ == "__main__":
    main()
