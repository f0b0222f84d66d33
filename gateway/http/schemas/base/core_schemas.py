"""What pydantic is told of every request model, whatever its fields say themselves."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticUseDefault, core_schema

_MANY: Final = frozenset({"list", "tuple", "set", "frozenset", "dict"})
BRANCH: Final = "="
"""Before the name of a branch of a union, among the names of fields that lead to an error."""
_INNER: Final = ("schema", "items_schema", "keys_schema", "values_schema")


def shape_errors(schema: CoreSchema) -> None:
    """Let a model have few errors, whose places say what is a branch of a union and what a field.

    Every list and object stops at its first wrong member: pydantic would otherwise keep an error
    for each of the millions that a body has room for. Branches of unions are called `=0`, `=1`, as
    discriminators here call theirs `=text`: pydantic would call them by their types.

    Args:
        schema: Of a model; the models within it have their own.
    """
    for part in _parts(schema):
        if part["type"] in _MANY:
            part["fail_fast"] = True
        if part["type"] == "union":
            part["choices"] = [
                (one[0] if isinstance(one, tuple) else one, f"{BRANCH}{number}")
                for number, one in enumerate(part["choices"])
            ]


class NullIsDefault:
    """Marks a field of whose type null is none, and where null is the same as leaving it out."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The field's own schema, behind a look for null."""
        schema = handler(source)
        return core_schema.no_info_before_validator_function(
            _unless_null, schema, json_schema_input_schema=core_schema.nullable_schema(schema)
        )


def _unless_null(value: Any) -> Any:
    if value is None:
        raise PydanticUseDefault
    return value


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all that it is made of."""
    yield schema
    inner = [schema[name] for name in _INNER if name in schema]
    for name in ("choices", "fields"):
        found = schema.get(name, ())
        inner += found.values() if isinstance(found, Mapping) else found
    for one in inner:
        # The choices of a union may have labels, the items of a tuple are several.
        for part in (
            one if isinstance(one, list) else (one[0],) if isinstance(one, tuple) else (one,)
        ):
            yield from _parts(part)
