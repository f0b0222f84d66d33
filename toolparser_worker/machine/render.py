"""Writes calls and reasoning as a format spells them: the way back from events to text."""

import json
from collections.abc import Iterable

from toolparser_worker.machine.declarations import ReasoningFormat, ToolFormat


def render_calls(tool_format: ToolFormat, calls: Iterable[tuple[str, str]]) -> str:
    """The calls as the model would write them.

    Args:
        tool_format: How to spell them.
        calls: Name and arguments, these as JSON text that is written verbatim.
    """
    body = tool_format.body
    return tool_format.rendered_separator.join(
        f"{tool_format.rendered_start}"
        f"{{{json.dumps(body.name_keys[0])}: {json.dumps(name, ensure_ascii=False)}, "
        f"{json.dumps(body.argument_keys[0])}: {arguments}}}"
        f"{tool_format.rendered_end}"
        for name, arguments in calls
    )


def render_reasoning(reasoning_format: ReasoningFormat, reasoning: str) -> str:
    """The reasoning between its markers."""
    return f"{reasoning_format.start}{reasoning}{reasoning_format.end}"
