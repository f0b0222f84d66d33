"""What a process of tools finds, and how it answers calls."""

import math
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from gateway.tools.tool_process import ToolPluginError, answer, load_tools

ADD: dict[str, Any] = {
    "name": "add",
    "description": "Adds.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "call": lambda a, b: a + b,
}


class Plugin(EntryPoint):
    """An entry point that gives what is there already."""

    def load(self) -> Any:
        found = DECLARED[self.value]
        if isinstance(found, Exception):
            raise found
        return found


async def later(**arguments: Any) -> Any:
    return arguments


DECLARED: dict[str, Any] = {
    "one": ADD,
    "several": [{**ADD, "name": "other"}, {"name": "later", "call": later}],
    "odd": [{"name": "nan", "call": lambda: math.nan}, {"name": "boom", "call": lambda: 1 // 0}],
    "unfollowed": [
        {"name": "lost", "parameters": {"properties": {"a": {"$ref": "#/none"}}}, "call": later},
        {"name": "endless", "parameters": {"properties": {"a": {"$ref": "#"}}}, "call": later},
    ],
    "broken": ImportError("no such module"),
    "nameless": {"call": print},
    "uncallable": {"name": "f", "call": 1},
    "schemaless": {**ADD, "name": "wrong", "parameters": {"type": "intteger"}},
    "numberless": {**ADD, "name": "wrong", "parameters": {"default": {"a": math.inf}}},
    "beyond": {**ADD, "name": "wrong", "parameters": {"default": {"a": 10**400}}},
    "half": {**ADD, "name": "add\udce9"},
}


def plugins(*values: str) -> list[EntryPoint]:
    return [Plugin(name=f"plug-{value}", value=value, group="penstock.tools") for value in values]


def test_packages_declare_one_tool_or_several() -> None:
    tools = load_tools(plugins("one", "several"))
    assert list(tools) == ["add", "other", "later"]
    assert tools["later"].parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    "value",
    ["broken", "nameless", "uncallable", "schemaless", "numberless", "beyond", "half"],
)
def test_a_package_that_cannot_be_used_is_named(value: str) -> None:
    with pytest.raises(ToolPluginError, match=f"'plug-{value}'"):
        load_tools(plugins("one", value))


def test_no_two_tools_have_the_same_name() -> None:
    with pytest.raises(ToolPluginError, match="'add'"):
        load_tools([*plugins("one"), *plugins("one")])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (("add", {"a": 1, "b": 2}), {"result": 3}),
        (("later", {"x": [1]}), {"result": {"x": [1]}}),
        (("add", {"a": 1, "b": "2"}), {"invalid": "arguments.b: '2' is not of type 'integer'"}),
        (("add", {"a": 1}), {"invalid": "arguments: 'b' is a required property"}),
    ],
)
def test_a_call_is_checked_and_run(call: tuple[str, Any], expected: dict[str, Any]) -> None:
    name, arguments = call
    tools = load_tools(plugins("one", "several"))
    assert answer(tools, {"name": name, "arguments": arguments}) == expected


@pytest.mark.parametrize(("name", "kind"), [("boom", "ZeroDivisionError"), ("nan", "ValueError")])
def test_what_a_tool_does_wrong_is_an_answer(name: str, kind: str) -> None:
    found = answer(load_tools(plugins("odd")), {"name": name, "arguments": {}})
    assert found["error"]["type"] == kind


@pytest.mark.parametrize(
    ("name", "kind"), [("lost", "_WrappedReferencingError"), ("endless", "RecursionError")]
)
def test_a_schema_that_cannot_be_followed_is_an_answer(name: str, kind: str) -> None:
    arguments: dict[str, Any] = {}
    for _ in range(sys.getrecursionlimit()):
        arguments = {"a": arguments}
    found = answer(load_tools(plugins("unfollowed")), {"name": name, "arguments": arguments})
    assert found["error"]["type"] == kind
