"""The tools of a request as far as reading their calls depends on them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final
from urllib.parse import unquote

from toolparser_worker.machine.declarations import CallBody

Schema = Mapping[str, Any] | None

INPUT_GRAMMAR: Final = "x_penstock_input"
"""Where the function of a custom tool has the grammar of its text."""
_NOTHING: Final[Mapping[str, Any]] = {}
_COMBINING: Final = ("anyOf", "oneOf", "allOf")
MAX_ALTERNATIVES: Final = 256
"""Of a schema; further ones say nothing of how a value is read. They are looked through for each
member and item."""


class SchemaNode(dict[str, Any]):
    """A part of a schema, which remembers what is asked of it for every value that it is for.

    A list of a hundred thousand items has one schema, whose enum may be as long.

    Attributes:
        own_types: That it names itself, see `coercion`; None before anybody asked.
        types: That it or its alternatives name, likewise.
        parts: What `alternatives` found, likewise.
    """

    __slots__ = ("own_types", "parts", "types")

    def __init__(self) -> None:
        super().__init__()
        self.own_types: frozenset[str] | None = None
        self.types: frozenset[str] | None = None
        self.parts: tuple[Mapping[str, Any], ...] | None = None


class ToolSchemas:
    """Names of tools, and what their parameters are.

    Args:
        tools: The `tools` of a chat request, checked already.
    """

    def __init__(self, tools: Iterable[Mapping[str, Any]] = ()) -> None:
        self._parameters: dict[str, Mapping[str, Any]] = {}
        self._with_grammar: set[str] = set()
        for tool in tools:
            function = tool["function"]
            if INPUT_GRAMMAR in function:
                self._with_grammar.add(function["name"])
            parameters = function.get("parameters")
            self._parameters[function["name"]] = (
                _linked(parameters) if isinstance(parameters, Mapping) else {}
            )

    def has(self, name: str) -> bool:
        """Whether a tool is called so; without any tools every name is fine."""
        return not self._parameters or name in self._parameters

    def allows(self, name: str, body: CallBody) -> bool:
        """Whether a call spelt like this may have this name, and is not plain text."""
        return body.unknown_names != "text" or self.has(name)

    def undoubled(self, name: str) -> str:
        """The `x` of a name `x.x`, if that is a tool and the name itself is none."""
        half, _, other = name.partition(".")
        return half if half == other and half in self._parameters else name

    def has_parameters(self, name: str) -> bool:
        """Whether the tool is known and declares parameters."""
        return bool(self._properties(name))

    def has_input_grammar(self, name: str) -> bool:
        """Whether the tool's text follows a grammar, so that each of its characters is meant."""
        return name in self._with_grammar

    def parameter(self, name: str, key: str) -> Schema:
        """The JSON schema of a tool's parameter; None when nothing is known about it."""
        schema = self._properties(name).get(key)
        return schema if isinstance(schema, Mapping) else None

    def parameters(self, name: str) -> Schema:
        """The JSON schema of all the arguments of a tool; None when it is not known."""
        return self._parameters.get(name)

    def _properties(self, name: str) -> Mapping[str, Any]:
        properties = self._parameters.get(name, {}).get("properties")
        return properties if isinstance(properties, Mapping) else {}


def alternatives(schema: Schema) -> Sequence[Mapping[str, Any]]:
    """A schema and what it combines with `anyOf` and the like, each once, `MAX_ALTERNATIVES`."""
    if isinstance(schema, SchemaNode):
        if schema.parts is None:
            schema.parts = _alternatives(schema)
        return schema.parts
    return () if schema is None else _alternatives(schema)


def _alternatives(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    waiting, found, seen = [schema], list[Mapping[str, Any]](), set[int]()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        found.append(part)
        for keyword in reversed(_COMBINING):
            inner = part.get(keyword)
            if isinstance(inner, list):
                room = max(0, MAX_ALTERNATIVES - len(found) - len(waiting))
                some = [one for one in islice(inner, room) if isinstance(one, Mapping)]
                waiting += reversed(some)
    return tuple(found)


def schema_part(schema: Schema, keyword: str) -> Schema:
    """What stands under a keyword of a schema, if it is an object."""
    for part in alternatives(schema):
        inner = part.get(keyword)
        if isinstance(inner, Mapping):
            return inner
    return None


def member_schema(schema: Schema, key: str) -> Schema:
    """The schema of an object's member, if one is declared."""
    for part in alternatives(schema):
        properties = part.get("properties")
        declared = properties.get(key) if isinstance(properties, Mapping) else None
        if isinstance(declared, Mapping):
            return declared
    return None


def referred_part(root: Mapping[str, Any], reference: str) -> Any:
    """What a reference into a schema points to; None for nothing, and for anchors.

    Args:
        root: The whole schema.
        reference: `#`, or `#/` and a JSON pointer (RFC 6901).
    """
    if reference != "#" and not reference.startswith("#/"):
        return None
    target: Any = root
    for part in unquote(reference[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, Mapping):
            target = target.get(key)
        elif isinstance(target, list) and key.isascii() and key.isdecimal():
            # A list of millions has no longer number; Python reads no digits without end.
            target = target[int(key)] if len(key) < 10 and int(key) < len(target) else None
        else:
            return None
    return target


def _linked(root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A copy in which each reference is what it refers to; a recursive schema holds itself."""
    copies: dict[int, SchemaNode] = {}
    unfilled: list[tuple[Any, Any]] = []  # what is copied, and the copy

    def begun(node: Any) -> Any:
        if isinstance(node, list):
            items: list[Any] = []
            unfilled.append((node, items))
            return items
        if not isinstance(node, Mapping):
            return node
        node = _referred(root, node)
        known = copies.get(id(node))
        if known is None:
            known = copies[id(node)] = SchemaNode()
            unfilled.append((node, known))
        return known

    found: SchemaNode = begun(root)
    while unfilled:
        node, copy = unfilled.pop()
        if isinstance(node, list):
            copy.extend(map(begun, node))
        else:
            copy.update((key, begun(value)) for key, value in node.items())
    return found


def _referred(root: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a schema refers to in the end: itself, or another one, or nothing."""
    seen = set[int]()
    node: Any = schema
    while isinstance(node, Mapping) and id(node) not in seen:
        seen.add(id(node))
        reference = node.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return node
        node = referred_part(root, reference)
    return _NOTHING
