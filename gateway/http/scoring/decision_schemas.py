"""The bodies of POST /v1/decisions, as OpenAI's SDK defines it, and of POST /v1/systemone."""

from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from gateway.http.schemas.base.body import RequestModel, field_error
from gateway.http.schemas.base.core_schemas import NullIsDefault

MAX_QUESTIONS: Final = 400
MAX_OPTIONS: Final = 255
MAX_ITEMS: Final = 4096
MAX_NAME_CHARACTERS: Final = 512
MAX_TEXT_CHARACTERS: Final = 10_485_760
MAX_JSON_BYTES: Final = 262_144
MAX_JSON_LEVELS: Final = 32
MAX_JSON_VALUES: Final = 10_000

HARMLESS_FIELDS: Final[dict[str, str]] = {
    "prompt_cache_key": "a routing hint; nothing depends on it",
    "prompt_cache_options": "a caching hint; nothing depends on it",
    "safety_identifier": "names an end user; it counts with keys that may do so",
}
"""Accepted by /v1/decisions without effect."""

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]


class TextPart(RequestModel):
    """A piece of text."""

    type: Literal["input_text"]
    text: Text
    # Harmless: caches find equal beginnings by themselves.
    prompt_cache_breakpoint: Any = None


class OutputTextPart(RequestModel):
    """What a model said."""

    type: Literal["output_text"]
    text: Text


class RefusalPart(RequestModel):
    """What a model refused with."""

    type: Literal["refusal"]
    refusal: Text


class JsonPart(RequestModel):
    """An object, or a list of objects, that is shown as JSON."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]

    @field_validator("data")
    @classmethod
    def _within_bounds(cls, value: Any) -> Any:
        check_json(value)
        return value


def check_json(value: Any) -> str:
    """A value as compact JSON text.

    Raises:
        PydanticCustomError: It is nested too deep, has too many values, or is too long.
    """
    level, num_values = [value], 0
    for depth in range(1, MAX_JSON_LEVELS + 2):
        num_values += len(level)
        if num_values > MAX_JSON_VALUES:
            raise field_error(f"it has more than {MAX_JSON_VALUES} values.")
        if depth > MAX_JSON_LEVELS and any(isinstance(one, dict | list) for one in level):
            raise field_error(f"it is nested more than {MAX_JSON_LEVELS} levels deep.")
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    text = orjson.dumps(value)
    if len(text) > MAX_JSON_BYTES:
        raise field_error(f"it has {len(text)} bytes as JSON; at most {MAX_JSON_BYTES} are read.")
    return text.decode()


class ImagePart(RequestModel):
    """An image, which is refused by name."""

    type: Literal["input_image"]

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, value: Any) -> Any:
        raise field_error("images are not supported: models here read text.", unsupported=True)


# Tags are no identifiers, so that they are no part of the names of fields in errors.


def _tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind is None and isinstance(value, dict) and "role" in value:
        kind = "message"
    return f"={kind}" if isinstance(kind, str) else "="


def _one_of(*names: str) -> Discriminator:
    return Discriminator(
        _tag,
        custom_error_type="request_field",
        custom_error_message=f"its `type` has to be one of {', '.join(names)}.",
    )


def _form(value: Any) -> str:
    return "=list" if isinstance(value, list) else "=text"


UserPart = Annotated[
    Annotated[TextPart, Tag("=input_text")]
    | Annotated[JsonPart, Tag("=input_json")]
    | Annotated[ImagePart, Tag("=input_image")],
    _one_of("input_text", "input_json"),
]
MessagePart = Annotated[
    Annotated[TextPart, Tag("=input_text")]
    | Annotated[JsonPart, Tag("=input_json")]
    | Annotated[ImagePart, Tag("=input_image")]
    | Annotated[OutputTextPart, Tag("=output_text")]
    | Annotated[RefusalPart, Tag("=refusal")],
    _one_of("input_text", "input_json", "output_text", "refusal"),
]
Content = Annotated[
    Annotated[Text, Tag("=text")]
    | Annotated[list[MessagePart], Field(max_length=MAX_ITEMS), Tag("=list")],
    Discriminator(_form),
]
_PARTS_OF_ROLES: Final = {
    "user": {"input_text", "input_json"},
    "system": {"input_text"},
    "developer": {"input_text"},
    "assistant": {"output_text", "refusal"},
}


class Message(RequestModel):
    """A message of the material."""

    type: Annotated[Literal["message"], NullIsDefault()] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    # Harmless: it is shown to nobody.
    phase: Any = None

    @model_validator(mode="after")
    def _parts_of_its_role(self) -> "Message":
        if isinstance(self.content, list):
            for index, part in enumerate(self.content):
                if part.type not in _PARTS_OF_ROLES[self.role]:
                    raise field_error(
                        f"a message of the {self.role} has no parts of the type {part.type}.",
                        f".content[{index}]",
                    )
        return self


class Call(RequestModel):
    """A call of a tool in the material; `input` is a custom tool's."""

    type: Literal["function_call", "custom_tool_call"]
    call_id: Name
    name: Name
    arguments: Text | None = None
    input: Text | None = None
    namespace: str | None = None
    # Harmless.
    id: Any = None
    status: Any = None

    @property
    def text(self) -> str:
        """What the tool was called with."""
        return (self.arguments if self.type == "function_call" else self.input) or ""

    @model_validator(mode="after")
    def _has_its_text(self) -> "Call":
        field = "arguments" if self.type == "function_call" else "input"
        if getattr(self, field) is None:
            raise field_error("it is required.", f".{field}")
        return self


Output = Annotated[
    Annotated[Text, Tag("=text")]
    | Annotated[list[UserPart], Field(max_length=MAX_ITEMS), Tag("=list")],
    Discriminator(_form),
]


class CallOutput(RequestModel):
    """What a tool answered."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Name
    output: Output
    # Harmless.
    id: Any = None
    status: Any = None


Item = Annotated[
    Annotated[Message, Tag("=message")]
    | Annotated[Call, Tag("=function_call")]
    | Annotated[Call, Tag("=custom_tool_call")]
    | Annotated[CallOutput, Tag("=function_call_output")]
    | Annotated[CallOutput, Tag("=custom_tool_call_output")],
    _one_of(
        "message",
        "function_call",
        "custom_tool_call",
        "function_call_output",
        "custom_tool_call_output",
    ),
]
Instructions = Annotated[
    Annotated[Text, Tag("=text")]
    | Annotated[list[UserPart], Field(min_length=1, max_length=MAX_ITEMS), Tag("=list")],
    Discriminator(_form),
]
Input = Annotated[
    Annotated[Text, Tag("=text")]
    | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS), Tag("=list")],
    Discriminator(_form),
]


class Predicate(RequestModel):
    """How likely is a statement true?"""

    type: Literal["predicate"]
    name: Name | None = None
    instructions: Instructions


class Option(RequestModel):
    """One option of a choice; the text `"true"` and the boolean `true` differ."""

    value: Text | bool
    description: Text | None = None


class Choice(RequestModel):
    """Which option fits best?"""

    type: Literal["choice"]
    name: Name | None = None
    instructions: Instructions
    choices: Annotated[list[Option], Field(min_length=2, max_length=MAX_OPTIONS)]

    @field_validator("choices")
    @classmethod
    def _unique(cls, value: list[Option]) -> list[Option]:
        seen: set[tuple[type, str | bool]] = set()
        for index, option in enumerate(value):
            key = (type(option.value), option.value)
            if key in seen:
                raise field_error("another choice has the same value.", f"[{index}].value")
            seen.add(key)
        return value


class Level(RequestModel):
    """One level of a score."""

    label: Text
    description: Text | None = None


class Score(RequestModel):
    """Which of some ordered levels fits?"""

    type: Literal["score"]
    name: Name | None = None
    instructions: Instructions
    levels: Annotated[list[Level], Field(min_length=1, max_length=MAX_OPTIONS)]


Question = Annotated[
    Annotated[Predicate, Tag("=predicate")]
    | Annotated[Choice, Tag("=choice")]
    | Annotated[Score, Tag("=score")],
    _one_of("predicate", "choice", "score"),
]


class DecisionRequest(RequestModel):
    """Questions about one material, each answered by probabilities."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: Input
    questions: Annotated[list[Question], Field(min_length=1, max_length=MAX_QUESTIONS)]
    # Harmless, see `HARMLESS_FIELDS`.
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    safety_identifier: Any = None

    @model_validator(mode="after")
    def _outputs_have_calls(self) -> "DecisionRequest":
        if isinstance(self.input, str):
            return self
        calls: set[tuple[str, str]] = set()
        for index, item in enumerate(self.input):
            if isinstance(item, Call):
                calls.add((item.type, item.call_id))
            elif (
                isinstance(item, CallOutput)
                and (item.type.removesuffix("_output"), item.call_id) not in calls
            ):
                raise field_error("no call before it has this id.", f"input[{index}].call_id")
        return self


class SystemoneQuestion(RequestModel):
    """One question; what `criteria` are depends on the type."""

    type: Literal["noul", "choice", "score"]
    instructions: Text
    criteria: dict[str, Text | None] | list[Text] | None = None

    @model_validator(mode="after")
    def _criteria_of_its_type(self) -> "SystemoneQuestion":
        criteria = self.criteria
        if self.type == "noul":
            if criteria is not None and (
                not isinstance(criteria, dict) or not criteria.keys() <= {"true", "false"}
            ):
                raise field_error("an object of `true` and `false` is expected.", ".criteria")
            return self
        kind: type = dict if self.type == "choice" else list
        least = 2 if self.type == "choice" else 1
        if not isinstance(criteria, kind) or not least <= len(criteria or ()) <= MAX_OPTIONS:
            what = "an object of options" if self.type == "choice" else "a list of levels"
            raise field_error(f"{what} is expected, {least} to {MAX_OPTIONS} of them.", ".criteria")
        return self


class SystemoneRequest(RequestModel):
    """Questions by name about one state."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    state: Text | dict[str, Any] | list[Any]
    questions: Annotated[
        dict[Name, SystemoneQuestion], Field(min_length=1, max_length=MAX_QUESTIONS)
    ]

    @field_validator("state")
    @classmethod
    def _within_bounds(cls, value: Any) -> Any:
        if not isinstance(value, str):
            check_json(value)
        return value
