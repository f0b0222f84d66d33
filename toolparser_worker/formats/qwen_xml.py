"""Calls as `<function=NAME>` with `<parameter=KEY>` elements (Qwen 3 Coder and its kin)."""

from toolparser_worker.machine.declarations import ParameterBody, ToolFormat

BODY = ParameterBody(
    starts=("<function=", "<function name="),
    name_ends=(">",),
    end="</function>",
    parameters=("<parameter=", "<parameter name="),
    key_end=">",
    value_end="</parameter>",
    also_ends=("</tool_call>", "<tool_call>", "<function="),
    trims="newline",
    rendered_name="{name}>",
    rendered_key="{key}>",
    rendered_space="\n",
    rendered_trim="\n",
)
SEED_BODY = ParameterBody(
    starts=("<function=",),
    name_ends=(">",),
    end="</function>",
    parameters=("<parameter=",),
    key_end=">",
    value_end="</parameter>",
    also_ends=("</seed:tool_call>", "<seed:tool_call>", "<function="),
    trims="newline",
    rendered_name="{name}>",
    rendered_key="{key}>",
    rendered_space="\n",
    rendered_trim="\n",
)

FORMATS = (
    ToolFormat(
        name="qwen3_coder",
        aliases=("qwen3_xml", "mimo", "qwen3-coder", "nemotron_v3"),
        wrapper_starts=("<tool_call>",),
        wrapper_ends=("</tool_call>",),
        wrapper_optional=True,
        body=BODY,
        text_after_calls="drop",
        trims=True,
        rendered_call_start="<tool_call>\n",
        rendered_call_end="\n</tool_call>",
    ),
    ToolFormat(
        name="step3p5",
        aliases=("step3.5", "step-3.5"),
        wrapper_starts=("<tool_call>",),
        wrapper_ends=("</tool_call>",),
        wrapper_optional=True,
        body=BODY,
        text_after_calls="drop",
        rendered_call_start="<tool_call>\n",
        rendered_call_end="\n</tool_call>",
    ),
    ToolFormat(
        name="seed_oss",
        aliases=("seed-oss",),
        wrapper_starts=("<seed:tool_call>",),
        wrapper_ends=("</seed:tool_call>",),
        wrapper_optional=True,
        body=SEED_BODY,
        dropped_markers=("</seed:think>",),
        text_after_calls="drop",
        trims=True,
        rendered_call_start="<seed:tool_call>\n",
        rendered_call_end="\n</seed:tool_call>",
    ),
)
