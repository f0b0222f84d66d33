"""What a chat is told of a Messages body."""

import json
from typing import Any

import pytest

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.bodies.parsers import COUNT_TOKENS, MESSAGES, ParseContext
from gateway.request.jobs.job import MESSAGES_ENDPOINT, GenerationJob

USER = {"role": "user", "content": "hi"}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
FUNCTION = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}
CONTEXT = ParseContext({})


def parsed(**fields: Any) -> tuple[GenerationJob, list[str]]:
    body = {"model": "m", "max_tokens": 5, "messages": [USER], **fields}
    found = MESSAGES.parse(json.dumps(body).encode(), CONTEXT)
    return found.job, found.ignored


def job(**fields: Any) -> GenerationJob:
    return parsed(**fields)[0]


def sent(*messages: Any, **fields: Any) -> list[dict[str, Any]]:
    made = job(messages=list(messages), **fields)
    found: list[dict[str, Any]] = json.loads(made.prepares[0].messages_json or "")
    return found


def kwargs(**fields: Any) -> Any:
    return json.loads(job(**fields).prepares[0].template_kwargs_json or "{}")


def test_sampling_and_lengths_are_those_of_a_chat() -> None:
    made = job(temperature=0.5, top_p=0.9, top_k=3, stop_sequences=["x"])
    assert made.endpoint == MESSAGES_ENDPOINT
    sampling = made.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 3)
    assert (sampling.stop, made.max_tokens) == (("x",), 5)


def test_more_tokens_than_the_context_leaves_may_be_asked_for() -> None:
    made = job(max_tokens=64_000)
    assert made.is_cut_by_context
    cut = made.cut_by_context()
    assert cut.max_tokens == 64_000
    assert cut.prepares[0].max_tokens is None  # room for one is enough


def test_a_system_prompt_comes_first_and_its_blocks_are_lines() -> None:
    system = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]
    system.append({"type": "text", "text": "b"})
    assert sent(USER, system=system) == [{"role": "system", "content": "a\nb"}, USER]
    assert sent(USER, system="a")[0] == {"role": "system", "content": "a"}
    assert sent(USER, system="") == sent(USER, system=[]) == [USER]


def test_a_line_of_billing_never_reaches_the_prompt() -> None:
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=5;"},
        {"type": "text", "text": "You code."},
    ]
    assert sent(USER, system=system)[0] == {"role": "system", "content": "You code."}


def test_results_of_tools_come_before_the_rest_of_their_turn() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}}
    uses = [use, {**use, "id": "toolu_2"}]
    results = [
        {"type": "text", "text": "and now?"},
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "1"},
        {
            "type": "tool_result",
            "tool_use_id": "toolu_2",
            "content": [{"type": "text", "text": "no"}],
            "is_error": True,
        },
    ]
    found = sent(
        USER,
        {"role": "assistant", "content": [{"type": "text", "text": "so"}, *uses]},
        {"role": "user", "content": results},
    )
    call = {"name": "f", "arguments": '{"x":1}'}
    assert found[1] == {
        "role": "assistant",
        "content": "so",
        "tool_calls": [
            {"id": name, "type": "function", "function": call} for name in ("call_1", "call_2")
        ],
    }
    assert found[2:] == [
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        {"role": "tool", "tool_call_id": "call_2", "content": "Error: no"},
        {"role": "user", "content": "and now?"},
    ]


def test_neighbours_of_one_role_are_one_message() -> None:
    found = sent(USER, {"role": "user", "content": [{"type": "text", "text": "you"}]})
    assert found == [{"role": "user", "content": "hi\nyou"}]


def test_thousands_of_neighbours_are_joined_once_and_in_order() -> None:
    calls = [
        {"type": "tool_use", "id": f"toolu_{number}", "name": "f", "input": {}}
        for number in range(3)
    ]
    turns = [{"role": "assistant", "content": [call]} for call in calls]
    found = sent(*[{"role": "user", "content": str(n)} for n in range(5000)], *turns, USER)
    assert found[0]["content"] == "\n".join(map(str, range(5000)))
    assert [call["id"] for call in found[1]["tool_calls"]] == ["call_0", "call_1", "call_2"]
    assert len(found) == 3


def test_results_within_results_without_end_are_refused() -> None:
    block: dict[str, Any] = {"type": "text", "text": "x"}
    for _ in range(400):
        block = {"type": "search_result", "title": "t", "source": "s", "content": [block]}
    with pytest.raises(InvalidRequestError) as caught:
        sent({"role": "user", "content": [block]})
    assert caught.value.param == "messages[0].content[0].content[0].type"


def test_a_search_result_is_its_title_source_and_texts() -> None:
    texts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    block = {"type": "search_result", "title": "t", "source": "s", "content": texts}
    assert sent({"role": "user", "content": [block]})[0]["content"] == "t\ns\na\nb"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({"type": "text", "media_type": "text/plain", "data": "a\nb"}, "a\nb"),
        ({"type": "content", "content": "a"}, "a"),
        ({"type": "content", "content": [{"type": "text", "text": word} for word in "ab"]}, "a\nb"),
    ],
)
def test_a_document_of_text_is_its_title_context_and_text(
    source: dict[str, Any], shown: str
) -> None:
    block = {"type": "document", "source": source, "title": None}
    user = {"role": "user", "content": [block, {"type": "text", "text": "why?"}]}
    assert sent(user)[0]["content"] == f"{shown}\nwhy?"
    user["content"] = [{**block, "title": "t", "context": "c"}]
    assert sent(user)[0]["content"] == f"t\nc\n{shown}"
    use = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [block]}
    found = sent(USER, {"role": "assistant", "content": [use]}, {**USER, "content": [result]})
    assert found[2]["content"] == shown


@pytest.mark.parametrize(
    "block",
    [
        {"type": "search_result", "title": "t", "source": "s", "content": []},
        {"type": "document", "source": {"type": "content", "content": "x"}},
    ],
)
def test_citations_that_are_wanted_are_told_to_be_ignored(block: dict[str, Any]) -> None:
    for citations, told in (
        ({"enabled": True}, ["messages[0].content[0].citations"]),
        ({"enabled": False}, []),
        (None, []),
    ):
        content = [{**block, "citations": citations}]
        _, ignored = parsed(messages=[{"role": "user", "content": content}])
        assert ignored == told


def test_thinking_that_comes_back_is_reasoning_and_the_redacted_is_nothing() -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "so"},
    ]
    found = sent(USER, {"role": "assistant", "content": blocks}, USER)
    assert found[1] == {"role": "assistant", "content": "so", "reasoning_content": "hm"}


def test_a_last_message_of_the_assistant_is_gone_on_with() -> None:
    made = job(messages=[USER, {"role": "assistant", "content": "I"}])
    assert made.prepares[0].continue_final_message
    assert not made.prepares[0].add_generation_prompt


def test_system_messages_may_stand_within() -> None:
    assert sent(USER, {"role": "system", "content": "short"}, USER)[1]["role"] == "system"


def test_tools_are_functions_and_what_runs_elsewhere_is_left_out() -> None:
    search = {"type": "web_search_20260209", "name": "web_search"}
    made, ignored = parsed(tools=[TOOL, search])
    assert json.loads(made.tools_json or "") == [FUNCTION]
    assert ignored == ["tools[1]"]


@pytest.mark.parametrize(
    ("kind", "name", "commands", "field"),
    [
        ("bash_20250124", "bash", None, "restart"),
        (
            *("text_editor_20250124", "str_replace_editor"),
            *(["view", "create", "str_replace", "insert", "undo_edit"], "new_str"),
        ),
        (
            *("text_editor_20250728", "str_replace_based_edit_tool"),
            *(["view", "create", "str_replace", "insert"], "insert_text"),
        ),
        (
            *("memory_20250818", "memory"),
            *(["view", "create", "str_replace", "insert", "delete", "rename"], "new_path"),
        ),
    ],
)
def test_tools_that_the_client_runs_are_functions_with_their_documented_schema(
    kind: str, name: str, commands: list[str] | None, field: str
) -> None:
    tool = {"type": kind, "name": name, "cache_control": {"type": "ephemeral"}}
    made, ignored = parsed(tools=[tool], tool_choice={"type": "tool", "name": name})
    assert (ignored, made.tool_choice, made.tool_name) == ([], "named", name)
    (found,) = json.loads(made.tools_json or "")
    properties = found["function"]["parameters"]["properties"]
    assert found["function"]["name"] == name
    assert field in properties
    assert properties["command"].get("enum") == commands


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "computer_20250124", "name": "computer"}, "tools[0].type"),
        ({"type": "browser_toolset_20260801"}, "tools[0].type"),
        ({"type": "bash_20990101", "name": "bash"}, "tools[0].type"),
        ({"type": "bash_20250124", "name": "sh"}, "tools[0].name"),
        (
            {
                "type": "text_editor_20250728",
                "name": "str_replace_based_edit_tool",
                "max_characters": 0,
            },
            "tools[0].max_characters",
        ),
    ],
)
def test_tools_of_the_client_that_no_model_here_can_use_are_refused_by_name(
    tool: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        job(tools=[tool])
    assert caught.value.param == param


def test_how_much_of_a_file_is_shown_is_told_to_the_model() -> None:
    tool = {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}
    made, ignored = parsed(tools=[{**tool, "max_characters": 9000, "x": 1}])
    assert "9000 characters" in (made.tools_json or "")
    assert ignored == ["tools[0].x"]


@pytest.mark.parametrize(
    ("choice", "mode", "name"),
    [
        ({"type": "auto"}, "auto", ""),
        ({"type": "any"}, "required", ""),
        ({"type": "tool", "name": "f"}, "named", "f"),
        ({"type": "none"}, "none", ""),
    ],
)
def test_choices_of_tools(choice: dict[str, Any], mode: str, name: str) -> None:
    made = job(tools=[TOOL], tool_choice=choice)
    assert (made.tool_choice, made.tool_name) == (mode, name)


def test_one_call_at_a_time() -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert not job(tools=[TOOL], tool_choice=choice).parallel_tool_calls
    assert job(tools=[TOOL]).parallel_tool_calls


def test_reasoning_is_off_until_it_is_asked_for() -> None:
    assert kwargs() == {"enable_thinking": False, "thinking": False}
    assert not job().options.shows_reasoning
    for kind in ("enabled", "adaptive", "between_tools"):
        assert kwargs(thinking={"type": kind})["enable_thinking"]
    assert job(thinking={"type": "adaptive"}).options.shows_reasoning
    hidden = {"type": "adaptive", "display": "omitted"}
    assert not job(thinking=hidden).options.shows_reasoning


def test_effort_reaches_the_template_and_demands_nothing_of_the_model() -> None:
    assert kwargs(output_config={"effort": "high"})["reasoning_effort"] == "high"
    assert not job(output_config={"effort": "high"}).wants_reasoning


def test_a_budget_of_thinking_is_held_to_and_demanded_of_no_model() -> None:
    made, ignored = parsed(thinking={"type": "enabled", "budget_tokens": 2000})
    assert (made.thinking_budget, made.demands_budget, ignored) == (2000, False, [])


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_a_schema_holds_the_text(field: str) -> None:
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    made = job(**{field: {"format": wanted} if field == "output_config" else wanted})
    assert made.response_grammar is not None
    assert json.loads(made.response_grammar.source) == {"type": "object"}


def test_no_tokens_only_read_the_prompt() -> None:
    made = job(max_tokens=0, tools=[TOOL])
    assert made.discards_output
    assert made.max_tokens == 1
    assert made.tools_json is not None


def test_counting_reads_the_same_prompt() -> None:
    fields = {"system": "s", "messages": [USER], "tools": [TOOL]}
    body = json.dumps({"model": "m", **fields}).encode()
    question = COUNT_TOKENS.parse(body, CONTEXT).message
    asked = job(**fields).prepares[0]
    for name in ("messages_json", "tools_json", "template_kwargs_json", "add_generation_prompt"):
        assert getattr(question, name) == getattr(asked, name)
    assert question.kind == "count"


def test_harmless_fields_are_taken_and_unknown_ones_listed() -> None:
    _, ignored = parsed(metadata={"user_id": "u"}, service_tier="auto", betas=["x"], beta=1)
    assert ignored == ["beta"]


def block(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [fields]}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]"),
        (block(type="text"), "messages[0].content[0].text"),
        (block(type="novel"), "messages[0].content[0].type"),
        (block(type="tool_use", id="1", name="f", input={}), "messages[0].content[0].type"),
        (
            block(type="document", source={"type": "text", "data": 1}),
            "messages[0].content[0].source.data",
        ),
        (
            block(type="document", source={"type": "content", "content": [{"type": "image"}]}),
            "messages[0].content[0].source.content[0].type",
        ),
        (
            block(type="document", title=1, source={"type": "content", "content": ""}),
            "messages[0].content[0].title",
        ),
        (block(type="tool_result"), "messages[0].content[0].tool_use_id"),
        (
            block(type="tool_result", tool_use_id="toolu_1", is_error="true"),
            "messages[0].content[0].is_error",
        ),
        # Nothing was called.
        (
            block(type="tool_result", tool_use_id="toolu_1", content="x"),
            "messages[0].content[0].tool_use_id",
        ),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"temperature": 9}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
    ],
)
def test_what_is_wrong_is_named_in_their_words(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        job(**fields)
    assert caught.value.param == param
    assert param.split("[")[0].split(".")[0] in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (block(type="image", source={}), "messages[0].content[0].type"),
        (block(type="document", source={}), "messages[0].content[0].source.type"),
        (block(type="document", source=None), "messages[0].content[0].source.type"),
        (
            block(type="document", source={"type": "base64", "data": "eA=="}),
            "messages[0].content[0].source.type",
        ),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedFieldError) as caught:
        job(**fields)
    assert caught.value.param == param


def test_a_call_without_its_result_is_no_beginning_of_an_answer() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    with pytest.raises(InvalidRequestError, match="tool_result"):
        job(messages=[USER, {"role": "assistant", "content": [use]}])


def test_without_tool_calling_tools_are_refused() -> None:
    body = {"model": "m", "max_tokens": 5, "messages": [USER], "tools": [TOOL]}
    with pytest.raises(UnsupportedFieldError):
        MESSAGES.parse(json.dumps(body).encode(), ParseContext({}, has_tools=False))
