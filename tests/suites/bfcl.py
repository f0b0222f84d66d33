"""The calls of the Berkeley Function-Calling Leaderboard, out of its Python package.

https://gorilla.cs.berkeley.edu/leaderboard.html; the package is `bfcl-eval` (Apache 2.0), whose
data alone is read: none of its code is run.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

VERSION: Final = "2026.3.23"
_FILES: Final = (
    "simple_python",
    "multiple",
    "parallel",
    "parallel_multiple",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
)
_TYPES: Final = {
    "dict": "object",
    "float": "number",
    "double": "number",
    "tuple": "array",
    "list": "array",
}
_JSON_TYPES: Final = frozenset(("object", "array", "string", "number", "integer", "boolean"))


@dataclass(frozen=True)
class Case:
    """One question's tools and the calls that answer it.

    Attributes:
        id: As the suite names it.
        tools: In OpenAI's shape.
        calls: Names and arguments.
    """

    id: str
    tools: list[dict[str, Any]]
    calls: list[tuple[str, dict[str, Any]]]


def cases(directory: Path) -> Iterator[Case]:
    """All cases with calls in Python's types."""
    for name in _FILES:
        answers = {
            answer["id"]: answer["ground_truth"]
            for answer in _lines(directory / "possible_answer" / f"BFCL_v4_{name}.json")
        }
        for question in _lines(directory / f"BFCL_v4_{name}.json"):
            schemas = {one["name"]: _schema(one["parameters"]) for one in question["function"]}
            yield Case(
                id=question["id"],
                tools=[
                    {"type": "function", "function": {"name": tool, "parameters": parameters}}
                    for tool, parameters in schemas.items()
                ],
                calls=[
                    (tool, _arguments(accepted, schemas[tool]))
                    for call in answers[question["id"]]
                    for tool, accepted in call.items()
                ],
            )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _schema(declared: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of the suite's own words for types."""
    schema: dict[str, Any] = {}
    kind = _TYPES.get(declared.get("type", ""), declared.get("type"))
    if kind in _JSON_TYPES:
        schema["type"] = kind
    if isinstance(declared.get("enum"), list):
        schema["enum"] = declared["enum"]
    if isinstance(declared.get("required"), list):
        schema["required"] = declared["required"]
    if isinstance(declared.get("items"), dict):
        schema["items"] = _schema(declared["items"])
    if isinstance(declared.get("properties"), dict):
        schema["properties"] = {
            name: _schema(member) for name, member in declared["properties"].items()
        }
    return schema


def _arguments(accepted: dict[str, list[Any]], schema: dict[str, Any]) -> dict[str, Any]:
    """The first of the accepted values for each argument that its schema allows.

    `""` means that an argument may be left out. Some answers contradict their own schemas, null
    for a string for instance, which formats without types can't tell.
    """
    members = schema.get("properties", {})
    found = {}
    for name, values in accepted.items():
        if name not in members:
            continue
        for value in values:
            chosen = _value(value, members[name])
            if value != "" and Draft202012Validator(members[name]).is_valid(chosen):
                found[name] = chosen
                break
    return found


def _value(value: Any, schema: dict[str, Any]) -> Any:
    if isinstance(value, dict) and all(isinstance(one, list) for one in value.values()):
        return _arguments(value, schema)
    if isinstance(value, list):
        return [_value(item, schema.get("items", {})) for item in value]
    return value
