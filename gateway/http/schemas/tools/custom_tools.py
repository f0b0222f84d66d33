"""OpenAI's `custom` tools, whose input is text: told to models as functions of one string.

https://platform.openai.com/docs/guides/function-calling#custom-tools
"""

from functools import lru_cache
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, field_validator

from gateway.http.schemas.base.beside_loop import check_grammar_characters
from gateway.http.schemas.base.body import RequestModel, field_error
from gateway.http.schemas.base.ranges import (
    MAX_GRAMMAR_CHARACTERS,
    MAX_LARK_CHARACTERS,
    MAX_LARK_REGEX_CHARACTERS,
    MAX_LARK_RULES_CHARACTERS,
    MAX_LARK_TOOLS,
    MAX_TOOL_NAME_CHARACTERS,
)
from gateway.http.schemas.base.shapes import ByType, fields
from gateway.http.schemas.tools.lark_grammar import LarkGrammar, as_grammar
from gateway.http.schemas.tools.lark_regex import NotRegularError, as_regex
from gateway.http.schemas.tools.lark_tokens import LarkError

INPUT: Final = "input"
"""The one argument of the function that a custom tool becomes."""
GRAMMAR: Final = "x_penstock_input"
"""What a parser finds the rules of that argument's text under, in the function."""
_MAX_KEPT: Final = MAX_LARK_TOOLS
_FOLLOWS: Final = f"`{INPUT}` has to follow this Lark grammar:"

ToolName = Annotated[
    str, Field(min_length=1, max_length=MAX_TOOL_NAME_CHARACTERS, pattern=r"^[A-Za-z0-9_.-]+$")
]


class CustomCall(RequestModel):
    """The custom tool that an assistant message called."""

    name: str
    input: str


class CustomDefinition(RequestModel):
    """A tool whose input is text, free or held to a regular expression or a Lark grammar."""

    shapes = {  # noqa: RUF012
        "format": ByType(
            {
                "text": fields("type"),
                "grammar": fields("type", grammar=fields("syntax", "definition")),
            }
        )
    }

    name: ToolName
    description: str | None = None
    format: dict[str, Any] | None = None

    @field_validator("format", mode="before")
    @classmethod
    def _format_served(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise field_error("must be an object.")
        if value.get("type") == "text":
            return value
        if value.get("type") != "grammar":
            raise field_error("it must be `text` or `grammar`.", ".type")
        grammar = value.get("grammar")
        if not isinstance(grammar, dict):
            raise field_error("must be an object.", ".grammar")
        syntax = grammar.get("syntax")
        if syntax not in ("regex", "lark"):
            raise field_error("it must be `regex` or `lark`.", ".grammar.syntax")
        definition = grammar.get("definition")
        most = MAX_LARK_CHARACTERS if syntax == "lark" else MAX_GRAMMAR_CHARACTERS
        if not isinstance(definition, str) or not 1 <= len(definition) <= most:
            raise field_error(
                f"must be a string of 1 to {most} characters.",
                ".grammar.definition",
            )
        if syntax == "lark":
            try:
                _held_to(definition)
            except LarkError as error:
                raise field_error(
                    f"this Lark grammar is not supported: {error}.",
                    ".grammar.definition",
                    unsupported=True,
                ) from None
        return value


def check_grammars(tools: Any) -> None:
    """Refuse more Lark grammars than are read for one request, before any of them is.

    Args:
        tools: Of a request, not checked yet.

    Raises:
        BesideLoopError: They are too long to be read on the event loop.
    """
    grammars = [one for tool in tools if (one := _lark_of(tool))] if isinstance(tools, list) else []
    if len(grammars) > MAX_LARK_TOOLS:
        raise field_error(f"{len(grammars)} tools have a Lark grammar, and {MAX_LARK_TOOLS} may.")
    check_grammar_characters(sum(map(len, grammars)))


def _lark_of(tool: Any) -> str:
    for key in ("custom", "format", "grammar"):
        tool = tool.get(key) if isinstance(tool, dict) else None
    is_lark = isinstance(tool, dict) and tool.get("syntax") == "lark"
    text = tool.get("definition") if is_lark else None
    return text if isinstance(text, str) else ""


def function_of_tool(custom: dict[str, Any], *, is_enforced: bool) -> dict[str, Any]:
    """The function that stands for a custom tool; with a grammar it is strict.

    Args:
        custom: Checked already.
        is_enforced: As a parser gets it, who holds calls to it; else as the model reads it, to
            whom a Lark grammar says more than the expression that is made of it.
    """
    text: dict[str, Any] = {"type": "string"}
    rules: dict[str, Any] | None = None
    description = custom.get("description")
    wanted: dict[str, Any] = custom.get("format") or {"type": "text"}
    is_held = wanted["type"] == "grammar"
    if is_held:
        definition = wanted["grammar"]["definition"]
        is_lark = wanted["grammar"]["syntax"] == "lark"
        if is_lark and not is_enforced:
            description = f"{description or ''}\n{_FOLLOWS}\n{definition}".strip()
        else:
            held_to = _held_to(definition) if is_lark else definition
            if isinstance(held_to, LarkGrammar):
                rules = held_to.as_json()
            else:
                text["pattern"] = f"^(?:{held_to})$"
    function: dict[str, Any] = {
        "name": custom["name"],
        "parameters": {
            "type": "object",
            "properties": {INPUT: text},
            "required": [INPUT],
            "additionalProperties": False,
        },
        "strict": is_held,
    }
    if description is not None:
        function["description"] = description
    if rules is not None:
        function[GRAMMAR] = rules
    return function


@lru_cache(maxsize=_MAX_KEPT)
def _held_to(definition: str) -> str | LarkGrammar:
    """What the text of a Lark grammar is held to: a regular expression if one says the same.

    It is asked for several times in a request, so that the last few are kept.

    Raises:
        LarkError: It is no grammar, or has what is not supported.
    """
    try:
        try:
            return as_regex(definition, MAX_LARK_REGEX_CHARACTERS)
        except NotRegularError:
            return as_grammar(definition, MAX_LARK_RULES_CHARACTERS)
    except RecursionError:
        # Each kind of nesting has a bound, but one may hold another.
        raise LarkError("its rules and brackets are nested too deeply") from None


def function_of_call(custom: dict[str, Any]) -> dict[str, Any]:
    """The call of that function, as it stands in a history."""
    arguments = orjson.dumps({INPUT: custom["input"]}).decode()
    return {"name": custom["name"], "arguments": arguments}
