"""docs/messages-api.md: every field of the official client's requests is in its lists."""

import re
from pathlib import Path

from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsBase

from gateway.http.anthropic.schemas import HARMLESS_FIELDS, REFUSED_FIELDS, MessagesRequest

PAGE = Path(__file__).parents[5] / "docs" / "messages-api.md"


def fields_told() -> tuple[set[str], set[str], set[str]]:
    text = PAGE.read_text(encoding="utf-8")
    honoured, harmless, refused = (
        set(re.findall(r"`(\w+)`", text.split(f"\n- {words}", 1)[1].split(".\n", 1)[0]))
        for words in ("Honoured:", "Harmless,", "Refused by name (400):")
    )
    return honoured, harmless, refused


def test_every_field_of_the_official_client_is_in_the_fields_told() -> None:
    honoured, harmless, refused = fields_told()
    fields = MessageCreateParamsBase.__annotations__ | MessageCountTokensParams.__annotations__
    assert fields.keys() <= honoured | harmless | refused


def test_the_lists_say_what_the_code_does() -> None:
    honoured, harmless, refused = fields_told()
    assert harmless == HARMLESS_FIELDS.keys()
    assert refused == REFUSED_FIELDS.keys()
    assert honoured | harmless == MessagesRequest.known_fields
