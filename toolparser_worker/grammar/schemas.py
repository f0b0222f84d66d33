"""Takes a tool's JSON schema apart into the kinds of value that a format spells differently."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, Literal

from toolparser_worker.errors import UnsupportedToolsError
from toolparser_worker.grammar.keywords import (
    ASSERTIONS,
    ConflictError,
    ImpossibleError,
    are_disjoint,
    asserted,
    check_mergeable,
    has_old_references,
    merged_keyword,
)
from toolparser_worker.grammar.read_types import TEXTS, is_read_as, read_types
from toolparser_worker.machine.tool_schemas import referred_part

JsonType = Literal["string", "number", "integer", "boolean", "null", "object", "array"]
_TYPES: Final = ("string", "number", "integer", "boolean", "null", "object", "array")
_MAX_ALTERNATIVES: Final = 256
_MAX_PLACE: Final = 512
MAX_STEPS: Final = 20_000
"""For all tools of a request; some tenths of a second. A tool with hundreds of parameters takes
some hundred."""
_AT_A_STEP: Final = 32
"""Listed values or members that take as long as a step."""
_PAIRS_AT_A_STEP: Final = 8
"""Of alternatives, of which each is compared with each."""
_BOUNDS: Final = frozenset(
    {
        *("minLength", "maxLength"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    }
)


@dataclass(frozen=True, slots=True)
class Form:
    """One kind of value that a schema allows.

    Attributes:
        type: The JSON type; `any` for a value about which nothing is said.
        schema: What is left to say about it, with the definitions that it refers to.
        values: The only values, when the schema lists them; all of the type.
        places: Where its keywords are, as pointers into the tool's parameters.
        unlike: Types with keywords that a string's text would break if it were read as one of them.
    """

    type: JsonType | Literal["any"]
    schema: Mapping[str, Any]
    values: tuple[Any, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    unlike: frozenset[str] = frozenset()

    @property
    def place(self) -> str:
        """Where the schema is, as a pointer; that of its type when it is made of several."""
        return (self.places.get("type") or next(iter(self.places.values()), "")).rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A schema's keywords, and where each of them is in the tool's parameters."""

    schema: Mapping[str, Any]
    places: Mapping[str, str]

    def without(self, *keywords: str) -> "_Placed":
        kept = {key: value for key, value in self.schema.items() if key not in keywords}
        return _Placed(kept, self.places)


class Steps:
    """What may still be done to take the schemas of a request apart.

    Schemas that refer to the same one twice, and so on, are short and have no end.
    """

    def __init__(self) -> None:
        self._num_left = MAX_STEPS

    def take(self, num: int) -> None:
        """Do so many.

        Raises:
            UnsupportedToolsError: There were too many.
        """
        self._num_left -= num
        if self._num_left < 0:
            raise UnsupportedToolsError(
                f"it takes more than {MAX_STEPS} steps to take the tools' schemas apart. Use fewer"
                " references, `allOf`, `anyOf` and `oneOf` within one another."
            )


class SchemaReader:
    """Reads the schemas within the parameters of one tool.

    Args:
        root: The tool's `parameters`; references go into it.
        steps: Of the request.
        is_strict: Refuse what would be left to the model.
        reads_types: The format's strings are read as other types where the schema has these.

    Attributes:
        unenforced: Places of the keywords that are left to the model, in order.
    """

    def __init__(
        self,
        root: Mapping[str, Any],
        steps: Steps,
        *,
        is_strict: bool = False,
        reads_types: bool = True,
    ) -> None:
        self._root = root
        self._steps = steps
        self._is_strict = is_strict
        self._reads_types = reads_types
        self._has_old_references = has_old_references(root)
        self._pointers = _pointers(root)
        # By the identities of two schemas: the one that a value has to satisfy for both.
        self._made: dict[tuple[int, int], dict[str, Any]] = {}
        self.unenforced: dict[str, None] = {}

    def resolved(self, schema: Any) -> Mapping[str, Any]:
        """The schema itself, or what it only refers to.

        Raises:
            UnsupportedToolsError: It refers to nothing, or in a circle.
        """
        for _ in range(_MAX_ALTERNATIVES):
            if schema is True:
                return {}
            if not isinstance(schema, Mapping):
                raise ImpossibleError
            if "$ref" not in schema:
                return schema
            if not self._has_old_references and _asserts_beside_reference(schema):
                return schema
            schema = self.referred(schema["$ref"])
        raise UnsupportedToolsError("a schema refers to itself without end.")

    def json_schema(self, form: Form) -> dict[str, Any]:
        """A form's schema by itself, with the definitions of the root and its place there."""
        schema = form.schema
        definitions = {
            key: self._root[key] for key in ("$schema", "$defs", "definitions") if key in self._root
        }
        if '"#/' in json.dumps(schema) and not definitions:
            raise UnsupportedToolsError("references within a parameter must go to `$defs`.")
        return {**definitions, **schema, "x-penstock-place": form.place}

    def forms(self, schema: Any) -> list[Form]:
        """The kinds of value that a schema allows, in order.

        Raises:
            UnsupportedToolsError: Nothing satisfies it, or it can't be told apart into kinds.
        """
        # No more are made than are looked at: of alternatives of alternatives there are millions.
        found = list(islice(self._forms(self._placed(schema), 0), _MAX_ALTERNATIVES + 1))
        if len(found) > _MAX_ALTERNATIVES:
            raise UnsupportedToolsError(f"a parameter has more than {_MAX_ALTERNATIVES} forms.")
        if not found:
            raise ImpossibleError
        if self._reads_types and any(form.type in ("string", "any") for form in found):
            return self._read_as_strings(schema, found)
        return found

    def whole_forms(self, schema: Any) -> list[Form]:
        """The same where what is no text is written as JSON, which the engine holds whole."""
        placed = self._placed(schema)
        declared = placed.schema.get("type")
        is_whole = not {"enum", "const", "$ref"} & placed.schema.keys()
        if is_whole and declared in _TYPES and declared != "string":
            return [Form(declared, placed.schema, places=placed.places)]
        return self.forms(schema)

    def hold(self, form: Form, *enforced: str) -> None:
        """Leave to the model what says something about a form's values and isn't enforced.

        Args:
            form: Is about to be written as text.
            enforced: Keywords that what is written satisfies.

        Raises:
            UnsupportedToolsError: The tool is strict.
        """
        for keyword in asserted(form.schema, form.type):
            if keyword not in enforced:
                self.leave_out(form.places, keyword)

    def leave_out(self, places: Mapping[str, str], keyword: str, why: str = "") -> None:
        """Leave a keyword to the model, and name it.

        Raises:
            UnsupportedToolsError: The tool is strict.
        """
        place = places.get(keyword, f"/{keyword}").encode(errors="backslashreplace").decode()
        if self._is_strict:
            raise UnsupportedToolsError(
                f"`{keyword}` at {place[:200]} can't be held in it{why and f': {why}'}."
                " Leave it out, or don't ask for `strict`."
            )
        self.unenforced[place] = None

    def _read_as_strings(self, schema: Any, forms: list[Form]) -> list[Form]:
        """The forms, of whose strings none is read as a value that the schema forbids."""
        unlike = read_types(self.resolved(schema), self.referred) & TEXTS.keys()
        for form in forms:
            free = set(TEXTS) if form.type == "any" else {form.type}
            free |= {"integer"} if form.type == "number" else set()
            unlike -= {kind for kind in free if not form.values and not asserted(form.schema, kind)}
        if not unlike:
            return forms
        found = []
        for form in forms:
            if form.type != "string" or not form.values:
                found.append(replace(form, unlike=frozenset(unlike)))
                continue
            values = tuple(value for value in form.values if not is_read_as(value, unlike))
            if values:
                found.append(replace(form, values=values, schema={"enum": list(values)}))
        if not found:
            self.leave_out(forms[0].places, "enum", "its texts are read as other values")
        return found or forms

    def _placed(self, schema: Any) -> _Placed:
        schema = self.resolved(schema)
        pointer = self._pointers.get(id(schema), "")
        return _Placed(schema, {keyword: f"{pointer}/{keyword}" for keyword in schema})

    def _forms(self, placed: _Placed, depth: int) -> Iterator[Form]:
        placed = self._flat(placed, depth)
        schema = placed.schema
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                yield from self._alternatives(placed, keyword, depth)
                return
        if "const" in schema or "enum" in schema:
            yield from self._listed(placed)
            return
        declared = schema.get("type", "any")
        for name in declared if isinstance(declared, list) else [declared]:
            if name not in (*_TYPES, "any"):
                raise UnsupportedToolsError(f"there is no type {name!r}.")
            kept = {**schema, "type": name} if name != "any" else schema
            yield Form(name, kept, places=placed.places)

    def _alternatives(self, placed: _Placed, keyword: str, depth: int) -> Iterator[Form]:
        """The forms of each part of `anyOf` or `oneOf`, beside what else the schema says."""
        rest = placed.without(keyword)
        parts = []
        num_parts = len(placed.schema[keyword])
        num_pairs = num_parts * num_parts // 2 if keyword == "oneOf" else 0
        self._steps.take(num_parts + num_pairs // _PAIRS_AT_A_STEP)
        for part in placed.schema[keyword]:
            with suppress(ImpossibleError):
                parts.append(self._flat(self._placed(part), depth + 1))
        if keyword == "oneOf" and not are_disjoint([part.schema for part in parts]):
            self.leave_out(placed.places, keyword, "a value may satisfy two of its schemas")
        for part in parts:
            try:
                both = self._merged(rest, part)
            except ImpossibleError:
                continue
            except ConflictError:
                self.leave_out(placed.places, keyword, "it overlaps with what stands beside it")
                both = rest
            yield from self._forms(both, depth + 1)

    def _flat(self, placed: _Placed, depth: int) -> _Placed:
        """A schema with what it refers to and its `allOf` as one, as far as that can be said."""
        for level in range(depth, _MAX_ALTERNATIVES):
            schema = placed.schema
            parts = [self.referred(schema["$ref"])] if "$ref" in schema else []
            parts += schema.get("allOf", ())
            self._steps.take(1 + len(parts))
            if not parts:
                return placed
            places = placed.places
            placed = placed.without("$ref", "allOf")
            apart = []
            for part in parts:
                try:
                    placed = self._merged(placed, self._flat(self._placed(part), level + 1))
                except ConflictError:
                    apart.append(part)
            if apart:
                keyword = "allOf" if "allOf" in places else "$ref"
                place = {**placed.places, "allOf": places[keyword]}
                return _Placed({**placed.schema, "allOf": apart}, place)
        raise UnsupportedToolsError("a schema refers to itself without end.")

    def _merged(self, one: _Placed, other: _Placed) -> _Placed:
        """One schema for two.

        Raises:
            ConflictError: There is none.
            ImpossibleError: Nothing satisfies both.
        """
        self._steps.take(1 + (_size(one.schema) + _size(other.schema)) // _AT_A_STEP)
        check_mergeable(one.schema, other.schema)
        merged = dict(one.schema)
        for keyword, value in other.schema.items():
            if keyword not in merged:
                merged[keyword] = value
            elif keyword == "properties":
                members = dict(merged[keyword])
                for key, schema in value.items():
                    mine = members.get(key, True)
                    if isinstance(mine, Mapping) and isinstance(schema, Mapping):
                        # The same one each time, as a schema may refer to itself.
                        made = {"allOf": [mine, schema]}
                        made = self._made.setdefault((id(mine), id(schema)), made)
                        self._pointers.setdefault(id(made), self._pointers.get(id(mine), ""))
                        members[key] = made
                    else:
                        members[key] = False if False in (mine, schema) else mine
                        if mine is True:
                            members[key] = schema
                merged[keyword] = members
            else:
                merged[keyword] = merged_keyword(keyword, merged[keyword], value)
        return _Placed(merged, {**other.places, **one.places})

    def _listed(self, placed: _Placed) -> Iterator[Form]:
        """The listed values by type, without those that the rest of the schema forbids."""
        schema = placed.schema
        values = [schema["const"]] if "const" in schema else list(schema["enum"])
        self._steps.take(1 + len(values) // _AT_A_STEP)
        if "const" in schema and "enum" in schema:
            texts = {json.dumps(value, sort_keys=True) for value in schema["enum"]}
            values = [value for value in values if json.dumps(value, sort_keys=True) in texts]
        declared = schema.get("type")
        names = declared if isinstance(declared, list) else [declared] if declared else _TYPES
        allowed = set(names)
        if "number" in allowed:
            allowed.add("integer")
        by_type: dict[JsonType, list[Any]] = {}
        for value in values:
            kind = type_of(value)
            if kind in allowed and _is_within(schema, value):
                by_type.setdefault(kind, []).append(value)
        if not by_type:
            raise UnsupportedToolsError("an `enum` has no value of its type.")
        listing = "const" if "const" in schema else "enum"
        places = {"enum": placed.places.get(listing, "")}
        for kind, found in by_type.items():
            for keyword in asserted(schema, kind):
                if keyword not in _BOUNDS:
                    self.leave_out(placed.places, keyword, "beside listed values")
            yield Form(kind, {"enum": found}, tuple(found), places)

    def referred(self, reference: Any) -> Any:
        """What a `$ref` refers to.

        Raises:
            UnsupportedToolsError: Nothing within the tool's parameters.
        """
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UnsupportedToolsError(f"the reference {reference!r} goes outside of the schema.")
        target = referred_part(self._root, reference)
        if target is None:
            raise UnsupportedToolsError(f"the reference {reference!r} goes nowhere.")
        return target


def _size(schema: Mapping[str, Any]) -> int:
    """How much is copied or compared where a schema is merged with another."""
    return sum(len(value) for value in schema.values() if isinstance(value, list | Mapping))


def _asserts_beside_reference(schema: Mapping[str, Any]) -> bool:
    return any(keyword in ASSERTIONS for keyword in schema if keyword != "$ref")


def _pointers(root: Mapping[str, Any]) -> dict[int, str]:
    """Where each object of a JSON value is, by its identity; a long way is cut short."""
    found: dict[int, str] = {}
    waiting: list[tuple[Any, str]] = [(root, "")]
    while waiting:
        node, place = waiting.pop()
        if isinstance(node, Mapping) and id(node) not in found:
            found[id(node)] = place
            waiting += [(value, f"{place}/{key}"[:_MAX_PLACE]) for key, value in node.items()]
        elif isinstance(node, list):
            waiting += [(value, f"{place}/{index}") for index, value in enumerate(node)]
    return found


def _is_within(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a listed value is within the bounds that a schema sets beside it."""
    if isinstance(value, str):
        size = len(value)
        return bool(schema.get("minLength", 0) <= size <= schema.get("maxLength", size))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    least, most = schema.get("minimum", value), schema.get("maximum", value)
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    return bool(
        least <= value <= most
        and (above is None or value > above)
        and (below is None or value < below)
    )


def type_of(value: Any) -> JsonType:
    """The JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"
