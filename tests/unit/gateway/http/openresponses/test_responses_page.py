"""docs/responses-api.md: every field of the official client's requests is in its lists."""

import re
from pathlib import Path

from openai.types.responses.input_token_count_params import InputTokenCountParams
from openai.types.responses.response_compact_params import ResponseCompactParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from gateway.http.openresponses.schemas import (
    HARMLESS_FIELDS,
    REFUSED_FIELDS,
    CompactRequest,
    ResponsesRequest,
)

PAGE = Path(__file__).parents[5] / "docs" / "responses-api.md"


def fields_told() -> tuple[set[str], set[str], set[str]]:
    text = PAGE.read_text(encoding="utf-8")
    honoured, harmless, refused = (
        set(re.findall(r"`(\w+)`", text.split(f"\n- {words}", 1)[1].split(".\n", 1)[0]))
        for words in ("Honoured:", "Harmless,", "Refused by name (400):")
    )
    return honoured, harmless, refused


def test_every_field_of_the_official_client_is_in_the_fields_told() -> None:
    honoured, harmless, refused = fields_told()
    fields = ResponseCreateParamsBase.__annotations__ | InputTokenCountParams.__annotations__
    fields |= ResponseCompactParams.__annotations__
    assert fields.keys() <= honoured | harmless | refused


def test_the_lists_say_what_the_code_does() -> None:
    honoured, harmless, refused = fields_told()
    assert harmless == HARMLESS_FIELDS.keys()
    assert refused == REFUSED_FIELDS.keys()
    assert honoured | harmless == ResponsesRequest.known_fields


def test_the_page_says_what_a_compaction_takes() -> None:
    _, harmless, _ = fields_told()
    text = PAGE.read_text(encoding="utf-8")
    told = text.split("`/v1/responses/compact` doesn't read", 1)[1].split("\n\n", 1)[0]
    assert harmless | set(re.findall(r"`(\w+)`", told)) == CompactRequest.known_fields
