"""Parses a text without a server: `python -m toolparser_worker.parse_text --format NAME < TEXT`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from protocol.errors import PenstockError
from protocol.wire.messages import OpenParse, ParseDelta, ParseEvent
from toolparser_worker.sessions import Session
from toolparser_worker.tools import ToolsTable

EXIT_USAGE = 2
_REQUEST_ID = "parse"


def parse_text(text: str, opening: OpenParse) -> dict[str, Any]:
    """What stands in a text.

    Args:
        text: All that the model wrote.
        opening: Formats, tools and the prompt's end.

    Returns:
        `content` and `reasoning` (None when empty), `tool_calls` in OpenAI's shape, and
        `num_malformed`.

    Raises:
        ParserError: Unknown formats, or tools that are none.
    """
    session = Session(opening, ToolsTable().acquire(opening.tools_json))
    parsed = session.parse(
        ParseDelta(request_id=_REQUEST_ID, choice=0, attempt=1, text=text, final=True)
    )
    calls: list[dict[str, Any]] = []
    for event in parsed.events:
        if event.kind == "tool_call_start":
            function = {"name": event.name, "arguments": ""}
            calls.append({"id": event.id, "type": "function", "function": function})
        elif event.kind == "tool_call_arguments":
            calls[event.index]["function"]["arguments"] += event.text
    return {
        "content": _joined(parsed.events, "content"),
        "reasoning": _joined(parsed.events, "reasoning"),
        "tool_calls": calls,
        "num_malformed": parsed.num_malformed,
    }


def _joined(events: Sequence[ParseEvent], kind: str) -> str | None:
    return "".join(event.text for event in events if event.kind == kind) or None


def main(
    arguments: Sequence[str] | None = None,
    source: TextIO = sys.stdin,
    target: TextIO = sys.stdout,
    complaints: TextIO = sys.stderr,
) -> int:
    """Reads text and writes what stands in it as JSON.

    Returns:
        The exit code: 0, or 2 when formats or tools are wrong.
    """
    parser = argparse.ArgumentParser(
        prog="penstock parse",
        description="Tell content, reasoning and tool calls apart in a model's text.",
    )
    parser.add_argument("--format", help="tool format, such as hermes; see docs/formats.md")
    parser.add_argument("--reasoning", metavar="FORMAT", help="reasoning format")
    parser.add_argument("--tools", metavar="FILE", type=Path, help="JSON list of OpenAI tools")
    parser.add_argument("--prompt-tail", default="", help="the prompt's end: <think> opens it")
    options = parser.parse_args(arguments)
    try:
        opening = OpenParse(
            request_id=_REQUEST_ID,
            attempt=1,
            tool_format=options.format,
            reasoning_format=options.reasoning,
            tools_json=None if options.tools is None else options.tools.read_text("utf-8"),
            prompt_tail=options.prompt_tail,
        )
        found = parse_text(source.read(), opening)
    except (PenstockError, OSError, UnicodeDecodeError) as error:
        complaints.write(f"{error}\n")
        return EXIT_USAGE
    target.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
