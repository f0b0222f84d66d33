"""The tools that MCP clients are offered: those that packages register, and a model."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import orjson
from pydantic import Field

from gateway.http.mcp.messages import McpMessage, result_answer
from gateway.http.schemas.base.body import RequestModel
from gateway.request.delivery.events import ChoiceFinished, ContentText, GenerationEvent
from gateway.tools.toolbox import ToolCard, ToolResult
from protocol.wire.messages import Usage

GENERATE: Final = "generate"
"""The tool that asks a model; a registered tool of this name takes its place."""


class GenerateArguments(RequestModel):
    """Arguments of the tool `generate`.

    Attributes:
        prompt: What the model is asked.
        model: One of those that the tool's schema lists; may be left out where there is one.
        system: How the model is to behave.
        max_tokens: Of the answer.
        temperature: 0 takes the likeliest token always.
    """

    prompt: Annotated[str, Field(min_length=1)]
    model: str | None = None
    system: str | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None


def registered(card: ToolCard) -> dict[str, Any]:
    """A registered tool as MCP describes tools."""
    return {
        "name": card.name,
        "description": card.description,
        "inputSchema": {"type": "object", **card.parameters},
    }


def generate_tool(models: Sequence[str], *, needs_model: bool) -> dict[str, Any]:
    """The tool that asks one of these models, which are several unless all are names of one."""
    properties = {
        "prompt": {"type": "string", "minLength": 1, "description": "What the model is asked."},
        "model": {"type": "string", "enum": list(models), "description": "Who answers."},
        "system": {"type": "string", "description": "How the model is to behave."},
        "max_tokens": {"type": "integer", "minimum": 1, "description": "Of the answer."},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    }
    return {
        "name": GENERATE,
        "title": "Ask a language model",
        "description": "Asks a language model of this server, and gives its answer as text.",
        "inputSchema": {
            "type": "object",
            "properties": properties,
            "required": ["prompt", "model"] if needs_model else ["prompt"],
            "additionalProperties": False,
        },
        "annotations": {"readOnlyHint": True, "openWorldHint": False},
    }


def chat_body(arguments: GenerateArguments, model: str) -> bytes:
    """The chat that a call of `generate` asks for."""
    messages = [{"role": "user", "content": arguments.prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    body: dict[str, Any] = {"model": model, "messages": messages}
    if arguments.max_tokens is not None:
        body["max_completion_tokens"] = arguments.max_tokens
    if arguments.temperature is not None:
        body["temperature"] = arguments.temperature
    return orjson.dumps(body)


def failed(text: str) -> dict[str, Any]:
    """The result of a call that failed, for the model that made it."""
    return {"content": [{"type": "text", "text": text}], "isError": True}


def told_result(result: ToolResult, max_bytes: int) -> dict[str, Any]:
    """What a registered tool yielded, as a result of `tools/call`.

    Args:
        result: Of the tool.
        max_bytes: Longer answers are errors.
    """
    if result.error is not None:
        said = f"{result.error['type']}: {result.error['message']}"
        return failed(said.encode()[:max_bytes].decode(errors="ignore"))
    value = result.result
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    text = text.encode("utf-8", "replace").decode()
    if len(text.encode()) > max_bytes:
        return failed(
            f"The tool's answer has more than {max_bytes} bytes (PENSTOCK_MAX_TOOL_OUTPUT_BYTES)."
        )
    told: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": False}
    if isinstance(value, dict):
        told["structuredContent"] = value
    return told


class GenerateCollector:
    """Makes the answer to a call of `generate`.

    Args:
        message: That is answered.
        version: Of MCP.
        model: Who generates.
    """

    def __init__(self, message: McpMessage, version: str, model: str) -> None:
        self._message = message
        self._version = version
        self._model = model
        self._content: list[str] = []
        self._finish_reason = ""

    def add(self, events: Sequence[GenerationEvent]) -> None:
        """Take the events of one wake-up; reasoning is not told."""
        for event in events:
            if isinstance(event, ContentText):
                self._content.append(event.text)
            elif isinstance(event, ChoiceFinished):
                self._finish_reason = event.finish_reason

    def body(self, usage: Usage) -> bytes:
        """The answer as JSON."""
        meta: Mapping[str, Any] = {
            "penstock/model": self._model,
            "penstock/finish_reason": self._finish_reason,
            "penstock/usage": {
                "input_tokens": usage.prompt_tokens,
                "output_tokens": usage.completion_tokens,
            },
        }
        part = {"type": "text", "text": "".join(self._content)}
        result = {"content": [part], "isError": False, "_meta": meta}
        return result_answer(self._message, self._version, result)
