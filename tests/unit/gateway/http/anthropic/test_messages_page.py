"""docs/messages-api.md: every field of the official client's requests is in its lists."""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import orjson
import pytest
from anthropic.types.beta import message_count_tokens_params as beta_counted
from anthropic.types.beta import message_create_params as beta_created
from anthropic.types.beta.beta_tool_union_param import BetaToolUnionParam
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsBase

from gateway.errors import UnsupportedFieldError
from gateway.http.anthropic.client_tools import CLIENT_TOOLS
from gateway.http.anthropic.conversation import chat_tools
from gateway.http.anthropic.schemas import (
    HARMLESS_FIELDS,
    REFUSED_FIELDS,
    CountTokensRequest,
    MessagesRequest,
    parse,
)

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
    fields = (
        *MessageCreateParamsBase.__annotations__,
        *MessageCountTokensParams.__annotations__,
        *beta_created.MessageCreateParamsBase.__annotations__,
        *beta_counted.MessageCountTokensParams.__annotations__,
    )
    assert set(fields) <= honoured | harmless | refused


def kinds_of_tools(union: Any) -> dict[str, Any]:
    """The types that tools of the official client may have, with their parameters."""
    found: dict[str, Any] = {}
    for one in get_args(union):
        if get_origin(one) is None and isinstance(one, type):
            kind = get_type_hints(one)["type"]
            literals = [kind] if get_origin(kind) is Literal else get_args(kind)
            names = [name for literal in literals for name in get_args(literal)]
            found |= dict.fromkeys(names, one)
        else:
            found |= kinds_of_tools(one)
    return found


def test_every_tool_of_the_official_client_is_a_function_or_left_out_or_refused() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for kind, params in kinds_of_tools(BetaToolUnionParam).items():
        if kind == "custom":
            continue
        name = get_args(get_type_hints(params).get("name")) or ("",)
        try:
            functions, left_out = chat_tools([{"type": kind, "name": name[0]}])
        except UnsupportedFieldError as error:
            assert error.param == "tools[0].type"  # noqa: PT017
            assert kind.startswith(("computer", "browser"))
        else:
            assert [one["function"]["name"] for one in functions] == (
                [CLIENT_TOOLS[kind].name] if kind in CLIENT_TOOLS else []
            )
            assert left_out == ([] if functions else ["tools[0]"])
        shown = kind if kind in CLIENT_TOOLS else re.split(r"\d|bm25|regex", kind)[0]
        assert f"`{shown}" in text


def test_what_asks_for_nothing_is_refused_nowhere() -> None:
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    summary = {"compaction": {"type": "summarize"}}
    neutral: list[dict[str, Any]] = [
        {"billing_policy": {"type": "billing_policy", "bill_to": "self"}},
        {"mcp_servers": []},
        dict.fromkeys(REFUSED_FIELDS),
    ]
    for one in neutral:
        assert parse(MessagesRequest, orjson.dumps(body | one))[1] == []
    assert parse(CountTokensRequest, orjson.dumps(body | summary))[1] == []
    for wrong in ({"thread": {"type": "create"}}, {"billing_policy": {"bill_to": "x"}}, summary):
        with pytest.raises(UnsupportedFieldError) as caught:
            parse(MessagesRequest, orjson.dumps(body | wrong))
        assert caught.value.param == next(iter(wrong))


def test_the_lists_say_what_the_code_does() -> None:
    honoured, harmless, refused = fields_told()
    assert harmless == HARMLESS_FIELDS.keys()
    assert refused == REFUSED_FIELDS.keys()
    assert honoured | harmless == MessagesRequest.known_fields
