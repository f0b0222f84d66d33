"""A field without a meaning is listed or refused, wherever in a body of whatever kind it stands."""

import re
from typing import Any, Final, get_args, get_type_hints

import pytest
from openai.types.responses import ResponseInputItemParam

from gateway.errors import InvalidRequestError
from gateway.http.openresponses.item_shapes import ITEM
from gateway.http.parsers import COMPACT, KINDS
from gateway.http.schemas.body import known_only
from gateway.http.schemas.organization import InviteRequest, SpendAlertRequest
from tests.fakes.sample_bodies import (
    CONTEXT,
    SAMPLE_BODIES,
    bytes_of,
    found_at,
    positions,
    replaced,
)

ODD_NAME: Final = "zzz"
FREE: Final = re.compile(
    r"(\.|^)(parameters|input_schema|schema|guided_json|data|state|logit_bias|metadata"
    r"|chat_template_kwargs|arguments|input_json|prediction|cache_control|citations|headers|criteria"
    r"|questions$)|^tool_choice\.(allowed_tools\.)?tools|content\[\d+\]\.input$|\.input$"
    r"|input\[\d+\]\.(tools|error)|items\[\d+\]\.(tools|error)|^params|\.authorization$"
)
"""Places where anything may stand: schemas, arguments, labels, what others say."""


def dotted(path: tuple[str | int, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def ignored_by(result: Any) -> list[str]:
    """What a parser has listed, of whatever it returns."""
    if not hasattr(result, "ignored"):
        return ignored_by(result.asked if hasattr(result, "asked") else result.body)
    found: list[str] = result.ignored
    return found


def told_of(kind: str, body: Any) -> list[str]:
    """The fields that a client is told of: as ignored, or refused."""
    try:
        result = KINDS[kind].parse(bytes_of(kind, body), CONTEXT)
    except InvalidRequestError as error:
        return [error.param or "nothing"]
    return [] if kind in ("parse", "execute") else ignored_by(result)


LISTING: Final = [
    name
    for name in KINDS
    if not name.startswith("continued_") and name not in ("mcp", "conversation_update")
]


@pytest.mark.parametrize("kind", LISTING)
def test_a_field_without_a_meaning_is_listed_or_refused_wherever_it_is(kind: str) -> None:
    silent: list[str] = []
    for body in SAMPLE_BODIES[kind]:
        if {"conversation", "previous_response_id"} & body.keys():
            continue  # its second parsing says what is ignored
        for path in ((), *positions(body)):
            place = dotted((*path, ODD_NAME))
            value = found_at(body, path)
            is_free = FREE.search(dotted(path)) or (kind == "chat" and path[:1] == ("documents",))
            if not isinstance(value, dict) or is_free:
                continue
            changed = replaced(body, path, {**value, ODD_NAME: 1})
            if not any(place.startswith(one) for one in told_of(kind, changed)):
                silent.append(place)
    assert silent == []


@pytest.mark.parametrize("kind", LISTING)
def test_nothing_of_a_sample_is_without_a_meaning(kind: str) -> None:
    if kind in ("parse", "execute"):
        return  # they refuse it
    for body in SAMPLE_BODIES[kind]:
        if not {"conversation", "previous_response_id"} & body.keys():
            result = KINDS[kind].parse(bytes_of(kind, body), CONTEXT)
            # Counting runs no tools of servers.
            assert set(ignored_by(result)) <= {"tools[3]"}


def test_what_a_compaction_does_not_read_is_listed() -> None:
    body = {"model": "m", "input": "x", "stream": True, "tools": [], "temperature": 0.5}
    assert COMPACT.parse(bytes_of("compact", body), CONTEXT).ignored == [
        *("stream", "temperature", "tools"),
    ]


def test_what_is_repeated_of_a_name_is_bounded() -> None:
    name = "x" * 100_000
    user = [{"role": "user", "content": "x"}]
    body = {"model": "m", "messages": user, name: 1, "logit_bias": {"1": 1}, "metadata": {name: 1}}
    (listed,) = KINDS["chat"].parse(bytes_of("chat", body), CONTEXT).ignored
    assert len(listed) < 200
    with pytest.raises(InvalidRequestError) as caught:
        KINDS["conversation_update"].parse(bytes_of("chat", {"metadata": {name: 1}}), CONTEXT)
    assert len(caught.value.message) < 500


def test_functions_are_named_in_the_words_of_the_client() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "functions": [{"name": "f", "zzz": 1}],
        "function_call": {"name": "f", "yyy": 1},
    }
    result = KINDS["chat"].parse(bytes_of("chat", body), CONTEXT)
    assert sorted(result.ignored) == ["function_call.yyy", "functions[0].zzz"]


def test_items_as_openais_client_declares_them_have_no_unknown_fields() -> None:
    declared: dict[str, set[str]] = {}
    for one in get_args(ResponseInputItemParam):
        hints = get_type_hints(one)
        names = get_args(getattr(hints["type"], "__args__", (hints["type"],))[0]) or get_args(
            hints["type"]
        )
        for name in names:
            if name in ITEM.kinds:
                declared.setdefault(name, set()).update(hints)
    assert declared.keys() == ITEM.kinds.keys()
    for name, known in declared.items():
        assert known <= ITEM.kinds[name].known, name


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        (
            InviteRequest,
            {
                "email": "a@b.c",
                "role": "owner",
                "projects": [{"id": "1", "role": "owner", "zzz": 1}],
            },
            "projects[0].zzz",
        ),
        (
            SpendAlertRequest,
            {
                "currency": "USD",
                "interval": "month",
                "threshold_amount": 1,
                "notification_channel": {"type": "email", "recipients": [], "subject_prefix": "x"},
            },
            "notification_channel.subject_prefix",
        ),
    ],
)
def test_administration_refuses_what_it_does_not_know_at_any_depth(
    model: Any, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        known_only(model, body)
    assert caught.value.param == param
