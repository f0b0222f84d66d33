"""What clients that want objects get of a call's arguments."""

from typing import Any

import orjson
import pytest

from gateway.http.anthropic.conversation import tool_input
from gateway.http.render.call_arguments import arguments_object


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ('{"a": 1e2}', {"a": 100.0}),
        (r'{"a": "\ud83d\ude00"}', {"a": "😀"}),
        (r'{"a": "\ud83d", "b": 1, "\udc00": ["x"]}', {"a": "\ufffd", "b": 1, "\ufffd": ["x"]}),
        (r'{"a": "\ud83d', None),
        (r'{"a": NaN, "b": "\ud83d"}', None),
        (r'["\ud83d"]', None),
        ('{"\\ud83d": ' + "[" * 100_000, None),
        ("{broken", None),
    ],
)
def test_half_a_surrogate_pair_does_not_empty_the_arguments(text: str, value: Any) -> None:
    assert arguments_object(text) == value
    assert tool_input(text) == ({"INVALID_JSON": text} if value is None else value)


@pytest.mark.parametrize(
    "text",
    [
        '{"id":12345678901234567890123,"x":0.1000000000000000055}',
        '{"id":12345678901234567890123,"x":"\\ud83d"}',
    ],
)
def test_a_call_keeps_every_digit(text: str) -> None:
    shown = text.replace("\\ud83d", "\ufffd")
    assert orjson.dumps(tool_input(text)).decode() == shown
