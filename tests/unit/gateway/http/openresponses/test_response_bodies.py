"""What a chat is told of a Responses body, and what an answer repeats of it."""

import json
from typing import Any, get_args

import pytest
from openai.types.responses.response_includable import ResponseIncludable

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.bodies.parsers import COMPACT, INPUT_TOKENS, RESPONSES, BodyKind, ParseContext
from gateway.http.openresponses.convert import ResponsesBody
from gateway.http.openresponses.schemas import INCLUDED, LOGPROBS
from gateway.http.openresponses.sealing import sealed
from gateway.http.openresponses.stored_items import MAX_REFERENCES
from gateway.http.schemas.base.shapes import MAX_LISTED_FIELDS
from gateway.request.jobs.job import RESPONSES_ENDPOINT
from gateway.request.jobs.model_limits import check_answer_size, check_served
from protocol.version import PROTOCOL_VERSION
from protocol.wire import codec
from tests.fakes.request_parts import engine_offer

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "1"}
CONTEXT = ParseContext({})


def body(**fields: Any) -> ResponsesBody:
    value = {"model": "m", "input": "hi", **fields}
    found = RESPONSES.parse(json.dumps(value).encode(), CONTEXT).body
    assert found is not None
    return found


def sent(items: Any, **fields: Any) -> list[dict[str, Any]]:
    job = body(input=items, **fields).job
    found: list[dict[str, Any]] = json.loads(job.prepares[0].messages_json or "")
    return found


def echo(**fields: Any) -> Any:
    return json.loads(body(**fields).echo_json)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"top_logprobs": 5}, "top_logprobs"), ({"include": [LOGPROBS]}, "include")],
)
def test_log_probabilities_that_can_not_be_told_are_named_by_their_field(
    fields: dict[str, Any], param: str
) -> None:
    job = body(**fields).job
    with pytest.raises(UnsupportedFieldError, match=f"which `{param}` needs") as refused:
        check_served(job, engine_offer(max_logprobs=0), PROTOCOL_VERSION)
    assert refused.value.param == param
    with pytest.raises(InvalidRequestError, match="PENSTOCK_MAX_ANSWER_BYTES") as too_large:
        check_answer_size(job, [1], [1000], 1000)
    assert too_large.value.param == param


def test_a_text_is_what_the_user_says() -> None:
    assert sent("hi") == [{"role": "user", "content": "hi"}]
    assert body().job.endpoint == RESPONSES_ENDPOINT


def test_instructions_come_first() -> None:
    assert sent("hi", instructions="short")[0] == {"role": "system", "content": "short"}


def test_parts_of_text_are_lines_and_messages_need_no_type() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    said = [{"type": "output_text", "text": "c", "annotations": []}]
    found = sent(
        [
            {"role": "developer", "content": "d"},
            {"type": "message", "role": "user", "content": parts},
            {"role": "assistant", "content": said, "phase": "final_answer", "id": "msg_1"},
        ]
    )
    assert [message["content"] for message in found] == ["d", "a\nb", "c"]


@pytest.mark.parametrize("kind", [RESPONSES, INPUT_TOKENS, COMPACT])
def test_a_null_input_is_none(kind: BodyKind[Any]) -> None:
    continued = {"model": "m", "input": None, "previous_response_id": "resp_1"}
    found = kind.parse(json.dumps(continued).encode(), ParseContext({}, has_store=True))
    assert found.refs.previous_id == "resp_1"


def test_an_item_whose_type_is_null_is_a_message() -> None:
    item = {"type": None, "role": "user", "content": "hi"}
    assert sent([item]) == [{"role": "user", "content": "hi"}]
    (kept,) = json.loads(
        RESPONSES.parse(json.dumps({"model": "m", "input": [item]}).encode(), CONTEXT).input_json
    )
    assert kept["type"] == "message"


def test_reasoning_text_and_calls_of_a_turn_are_one_message() -> None:
    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "t"}],
    }
    said = {"role": "assistant", "content": "so"}
    found = sent([{"role": "user", "content": "x"}, thought, said, CALL, RESULT])
    function = {"name": "f", "arguments": "{}"}
    assert found[1] == {
        "role": "assistant",
        "reasoning_content": "t",
        "content": "so",
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }
    assert found[2] == {"role": "tool", "tool_call_id": "call_1", "content": "1"}


def test_sealed_reasoning_is_opened_again() -> None:
    thought = {"type": "reasoning", "summary": [], "encrypted_content": sealed("hm é")}
    assert sent([thought, CALL, RESULT])[0]["reasoning_content"] == "hm é"
    with pytest.raises(InvalidRequestError, match="encrypted_content"):
        sent([{**thought, "encrypted_content": "???"}])


def test_all_reasoning_of_a_turn_is_kept() -> None:
    first, second = (
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}
        for text in ("a", "b")
    )
    assert sent([first, CALL, second, RESULT])[0]["reasoning_content"] == "a\nb"


def test_raw_reasoning_goes_before_its_summary() -> None:
    thought = {
        "type": "reasoning",
        "content": [{"type": "reasoning_text", "text": "raw"}],
        "summary": [{"type": "summary_text", "text": "short"}],
    }
    assert sent([thought])[0] == {"role": "assistant", "reasoning_content": "raw", "content": ""}


def test_tools_are_those_of_a_chat_and_what_runs_elsewhere_is_left_out() -> None:
    custom = {"type": "custom", "name": "run"}
    made = body(tools=[FUNCTION, {"type": "web_search"}, custom])
    names = [tool["function"]["name"] for tool in json.loads(made.job.tools_json or "")]
    assert names == ["f", "run"]
    assert made.job.options.custom_tools == {"run"}
    assert made.ignored == ["tools[1]"]


def test_a_history_of_another_server_is_continued_without_the_traces_of_its_own_tools() -> None:
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {}}
    said = {"role": "assistant", "content": "found"}
    made = body(input=[{"role": "user", "content": "x"}, search, said])
    messages = json.loads(made.job.prepares[0].messages_json or "")
    assert [one["role"] for one in messages] == ["user", "assistant"]
    assert made.ignored == ["input[1]"]


SPACE: dict[str, Any] = {"type": "namespace", "name": "n", "tools": [FUNCTION]}
SPACED: dict[str, Any] = {**SPACE, "tools": [{**FUNCTION, "name": "n__f"}]}
"""Its tool is seen by the name of one of another namespace."""


def test_tools_of_a_namespace_carry_its_name_there_and_back() -> None:
    space = {"type": "namespace", "name": "files", "description": "d", "tools": [FUNCTION]}
    call = {**CALL, "namespace": "files"}
    made = body(tools=[space], input=[{"role": "user", "content": "x"}, call, RESULT])
    assert json.loads(made.job.tools_json or "")[0]["function"]["name"] == "files__f"
    assert made.spaces == {"files__f": ("files", "f")}
    messages = json.loads(made.job.prepares[0].messages_json or "")
    assert messages[1]["tool_calls"][0]["function"]["name"] == "files__f"


@pytest.mark.parametrize(
    ("choice", "mode", "name"),
    [
        ("auto", "auto", ""),
        ("required", "required", ""),
        ("none", "none", ""),
        ({"type": "function", "name": "f"}, "named", "f"),
    ],
)
def test_choices_of_tools(choice: Any, mode: str, name: str) -> None:
    job = body(tools=[FUNCTION], tool_choice=choice).job
    assert (job.tool_choice, job.tool_name) == (mode, name)


def test_allowed_tools_are_all_that_the_model_sees() -> None:
    other = {**FUNCTION, "name": "g"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{**FUNCTION}]}
    job = body(tools=[FUNCTION, other], tool_choice=allowed).job
    assert job.tool_choice == "required"
    assert [tool["function"]["name"] for tool in json.loads(job.tools_json or "")] == ["f"]


def test_a_schema_holds_the_text() -> None:
    wanted = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    made = body(text={"format": wanted})
    assert made.job.response_grammar is not None
    assert echo(text={"format": wanted})["text"] == {"format": {**wanted, "description": None}}
    del wanted["strict"]
    shown = echo(text={"format": wanted})["text"]["format"]
    assert shown == {**wanted, "description": None, "strict": False}


def test_an_effort_demands_nothing_of_the_model() -> None:
    job = body(reasoning={"effort": "high", "summary": "auto"}).job
    assert json.loads(job.prepares[0].template_kwargs_json or "") == {
        "reasoning_effort": "high",
        "enable_thinking": True,
    }
    assert not job.wants_reasoning


def test_an_answer_repeats_every_field_with_what_counts() -> None:
    found = echo(temperature=0.5, metadata={"a": "b"}, tools=[FUNCTION], store=True)
    assert (found["temperature"], found["top_p"]) == (0.5, 1.0)
    assert found["tools"] == [{**FUNCTION, "description": None, "strict": None}]
    assert found["metadata"] == {"a": "b"}
    assert found["store"] is False


def test_what_has_no_effect_is_said() -> None:
    assert body(store=True, strange=1).ignored == ["strange", "store"]
    assert body(store=False, service_tier="auto", client_metadata={}).ignored == []


def test_log_probabilities_are_told_when_they_are_included() -> None:
    job = body(include=["message.output_text.logprobs"], top_logprobs=2).job
    assert job.options.num_top_logprobs == 2
    assert body(include=["message.output_text.logprobs"]).job.options.num_top_logprobs == 0
    # Whoever says how many wants them.
    assert body(top_logprobs=2).job.options.num_top_logprobs == 2
    assert body(top_logprobs=0).job.options.num_top_logprobs is None


def test_a_body_travels_between_processes() -> None:
    made = body(tools=[FUNCTION], instructions="x")
    assert codec.Decoder(ResponsesBody).decode(codec.encode_value(made)) == made


def test_counting_reads_the_same_prompt() -> None:
    fields = {"instructions": "s", "input": [CALL, RESULT], "tools": [FUNCTION]}
    asked = body(**fields).job.prepares[0]
    value = json.dumps({"model": "m", **fields}).encode()
    counted = INPUT_TOKENS.parse(value, CONTEXT).body
    assert counted is not None
    question = counted.message
    for name in ("messages_json", "tools_json", "template_kwargs_json"):
        assert getattr(question, name) == getattr(asked, name)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": []}]}, "input[0].type"),
        ({"input": [{"type": {}, "role": "user", "content": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": {}}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [1]}]}, "input[0].content[0]"),
        ({"input": [RESULT]}, "input[0].call_id"),
        ({"input": [CALL, {**RESULT, "call_id": "2"}]}, "input[1].call_id"),
        ({"input": [{**CALL, "arguments": {}}]}, "input[0].arguments"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{**FUNCTION, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{**FUNCTION, "parameters": 1}]}, "tools[0].parameters"),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools"),
        ({"tools": [{"type": "namespace", "name": "", "tools": []}]}, "tools[0].name"),
        ({"tools": [{**FUNCTION, "name": "n__f"}, SPACE]}, "tools[1].tools[0]"),
        ({"tools": [{**SPACE, "name": "n__n"}, SPACED]}, "tools[1].tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.tools"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"reasoning": {"effort": "some"}}, "reasoning.effort"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity"),
    ],
)
def test_what_is_wrong_is_named_in_their_words(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        body(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "novel"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        ({"tools": [{"type": "novel"}]}, "tools[0].type"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedFieldError) as caught:
        body(**fields)
    assert caught.value.param == param


def test_neutral_values_of_refused_fields_are_taken() -> None:
    fields = {"background": False, "truncation": "disabled", "previous_response_id": None}
    assert body(**fields).ignored == []


def test_the_end_user_is_told_to_who_counts() -> None:
    assert body(safety_identifier="ada", user="x").job.end_user == "ada"
    assert body(user="grace").job.end_user == "grace"
    assert body().job.end_user == ""
    assert (echo(user="grace")["user"], echo()["user"]) == ("grace", None)


@pytest.mark.parametrize("kind", [RESPONSES, INPUT_TOKENS])
def test_a_verbosity_goes_to_the_template(kind: BodyKind[Any]) -> None:
    value = {"model": "m", "input": "x", "text": {"verbosity": "low"}}
    found = kind.parse(json.dumps(value).encode(), CONTEXT)
    prepare = found.body.job.prepares[0] if kind is RESPONSES else found.body.message
    assert json.loads(prepare.template_kwargs_json) == {"verbosity": "low"}


def test_what_may_be_included_is_what_the_official_client_knows() -> None:
    assert frozenset(get_args(ResponseIncludable)) == INCLUDED
    assert body(include=sorted(INCLUDED)).ignored == []
    assert body(include=[LOGPROBS, "all"]).ignored == ["include[1]"]
    assert len(body(include=["all"] * 1000).ignored) == MAX_LISTED_FIELDS


@pytest.mark.parametrize("more", [{}, {"type": None}, {"type": "item_reference"}])
def test_an_item_that_is_nothing_but_an_id_refers_to_another(more: dict[str, Any]) -> None:
    value = {"model": "m", "input": [{"id": "msg_0_1", **more}]}
    found = RESPONSES.parse(json.dumps(value).encode(), ParseContext({}, has_store=True))
    assert found.refs.item_ids == ("msg_0_1",)
    assert found.body is None


def test_so_many_references_are_read_and_one_more_is_refused_by_name() -> None:
    assert MAX_REFERENCES == 256  # docs/responses-api.md says so
    items = [{"type": "item_reference", "id": f"msg_0_{number}"} for number in range(256)]
    context = ParseContext({}, has_store=True)
    value: dict[str, Any] = {"model": "m", "input": items}
    found = RESPONSES.parse(json.dumps(value).encode(), context)
    assert len(found.refs.item_ids) == 256
    value["input"] = [*items, {"id": "msg_0_256"}]
    with pytest.raises(InvalidRequestError, match=r"257 items `item_reference`, and 256") as raised:
        RESPONSES.parse(json.dumps(value).encode(), context)
    assert raised.value.param == "input"


def test_what_an_engine_finds_wrong_is_named_by_the_field_that_it_came_from() -> None:
    assert body().job.prompt_param == "input"
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    assert body(text={"format": schema}).job.grammar_param.startswith("text.format")
    asked = {"model": "m", "input": "x"}
    compact = COMPACT.parse(json.dumps(asked).encode(), CONTEXT)
    assert compact.job is not None
    assert compact.job.prompt_param == "input"


def test_a_summary_has_its_tokens_for_itself_and_takes_what_room_there_is() -> None:
    compact = COMPACT.parse(json.dumps({"model": "demo", "input": "x"}).encode(), CONTEXT)
    assert compact.job is not None
    assert (compact.job.thinking_budget, compact.job.demands_budget) == (0, False)
    assert (compact.job.max_tokens, compact.job.prepares[0].max_tokens) == (1024, 256)
