"""Writes a tokenizer's suffix into every tag of a format: `<tool_call>` becomes `<tool_call:x>`."""

import dataclasses
import re
from typing import Any, TypeVar

from toolparser_worker.machine.declarations import ReasoningFormat, ToolFormat

FormatT = TypeVar("FormatT", ToolFormat, ReasoningFormat)
_TAG = re.compile(r"(</?\w+)>")


def with_suffix(declared: FormatT, suffix: str) -> FormatT:
    """The same format with the suffix before the end of each tag.

    Args:
        declared: A format whose tags are single words.
        suffix: With whatever parts it from the word, such as `:x`.
    """
    found: FormatT = _suffixed(declared, suffix)
    return found


def _suffixed(value: Any, suffix: str) -> Any:
    if isinstance(value, str):
        return _TAG.sub(lambda tag: f"{tag[1]}{suffix}>", value)
    if isinstance(value, tuple):
        return tuple(_suffixed(item, suffix) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {
            field.name: _suffixed(getattr(value, field.name), suffix)
            for field in dataclasses.fields(value)
            if field.name not in ("name", "aliases")
        }
        return dataclasses.replace(value, **changes)
    return value
