"""Formats that cut the text into messages whose headers say what they are."""

from toolparser_worker.machine.declarations import (
    HeaderBody,
    JsonObjectBody,
    MessageFraming,
    ParameterBody,
    ReasoningFormat,
    Route,
    ToolFormat,
    spaced,
)

HARMONY = MessageFraming(
    starts=("<|start|>assistant", "<|start|>"),
    header_ends=("<|message|>",),
    ends=("<|end|>", "<|return|>", "<|call|>"),
    first_header=("to=", "<|channel|>"),
    rendered_content="<|channel|>final<|message|>",
    routes=(
        Route(
            header=(
                r".*?to=(?:assistant|(?:python|browser|container)(?:\.[^ \t\n\r<]*)?)"
                r"(?:[ \t\n\r<].*)"
            ),
            to="dropped",
        ),
        Route(header=r".*?to=(?:functions\.)?(?P<name>[^ \t\n\r<]+).*", to="arguments"),
        Route(header=r".*<\|channel\|>[ \t\n\r]*analysis.*", to="reasoning"),
        Route(header=r".*<\|channel\|>[ \t\n\r]*(?:final|commentary).*", to="content"),
    ),
)
INKLING = MessageFraming(
    starts=("<|message_model|>",),
    header_ends=(
        "<|content_text|>",
        "<|content_thinking|>",
        "<|content_invoke_tool_json|>",
        "<|content_invoke_tool_text|>",
        "<|content_tool_error|>",
    ),
    ends=("<|end_message|>", "<|content_model_end_sampling|>"),
    bare_is_content=True,
    rendered_content="<|content_text|>",
    routes=(
        Route(header=r".*<\|content_thinking\|>", to="reasoning"),
        Route(header=r".*<\|content_invoke_tool_json\|>", to="call"),
        Route(header=r".*", to="content"),
    ),
)
MUSE = MessageFraming(
    starts=("<|start|>assistant", "<|start|>"),
    header_ends=("<|message|>",),
    ends=("<|eom|>", "<|eot|>"),
    first_header=("to=", "<|message|>"),
    rendered_content=" to=user<|message|>",
    routes=(
        Route(header=r"[ \t\n\r]*to=self\b.*", to="reasoning"),
        Route(header=r"[ \t\n\r]*(?:to=(?:user|none)\b.*)?<\|message\|>", to="content"),
        Route(header=r"[ \t\n\r]*to=.*", to="calls"),
    ),
)

FORMATS = (
    ToolFormat(
        name="openai",
        aliases=("gptoss", "gpt_oss", "gpt-oss", "harmony", "openai_gptoss"),
        framing=HARMONY,
        body=HeaderBody(
            separators=("<|message|>",),
            rendered_header=" to=functions.{name}<|channel|>commentary json<|message|>",
        ),
        rendered_call_end="<|call|>",
        rendered_separator="<|start|>assistant",
    ),
    ReasoningFormat(
        name="openai_gptoss",
        aliases=("gptoss", "gpt_oss", "gpt-oss", "harmony", "openai"),
        framing=HARMONY,
        # A header with `to=` before it is that of a call, whatever its channel.
        headers=spaced("<|start|>assistant", "<|channel|>", "analysis", "<|message|>"),
        rendered_start="<|channel|>analysis<|message|>",
        rendered_end="<|end|><|start|>assistant",
    ),
    ToolFormat(
        name="inkling",
        framing=INKLING,
        body=JsonObjectBody(argument_keys=("args",), end="<|end_message|>"),
        rendered_call_start="<|content_invoke_tool_json|>",
        rendered_call_end="<|end_message|>",
        rendered_separator="<|message_model|>",
    ),
    ReasoningFormat(
        name="inkling",
        framing=INKLING,
        headers=("<|content_thinking|>",),
        trims="end",
        rendered_start="<|content_thinking|>",
        rendered_end="<|end_message|><|message_model|>",
    ),
    ToolFormat(
        name="muse_glimmer",
        aliases=("muse",),
        framing=MUSE,
        wrapper_starts=("<atem:function_calls>",),
        wrapper_ends=("</atem:function_calls>",),
        body=ParameterBody(
            starts=("<atem:invoke name=",),
            name_ends=(">",),
            end="</atem:invoke>",
            parameters=("<atem:parameter name=",),
            key_end=">",
            value_end="</atem:parameter>",
            also_ends=("</atem:function_calls>", "<atem:invoke name="),
            undeclared="json",
            doubled_names=True,
            rendered_space="\n",
        ),
        rendered_start=" to=tools<|message|><atem:function_calls>\n",
        rendered_end="\n</atem:function_calls><|eom|>",
    ),
    ReasoningFormat(
        name="muse_glimmer",
        aliases=("muse",),
        framing=MUSE,
        headers=("to=self<|message|>",),
        rendered_start=" to=self<|message|>",
        rendered_end="<|eom|><|start|>assistant",
    ),
)
