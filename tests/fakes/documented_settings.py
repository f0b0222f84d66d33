"""The settings that docs/operations.md names, for tests of files that give settings to
processes."""

import re
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def documented_settings() -> set[str]:
    """Every `PENSTOCK_…` that has a row in a table of the page."""
    text = _PAGE.read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(PENSTOCK_[A-Z_]+)`", text, re.MULTILINE))
