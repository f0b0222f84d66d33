"""A schema document: where each schema lies in it, and what references mean."""

import re
from typing import Any, Final
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.json_schema.keyword_types import first_fault
from engine_worker.grammar.json_schema.keywords import (
    SUBSCHEMA_KEYWORDS,
    SUBSCHEMA_LISTS,
    SUBSCHEMA_MAPS,
)

Schema = dict[str, Any] | bool

_INDEX: Final = re.compile("[0-9]{1,9}")
_OLD_DRAFTS: Final = ("draft-03", "draft-04", "draft-05", "draft-06", "draft-07")


class UnresolvableError(Exception):
    """A reference that goes outside of the document."""


class Document:
    """One schema with all that lies within it.

    Schemas are told apart by identity, so the document keeps every one that it was shown.

    Args:
        root: Parsed JSON.
        is_strict: Refuse what would be left to the model.
        place: Where the schema is in another one, of which it has the definitions; empty when it
            stands alone.

    Attributes:
        unenforced: Places of the keywords that are left to the model, in order.
    """

    def __init__(self, root: Schema, *, is_strict: bool = False, place: str = "") -> None:
        self.root = root
        self.is_strict = is_strict
        self.unenforced: dict[str, None] = {}
        dialect = root.get("$schema") if isinstance(root, dict) else None
        # Up to draft 7 a reference has no siblings.
        self.has_old_references = isinstance(dialect, str) and any(
            draft in dialect for draft in _OLD_DRAFTS
        )
        self._bases: dict[int, str] = {}
        self._pointers: dict[int, str] = {}
        self._resources: dict[str, Schema] = {"": root}
        self._anchors: dict[str, list[Schema]] = {}
        self._dynamic_anchors: dict[str, list[Schema]] = {}
        self._kept: list[Any] = []
        # By the identity of a schema of ours: the one that it stands for a part of.
        self._made: dict[int, Schema] = {}
        self._checked: set[int] = set()
        if place and isinstance(root, dict):
            for keyword in ("$defs", "definitions"):
                definitions = root.get(keyword)
                for name, schema in definitions.items() if isinstance(definitions, dict) else ():
                    self._walk(schema, "", f"/{keyword}/{name}")
        self._walk(root, "", place)

    def leave_out(self, schema: Schema, keyword: str, why: str) -> None:
        """Leave a keyword to the model, and name it.

        Raises:
            UnsupportedGrammarError: The schema is strict.
        """
        place = self._place(schema, keyword)
        if self.is_strict:
            raise UnsupportedGrammarError(
                f"`{keyword}` at {place[:200]} can't be enforced: {why} Leave it out, or don't ask"
                " for `strict`."
            )
        self.unenforced[place] = None

    def leave_out_negation(self, made: Schema, why: str) -> None:
        """Leave to the model that a value is none of those that a schema lists, and name the list.

        Args:
            made: Of ours, for what is not so.
            why: It can't be enforced.

        Raises:
            UnsupportedGrammarError: The schema is strict.
        """
        origin = self._made[id(made)]
        names = ("const", "enum", "type")
        keyword = next(name for name in names if isinstance(origin, dict) and name in origin)
        self.leave_out(origin, keyword, why)

    def refuse(self, schema: Schema, keyword: str, why: str) -> UnsupportedGrammarError:
        """The error for a keyword that means nothing."""
        place = self._place(schema, keyword)
        return UnsupportedGrammarError(f"The schema is wrong at {place[:200]}: {why}")

    def _place(self, schema: Schema, keyword: str) -> str:
        place = f"{self._pointers.get(id(schema), '')}/{keyword}"
        # A name may hold half of a surrogate pair, which no message can.
        return place.encode(errors="backslashreplace").decode()

    def check(self, schema: dict[str, Any]) -> None:
        """Make sure that the value of each keyword is of a type that it may have.

        Raises:
            UnsupportedGrammarError: It isn't.
        """
        if id(schema) in self._checked:
            return
        has_siblings = "$ref" not in schema or not self.has_old_references
        fault = first_fault(schema if has_siblings else {"$ref": schema["$ref"]})
        if fault is not None:
            raise self.refuse(schema, *fault)
        self._checked.add(id(schema))

    def is_made(self, schema: dict[str, Any]) -> bool:
        """Whether a schema is one of ours: only these have keywords of our own."""
        return id(schema) in self._made

    def made(self, schema: dict[str, Any], origin: Schema) -> dict[str, Any]:
        """A schema that stands for a part of another one, in whose place it is."""
        self._kept.append(schema)
        self._made[id(schema)] = origin
        self._walk(schema, self._bases.get(id(origin), ""), self._pointers.get(id(origin), ""))
        return schema

    def resolve(self, schema: dict[str, Any], reference: str) -> Schema:
        """What a reference within a schema refers to.

        Raises:
            UnsupportedGrammarError: It goes nowhere within the document.
            UnresolvableError: It goes outside.
        """
        base = self._bases.get(id(schema), "")
        if reference.startswith("#"):
            url, fragment = base, reference[1:]
        else:
            url, fragment = self._joined(schema, "$ref", base, reference)
        resource = self._resources.get(url)
        if resource is None:
            raise UnresolvableError(reference)
        fragment = unquote(fragment)
        if not fragment:
            return resource
        if not fragment.startswith("/"):
            anchored = self._anchors.get(f"{url}#{fragment}")
            if anchored is None:
                raise self.refuse(schema, "$ref", f"{reference[:100]!r} goes nowhere.")
            return anchored[0]
        return self._at(schema, resource, url, fragment, reference)

    def resolve_dynamic(self, schema: dict[str, Any], reference: str) -> Schema | None:
        """What a dynamic reference refers to where there is just one candidate; else None."""
        name = reference[1:] if reference.startswith("#") else ""
        candidates = self._dynamic_anchors.get(name, [])
        if name and len(candidates) == 1 and not self._is_split():
            return candidates[0]
        if name and not candidates and not name.startswith("/"):
            return self.resolve(schema, reference)
        return None

    def _is_split(self) -> bool:
        return len(self._resources) > 2

    def _joined(
        self, schema: dict[str, Any], keyword: str, base: str, reference: str
    ) -> tuple[str, str]:
        """An address without its fragment, and the fragment."""
        try:
            urlsplit(reference)  # what `urljoin` hands on unread is looked at, too
            url, fragment = urldefrag(urljoin(base, reference))
        except ValueError as error:
            raise self.refuse(schema, keyword, f"{reference[:100]!r} is no address.") from error
        return url, fragment

    def _at(
        self, schema: dict[str, Any], resource: Schema, url: str, pointer: str, reference: str
    ) -> Schema:
        target: Any = resource
        base = url
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and _INDEX.fullmatch(key) and int(key) < len(target):
                target = target[int(key)]
            else:
                raise self.refuse(schema, "$ref", f"{reference[:100]!r} goes nowhere.")
            base = self._bases.get(id(target), base)
        if isinstance(target, bool):
            return target
        if not isinstance(target, dict):
            raise self.refuse(schema, "$ref", f"{reference[:100]!r} refers to no schema.")
        if id(target) not in self._bases:
            self._walk(target, base, pointer)
        return target

    def _walk(self, schema: Any, base: str, pointer: str) -> None:
        waiting: list[tuple[Any, str, str]] = [(schema, base, pointer)]
        while waiting:
            schema, base, pointer = waiting.pop()
            if not isinstance(schema, dict) or id(schema) in self._bases:
                continue
            self._pointers[id(schema)] = pointer
            base = self._named(schema, base)
            self._bases[id(schema)] = base
            for keyword, value in schema.items():
                place = f"{pointer}/{keyword}"
                if keyword in SUBSCHEMA_KEYWORDS and isinstance(value, dict):
                    waiting.append((value, base, place))
                elif keyword in SUBSCHEMA_LISTS and isinstance(value, list):
                    waiting += [(one, base, f"{place}/{i}") for i, one in enumerate(value)]
                elif keyword in SUBSCHEMA_MAPS and isinstance(value, dict):
                    waiting += [(one, base, f"{place}/{name}") for name, one in value.items()]

    def _named(self, schema: dict[str, Any], base: str) -> str:
        """Note a schema's names; the base of what lies in it."""
        names = schema.get("$id", schema.get("id"))
        if self.has_old_references and "$ref" in schema:
            names = None  # a sibling of a reference says nothing
        if isinstance(names, str):
            if names.startswith("#"):
                self._anchors.setdefault(f"{base}{names}", []).append(schema)
            else:
                base, _ = self._joined(schema, "$id", base, names)
                self._resources.setdefault(base, schema)
        anchor = schema.get("$anchor")
        if isinstance(anchor, str):
            self._anchors.setdefault(f"{base}#{anchor}", []).append(schema)
        dynamic = schema.get("$dynamicAnchor")
        if isinstance(dynamic, str):
            self._anchors.setdefault(f"{base}#{dynamic}", []).append(schema)
            self._dynamic_anchors.setdefault(dynamic, []).append(schema)
        return base
