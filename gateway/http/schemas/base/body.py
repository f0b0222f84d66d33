"""From the bytes of a request body to a checked model, with errors that name the field."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar, get_args

import orjson
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.schemas.base.core_schemas import BRANCH, shape_errors
from gateway.http.schemas.base.ranges import (
    MAX_METADATA,
    MAX_METADATA_KEY,
    MAX_METADATA_VALUE,
    RANGES,
)
from gateway.http.schemas.base.shapes import (
    MAX_LISTED_FIELDS,
    MAX_NAME_CHARACTERS,
    Shape,
    add_unknown,
    given_fields,
    unknown_keys,
)
from gateway.json_numbers import keep_digits


class RequestModel(BaseModel):
    """The base of every request body: strict types, unknown fields ignored.

    Lists and objects stop at their first wrong member.
    """

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)

    known_fields: ClassVar[frozenset[str]] = frozenset()
    refused_fields: ClassVar[frozenset[str]] = frozenset()
    """Known as well: whoever gives one a value is told."""
    shapes: ClassVar[Mapping[str, Shape]] = {}
    """Of those fields that hold objects which no model describes."""
    holding_fields: ClassVar[tuple[str, ...]] = ()
    """Which hold such objects, or models."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_kwargs: Any) -> None:
        """Remember the field names, which every request compares its keys with."""
        cls.known_fields = frozenset(cls.model_fields) | cls.refused_fields
        cls.holding_fields = tuple(
            name
            for name, field in cls.model_fields.items()
            if name in cls.shapes or _holds_models(field.annotation)
        )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """What pydantic makes of the class, with few errors for a body however wrong it is."""
        schema = handler.resolve_ref_schema(handler(source))
        shape_errors(schema)
        return schema


def body_schema(model: type[BaseModel], *, is_required: bool = True) -> dict[str, Any]:
    """What OpenAPI says of a route's body, which the route reads itself."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {"requestBody": {"required": is_required, "content": content}}


_NAME_BEFORE_NUMBER = re.compile(r'"(\w{1,64})"\s*:\s*\[?[-+.,\deE\s]*\Z', re.ASCII)
_MAX_LOOK_BACK = 128
MAX_PARTS = 262_144
"""Lists, objects and members of objects in a body. An empty list has two bytes and costs thirty
times as much memory; five million of them stop all other threads for a second."""
_STRING = rb'"(?:[^"\\]++|\\.)*+"?'
_TOO_MANY_PARTS = re.compile(
    rb"(?:(?:[^\"\[{:]++|%s)*+[\[{:]){%d}" % (_STRING, MAX_PARTS + 1), re.DOTALL
)
_OBJECT = re.compile(r"dictionary(?: or instance of \w+)?")
"""What JSON calls an object, in pydantic's messages."""
_OUT_OF_RANGE = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal"})

_HANDED_ON = frozenset(
    {
        *("response_format", "guided_json", "structured_outputs", "text"),
        *("output_config", "output_format", "tools", "functions", "arguments", "params"),
        *("chat_template_kwargs", "documents", "messages", "input", "items"),
        *("state", "questions"),
    }
)
"""Fields with JSON schemas, arguments or what templates or models read: numbers that are only
handed on."""

BodyT = TypeVar("BodyT", bound=RequestModel)


def load_json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request body, with every digit in schemas and arguments.

    Numbers there that no float holds are `orjson.Fragment`s.

    Raises:
        InvalidRequestError: No JSON (NaN and Infinity are none), invalid UTF-8, nested too deep,
            too many lists and members, or not an object.
    """
    value = load_plain_json_object(body)
    keep_digits(body, value, _HANDED_ON)
    return value


def load_plain_json_object(
    body: bytes, load: Callable[[bytes], Any] = orjson.loads
) -> dict[str, Any]:
    """The same with nothing but JSON's types in it, where numbers of many digits are floats.

    Args:
        body: As it came.
        load: Reads it; raises what `orjson.loads` does.

    Raises:
        InvalidRequestError: As `load_json_object`, but for numbers.
    """
    if has_too_many_parts(body):
        raise InvalidRequestError(
            f"The request body has more than {MAX_PARTS} lists, objects and members of objects."
        )
    try:
        value = load(body)
    except orjson.JSONDecodeError as error:
        _refuse_non_finite(error)
        raise InvalidRequestError(f"The request body is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidRequestError("The request body must be a JSON object.")
    return value


def has_too_many_parts(body: bytes) -> bool:
    """Whether JSON has more lists, objects and members of objects than a request may."""
    # Nearly always the count is enough; texts may hold brackets, too.
    return (
        len(body) > MAX_PARTS
        and body.count(b"[") + body.count(b"{") + body.count(b":") > MAX_PARTS
        and _TOO_MANY_PARTS.match(body) is not None
    )


def validate(model: type[BodyT], value: dict[str, Any]) -> BodyT:
    """The checked model of a JSON object.

    Raises:
        InvalidRequestError: With the name of the first wrong field in `param`.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first, *others = _merged(error.errors(include_url=False))
        raise _as_request_error(first, 1 + len(others)) from None


def known_only(model: type[BodyT], value: dict[str, Any]) -> BodyT:
    """The checked model of a JSON object that may have no field without a meaning.

    Raises:
        InvalidRequestError: It has one, at whatever depth, or another field is wrong.
    """
    refuse_unknown(model, value)
    request = validate(model, value)
    for name in unknown_fields(request, value):
        raise InvalidRequestError(f"Unknown field: `{name}`.", param=name)
    return request


def refuse_unknown(model: type[RequestModel], value: Mapping[str, Any]) -> None:
    """Let no field of a JSON object itself be without a meaning; those within others may be.

    Raises:
        InvalidRequestError: It has one.
    """
    for name in unknown_keys(given_fields(value), model.known_fields):
        raise InvalidRequestError(f"Unknown field: `{name}`.", param=name)


def field_error(message: str, suffix: str = "", *, unsupported: bool = False) -> Exception:
    """An error for validators: `suffix` goes on from the field, `[0].type`."""
    return PydanticCustomError(
        "request_field", "{text}", {"text": message, "suffix": suffix, "unsupported": unsupported}
    )


def few_labels(value: dict[str, str] | None) -> dict[str, str] | None:
    """Check `metadata`, for validators."""
    if value is not None and (
        len(value) > MAX_METADATA
        or any(
            len(key) > MAX_METADATA_KEY or len(text) > MAX_METADATA_VALUE
            for key, text in value.items()
        )
    ):
        raise field_error(
            f"at most {MAX_METADATA} pairs are accepted, of {MAX_METADATA_KEY} and"
            f" {MAX_METADATA_VALUE} characters."
        )
    return value


def unknown_fields(
    request: RequestModel, value: Mapping[str, Any], others: Iterable[str] = ()
) -> list[str]:
    """The first fields that no schema knows, at whatever depth, as `tools[0].field`.

    Null is the same as leaving a field out.

    Args:
        request: Checked.
        value: The object that it was made of.
        others: Fields of it that have a meaning, or are refused by name, elsewhere.
    """
    found: list[str] = []
    if not value.keys() <= request.known_fields:
        found += unknown_keys(given_fields(value), request.known_fields.union(others))
    _add_unknown(request, value, "", found)
    return found[:MAX_LISTED_FIELDS]


def _add_unknown(
    model: RequestModel, value: Mapping[str, Any], prefix: str, found: list[str]
) -> None:
    """Of what a model's fields hold; this is done for each message of a long conversation."""
    for name in model.holding_fields:
        inner = value.get(name)
        if inner is None or not isinstance(inner, (dict, list)) or len(found) >= MAX_LISTED_FIELDS:
            continue
        shape = model.shapes.get(name)
        if shape is None:
            _add_unknown_in(getattr(model, name), inner, f"{prefix}{name}", found)
        else:
            add_unknown(inner, shape, f"{prefix}{name}", found)


def _add_unknown_in(made: Any, value: Any, path: str, found: list[str]) -> None:
    if isinstance(value, list):
        if isinstance(made, list):
            for index, (one, raw) in enumerate(zip(made, value, strict=True)):
                _add_unknown_in(one, raw, f"{path}[{index}]", found)
    elif isinstance(value, dict):
        # Only models have them; pydantic's own way to ask whether it is one takes longer.
        known: frozenset[str] | None = getattr(made, "known_fields", None)
        if known is not None:
            if not value.keys() <= known:
                found += unknown_keys(given_fields(value), known, f"{path}.")
            if made.holding_fields:
                _add_unknown(made, value, f"{path}.", found)
        elif isinstance(made, dict):
            for key, one in made.items():
                _add_unknown_in(one, value[key], f"{path}.{key}", found)


def _holds_models(annotation: Any) -> bool:
    """Whether values of a type are models, or lists or objects of some."""
    if isinstance(annotation, type) and issubclass(annotation, RequestModel):
        return True
    return any(map(_holds_models, get_args(annotation)))


def dump_json(value: Any, param: str) -> str:
    """A part of the body as JSON text again, for a worker.

    Raises:
        InvalidRequestError: It is nested deeper than anyone would want it to be.
    """
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        raise InvalidRequestError(f"`{param}` is nested too deep.", param=param) from error


def dump_fields(fields: Mapping[str, Any]) -> str:
    """An object of fields as JSON text.

    Raises:
        InvalidRequestError: One is nested too deep, which it names.
    """
    try:
        return orjson.dumps(fields).decode()
    except orjson.JSONEncodeError:
        for name, value in fields.items():
            dump_json([value], name)
        raise


def _refuse_non_finite(error: orjson.JSONDecodeError) -> None:
    """Name the field when the parser stopped at NaN, Infinity or a number beyond all bounds.

    Only the text around the parser's position is looked at: a body of megabytes must not be
    searched on the event loop to make its error message nicer.

    Raises:
        InvalidRequestError: With the field's name, if the text before the number has one.
    """
    is_non_finite = error.doc.startswith(("NaN", "Infinity"), error.pos)
    if not is_non_finite and "infinity" not in error.msg:
        return
    name = _NAME_BEFORE_NUMBER.search(error.doc, max(0, error.pos - _MAX_LOOK_BACK), error.pos)
    if name is not None:
        param = name[1]
        why = "NaN and Infinity are not JSON" if is_non_finite else "the number is beyond 1.8e308"
        raise InvalidRequestError(
            f"Invalid `{param}`: {why}; send a finite number.", param=param
        ) from error


def _merged(errors: list[ErrorDetails], level: int = 0) -> list[ErrorDetails]:
    """Errors with one instead of those of all branches of a union.

    Args:
        errors: In their order, of one place as far as `level`.
        level: Of their places, so much is the same.
    """
    found: list[ErrorDetails] = [one for one in errors if len(one["loc"]) == level]
    below: dict[int | str, list[ErrorDetails]] = {}
    for one in errors:
        if len(one["loc"]) == level:
            continue
        below.setdefault(one["loc"][level], []).append(one)
    inner = {part: _merged(some, level + 1) for part, some in below.items()}
    if len(inner) > 1 and all(_is_branch(part) for part in inner):
        return found + _likeliest(list(inner.values()), level)
    return found + [one for some in inner.values() for one in some]


def _likeliest(branches: list[list[ErrorDetails]], level: int) -> list[ErrorDetails]:
    """The errors of the branch that fits farthest; where none does, one error that names all."""
    depths = [max(_depth(one) for one in errors) for errors in branches]
    if max(depths) > sum(not _is_branch(part) for part in branches[0][0]["loc"][:level]):
        return branches[depths.index(max(depths))]
    first, words = branches[0][0], "Input should be "
    told = dict.fromkeys(errors[0]["msg"] for errors in branches)
    if all(message.startswith(words) for message in told):
        told = dict.fromkeys(message.removeprefix(words) for message in told)
        return [{**first, "msg": words + " or ".join(told)}]
    return [{**first, "msg": "; or ".join(told)}]


def _depth(error: ErrorDetails) -> int:
    return sum(not _is_branch(part) for part in error["loc"])


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith(BRANCH)


def _as_request_error(details: ErrorDetails, num_errors: int) -> InvalidRequestError:
    context, message = details.get("ctx", {}), _OBJECT.sub("object", details["msg"])
    param = _dotted(details["loc"]) + str(context.get("suffix", ""))
    if details["type"] == "missing":
        text = f"Missing required field: `{param}`."
    elif details["type"] in _OUT_OF_RANGE and param in RANGES:
        text = f"Invalid `{param}`: {details['input']} is out of its range, {RANGES[param]}."
    elif details["type"] == "request_field":
        text = f"Invalid `{param}`: {message}" if param else message
    elif param in RANGES:
        text = f"Invalid `{param}`: {message}, {RANGES[param]}."
    else:
        text = f"Invalid `{param}`: {message}."
    if num_errors > 1:
        text += f" ({num_errors - 1} more error{'s' if num_errors > 2 else ''}.)"
    if context.get("unsupported"):
        return UnsupportedFieldError(text, param=param)
    return InvalidRequestError(text, param=param or None)


def _dotted(location: tuple[int | str, ...]) -> str:
    """`messages[0].content` of pydantic's `("messages", 0, "content")`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier():
            # A client's own name of a member may have megabytes.
            path += f".{part[:MAX_NAME_CHARACTERS]}" if path else part[:MAX_NAME_CHARACTERS]
    return path
