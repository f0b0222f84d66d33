"""What a client wants the content to be: `response_format` and the like, as one grammar."""

import re
from dataclasses import dataclass
from typing import Any, Final

import orjson
from pydantic import Field

from gateway.http.schemas.base.body import RequestModel, field_error
from gateway.http.schemas.base.ranges import (
    MAX_CHOICE_CHARACTERS,
    MAX_GRAMMAR_CHARACTERS,
    MAX_GUIDED_CHOICES,
)
from gateway.http.schemas.base.shapes import ByType, fields
from protocol.wire.messages import Grammar

STRUCTURED_FIELDS: Final = (
    "response_format",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
)
"""At most one of them says what the content is."""

_SCHEMA_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SCHEMA_FIELDS: Final = frozenset({"name", "description", "schema", "strict"})
_REFUSED_OPTIONS: Final = {
    "structural_tag": "use `tools`, or a `grammar`",
    "disable_any_whitespace": "the format of JSON is fixed",
    "disable_additional_properties": "say `additionalProperties: false` in the schema",
    "whitespace_pattern": "the format of JSON is fixed",
}


@dataclass(frozen=True, slots=True)
class WantedContent:
    """What the content has to be.

    Attributes:
        param: The field that said so.
    """

    grammar: Grammar
    param: str


class StructuredFields(RequestModel):
    """The fields that hold the content to a grammar; null means none.

    Whoever has them asks for `wanted_content` when it is checked, which finds what is wrong.
    """

    shapes = {  # noqa: RUF012
        "response_format": ByType(
            {
                "text": fields("type"),
                "json_object": fields("type", "schema"),
                "json_schema": fields("type", "json_schema"),
            }
        )
    }

    response_format: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = Field(default=None, min_length=1)
    guided_choice: list[str] | None = None
    guided_grammar: str | None = Field(default=None, min_length=1)
    structured_outputs: dict[str, Any] | None = None

    @property
    def wanted_content(self) -> WantedContent | None:
        """The grammar of the content and the field it came from; None when any content will do.

        Raises:
            PydanticCustomError: A field is wrong, or contradicts another one.
        """
        if self.model_fields_set.isdisjoint(STRUCTURED_FIELDS):
            return None
        found = [
            WantedContent(grammar, name)
            for name in STRUCTURED_FIELDS
            if (value := getattr(self, name)) is not None
            and (grammar := _READERS[name](value, name)) is not None
        ]
        if len(found) > 1:
            raise field_error(f"it contradicts `{found[0].param}`.", found[1].param)
        return found[0] if found else None


def _response_format(value: dict[str, Any], name: str) -> Grammar | None:
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        # Not OpenAI's, but other servers take a schema here; ignoring it would be worse.
        if schema is not None:
            return _json(schema, f"{name}.schema")
        return Grammar(kind="json_object", source="")
    if kind != "json_schema":
        raise field_error("it must be `text`, `json_object` or `json_schema`.", f"{name}.type")
    wanted = value.get("json_schema")
    where = f"{name}.json_schema"
    if not isinstance(wanted, dict):
        raise field_error("must be an object with `name` and `schema`.", where)
    if not isinstance(wanted.get("name"), str) or not _SCHEMA_NAME.fullmatch(wanted["name"]):
        raise field_error("must be 1 to 64 letters, digits, `_` and `-`.", f"{where}.name")
    if not isinstance(wanted.get("strict"), bool | None):
        raise field_error("must be true or false.", f"{where}.strict")
    unknown = next((key for key in wanted if key not in _SCHEMA_FIELDS), None)
    if unknown is not None:
        raise field_error("unknown field.", f"{where}.{unknown[:64]}")
    schema = wanted.get("schema")
    if schema is None:
        return Grammar(kind="json_object", source="")
    return _json(schema, f"{where}.schema", is_strict=wanted.get("strict") is True)


def _json(value: Any, name: str, *, is_strict: bool = False) -> Grammar:
    text = value if isinstance(value, str) else None
    if text is not None:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise field_error(f"it is not valid JSON: {error}.", name) from error
    if not isinstance(value, dict):
        raise field_error("a JSON schema is an object.", name)
    try:
        # A text goes on as it is, with all digits of its numbers.
        source = orjson.dumps(value).decode() if text is None else text
    except orjson.JSONEncodeError as error:
        raise field_error("it is nested too deep.", name) from error
    return Grammar(kind="json_schema", source=_bounded(source, name), is_strict=is_strict)


def _regex(value: Any, name: str) -> Grammar:
    return Grammar(kind="regex", source=_text(value, name))


def _lark(value: Any, name: str) -> Grammar:
    return Grammar(kind="lark", source=_text(value, name))


def _choice(value: Any, name: str) -> Grammar:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_GUIDED_CHOICES:
        raise field_error(f"must be a list of 1 to {MAX_GUIDED_CHOICES} strings.", name)
    for index, one in enumerate(value):
        if not isinstance(one, str) or not 0 < len(one) <= MAX_CHOICE_CHARACTERS:
            raise field_error(
                f"must be a string of 1 to {MAX_CHOICE_CHARACTERS} characters.",
                f"{name}[{index}]",
            )
    return Grammar(kind="choice", source=_bounded(orjson.dumps(value).decode(), name))


def _json_object(value: Any, name: str) -> Grammar | None:
    if not isinstance(value, bool):
        raise field_error("must be true or false.", name)
    return Grammar(kind="json_object", source="") if value else None


def _structured_outputs(value: dict[str, Any], name: str) -> Grammar | None:
    given = {key: item for key, item in value.items() if item is not None and item is not False}
    for key in given:
        if key in _REFUSED_OPTIONS:
            raise field_error(
                f"it is not supported: {_REFUSED_OPTIONS[key]}.", f"{name}.{key}", unsupported=True
            )
        if key not in _OPTIONS:
            raise field_error("unknown field.", f"{name}.{key[:64]}")
    if len(given) != 1:
        raise field_error(f"must have exactly one of {', '.join(_OPTIONS)}.", name)
    ((key, item),) = given.items()
    return _OPTIONS[key](item, f"{name}.{key}")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise field_error("must be a string.", name)
    return _bounded(value, name)


def _bounded(source: str, name: str) -> str:
    if len(source) > MAX_GRAMMAR_CHARACTERS:
        raise field_error(f"it is longer than {MAX_GRAMMAR_CHARACTERS} characters.", name)
    return source


_OPTIONS: Final = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _lark,
    "json_object": _json_object,
}
_READERS: Final = {
    "response_format": _response_format,
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _lark,
    "structured_outputs": _structured_outputs,
}
