"""Keywords of JSON Schema: which kind of value each is about, and when one says nothing."""

import json
from collections.abc import Mapping
from itertools import combinations
from typing import Any, Final

from toolparser_worker.errors import UnsupportedToolsError

NUMERIC_KEYWORDS: Final = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)
STRING_KEYWORDS: Final = frozenset({"minLength", "maxLength", "pattern", "format"})
ARRAY_KEYWORDS: Final = frozenset(
    {
        *("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"),
        *("contains", "minContains", "maxContains", "unevaluatedItems"),
    }
)
OBJECT_KEYWORDS: Final = frozenset(
    {
        *("properties", "required", "additionalProperties", "patternProperties"),
        *("propertyNames", "minProperties", "maxProperties", "dependentRequired"),
        *("dependentSchemas", "dependencies", "unevaluatedProperties"),
    }
)
CHOOSING_KEYWORDS: Final = frozenset({"$ref", "type", "enum", "const", "anyOf", "oneOf"})
"""About any value, and taken apart when the kinds of value are told apart."""
GENERAL_KEYWORDS: Final = frozenset(
    {"allOf", "not", "if", "then", "else", "$dynamicRef", "$recursiveRef"}
)
"""About any value. `allOf` only where its parts can't be written as one schema."""
ASSERTIONS: Final = (
    NUMERIC_KEYWORDS
    | STRING_KEYWORDS
    | ARRAY_KEYWORDS
    | OBJECT_KEYWORDS
    | CHOOSING_KEYWORDS
    | GENERAL_KEYWORDS
)
"""Any other keyword is an annotation."""
_OF_TYPE: Final[dict[str, frozenset[str]]] = {
    "string": STRING_KEYWORDS,
    "number": NUMERIC_KEYWORDS,
    "integer": NUMERIC_KEYWORDS,
    "array": ARRAY_KEYWORDS,
    "object": OBJECT_KEYWORDS,
}
_SILENT: Final[dict[str, tuple[Any, ...]]] = {
    "uniqueItems": (False,),
    "contains": (),
    "patternProperties": ({},),
    "propertyNames": (True, {}),
    "minProperties": (0,),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "additionalProperties": (True, {}),
    "items": (True, {}),
    "prefixItems": ([],),
    "not": (False,),
}
_OLD_DRAFTS: Final = ("draft-03", "draft-04", "draft-05", "draft-06", "draft-07")


class ImpossibleError(UnsupportedToolsError):
    """A schema that no value satisfies."""

    def __init__(self) -> None:
        super().__init__("a schema that allows nothing can't be written.")


class ConflictError(Exception):
    """Two schemas that no single one stands for."""


def has_old_references(root: Mapping[str, Any]) -> bool:
    """Whether a `$ref` has no siblings, as up to draft 7."""
    dialect = root.get("$schema")
    return isinstance(dialect, str) and any(draft in dialect for draft in _OLD_DRAFTS)


def says_something(schema: Mapping[str, Any], keyword: str) -> bool:
    """Whether a keyword forbids any value, as far as that is seen at once."""
    value = schema[keyword]
    if any(value is silent or (value == silent != 0) for silent in _SILENT.get(keyword, ())):
        return False
    match keyword:
        case "minContains" | "maxContains":
            return keyword == "maxContains" and "contains" in schema
        case "contains":
            return schema.get("minContains") != 0 or "maxContains" in schema
        case "additionalItems":
            return isinstance(schema.get("items"), list) or "prefixItems" in schema
        case "if":
            return "then" in schema or "else" in schema
        case "then" | "else":
            return False  # `if` is named
        case "minProperties":
            return bool(value)
        case _:
            return True


def asserted(schema: Mapping[str, Any], type_name: str) -> list[str]:
    """The keywords that say something about values of a JSON type, or of any with `any`."""
    every = frozenset[str]().union(*_OF_TYPE.values())
    about = _OF_TYPE.get(type_name, every if type_name == "any" else frozenset())
    return [
        keyword
        for keyword in schema
        if keyword in about | GENERAL_KEYWORDS and says_something(schema, keyword)
    ]


def merged_keyword(keyword: str, one: Any, other: Any) -> Any:
    """What a keyword says that two schemas have, which a value has to satisfy both.

    Raises:
        ConflictError: No single value of the keyword says it.
        ImpossibleError: Nothing satisfies both.
    """
    if keyword not in ASSERTIONS or _text(one) == _text(other):
        return one
    if keyword == "required":
        return list(dict.fromkeys((*one, *other)))
    if keyword == "type":
        return _common_types(one, other)
    if keyword == "enum":
        texts = set(map(_text, other))
        common = [value for value in one if _text(value) in texts]
        if not common:
            raise ImpossibleError
        return common
    if all(isinstance(value, int | float) and value is not True for value in (one, other)):
        if keyword.startswith(("min", "exclusiveMin")):
            return max(one, other)
        if keyword.startswith(("max", "exclusiveMax")):
            return min(one, other)
    raise ConflictError


def check_mergeable(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Makes sure that no keyword of a schema means something else among those of another one.

    Raises:
        ConflictError: One does.
    """
    for closed, added in ((one, other), (other, one)):
        declared = set(closed.get("properties", ()))
        more = set(added.get("properties", ())) - declared
        if more and not _is_open(closed, "additionalProperties"):
            raise ConflictError
        if added is one and more and not _is_open(closed, "unevaluatedProperties"):
            raise ConflictError
        if "patternProperties" in added and not _is_open(closed, "additionalProperties"):
            raise ConflictError
        if "prefixItems" in added and "items" in closed and "prefixItems" not in closed:
            raise ConflictError
        if "contains" in closed and ({"minContains", "maxContains"} & added.keys()):
            raise ConflictError
        if "if" in closed and ({"if", "then", "else"} & added.keys()):
            raise ConflictError


def are_disjoint(schemas: list[Mapping[str, Any]]) -> bool:
    """Whether it is plain that no value satisfies two of some schemas."""
    return all(_are_two_disjoint(one, other) for one, other in combinations(schemas, 2))


def _are_two_disjoint(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    listed, others = _listed_texts(one), _listed_texts(other)
    if listed is not None and others is not None and not listed & others:
        return True
    if "type" in one and "type" in other:
        try:
            common = _common_types(one["type"], other["type"])
        except ImpossibleError:
            return True
        if common != "object":
            return False
        needed = {*one.get("required", ()), *other.get("required", ())}
        members, their = one.get("properties", {}), other.get("properties", {})
        return any(
            key in members
            and key in their
            and isinstance(members[key], Mapping)
            and isinstance(their[key], Mapping)
            and _are_two_disjoint(members[key], their[key])
            for key in needed
        )
    return False


def _listed_texts(schema: Mapping[str, Any]) -> set[str] | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    # 1 and 1.0 are the same number.
    if not isinstance(values, list) or any(isinstance(value, float) for value in values):
        return None
    return {_text(value) for value in values}


def _common_types(one: Any, other: Any) -> Any:
    names, others = (value if isinstance(value, list) else [value] for value in (one, other))
    common = [
        name for name in names if name in others or (name == "integer" and "number" in others)
    ]
    if "number" in names and "integer" in others and "integer" not in common:
        common.append("integer")
    if not common:
        raise ImpossibleError
    return common[0] if len(common) == 1 else common


def _is_open(schema: Mapping[str, Any], keyword: str) -> bool:
    return schema.get(keyword, True) in (True, {})


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
