"""Conversations that clients really send go on under the templates of the common families."""

import json
from typing import Any

import pytest

from engine_worker.errors import ChatTemplateError
from engine_worker.text.chat_messages import parse_messages
from engine_worker.text.chat_template import ChatTemplate
from engine_worker.text.history import arguments_as_object, arguments_as_string
from tests.fakes.tiny_tokenizers import CHATML, byte_level_tokenizer

# What the families' templates demand, in their own words, without their wording around it.
ALTERNATING = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}<{{ 'model' if m.role == 'assistant' else m.role }}>{{ m.content | trim }}"
    "{% endfor %}"
)
"""Gemma 2's."""
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}"
    "{% set ns = namespace(index=0) %}"
    "{% for m in loop_messages %}{% if not (m.role == 'tool' or m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.index % 2 == 0) %}"
    "{{ raise_exception('After the optional system message, roles must alternate') }}{% endif %}"
    "{% set ns.index = ns.index + 1 %}{% endif %}{% endfor %}"
    "{% for m in loop_messages %}{% if m.role == 'user' %}[INST]{{ system if loop.first }}|"
    "{{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS]["
    "{% for call in m.tool_calls %}{{ call.function | tojson }}"
    "{% if call.id is not defined or call.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{% endif %}"
    "#{{ call.id }}{% endfor %}]"
    "{% elif m.role == 'tool' %}"
    "{% if m.tool_call_id is not defined or m.tool_call_id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{% endif %}"
    "[RESULT]{{ m.content }}#{{ m.tool_call_id }}"
    "{% elif m.role == 'assistant' and m.content %}{{ m.content }}</s>"
    "{% else %}{{ raise_exception('Only user, system, tool and non-empty assistant messages') }}"
    "{% endif %}{% endfor %}"
)
SYSTEM_FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
"""Qwen 3.5's."""
DROPS_LATER_SYSTEM = (
    "{% if messages[0].role in ['system', 'developer'] %}<dev>{{ messages[0].content }}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role in ['user', 'assistant'] %}<{{ m.role }}>{{ m.content }}"
    "{% endif %}{% endfor %}"
)
"""gpt-oss's."""
ITEMS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for call in m.tool_calls or [] %}"
    "{{ call.function.name }}({% for key, value in call.function.arguments | items %}"
    "{{ key }}={{ value }}{% endfor %}){% endfor %}{% endfor %}"
)
"""Qwen3-Coder's."""
TO_JSON = ITEMS.replace(
    "{% for key, value in call.function.arguments | items %}{{ key }}={{ value }}{% endfor %}",
    "{{ call.function.arguments | tojson }}",
)
AS_TEXT = TO_JSON.replace("arguments | tojson", "arguments + ''")
EITHER = TO_JSON.replace(
    "{{ call.function.arguments | tojson }}",
    "{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}"
    "{{ call.function.arguments | tojson }}{% endif %}",
)
TEMPLATES = {
    "chatml": CHATML,
    "gemma2": ALTERNATING,
    "mistral": MISTRAL,
    "system first": SYSTEM_FIRST,
    "gpt-oss": DROPS_LATER_SYSTEM,
    "qwen3-coder": ITEMS,
}


def rendered(source: str, *messages: dict[str, Any], **options: Any) -> str:
    template = ChatTemplate(byte_level_tokenizer(source), "m")
    options = {"add_generation_prompt": False, "template_time": 0, **options}
    return str(template.render(parse_messages(json.dumps(messages)), **options))


def say(role: str, content: str | None, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def call(arguments: Any, call_id: str | None = "call_1", name: str = "f") -> dict[str, Any]:
    made: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return made if call_id is None else {**made, "id": call_id}


BROKEN = [
    "",
    None,
    " ",
    '{"a": 1',
    "{'a': 1}",
    "null",
    "[1, 2]",
    '"text"',
    "1",
    "NaN",
    '{"a": NaN}',
]


@pytest.mark.parametrize("arguments", BROKEN)
@pytest.mark.parametrize(
    ("source", "expected"),
    [(ITEMS, "f()"), (TO_JSON, "f({})"), (AS_TEXT, "f({})"), (EITHER, "f({})")],
    ids=["items", "tojson", "text", "either"],
)
def test_a_call_whose_arguments_are_broken_is_one_without_any(
    source: str, expected: str, arguments: Any
) -> None:
    messages = [
        say("user", "?"),
        say("assistant", None, tool_calls=[call(arguments)]),
        say("tool", "!", tool_call_id="call_1"),
        say("user", "go on"),
    ]
    text = rendered(source, *messages)
    assert expected in text
    assert text.endswith("<user>go on")


def test_arguments_that_are_left_out_are_none_too() -> None:
    bare = {"id": "c", "type": "function", "function": {"name": "f"}}
    assert "f({})" in rendered(TO_JSON, say("user", "?"), say("assistant", None, tool_calls=[bare]))


@pytest.mark.parametrize("arguments", ['"{\\"a\\": 1}"', '{"a": 1}', {"a": 1}, ' \n{"a": 1}'])
def test_arguments_in_a_text_of_a_text_are_the_object_that_it_holds(arguments: Any) -> None:
    assert arguments_as_object(arguments) == {"a": 1}
    assert json.loads(arguments_as_string(arguments)) == {"a": 1}


def test_arguments_stay_as_they_were_written_for_templates_that_want_text() -> None:
    assert arguments_as_string('{"a":1.0,  "b":1e2}') == '{"a":1.0,  "b":1e2}'


@pytest.mark.parametrize("name", TEMPLATES)
def test_system_and_developer_are_one_message(name: str) -> None:
    text = rendered(
        TEMPLATES[name], say("system", "Be brief."), say("developer", "Be kind."), say("user", "Hi")
    )
    assert "Be brief.\n\nBe kind." in text
    assert text.count("<|im_start|>system") == (1 if name == "chatml" else 0)
    assert text.index("kind") < text.index("Hi")


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_instruction_is_lost_wherever_it_stands(name: str) -> None:
    text = rendered(
        TEMPLATES[name],
        say("system", "One."),
        say("user", "Hi"),
        say("assistant", "Yes?"),
        say("system", "Two."),
        say("user", "Go"),
        say("developer", "Three."),
    )
    for part in ("One.", "Two.", "Three.", "Hi", "Yes?", "Go"):
        assert text.count(part) == 1, part


def test_a_template_that_shows_later_instructions_keeps_them_in_their_place() -> None:
    text = rendered(CHATML, say("system", "A"), say("user", "B"), say("system", "C"))
    assert text == (
        "<|im_start|>system\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n"
        "<|im_start|>system\nC<|im_end|>\n"
    )


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "roles",
    [
        ("user", "user", "assistant", "assistant", "user"),
        ("assistant", "user"),
        ("system", "assistant", "user", "assistant", "user"),
        ("user", "assistant", "empty", "user"),
        ("system", "user", "empty", "user"),
        ("user", "empty", "empty", "user", "assistant", "user"),
    ],
)
def test_turns_that_do_not_alternate_go_on(name: str, roles: tuple[str, ...]) -> None:
    messages = [
        say("assistant", "") if role == "empty" else say(role, f"text{index}")
        for index, role in enumerate(roles)
    ]
    text = rendered(TEMPLATES[name], *messages)
    places = [text.find(f"text{index}") for index, role in enumerate(roles) if role != "empty"]
    assert places == sorted(places)
    assert min(places) >= 0


def test_instructions_of_a_model_without_a_system_role_go_before_the_first_question() -> None:
    text = rendered(ALTERNATING, say("system", "Be brief."), say("user", "Hi"))
    assert text == "<user>Be brief.\n\nHi"
    assert rendered(ALTERNATING, say("system", "Be brief.")) == "<user>Be brief."


def ids_of(text: str) -> list[str]:
    return [part[:9] for part in text.split("#")[1:]]


def test_ids_of_other_servers_become_mistral_s_and_stay_together() -> None:
    long, other = "call_BxK3-7f9a2c41e0", "toolu_01"
    messages = [
        say("user", "?"),
        say("assistant", None, tool_calls=[call("{}", long), call("{}", other)]),
        say("tool", "a", tool_call_id=long),
        say("tool", "b", tool_call_id=other),
        say("assistant", "so"),
        say("user", "?"),
        say("assistant", "", tool_calls=[call("{}", "abcDEF123"), call("{}", long)]),
        say("tool", "c", tool_call_id="abcDEF123"),
    ]
    first, second, a, b, kept, again, c = ids_of(rendered(MISTRAL, *messages))
    assert (a, b) == (first, second)
    assert first != second
    assert (kept, c) == ("abcDEF123", "abcDEF123")
    assert again == first
    assert ids_of(rendered(MISTRAL, *messages))[0] == first


def test_calls_without_ids_get_some_that_their_results_share() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call("{}", None), call("{}", None)]},
        {"role": "tool", "content": "a"},
        {"role": "tool", "content": "b"},
    ]
    first, second, a, b = ids_of(rendered(MISTRAL, *messages))
    assert (a, b) == (first, second)
    assert first != second


SINGLE_CALLS = ITEMS.replace(
    "{% for call in m.tool_calls or [] %}",
    "{% if (m.tool_calls or []) | length > 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "{% for call in m.tool_calls or [] %}",
)
"""Llama 3.1's."""


def test_calls_at_once_follow_each_other_where_the_template_takes_one() -> None:
    messages = [
        say("user", "?"),
        say("assistant", "Well.", tool_calls=[call("{}", "1", "f"), call("{}", "2", "g")]),
        say("tool", "of g", tool_call_id="2"),
        say("tool", "of f", tool_call_id="1"),
        say("tool", "of none", tool_call_id="9"),
        say("assistant", "So."),
    ]
    assert rendered(SINGLE_CALLS, *messages) == (
        "<user>?<assistant>Well.f()<tool>of f<assistant>g()<tool>of g<tool>of none<assistant>So."
    )
    assert rendered(ITEMS, *messages) == (
        "<user>?<assistant>Well.f()g()<tool>of g<tool>of f<tool>of none<assistant>So."
    )


FIRST_CALL = ITEMS.replace(
    "{% for call in m.tool_calls or [] %}", "{% for call in (m.tool_calls or [])[:1] %}"
)
"""gpt-oss's: it takes several calls, and shows the first."""


def test_calls_at_once_follow_each_other_where_the_template_shows_one() -> None:
    messages = [
        say("user", "?"),
        say(
            "assistant",
            "Well.",
            reasoning_content="Both.",
            tool_calls=[call("{}", "1", "f"), call("{}", "2", "g")],
        ),
        say("tool", "of f", tool_call_id="1"),
        say("tool", "of g", tool_call_id="2"),
    ]
    assert rendered(FIRST_CALL, *messages) == (
        "<user>?<assistant>Well.f()<tool>of f<assistant>g()<tool>of g"
    )
    reasons = FIRST_CALL.replace("{{ m.content }}", "({{ m.reasoning_content }}){{ m.content }}")
    assert rendered(reasons, *messages).count("Both.") == 1


LAST_NINE = (
    MISTRAL.replace("length != 9", "length < 9")
    .replace("{{ call.id }}", "{{ call.id[-9:] }}")
    .replace("{{ m.tool_call_id }}", "{{ m.tool_call_id[-9:] }}")
)
"""Mistral Small 3.1's."""


@pytest.mark.parametrize("call_id", ["1", "call_1", "toolu_01abcdefghijkl", "abcDEF123"])
def test_short_ids_go_on_where_the_template_takes_long_ones_alone(call_id: str) -> None:
    messages = [
        say("user", "?"),
        say("assistant", None, tool_calls=[call("{}", call_id)]),
        say("tool", "a", tool_call_id=call_id),
    ]
    called, answered = ids_of(rendered(LAST_NINE, *messages))
    assert called == answered
    assert len(called) == 9


NAMED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'tool' %}## {{ m.tool_call_id }}|"
    "{% endif %}{{ m.content }}{% for call in m.tool_calls or [] %}[{{ call.id }}:"
    "{{ call.function.arguments | tojson }}]{% endfor %}{% endfor %}"
)
"""Kimi K2's: what was called is in the id alone."""


def test_ids_of_other_servers_name_their_tools_where_nothing_else_does() -> None:
    messages: list[dict[str, Any]] = [
        say("user", "?"),
        say("assistant", "", tool_calls=[call("{}", "call_a", "f"), call("{}", "call_b", "g")]),
        say("tool", "of g", tool_call_id="call_b"),
        say("tool", "of f", tool_call_id="call_a"),
        say("assistant", "", tool_calls=[call("{}", "functions.f:7", "f")]),
        say("tool", "again", tool_call_id="functions.f:7"),
        say("assistant", "", tool_calls=[call("{}", None, "h")]),
        {"role": "tool", "content": "of h", "tool_call_id": "call_unknown"},
    ]
    assert rendered(NAMED, *messages) == (
        "<user>?<assistant>[functions.f:0:{}][functions.g:1:{}]"
        "<tool>## functions.g:1|of g<tool>## functions.f:0|of f"
        "<assistant>[functions.f:7:{}]<tool>## functions.f:7|again"
        "<assistant>[functions.h:3:{}]<tool>## call_unknown|of h"
    )


def test_a_result_without_an_id_is_that_of_the_next_call_that_has_none() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call("{}", None, "f")]},
        {"role": "tool", "content": "of f"},
    ]
    assert rendered(NAMED, *messages).endswith("[functions.f:0:{}]<tool>## functions.f:0|of f")


THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls and m.content and m.thinking %}"
    "{{ raise_exception('Cannot pass both content and thinking') }}{% endif %}"
    "{% if m.thinking %}({{ m.thinking }}){% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}{% endfor %}"
)
"""gpt-oss's, but for when it shows reasoning."""


def test_reasoning_and_text_before_calls_are_one_where_the_template_refuses_both() -> None:
    def answer(content: str | None) -> dict[str, Any]:
        return say("assistant", content, reasoning_content="so", tool_calls=[call("{}")])

    said = say("assistant", "text", reasoning_content="so")
    assert rendered(THINKING, say("user", "?"), answer(None)) == "<user>?<assistant>(so)f"
    assert rendered(THINKING, say("user", "?"), said) == "<user>?<assistant>(so)text"
    assert rendered(THINKING, say("user", "?"), answer("text")) == "<user>?<assistant>so\n\ntextf"
    both = THINKING.replace("{{ raise_exception('Cannot pass both content and thinking') }}", "")
    assert rendered(both, say("user", "?"), answer("text")) == "<user>?<assistant>(so)textf"


@pytest.mark.parametrize("takes_empty", [False, True])
def test_the_user_may_speak_right_after_results_of_tools(takes_empty: bool) -> None:
    """Agents send a reminder beside them, people interrupt; Mistral wants an answer between."""
    source = MISTRAL.replace("and m.content %}", "%}") if takes_empty else MISTRAL
    ask = say("assistant", None, tool_calls=[call("{}") | {"id": "abcdefghi"}])
    result = say("tool", "warm", tool_call_id="abcdefghi")
    text = rendered(source, say("user", "?"), ask, result, say("user", "and now?"))
    between = "" if takes_empty else "OK."
    assert text.endswith(f"[RESULT]warm#abcdefghi{between}</s>[INST]|and now?[/INST]")
    text = rendered(source, say("user", "?"), ask, say("user", "no, stop"))
    assert text.endswith(f"#abcdefghi]{between}</s>[INST]|no, stop[/INST]")
    # Where the template takes it, nothing stands between.
    assert rendered(ITEMS, say("user", "?"), ask, result, say("user", "and now?")) == (
        "<user>?<assistant>f()<tool>warm<user>and now?"
    )


def test_a_result_has_the_name_of_its_tool_where_the_client_gave_the_id_alone() -> None:
    """Olmo 3's shows it."""
    source = (
        "{% for m in messages %}<{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}>"
        "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}"
        "{% endfor %}"
    )
    text = rendered(
        source,
        say("user", "?"),
        say("assistant", "", tool_calls=[call("{}"), call("{}", "c2", "g")]),
        say("tool", "of g", tool_call_id="c2"),
        say("tool", "of f", tool_call_id="call_1", name="named"),
        say("tool", "of none", tool_call_id="c3"),
    )
    assert text == "<user>?<assistant>fg<tool g>of g<tool named>of f<tool>of none"


@pytest.mark.parametrize("source", [ALTERNATING, DROPS_LATER_SYSTEM])
def test_calls_and_results_are_texts_where_the_template_knows_no_tools(source: str) -> None:
    """Gemma's refuse the role, those of Phi 3 and Llama 2 leave such messages out."""
    text = rendered(
        source,
        say("user", "?"),
        say("assistant", "I look.", tool_calls=[call('{"city": "Oslo"}'), call("{}", "c2", "g")]),
        say("tool", "warm", tool_call_id="call_1"),
        say("tool", None, tool_call_id="x", name="g"),
        say("user", "So?"),
    )
    called = 'I look.\nf({"city": "Oslo"})\ng({})'
    results = ["Result of f: warm", "Result of g: ", "So?"]
    if source is ALTERNATING:
        assert text == f"<user>?<model>{called}<user>" + "\n\n".join(results)
    else:
        assert text == "<user>".join([f"<user>?<assistant>{called}", *results])


@pytest.mark.parametrize("tells_tags", [False, True])
def test_calls_are_text_where_the_template_shows_results_alone(tells_tags: bool) -> None:
    """SmolLM3's expects them in the content."""
    source = (
        "{% if tools %}{{ tools | length }} tools{% endif %}{# <tool_call> #}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    source = source if tells_tags else source.replace("{# <tool_call> #}", "")
    asked = say("assistant", None, tool_calls=[call('{"city": "Oslo"}')])
    text = rendered(source, say("user", "?"), asked, say("tool", "warm", tool_call_id="call_1"))
    called = '<tool_call>\n{"name": "f", "arguments": {"city": "Oslo"}}\n</tool_call>'
    called = called if tells_tags else 'f({"city": "Oslo"})'
    assert text == f"<user>?<assistant>{called}<tool>warm"


def test_a_system_message_alone_is_the_question_where_the_template_would_lose_it() -> None:
    alone = say("system", "Write a poem.")
    assert rendered(MISTRAL, alone) == "[INST]|Write a poem.[/INST]"
    assert rendered(SYSTEM_FIRST, alone) == "<system>Write a poem."
    asks = "{% if not messages | selectattr('role', 'equalto', 'user') | list %}"
    asks += "{{ raise_exception('No user query found in messages.') }}{% endif %}" + SYSTEM_FIRST
    assert rendered(asks, alone) == "<user>Write a poem."


def test_an_answer_of_nothing_is_no_call() -> None:
    """Templates that ask whether content is none mean a message with calls by it."""
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' and m['content'] is none %}"
        "[{% for call in m.tool_calls %}{{ call.function.name }}{% endfor %}]"
        "{% else %}<{{ m.role }}>{{ m['content'] }}{% endif %}{% endfor %}"
    )
    empty = say("assistant", None, reasoning_content="cut off")
    calls = say("assistant", None, tool_calls=[call("{}")])
    messages = [say("user", "?"), empty, say("user", "go on"), calls]
    assert rendered(source, *messages) == "<user>?<assistant><user>go on[f]"


def test_ids_stay_where_the_template_takes_any() -> None:
    source = "{% for m in messages %}{{ m.tool_call_id }}{{ m.content }}{% endfor %}"
    assert "call_1-x" in rendered(
        source, say("user", "?"), say("tool", "!", tool_call_id="call_1-x")
    )


def test_a_tool_that_returned_nothing_returned_an_empty_text() -> None:
    text = rendered(CHATML, say("user", "?"), {"role": "tool", "content": None})
    assert text.endswith("<|im_start|>tool\n<|im_end|>\n")


def test_what_a_template_refuses_for_other_reasons_is_told() -> None:
    with pytest.raises(ChatTemplateError, match="must alternate"):
        rendered(
            ALTERNATING.replace(
                "{% for m", "{{ raise_exception('Roles must alternate') }}{% for m"
            ),
            say("user", "?"),
        )


def test_an_answer_to_go_on_with_stays_the_last_message() -> None:
    messages = [say("user", "a"), say("user", "b"), say("assistant", "I say")]
    text = rendered(ALTERNATING, *messages, continue_final_message=True)
    assert text == "<user>a\n\nb<model>I say"


def test_half_a_surrogate_pair_in_arguments_does_not_end_the_conversation() -> None:
    arguments = r'{"a": "\ud83d", "\udfff": ["\ud83d\ude00", "\\ud83d"]}'
    assert arguments_as_object(arguments) == {"a": "\ufffd", "\ufffd": ["😀", "\\ud83d"]}
    assert arguments_as_string(arguments) == arguments
