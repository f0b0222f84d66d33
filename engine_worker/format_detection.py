"""Finds out from a chat template how its model spells tool calls and reasoning."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DetectedFormats:
    """Formats by the names that parser workers know them by.

    Attributes:
        tool_format: None when there is none, or none that is known.
        reasoning_format: Likewise.
        evidence: Why, in one sentence for people.
    """

    tool_format: str | None
    reasoning_format: str | None
    evidence: str


# Spellings that share hermes's outer tag but have another body.
_OTHER_BODIES = ("<function=", "<arg_key>", "<parameter=")
# Markers of formats that no parser here reads; named so that the operator knows why.
_UNREAD_MARKERS = (
    "[TOOL_CALLS]",
    "<|tool_call_begin|>",
    "<｜tool▁call▁begin｜>",
    "<|tool_calls_section_begin|>",
    "<|channel|>",
)

CONFIGURED_NONE = "none"
"""The setting that switches a format off."""


def detect_formats(
    template: str | None, *, tool_format: str | None = None, reasoning_format: str | None = None
) -> DetectedFormats:
    """The formats of a model.

    Args:
        template: Source of its chat template, with tools if that is another one.
        tool_format: Configured by the operator: wins over what is found; `none` switches off.
        reasoning_format: Likewise.
    """
    found_tool, tool_evidence = _detect_tool_format(template or "")
    found_reasoning, reasoning_evidence = _detect_reasoning_format(template or "")
    if tool_format is not None:
        found_tool, tool_evidence = _configured(tool_format), "tool format: configured"
    if reasoning_format is not None:
        found_reasoning = _configured(reasoning_format)
        reasoning_evidence = "reasoning format: configured"
    return DetectedFormats(
        tool_format=found_tool,
        reasoning_format=found_reasoning,
        evidence=f"{tool_evidence}; {reasoning_evidence}.",
    )


def _configured(name: str) -> str | None:
    return None if name == CONFIGURED_NONE else name


def _detect_tool_format(template: str) -> tuple[str | None, str]:
    if "<tool_call>" in template:
        other = next((marker for marker in _OTHER_BODIES if marker in template), None)
        if other is not None:
            return None, f"tool format: none, the template has <tool_call> with {other}"
        if "name" in template and "arguments" in template:
            return (
                "hermes",
                "tool format: hermes, the template has <tool_call> with name and arguments",
            )
    unread = next((marker for marker in _UNREAD_MARKERS if marker in template), None)
    if unread is not None:
        return None, f"tool format: none, the template has {unread}"
    if "<|python_tag|>" in template:
        return "llama3_json", "tool format: llama3_json, the template has <|python_tag|>"
    if '"parameters"' in template and "<|start_header_id|>" in template:
        return "llama3_json", "tool format: llama3_json, the template has name and parameters"
    return None, "tool format: none, the template has no known marker"


def _detect_reasoning_format(template: str) -> tuple[str | None, str]:
    if "<think>" in template or "</think>" in template:
        return "think", "reasoning format: think, the template has <think>"
    return None, "reasoning format: none, the template has no known marker"
