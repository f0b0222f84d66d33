"""Runs tools of other packages, one call at a time: `python -m gateway.tools.tool_process`.

It talks JSON lines: first the tools it found, then that it took a call, and the call's answer.
Whatever a tool prints goes to the log, what it raises is an answer, and what it does to its process
hurts nobody else.
"""

import asyncio
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import orjson
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import best_match  # type: ignore[import-untyped]

PLUGIN_GROUP = "penstock.tools"
"""The group of entry points by which packages add tools."""

_MAX_MESSAGE_CHARACTERS = 2000
_MAX_LEVELS = 254
"""Of JSON, that the gateway writes."""
_NUM_LAYERS = 16
"""Of these, for what it puts around a value."""


class ToolPluginError(Exception):
    """A package's tools cannot be used; the message says which and why."""


@dataclass(frozen=True)
class RegisteredTool:
    """One tool of a package.

    Attributes:
        call: Takes the arguments by name and returns a JSON value; may be a coroutine function.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    call: Callable[..., Any]


def load_tools(plugins: Iterable[EntryPoint]) -> dict[str, RegisteredTool]:
    """The tools that packages declare, by name.

    Raises:
        ToolPluginError: A plug-in cannot be loaded, declares no tools, or a name twice.
    """
    tools: dict[str, RegisteredTool] = {}
    for plugin in plugins:
        try:
            found = plugin.load()
            declared = [found] if isinstance(found, Mapping) else list(found)
            for one in declared:
                tool = _tool(one)
                if tool.name in tools:
                    raise ToolPluginError(f"two tools are called {tool.name!r}")
                tools[tool.name] = tool
        except Exception as error:
            # Whatever a plug-in raises, the operator must learn which one it was.
            raise ToolPluginError(
                f"The tools of plug-in {plugin.name!r} cannot be used: {error!s:.500}."
            ) from error
    return tools


def _tool(declared: Mapping[str, Any]) -> RegisteredTool:
    name, call = declared["name"], declared["call"]
    parameters = declared.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(name, str) or not name or not callable(call):
        raise ToolPluginError("a tool needs a name and a callable")
    Draft202012Validator.check_schema(parameters)
    name.encode()  # a call names it again, so it has to come back as it is
    check_readable(parameters)
    return RegisteredTool(name, str(declared.get("description", "")), parameters, call)


def as_line(value: Any) -> bytes:
    """A value as JSON in one line.

    Half a pair of surrogates, as names of files that are no UTF-8 have them, is a character in
    JSON's grammar, but in no encoding: it is U+FFFD.

    Raises:
        TypeError: Something in it is no JSON.
        ValueError: A number in it is none, or the value holds itself.
        RecursionError: It nests too deep.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        line = text.encode()
    except UnicodeEncodeError:
        line = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    return line + b"\n"


def check_readable(value: Any) -> None:
    """Look whether the gateway reads a value out of its line, and can write it into an answer.

    Raises:
        Exception: Whatever `as_line` raises.
        ValueError: It nests too deep, or a number in it is greater than any float.
    """
    read = orjson.loads(as_line(value))
    for _ in range(_NUM_LAYERS):
        read = [read]
    try:
        orjson.dumps(read)
    except TypeError:
        raise ValueError(f"it nests deeper than {_MAX_LEVELS - _NUM_LAYERS} levels") from None


def answer(tools: Mapping[str, RegisteredTool], call: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one call.

    Returns:
        `result`, or `error` with type and message of what the tool raised, or `invalid` with what
        is wrong with the arguments.
    """
    tool = tools[call["name"]]
    arguments = call["arguments"]
    try:
        # Also what this raises is an answer: a reference to nothing, a value that nests deep.
        wrong = best_match(Draft202012Validator(tool.parameters).iter_errors(arguments))
        if wrong is not None:
            place = "".join(f".{part}" for part in wrong.absolute_path)
            return {"invalid": f"arguments{place}: {wrong.message}"[:_MAX_MESSAGE_CHARACTERS]}
        result = tool.call(**arguments)
        if inspect.iscoroutine(result):
            result = asyncio.run(_awaited(result))
        check_readable(result)
    except Exception as error:  # noqa: BLE001  # an answer for the model, whatever it is
        message = str(error)[:_MAX_MESSAGE_CHARACTERS]
        return {"error": {"type": type(error).__name__, "message": message}}
    return {"result": result}


async def _awaited(result: Any) -> Any:
    return await result


def serve(load: Callable[[], Mapping[str, RegisteredTool]]) -> int:
    """Serves calls of tools until the gateway closes the pipe; the exit status.

    Args:
        load: Gives the tools; raises `ToolPluginError` where they can't be used.
    """
    # The pipes are ours alone: a tool that prints or reads must not disturb them.
    calls = io.TextIOWrapper(os.fdopen(os.dup(0), "rb"), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)

    def say(message: Mapping[str, Any]) -> None:
        answers.write(as_line(message))
        answers.flush()

    try:
        tools = load()
    except ToolPluginError as error:
        say({"error": str(error)})
        return 1
    listed = [
        {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        for tool in tools.values()
    ]
    say({"tools": listed})
    for line in calls:
        say({"begun": True})  # from here on a call is not made again elsewhere
        say(answer(tools, json.loads(line)))
    return 0


def main() -> int:
    """Serves the tools that installed packages register."""
    return serve(lambda: load_tools(entry_points(group=PLUGIN_GROUP)))


if __name__ == "__main__":
    sys.exit(main())
