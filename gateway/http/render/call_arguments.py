"""The JSON of a call's arguments as the object that it stands for."""

import json
from typing import Any

import orjson

from gateway.json_numbers import loads


def arguments_object(text: str) -> dict[str, Any] | None:
    """The object; no text is an empty one. None for anything else, such as JSON that was cut.

    A lone surrogate, which a model can write as an escape, is U+FFFD.
    """
    try:
        value = loads(text or "{}")
    except orjson.JSONDecodeError:
        value = _with_replacements(text)
    return value if isinstance(value, dict) else None


def _with_replacements(text: str) -> Any:
    """The value of JSON with lone surrogates; None for text that is wrong in another way too."""
    if "\\u" not in text:
        return None
    try:
        spelt = json.dumps(json.loads(text), ensure_ascii=False)
        # Half a pair of surrogates is a character in JSON's grammar, but in no encoding.
        return loads(spelt.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        return None
