import json
from pathlib import Path
from typing import Any

import pytest

from engine_worker.demo import demo_model_path
from engine_worker.errors import (
    ChatTemplateError,
    InvalidRequestError,
    NoChatTemplateError,
    TokenizerLoadError,
    UnsupportedParameterError,
)
from engine_worker.text.chat_messages import parse_messages, parse_tools
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.tokenizer import Tokenizer
from protocol.errors import ErrorCode
from tests.fakes.tiny_tokenizers import CHATML, byte_level_tokenizer

SHOW_ALL = "{{ messages | tojson }}|{{ tools | tojson }}"
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d"}}
USER = [{"role": "user", "content": "?"}]


def make_template(source: Any) -> ChatTemplate:
    return ChatTemplate(byte_level_tokenizer(source), "m")


def render(source: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    tools = options.pop("tools", None)
    return make_template(source).render(
        parse_messages(json.dumps(messages)),
        tools=parse_tools(None if tools is None else json.dumps(tools)),
        template_time=options.pop("template_time", 0),
        **options,
    )


def test_all_roles_and_text_parts_are_rendered() -> None:
    text = render(
        CHATML,
        [
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "c"},
            {"role": "tool", "content": "d", "tool_call_id": "call_1"},
        ],
    )
    assert text == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n"
        "<|im_start|>assistant\nc<|im_end|>\n<|im_start|>tool\nd<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_developer_stays_where_the_template_knows_it() -> None:
    source = "{% if messages[0].role == 'developer' %}dev{% endif %}"
    assert render(source, [{"role": "developer", "content": "x"}]) == "dev"


def test_continuing_the_final_message_leaves_it_open() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "I say"}]
    text = render(CHATML, messages, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nI say")


def test_arguments_become_objects_for_templates_that_want_them() -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    )
    messages = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert render(source, messages) == '{"a": 1}'
    broken = {**CALL, "function": {"name": "f", "arguments": "no json"}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [broken]}]
    assert render(source, messages) == "{}"


def test_arguments_stay_strings_for_templates_that_concatenate_them() -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ 'args: ' + c.function.arguments }}{% endfor %}{% endfor %}"
    )
    messages = [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert render(source, messages) == 'args: {"a": 1}'


def test_a_missing_content_is_empty_unless_the_template_asks_for_none() -> None:
    messages = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert render("[{{ messages[0].content }}]", messages) == "[]"
    source = "{% if messages[0]['content'] is none %}none{% endif %}"
    assert render(source, messages) == "none"


def test_reasoning_has_both_of_its_names() -> None:
    for name in ("reasoning", "reasoning_content"):
        messages = [{"role": "assistant", "content": "x", name: "because"}]
        source = "{{ messages[0].reasoning_content }},{{ messages[0].reasoning }}"
        assert render(source, messages) == "because,because"


def test_a_tool_without_parameters_gets_an_empty_schema() -> None:
    source = "{{ tools[0].function.parameters | tojson }}"
    text = render(source, [{"role": "user", "content": "x"}], tools=[TOOL])
    assert json.loads(text) == {"type": "object", "properties": {}}


def test_a_tool_needs_no_description_where_the_template_does() -> None:
    """gpt-oss's and Apertus's join it with other text."""
    needs = "{% for tool in tools or [] %}{{ '// ' + tool.function.description }};{% endfor %}"
    shows = "{% for tool in tools or [] %}{{ tool.function | tojson }}{% endfor %}"
    bare = {"type": "function", "function": {"name": "f"}}
    messages = [{"role": "user", "content": "x"}]
    assert render(needs, messages, tools=[bare, TOOL]) == "// ;// d;"
    assert "description" not in render(shows, messages, tools=[bare])


@pytest.mark.parametrize(
    "source",
    [
        CHATML,
        "{# tools are for others #}{% for m in messages %}{{ m.content }}{% endfor %}",
    ],
)
def test_tools_are_refused_when_the_template_would_ignore_them(source: str) -> None:
    with pytest.raises(UnsupportedParameterError) as caught:
        render(source, [{"role": "user", "content": "x"}], tools=[TOOL])
    assert caught.value.param == "tools"


def test_a_developer_s_message_is_the_system_s_where_the_template_only_mentions_the_word() -> None:
    """Aya's and Command R's have a `Developer Preamble`."""
    source = (
        "# Developer Preamble{# developer #}{% for m in messages %}{% if m.role != 'developer' %}"
        "<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
    )
    text = render(source, [{"role": "developer", "content": "Be brief."}, *USER])
    assert text == "# Developer Preamble<system>Be brief.<user>?"


def test_tools_go_into_the_system_message_where_the_template_reads_them_there() -> None:
    """Phi-4-mini's own."""
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% if m.role == 'system' and 'tools' in m and m.tools is not none %}"
        "{{ '<|tool|>' + m.tools + '<|/tool|>' }}{% endif %}{% endfor %}"
    )
    described = {"name": "f", "description": "é", "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": described}]
    shown = f"<|tool|>{json.dumps([described], ensure_ascii=False)}<|/tool|>"
    assert render(source, USER, tools=tools) == f"<system>{shown}<user>{USER[0]['content']}"
    instructed = [{"role": "system", "content": "Be brief."}, *USER]
    text = render(source, instructed, tools=tools)
    assert text == f"<system>Be brief.{shown}<user>{USER[0]['content']}"
    assert render(source, instructed) == f"<system>Be brief.<user>{USER[0]['content']}"


def test_a_model_may_have_a_template_of_its_own_for_tools() -> None:
    source = {"default": "plain", "tool_use": "with {{ tools | length }}"}
    messages = [{"role": "user", "content": "x"}]
    assert render(source, messages) == "plain"
    assert render(source, messages, tools=[TOOL]) == "with 1"


def test_template_arguments_reach_the_template_but_reserved_names_do_not() -> None:
    messages = [{"role": "user", "content": "x"}]
    source = "{{ enable_thinking }}"
    assert render(source, messages, template_arguments={"enable_thinking": False}) == "False"
    for name in ("chat_template", "messages", "tools", "strftime_now", "_x"):
        with pytest.raises(InvalidRequestError) as caught:
            render(source, messages, template_arguments={name: "x"})
        assert caught.value.param == f"chat_template_kwargs.{name}"


def test_documents_that_a_template_never_reads_are_refused_by_name() -> None:
    arguments = {"documents": [{"text": "x"}]}
    with pytest.raises(UnsupportedParameterError, match="documents") as caught:
        render("{{ messages[0].content }}", USER, template_arguments=arguments)
    assert caught.value.param == "documents"


def test_a_verbosity_reaches_templates_that_read_it_and_harms_no_other() -> None:
    arguments = {"verbosity": "medium"}
    assert render("{{ verbosity }}", USER, template_arguments=arguments) == "medium"
    assert render("{{ messages[0].content }}", USER, template_arguments=arguments) == "?"


def test_a_template_that_reads_documents_gets_them() -> None:
    source = "{% for one in documents %}<{{ one.text }}>{% endfor %}"
    documents = [{"text": "A pipe."}, {"text": "A turbine."}]
    shown = render(source, USER, template_arguments={"documents": documents})
    assert shown == "<A pipe.><A turbine.>"


def test_the_date_in_a_template_is_the_one_of_the_request() -> None:
    source = "{% set f = '%d %b %Y' %}{{ strftime_now(f) }} {{ strftime_now(\"%H:%M\") }}"
    text = render(source, [{"role": "user", "content": "x"}], template_time=86_400 + 3600)
    assert text == "02 Jan 1970 01:00"


def test_a_template_full_of_formats_without_an_end_is_read_in_one_go() -> None:
    source = "strftime_now " + '"%' * 50_000 + "%" * 50_000
    assert render(source, [{"role": "user", "content": "x"}]) == source


def test_what_the_template_refuses_is_told_in_its_own_words() -> None:
    source = "{{ raise_exception('Roles must alternate') }}"
    with pytest.raises(ChatTemplateError, match="Roles must alternate") as caught:
        render(source, [{"role": "user", "content": "x"}])
    assert caught.value.code is ErrorCode.TEMPLATE_ERROR


@pytest.mark.parametrize("source", ["{{ messages[0].x.y }}", "{{ 1 / 0 }}", "{{ none + 'a' }}"])
def test_a_template_that_breaks_is_a_template_error(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(source, [{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__init__.__globals__ }}",
    ],
)
def test_templates_run_in_a_sandbox(source: str) -> None:
    try:
        text = render(source, [{"role": "user", "content": "x"}])
    except ChatTemplateError:
        return
    assert "object" not in text


LOOPS = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"


def test_a_template_that_loops_is_refused_when_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine_worker.text.chat_template.MAX_COMPUTE_S", 0.1)
    with pytest.raises(TokenizerLoadError, match=r"model 'm' computed for more than.*--tokenizer"):
        make_template(LOOPS)


def test_a_template_that_loops_with_some_messages_is_stopped_at_these(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = f"{{% if messages[0].content == 'loop' %}}{LOOPS}{{% endif %}}x"
    template = make_template(source)
    monkeypatch.setattr("engine_worker.text.chat_template.MAX_COMPUTE_S", 0.1)
    with pytest.raises(ChatTemplateError, match="was stopped"):
        template.render([{"role": "user", "content": "loop"}], template_time=0)
    assert template.render([{"role": "user", "content": "go"}], template_time=0) == "x"


def test_a_template_of_a_request_stands_for_the_models_own() -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "<|im_end|>"}]
    for own in (None, "own"):
        template = make_template(own)
        source = "{{ messages[0].content }}!"
        assert template.render(messages, template_time=0, source=source) == "<|im_end|>!"
        with pytest.raises(ChatTemplateError, match="only here"):
            template.render(messages, template_time=0, source="{{ raise_exception('only here') }}")
        with pytest.raises(UnsupportedParameterError, match="knows no tools"):
            template.render(messages, tools=[{}], template_time=0, source="x")


def test_templates_of_requests_are_kept_in_a_bounded_number() -> None:
    template = make_template("own")
    for number in range(40):
        source = f"{number}{{{{ messages[0].role }}}}"
        messages: list[dict[str, object]] = [{"role": "user", "content": ""}]
        assert template.render(messages, template_time=0, source=source) == f"{number}user"
    assert len(template._of_requests) == 16


def test_a_template_of_a_request_that_takes_too_much_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="more time or memory") as caught:
        make_template("own").render([], template_time=0, source="{{ 'a' * 10**10 }}")
    assert caught.value.param == "chat_template"


def test_a_template_that_takes_too_much_memory_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(TokenizerLoadError, match=r"memory than one conversation may.*--tokenizer"):
        make_template("{{ 'a' * 10**10 }}")


def test_no_template_points_to_completions() -> None:
    assert not make_template(None).exists
    with pytest.raises(NoChatTemplateError, match="/v1/completions"):
        render(None, [{"role": "user", "content": "x"}])


BAD_MESSAGES: list[tuple[Any, str]] = [
    ([], "messages"),
    ({}, "messages"),
    (["x"], "messages[0]"),
    ([{"content": "x"}], "messages[0].role"),
    ([{"role": "user", "content": "x"}, {"role": "wizard", "content": "x"}], "messages[1].role"),
    ([{"role": ["user"], "content": "x"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0].tool_calls"),
    ([{"role": "assistant", "tool_calls": ["x"]}], "messages[0].tool_calls[0]"),
    (
        [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}],
        "messages[0].tool_calls[0].function.name",
    ),
    (
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 1}}]}],
        "messages[0].tool_calls[0].function.arguments",
    ),
]


@pytest.mark.parametrize(("messages", "param"), BAD_MESSAGES)
def test_a_wrong_message_is_named(messages: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_messages(json.dumps(messages))
    assert caught.value.param == param


def test_an_image_is_refused_by_its_type() -> None:
    part = {"type": "image_url", "image_url": {"url": "http://x"}}
    with pytest.raises(UnsupportedParameterError) as caught:
        parse_messages(json.dumps([{"role": "user", "content": [part]}]))
    assert caught.value.param == "messages[0].content[0].type"


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, '[{"role": NaN}]', "[1e999, Infinity]"])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_messages(text)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ({}, "tools"),
        ([1], "tools[0]"),
        ([{"type": "function"}], "tools[0]"),
        ([{"function": {}}], "tools[0].function.name"),
        ([{"function": {"name": "f", "parameters": 1}}], "tools[0].function.parameters"),
    ],
)
def test_a_wrong_tool_is_named(tools: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_tools(json.dumps(tools))
    assert caught.value.param == param


def test_the_demo_model_renders_a_round_of_tool_use() -> None:
    template = ChatTemplate(Tokenizer.load(demo_model_path()), "penstock-demo")
    weather = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    call = {"id": "1", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": '{"temperature": 18}'},
    ]
    text = template.render(
        parse_messages(json.dumps(messages)),
        tools=parse_tools(json.dumps([weather])),
        template_time=0,
    )
    assert (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>' in text
    )
    assert text.endswith("assistant\n")


def test_arguments_are_objects_where_the_template_spells_them_in_a_way_of_its_own() -> None:
    """Gemma 4's writes text between braces, too, which no model was trained on."""
    source = (
        "{% for m in messages %}<{{ m.role }}>{% for call in m.tool_calls or [] %}"
        "call:{{ call.function.name }}{{ '{' }}{% set arguments = call.function.arguments %}"
        "{% if arguments is mapping %}{% for key, value in arguments | items %}"
        "{{ key }}:<|{{ value }}|>{% endfor %}{% elif arguments is string %}{{ arguments }}"
        "{% endif %}{{ '}' }}{% endfor %}{% endfor %}"
    )
    function = {"name": "f", "arguments": '{"city": "Oslo"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert render(source, [*USER, asked]) == "<user><assistant>call:f{city:<|Oslo|>}"


def test_the_template_of_a_processor_counts_where_no_other_is_there(tmp_path: Path) -> None:
    """Checkpoints of models that also see kept it in `chat_template.json` alone."""
    tokenizer = byte_level_tokenizer().serialized()
    (tmp_path / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    stated = json.dumps({"chat_template": "of the processor"})
    (tmp_path / "chat_template.json").write_text(stated, encoding="utf-8")
    assert Tokenizer.load(tmp_path).chat_template_source(has_tools=False) == "of the processor"
    (tmp_path / "chat_template.jinja").write_text("of its own file", encoding="utf-8")
    assert Tokenizer.load(tmp_path).chat_template_source(has_tools=False) == "of its own file"
