"""The words in which answers are described: JSON schemas, each as short as what it says.

A record has the fields that it names and no others, so that a test sees a field that was forgotten.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
WHOLE: Final[Schema] = {"type": "integer"}
NUMBER: Final[Schema] = {"type": "number"}
FLAG: Final[Schema] = {"type": "boolean"}
NULL: Final[Schema] = {"type": "null"}
ANYTHING: Final[Schema] = {}
OBJECT: Final[Schema] = {"type": "object"}
"""Of a client, a model or a tool: what is in it is their business."""
STRUCT_TYPES: Final = ("type", "enum", "items", "anyOf", "additionalProperties", "$ref", "const")


class MayBeAbsent(NamedTuple):
    """A field that a record needn't have."""

    schema: Schema


def absent_or(schema: Schema) -> MayBeAbsent:
    """A field that is left out where there is nothing to say."""
    return MayBeAbsent(schema)


def record(fields: Mapping[str, Schema | MayBeAbsent] | None = None, /, **more: Any) -> Schema:
    """An object of these fields, all of which are there unless they say otherwise.

    Args:
        fields: Those whose names are no words of Python.
        more: All others.
    """
    named: dict[str, Schema | MayBeAbsent] = {**(fields or {}), **more}
    return {
        "type": "object",
        "properties": {
            name: one.schema if isinstance(one, MayBeAbsent) else one for name, one in named.items()
        },
        "required": [name for name, one in named.items() if not isinstance(one, MayBeAbsent)],
        "additionalProperties": False,
    }


def struct(kind: type[msgspec.Struct], *without: str) -> dict[str, Schema]:
    """The fields of a message's part as answers show them: each is always there.

    Args:
        kind: A part that refers to no others.
        without: Fields that are not shown.
    """
    (_,), components = msgspec.json.schema_components([kind], ref_template="{name}")
    properties = components[kind.__name__]["properties"]
    return {
        name: {key: value for key, value in schema.items() if key in STRUCT_TYPES}
        for name, schema in properties.items()
        if name in kind.__struct_fields__ and name not in without
    }


def is_exactly(value: str) -> Schema:
    """A text that is always the same."""
    return {"type": "string", "const": value}


def one_of(*values: str) -> Schema:
    """One of some texts."""
    return {"type": "string", "enum": list(values)}


def list_of(schema: Schema) -> Schema:
    """Any number of them."""
    return {"type": "array", "items": schema}


def map_of(schema: Schema) -> Schema:
    """An object whose names nobody knows before."""
    return {"type": "object", "additionalProperties": schema}


def or_null(schema: Schema) -> Schema:
    """It, or nothing."""
    return {"anyOf": [schema, NULL]}


def either(*schemas: Schema) -> Schema:
    """One of several."""
    return {"anyOf": list(schemas)}


def ref(name: str) -> Schema:
    """Another schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def by_field(field: str, names: dict[str, str]) -> Schema:
    """One of several records, told apart by what a field says.

    Args:
        field: Of all of them.
        names: Schemas of the document, by what the field says.
    """
    found = {value: ref(name) for value, name in names.items()}
    mapping = {value: one["$ref"] for value, one in found.items()}
    return {
        "oneOf": list(found.values()),
        "discriminator": {"propertyName": field, "mapping": mapping},
    }


def page_of(schema: Schema, **more: Any) -> Schema:
    """A page of a list in OpenAI's form."""
    return record(
        object=is_exactly("list"),
        data=list_of(schema),
        first_id=or_null(TEXT),
        last_id=or_null(TEXT),
        has_more=FLAG,
        **more,
    )


class Answers(NamedTuple):
    """What a route answers when all went well.

    Attributes:
        body: JSON; None where it sends none.
        event: Of an event stream, JSON; None where it sends none.
    """

    body: Schema | None
    event: Schema | None = None
