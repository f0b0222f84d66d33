"""Text → calls → messages → text, for every format and through a template in its family's style."""

import json
from dataclasses import dataclass
from typing import Any, cast

import pytest

from engine_worker.text.chat_messages import parse_messages, parse_tools
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.tokenizer import Tokenizer
from tests.fakes.parsed_text import TOOLS as FORMATS
from tests.fakes.parsed_text import parse
from toolparser_worker.formats import TOOL_FORMATS
from toolparser_worker.machine.call_ids import call_id
from toolparser_worker.machine.tool_schemas import ToolSchemas

NESTED = {"city": 'Zürich "x"', "days": 3, "more": {"tags": ["a", None], "</tool_call>": 1.5}}
FLAT = {"city": "Zürich & more", "days": 3}
SCHEMAS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
    for name in ("get_weather", "get_time")
]

# What templates write for one call: `f` is its function, `call` the whole of it.
TEXT = "{{ f.arguments if f.arguments is string else f.arguments | tojson }}"
OBJECT = "{{ f.arguments | tojson }}"
STRING = "{{ f.arguments + '' }}"
NAMED = '{"name": "{{ f.name }}", "arguments": ' + OBJECT + "}"
PARAMETERS = '{"name": "{{ f.name }}", "parameters": ' + OBJECT + "}"
VALUE = "{{ v if v is string else v | tojson }}"
PYTHON = (
    "{{ f.name }}({% for k, v in f.arguments.items() %}{{ k }}="
    "{{ \"'\" ~ v ~ \"'\" if v is string else v }}{{ ', ' if not loop.last }}{% endfor %})"
)
REFUSES_OTHER_IDS = (
    "{% if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
)


def each(parameter: str) -> str:
    """The parameters of a call, one after the other."""
    return "{% for k, v in f.arguments.items() %}" + parameter + "{% endfor %}"


@dataclass(frozen=True)
class Style:
    """How a family's template writes the calls of an assistant's message.

    Attributes:
        max_calls: Some families write one call a message.
        nested: Arguments of any depth come back; elements and Python are tried with plain ones.
    """

    call: str
    before: str = ""
    between: str = ""
    after: str = ""
    max_calls: int = 2
    nested: bool = True

    @property
    def template(self) -> str:
        return (
            "{% for m in messages %}{% if m.role == 'assistant' %}[BEGIN]"
            "{% if m.tool_calls %}"
            + self.before
            + "{% for call in m.tool_calls %}{% set f = call.function %}"
            + "{% if not loop.first %}"
            + self.between
            + "{% endif %}"
            + self.call
            + "{% endfor %}"
            + self.after
            + "{% endif %}[END]{% elif m.role == 'tool' %}"
            "[RESULT {{ m.tool_call_id }} {{ m.content }}]{% endif %}{% endfor %}"
            "{% if tools %}{{ tools | length }}{% endif %}"
        )


def flat(call: str, **parts: Any) -> Style:
    return Style(call, nested=False, **parts)


def tagged(call: str, start: str, end: str) -> Style:
    return Style(f"{start}\n{call}\n{end}", between="\n")


def listed(call: str, start: str, end: str, between: str = ", ") -> Style:
    return Style(call, before=start, between=between, after=end)


INVOKE = '<invoke name="{{ f.name }}">\n' + each(
    f'<parameter name="{{{{ k }}}}">{VALUE}</parameter>\n'
)
FUNCTION = "<function={{ f.name }}>\n" + each(f"<parameter={{{{ k }}}}>\n{VALUE}\n</parameter>\n")
PAIRS = each(f"<arg_key>{{{{ k }}}}</arg_key>\n<arg_value>{VALUE}</arg_value>\n")
DSML = (
    '<｜DSML｜invoke name="{{ f.name }}">\n'
    + each(
        "<｜DSML｜parameter name=\"{{ k }}\" string=\"{{ 'true' if v is string else 'false' }}\">"
        f"{VALUE}</｜DSML｜parameter>\n"
    )
    + "</｜DSML｜invoke>\n"
)
NS = "]<]minimax[>["
K3_TYPE = "{{ 'string' if v is string else 'number' }}"

STYLES: dict[str, Style] = {
    "apertus": listed('{"{{ f.name }}": ' + STRING + "}", "<|tools_prefix|>[", "]<|tools_suffix|>"),
    "cohere_command3": listed(
        '    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ f.name }}", "parameters": '
        + OBJECT
        + "}",
        "<|START_ACTION|>[\n",
        "\n]<|END_ACTION|>",
        ",\n",
    ),
    "deepseek_v3": Style(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ f.name }}\n```json\n"
        + STRING
        + "\n```<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>",
        "\n",
        "<｜tool▁calls▁end｜>",
    ),
    "deepseek_v31": Style(
        "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>" + STRING + "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>",
        "",
        "<｜tool▁calls▁end｜>",
    ),
    "deepseek_v32": flat(
        DSML, before="<｜DSML｜function_calls>\n", after="</｜DSML｜function_calls>"
    ),
    "deepseek_v4": flat(DSML, before="<｜DSML｜tool_calls>\n", after="</｜DSML｜tool_calls>"),
    "dots": flat(
        INVOKE + "</invoke>\n", before="<dots_function_call>\n", after="</dots_function_call>"
    ),
    "ernie45": tagged(NAMED, "<tool_call>", "</tool_call>"),
    "functiongemma": flat(
        "<start_function_call>call:{{ f.name }}{{ '{' }}"
        + each("{{ ',' if not loop.first }}{{ k }}:<escape>" + VALUE + "<escape>")
        + "}<end_function_call>"
    ),
    "gemma4": flat(
        "<|tool_call>call:{{ f.name }}{{ '{' }}"
        + each(
            "{{ ',' if not loop.first }}{{ k }}:"
            "{{ '<|\"|>' ~ v ~ '<|\"|>' if v is string else v | tojson }}"
        )
        + "}<tool_call|>"
    ),
    "gigachat3": Style("<|function_call|>" + NAMED, max_calls=1),
    "glm45": flat("<tool_call>{{ f.name }}\n" + PAIRS + "</tool_call>", between="\n"),
    "granite": listed(NAMED, "<|tool_call|>[", "]"),
    "granite-20b-fc": Style("<function_call> " + NAMED, between=" "),
    "granite4": tagged(NAMED, "<tool_call>", "</tool_call>"),
    "hermes": tagged(NAMED, "<tool_call>", "</tool_call>"),
    "hunyuan_a13b": listed(NAMED, "<tool_calls>[", "]</tool_calls>"),
    "hy_v3": flat(
        "<tool_call>{{ f.name }}<tool_sep>\n" + PAIRS + "</tool_call>\n",
        before="<tool_calls>\n",
        after="</tool_calls>",
    ),
    "inkling": Style(
        '<|content_invoke_tool_json|>{"name": "{{ f.name }}", "args": '
        + OBJECT
        + "}<|end_message|>",
        between="<|message_model|>",
    ),
    "internlm": Style("<|action_start|><|plugin|>\n" + PARAMETERS + "<|action_end|>", max_calls=1),
    "nemotron_nano_v2": listed(NAMED, "<TOOLCALL>[", "]</TOOLCALL>"),
    "jamba": listed(NAMED, "<tool_calls>[\n    ", "\n]</tool_calls>", ",\n    "),
    "kimi_k2": Style(
        "<|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>" + TEXT + "<|tool_call_end|>",
        "<|tool_calls_section_begin|>",
        "",
        "<|tool_calls_section_end|>",
    ),
    "kimi_k3": flat(
        '<|open|>call tool="{{ f.name }}" index="{{ loop.index }}"<|sep|>'
        + each(
            f'<|open|>argument key="{{{{ k }}}}" type="{K3_TYPE}"<|sep|>{VALUE}'
            "<|close|>argument<|sep|>"
        )
        + "<|close|>call<|sep|>",
        before="<|open|>tools<|sep|>",
        after="<|close|>tools<|sep|>",
    ),
    "lfm2": flat(PYTHON, before="<|tool_call_start|>[", between=", ", after="]<|tool_call_end|>"),
    "llama3_json": Style(PARAMETERS, between="; "),
    "llama4_pythonic": flat(
        PYTHON, before="<|python_start|>[", between=", ", after="]<|python_end|>"
    ),
    "longcat": tagged(NAMED, "<longcat_tool_call>", "</longcat_tool_call>"),
    "minicpm5": flat(
        '<function name="{{ f.name }}">'
        + each(f'<param name="{{{{ k }}}}">{VALUE}</param>')
        + "</function>",
        between="\n",
    ),
    "minimax": listed(NAMED, "<tool_calls>\n", "\n</tool_calls>", "\n"),
    "minimax_m2": flat(
        INVOKE + "</invoke>\n", before="<minimax:tool_call>\n", after="</minimax:tool_call>"
    ),
    "minimax_m3": flat(
        f'{NS}<invoke name="{{{{ f.name }}}}">'
        + each(f"{NS}<{{{{ k }}}}>{VALUE}{NS}</{{{{ k }}}}>")
        + f"{NS}</invoke>\n",
        before=f"{NS}<tool_call>\n",
        after=f"{NS}</tool_call>",
    ),
    "mistral": listed(
        REFUSES_OTHER_IDS
        + '{"name": "{{ f.name }}", "arguments": '
        + OBJECT
        + ', "id": "{{ call.id }}"}',
        "[TOOL_CALLS] [",
        "]",
    ),
    "muse_glimmer": flat(
        '<atem:invoke name="{{ f.name }}">\n'
        + each(f'<atem:parameter name="{{{{ k }}}}">{VALUE}</atem:parameter>\n')
        + "</atem:invoke>\n",
        before=" to=tools<|message|><atem:function_calls>\n",
        after="</atem:function_calls><|eom|>",
    ),
    "olmo3": flat(PYTHON, before="<function_calls>\n", between="\n", after="\n</function_calls>"),
    "openai": Style(
        " to=functions.{{ f.name }}<|channel|>commentary json<|message|>" + OBJECT + "<|call|>",
        between="<|start|>assistant",
    ),
    "phi4": listed(NAMED, "<|tool_call|>[", "]<|/tool_call|>"),
    "phi4_mini_json": listed(NAMED, "functools[", "]"),
    "poolside_v1": flat("<tool_call>{{ f.name }}\n" + PAIRS + "</tool_call>", between="\n"),
    "pythonic": flat(PYTHON, before="[", between=", ", after="]"),
    "qwen3_coder": flat("<tool_call>\n" + FUNCTION + "</function>\n</tool_call>", between="\n"),
    "seed_oss": flat(
        "<seed:tool_call>\n" + FUNCTION + "</function>\n</seed:tool_call>", between="\n"
    ),
    "step3": flat(
        '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="{{ f.name }}">'
        + each(f'<steptml:parameter name="{{{{ k }}}}">{VALUE}</steptml:parameter>')
        + "</steptml:invoke><｜tool_call_end｜>",
        before="<｜tool_calls_begin｜>",
        after="<｜tool_calls_end｜>",
    ),
    "step3p5": flat("<tool_call>\n" + FUNCTION + "</function>\n</tool_call>", between="\n"),
    "xlam": listed(NAMED, "[", "]"),
}


class OneTemplate:
    """A tokenizer as far as rendering asks for one; it has no tokens beside learned ones."""

    special_token_ids: frozenset[int] = frozenset()
    unknown_token_id: int | None = None

    def __init__(self, source: str) -> None:
        self._source = source

    def special_tokens_map(self) -> dict[str, str]:
        return {}

    def added_token_ids(self) -> dict[str, int]:
        return {}

    def chat_template_source(self, *, has_tools: bool) -> str:
        return self._source


def history(calls: list[tuple[str, str, str]]) -> str:
    """A conversation with these calls, (id, name, arguments as JSON text), and their results."""
    listed = [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id_, name, arguments in calls
    ]
    return json.dumps(
        [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": None, "tool_calls": listed},
            *({"role": "tool", "tool_call_id": call[0], "content": "sun"} for call in calls),
        ]
    )


def test_every_format_has_a_template() -> None:
    assert set(STYLES) == {declared.name for declared in TOOL_FORMATS.values()}


@pytest.mark.parametrize("name", sorted(STYLES))
def test_calls_go_into_the_next_prompt_as_the_model_wrote_them(name: str) -> None:
    style, tool_format = STYLES[name], FORMATS[name]
    assert tool_format is not None
    template = ChatTemplate(cast("Tokenizer", OneTemplate(style.template)), "model")

    def id_of(index: int, called: str) -> str:
        return call_id("request", 0, index, name=called, style=tool_format.id_style)

    def prompt(calls: list[tuple[str, str, str]]) -> str:
        return template.render(
            parse_messages(history(calls)),
            tools=parse_tools(json.dumps(SCHEMAS)),
            add_generation_prompt=False,
            template_time=0,
        )

    arguments = json.dumps(NESTED if style.nested else FLAT, ensure_ascii=False)
    wanted = [("get_weather", arguments), ("get_time", "{}")][: style.max_calls]
    first = prompt([(id_of(i, called), called, text) for i, (called, text) in enumerate(wanted)])
    written = first.split("[BEGIN]")[1].split("[END]")[0]

    parsed = parse(written, tool_format, tools=ToolSchemas(SCHEMAS), call_id=id_of)
    assert parsed.content.strip() == ""
    assert [(call.name, json.loads(call.arguments)) for call in parsed.calls] == [
        (called, json.loads(text)) for called, text in wanted
    ]
    again = prompt([(call.id, call.name, call.arguments) for call in parsed.calls])
    assert again == first
    for call in parsed.calls:
        assert f"[RESULT {call.id} sun]" in again
