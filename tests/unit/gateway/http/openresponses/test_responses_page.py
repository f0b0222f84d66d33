"""docs/responses-api.md says what a compaction takes."""

import re
from pathlib import Path

from gateway.http.openresponses.schemas import HARMLESS_FIELDS, CompactRequest

PAGE = Path(__file__).parents[5] / "docs" / "responses-api.md"


def test_the_page_says_what_a_compaction_takes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    told = text.split("`/v1/responses/compact` doesn't read", 1)[1].split("\n\n", 1)[0]
    assert HARMLESS_FIELDS.keys() | set(re.findall(r"`(\w+)`", told)) == CompactRequest.known_fields
