"""docs/messages-api.md: every tool of the official client is told; fields that ask for nothing."""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import orjson
import pytest

from gateway.errors import UnsupportedFieldError
from gateway.http.anthropic.client_tools import CLIENT_TOOLS
from gateway.http.anthropic.conversation import chat_tools
from gateway.http.anthropic.schemas import (
    REFUSED_FIELDS,
    CountTokensRequest,
    MessagesRequest,
    parse,
)
from tests.fakes.late import anthropic

PAGE = Path(__file__).parents[5] / "docs" / "messages-api.md"


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
    for kind, params in kinds_of_tools(anthropic.types.beta.BetaToolUnionParam).items():
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
