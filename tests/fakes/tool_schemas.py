"""Parameters of tools for tests, one or more for each thing that a JSON schema can say."""

from typing import Any


def an_object(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    """An object schema; all its members are required unless told otherwise."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


TEXT = {"type": "string", "maxLength": 6}
INTEGER = {"type": "integer"}

PARAMETERS: dict[str, dict[str, Any] | None] = {
    "scalars": an_object(
        a=TEXT, b=INTEGER, c={"type": "number"}, d={"type": "boolean"}, e={"type": "null"}
    ),
    "enums": an_object(
        a={"enum": ["red", "dark blue"]}, b={"enum": [1, 2.5, None, True]}, c={"const": "x"}
    ),
    "optional": an_object(["b"], a=INTEGER, b=TEXT, c={"type": "boolean"}),
    "none": an_object(),
    "absent": None,
    "nested": an_object(
        a=an_object(x=INTEGER, y=an_object(z=TEXT)),
        l={
            "type": "array",
            "items": an_object(q={"type": "boolean"}),
            "minItems": 1,
            "maxItems": 3,
        },
    ),
    "arrays": an_object(
        a={"type": "array", "items": TEXT, "maxItems": 3},
        b={"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 2},
    ),
    "unions": an_object(
        a={"type": ["string", "null"], "maxLength": 4},
        b={"anyOf": [INTEGER, {"type": "null"}]},
        c={"anyOf": [an_object(k=INTEGER), {"type": "null"}]},
    ),
    "references": {
        **an_object(a={"$ref": "#/$defs/point"}),
        "$defs": {
            "point": an_object(
                x=INTEGER, n={"anyOf": [{"$ref": "#/$defs/point"}, {"type": "null"}]}
            )
        },
    },
    "bounds": an_object(
        a={"type": "integer", "minimum": 3, "maximum": 17},
        b={"type": "string", "minLength": 2, "maxLength": 4},
        c={"type": "string", "pattern": "^[a-z]{2,3}$"},
        d={"type": "string", "format": "date"},
        e={"type": "number", "minimum": 0, "maximum": 1},
    ),
}


def a_tool(name: str, parameters: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """An entry of `tools`."""
    function: dict[str, Any] = {"name": name, **more}
    if parameters is not None:
        function["parameters"] = parameters
    return {"type": "function", "function": function}
