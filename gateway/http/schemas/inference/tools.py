"""The bodies of the routes that parse text and run tools."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from gateway.http.schemas.base.body import RequestModel, field_error
from gateway.http.schemas.base.core_schemas import NullIsDefault
from gateway.http.schemas.base.ranges import MAX_TOOL_NAME_CHARACTERS
from gateway.http.schemas.inference.messages import Tools

MAX_FORMAT_CHARACTERS = 100
FormatName = Annotated[str | None, Field(min_length=1, max_length=MAX_FORMAT_CHARACTERS)]


class ParseRequest(RequestModel):
    """Text of a model to be parsed.

    Attributes:
        text: What the model wrote.
        model: A served model, whose formats are meant where none is named.
        format: Name of the tool format.
        reasoning_format: Name of the reasoning format.
        tools: What the model was given; without any, every tool name is taken for one.
        parallel_tool_calls: False keeps the first call only.
        prompt_tail: The end of the prompt, which may have opened or closed the reasoning.
    """

    text: str
    model: str | None = None
    format: FormatName = None
    reasoning_format: FormatName = None
    tools: Tools = None
    parallel_tool_calls: bool | None = None
    prompt_tail: str | None = None

    @model_validator(mode="after")
    def _some_format(self) -> "ParseRequest":
        if self.format is None and self.reasoning_format is None and self.model is None:
            raise field_error("name a `format`, a `reasoning_format` or a `model`.", "format")
        return self


class ExecuteRequest(RequestModel):
    """A tool of this server to be run.

    Attributes:
        name: The tool's name.
        arguments: Of the call: an object, or its JSON text as models write it.
    """

    name: Annotated[str, Field(min_length=1, max_length=MAX_TOOL_NAME_CHARACTERS)]
    arguments: Annotated[dict[str, Any] | str, NullIsDefault()] = Field(default_factory=dict)
