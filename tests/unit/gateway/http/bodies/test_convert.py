"""From HTTP schemas to wire messages."""

import json
from typing import Any

import pytest

from gateway.errors import InvalidRequestError
from gateway.http.bodies.convert import chat_job, completion_job
from gateway.http.schemas.inference.chat import parse_chat_body
from gateway.http.schemas.inference.completion import parse_completion_body
from gateway.request.jobs.job import GenerationJob
from gateway.request.parsers.parsing import parse_opening
from protocol.wire.messages import Credits, EngineOffer, SamplingDefaults, SamplingParams

OFFER = EngineOffer(
    model="m",
    fingerprint="f",
    resume_version=1,
    max_model_len=64,
    created=0,
    credits=Credits(1, 64),
    reasoning_format="think",
)
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def chat(**fields: Any) -> GenerationJob:
    body = {"model": "m", "messages": [{"role": "user", "content": "hé"}], **fields}
    request, raw, _ = parse_chat_body(json.dumps(body).encode())
    return chat_job(request, raw, make_seed=lambda: 42)


def completion(**fields: Any) -> GenerationJob:
    body = {"model": "m", "prompt": "x", **fields}
    request, _ = parse_completion_body(json.dumps(body).encode())
    return completion_job(request, make_seed=lambda: 42)


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        # As OpenAI's API answers.
        ({"content": None, "refusal": "no"}, {"content": "no"}),
        ({"content": "x", "refusal": "no"}, {"content": "x"}),
        # As other servers answer where the reasoning used all tokens.
        ({"content": None, "reasoning_content": "r"}, {"content": "", "reasoning_content": "r"}),
        ({"content": None, "tool_calls": [CALL]}, {"tool_calls": [CALL]}),
    ],
)
def test_what_an_assistant_says_that_calls_nothing_is_a_text(
    message: dict[str, Any], sent: dict[str, Any]
) -> None:
    user = {"role": "user", "content": "x"}
    made = chat(messages=[user, {"role": "assistant", **message}, user])
    said = json.loads(made.prepares[0].messages_json or "")[1]
    assert said == {"role": "assistant", **sent}


def test_a_seed_is_always_set() -> None:
    assert chat().sampling.seed == 42
    assert chat(seed=7).sampling.seed == 7
    assert chat(seed=0).sampling.seed == 0
    assert 0 <= chat(seed=-1).sampling.seed < 2**63


def test_each_prompt_of_a_request_without_a_seed_gets_one_of_its_own() -> None:
    # Equal prompts are sent to get several samples.
    job = completion(prompt=["x", "x", "x"])
    assert [job.sampling_of(number).seed for number in range(3)] == [42, 43, 44]
    named = completion(prompt=["x", "x"], seed=7)
    assert [named.sampling_of(number) for number in range(2)] == [named.sampling] * 2
    last = completion_job(
        parse_completion_body(b'{"model": "m", "prompt": ["x", "x"]}')[0],
        make_seed=lambda: 2**63 - 1,
    )
    assert last.sampling_of(1).seed == 0


def test_messages_travel_as_written_without_unknown_and_null_fields() -> None:
    job = chat(messages=[{"role": "user", "content": "hé", "x": 1, "name": None}])
    assert json.loads(job.prepares[0].messages_json or "") == [{"role": "user", "content": "hé"}]


def test_the_upper_bound_of_a_prompt_is_its_bytes() -> None:
    assert completion(prompt="hé").prompt_bytes == 3
    assert completion(prompt=["ab", "c"]).prompt_bytes == 3
    assert completion(prompt=[1, 2, 3, 4]).prompt_bytes == 4


def test_of_a_prompt_that_is_cut_only_the_rest_is_reserved() -> None:
    assert completion(prompt=["abcd", "e"], truncate_prompt_tokens=3).prompt_bytes == 4
    assert completion(prompt="abcd", truncate_prompt_tokens=-1).prompt_bytes == 4
    assert chat(truncate_prompt_tokens=7).prompt_bytes == 7


def test_several_prompts_are_prepared_one_by_one() -> None:
    job = completion(prompt=[[1, 2], [3]], n=2)
    assert [prepare.prompt_token_ids for prepare in job.prepares] == [(1, 2), (3,)]
    assert job.num_choices_in_all == 4


def test_neutral_sampling_is_the_default() -> None:
    sampling = chat(top_k=-1).sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, 0, 1.0)
    assert (sampling.max_tokens, sampling.stop) == (None, ())


def test_extensions_reach_the_engine() -> None:
    sampling = chat(
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.2,
        min_tokens=2,
        stop="x",
        stop_token_ids=[9],
        ignore_eos=True,
        skip_special_tokens=False,
        include_stop_str_in_output=True,
        temperature=0,
    ).sampling
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (5, 0.1, 1.2)
    assert (sampling.min_tokens, sampling.stop, sampling.stop_token_ids) == (2, ("x",), (9,))
    assert sampling.ignore_eos
    assert not sampling.skip_special_tokens
    assert sampling.include_stop_str_in_output
    assert sampling.temperature == 0.0


def test_max_completion_tokens_wins_where_max_tokens_is_absent() -> None:
    assert chat(max_completion_tokens=9).max_tokens == 9
    assert chat(max_tokens=8).sampling.max_tokens == 8


def test_tools_reach_the_prompt_only_when_they_may_be_called() -> None:
    assert chat(tools=[TOOL]).tools_json == '[{"type":"function","function":{"name":"f"}}]'
    assert chat(tools=[TOOL]).prepares[0].tools_json is not None
    assert chat(tools=[TOOL], tool_choice="none").tools_json is None


def test_continuing_the_last_message_adds_no_generation_prompt() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    prepare = chat(messages=messages, continue_final_message=True).prepares[0]
    assert prepare.continue_final_message
    assert not prepare.add_generation_prompt
    assert chat().prepares[0].add_generation_prompt


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("<think>\nSo", "<think>\nSo"),
        ([{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}], "ab"),
        ("", ""),
        ("<think>" + "a" * 70_000 + "</think>b", "<think>" + "a" * 65_520 + "</think>b"),
    ],
)
def test_the_parser_is_told_what_there_is_of_an_answer_that_goes_on(
    content: str | list[dict[str, str]], told: str
) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]
    assert chat(messages=messages, continue_final_message=True).answer_so_far == told
    assert chat(messages=messages).answer_so_far == ""


def test_reasoning_effort_is_told_to_the_template() -> None:
    job = chat(reasoning_effort="low", chat_template_kwargs={"a": 1})
    kwargs = json.loads(job.prepares[0].template_kwargs_json or "")
    assert kwargs == {"a": 1, "reasoning_effort": "low", "enable_thinking": True}
    assert job.wants_reasoning
    assert not chat(reasoning_effort="none").wants_reasoning


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, None),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"chat_template_kwargs": {"thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {"enable_thinking": "yes"}}, None),
    ],
)
def test_the_parser_learns_whether_reasoning_was_switched(
    fields: dict[str, Any], thinking: bool | None
) -> None:
    job = chat(**fields)
    assert job.thinking is thinking
    opening = parse_opening(job, OFFER, "r", "")
    assert opening is not None
    assert opening.thinking is thinking


def test_tools_nested_too_deep_to_be_written_again_are_refused() -> None:
    deep: Any = {}
    for _ in range(400):
        deep = {"a": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    with pytest.raises(InvalidRequestError) as caught:
        chat(tools=[tool])
    assert caught.value.param == "tools"


def test_the_models_own_defaults_stand_in_for_what_the_client_left_out() -> None:
    defaults = SamplingDefaults(temperature=0.0, top_k=7, top_p=0.9, repetition_penalty=1.1)
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "top_p": 0.5}
    request, raw, _ = parse_chat_body(json.dumps(body).encode())
    sampling = chat_job(request, raw, defaults).sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.0, 7, 0.5)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.0, 1.1)


def test_null_says_as_little_of_sampling_as_leaving_a_field_out() -> None:
    nothing: dict[str, Any] = dict.fromkeys(SamplingParams.__struct_fields__)
    assert chat(**nothing).sampling == chat().sampling
    request, raw, _ = parse_chat_body(
        json.dumps(
            {"model": "m", "messages": [{"role": "user", "content": "x"}], **nothing}
        ).encode()
    )
    defaults = SamplingDefaults(temperature=0.5, top_k=-1, min_p=0.1)
    sampling = chat_job(request, raw, defaults).sampling
    assert (sampling.temperature, sampling.top_k, sampling.min_p) == (0.5, 0, 0.1)
