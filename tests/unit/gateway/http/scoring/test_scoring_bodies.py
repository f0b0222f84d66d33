"""Bodies of decisions, rerank and score: what a model is asked, and what is refused by name."""

import json
from array import array
from typing import Any

import orjson
import pytest
from openai.types import decision_create_params

from gateway.errors import InvalidRequestError
from gateway.http.routes.inference.scoring import _question
from gateway.http.scoring import render, wording
from gateway.http.scoring.convert import decision_body, systemone_body
from gateway.http.scoring.decision_schemas import (
    Call,
    CallOutput,
    Choice,
    DecisionRequest,
    Level,
    Message,
    Option,
    Predicate,
    Score,
)
from gateway.http.scoring.rerank import (
    RerankBody,
    rerank_answer,
    rerank_body,
    score_answer,
    score_body,
)
from protocol.wire.messages import Score as ScoreMessage
from protocol.wire.messages import Scored, Usage

PREDICATE = {"type": "predicate", "instructions": "It is."}


def decision(**fields: Any) -> bytes:
    return orjson.dumps({"model": "m", "input": "The sky.", "questions": [PREDICATE], **fields})


def asked(body: RerankBody) -> ScoreMessage:
    assert isinstance(body.message, ScoreMessage)
    return body.message


def scored(*logprobs: float) -> Scored:
    return Scored(request_id="r", logprobs=array("f", logprobs).tobytes(), num_prompt_tokens=7)


def test_the_material_comes_first_and_each_question_with_its_labels_behind() -> None:
    body = decision_body(
        decision(
            questions=[
                PREDICATE,
                {
                    "type": "choice",
                    "instructions": "Which?",
                    "choices": [{"value": "a", "description": "first"}, {"value": "b"}],
                },
                {"type": "score", "instructions": "How?", "levels": [{"label": "low"}] * 2},
                {**PREDICATE, "name": "again"},
            ]
        )
    )
    _, user = json.loads(body.message.messages_json)
    assert user == {"role": "user", "content": "Material:\nThe sky.\n\n"}
    assert body.message.label_sets == (("Yes", "No"), ("A", "B"))
    assert [(one.text, one.label_set) for one in body.message.questions] == [
        (f"{wording.STATEMENT}It is.", 0),
        (f"{wording.CHOICE}Which?\nA. a: first\nB. b", 1),
        (f"{wording.SCORE}How?\nA. low\nB. low", 1),
        (f"{wording.STATEMENT}It is.", 0),
    ]
    # Of each, what its kind shares is told apart, and ends with a line.
    shared = [one.text[: one.num_shared_characters] for one in body.message.questions]
    assert shared == [wording.STATEMENT, wording.CHOICE, wording.SCORE, wording.STATEMENT]
    assert all(text.endswith("\n") for text in shared)
    sizes = sum(len(one.text) for one in body.message.questions)
    assert body.num_bytes > len(body.message.messages_json) + sizes


def test_texts_and_truth_values_of_a_choice_can_be_told_apart() -> None:
    choices = [{"value": True}, {"value": "true"}]
    question = {"type": "choice", "instructions": "?", "choices": choices}
    body = decision_body(decision(questions=[question]))
    assert 'A. true\nB. "true"' in body.message.questions[0].text
    answer = orjson.loads(render.decision(scored(-1, -2), body, Usage(prompt_tokens=7)))
    (told,) = answer["answers"]
    assert told["choice"] is True
    assert [one["value"] for one in told["probabilities"]] == [True, "true"]
    assert answer["usage"]["total_tokens"] == 7


def test_a_conversation_is_told_as_a_transcript() -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_json", "data": {"a": 1}}]},
        {"type": "custom_tool_call", "call_id": "c", "name": "run", "input": "ls"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c",
            "output": [{"type": "input_text", "text": "a b"}],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    body = decision_body(decision(input=items))
    assert json.loads(body.message.messages_json)[1]["content"] == (
        'Material:\n[developer]\nBe kind.\n\n[user]\n{"a":1}\n\n[call of run, c]\nls\n\n'
        "[answer to c]\na b\n\n[assistant]\nNo.\n\n"
    )


DEEP: dict[str, Any] = {}
for _ in range(32):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]},
         "input[0].content[0]"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "n"}]}, "input[0].arguments"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"questions": [{"type": "predicate"}]}, "questions[0].instructions"),
        ({"questions": [{**PREDICATE, "instructions": [{"type": "input_json", "data": DEEP}]}]},
         "questions[0].instructions[0].data"),
        ({"questions": [{**PREDICATE,
                         "instructions": [{"type": "input_json", "data": {"a": [1] * 10_000}}]}]},
         "questions[0].instructions[0].data"),
        ({"questions": [{**PREDICATE,
                         "instructions": [{"type": "input_json", "data": {"a": "x" * 300_000}}]}]},
         "questions[0].instructions[0].data"),
        ({"questions": [{"type": "choice", "instructions": "x", "choices": [{"value": "a"}]}]},
         "questions[0].choices"),
        ({"questions": [{"type": "choice", "instructions": "x",
                         "choices": [{"value": str(one)} for one in range(256)]}]},
         "questions[0].choices"),
        ({"questions": [{"type": "score", "instructions": "x", "levels": []}]},
         "questions[0].levels"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_decision_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        decision_body(decision(**fields))
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("question", "param"),
    [
        ({"type": "noul", "instructions": "x", "criteria": {"maybe": "y"}}, ".criteria"),
        ({"type": "choice", "instructions": "x"}, ".criteria"),
        ({"type": "choice", "instructions": "x", "criteria": ["a", "b"]}, ".criteria"),
        ({"type": "score", "instructions": "x", "criteria": {"a": "b"}}, ".criteria"),
        ({"type": "predicate", "instructions": "x"}, ".type"),
    ],
)
def test_what_is_wrong_with_a_question_of_systemone_is_named(
    question: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        systemone_body(orjson.dumps({"model": "m", "state": "s", "questions": {"q": question}}))
    assert raised.value.param == f"questions.q{param}"


def test_rerank_tells_the_best_first_and_ties_in_their_order() -> None:
    body = rerank_body(
        orjson.dumps({"model": "m", "query": "q", "documents": ["a", {"text": "b"}, "c"]})
    )
    assert [one.text for one in asked(body).questions] == ["a", "b", "c"]
    answer = orjson.loads(
        rerank_answer(scored(-2, -1, -1, -2, -2, -1), body, Usage(prompt_tokens=9), "id")
    )
    assert [one["index"] for one in answer["results"]] == [1, 0, 2]
    assert answer["results"][0]["document"] == {"text": "b"}
    assert answer["results"][1]["relevance_score"] == answer["results"][2]["relevance_score"]


@pytest.mark.parametrize(
    ("fields", "cut"),
    [
        ({}, 2**31 - 1),
        ({"truncation": False}, None),
        ({"truncate_prompt_tokens": -1, "truncation": False}, 2**31 - 1),
        ({"max_tokens_per_doc": 5}, 5),
    ],
)
def test_how_much_of_a_document_is_read(fields: dict[str, Any], cut: int | None) -> None:
    body = rerank_body(orjson.dumps({"model": "m", "query": "q", "documents": ["a"], **fields}))
    assert asked(body).max_question_tokens == cut


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": ["a", {"image": "x"}]}, "documents[1]"),
        ({"documents": ["a"] * 10_001}, "documents"),
        ({"query": ""}, "query"),
        ({"top_n": 1, "top_k": 2}, "top_k"),
        ({"priority": 1}, "priority"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_what_is_wrong_with_a_rerank_is_named(fields: dict[str, Any], param: str) -> None:
    body = {"model": "m", "query": "q", "documents": ["a"], **fields}
    with pytest.raises(InvalidRequestError) as raised:
        rerank_body(orjson.dumps(body))
    assert raised.value.param == param


def test_score_asks_each_pair_whole_and_tells_them_in_order() -> None:
    one = score_body(orjson.dumps({"model": "m", "text_1": "q", "text_2": ["a", "b"]}))
    many = score_body(orjson.dumps({"model": "m", "queries": ["q", "q"], "documents": ["a", "b"]}))
    assert asked(one).questions == asked(many).questions
    for other in ({"data_1": "q", "data_2": ["a", "b"]}, {"queries": "q", "items": ["a", "b"]}):
        found = score_body(orjson.dumps({"model": "m", **other}))
        assert (asked(found).questions, found.ignored) == (asked(one).questions, [])
    assert asked(one).max_question_tokens is None
    answer = orjson.loads(score_answer(scored(-1, -2, -3, -1), one, Usage(), "id", 5))
    first, second = answer["data"]
    assert (first["index"], second["index"]) == (0, 1)
    assert first["score"] > 0.5 > second["score"]


@pytest.mark.parametrize(
    "fields",
    [
        {"text_1": "a"},
        {"text_1": "a", "text_2": []},
        {"text_1": ["a", "b"], "text_2": ["c"]},
        {"text_1": "a", "queries": "b", "text_2": "c"},
        {"data_1": "a", "text_2": "b", "data_2": "c"},
    ],
)
def test_texts_that_make_no_pairs_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        score_body(orjson.dumps({"model": "m", **fields}))


@pytest.mark.parametrize(
    ("firsts", "seconds"), [("é" * 3000, ["x"] * 4000), (["x" * 3000] * 4000, ["x"] * 4000)]
)
def test_pairs_are_bounded_together_before_they_are_written_out(
    firsts: str | list[str], seconds: list[str]
) -> None:
    body = orjson.dumps({"model": "m", "queries": firsts, "documents": seconds})
    with pytest.raises(InvalidRequestError, match="12004000 characters together"):
        score_body(body)


def test_a_body_may_name_its_end_user() -> None:
    assert decision_body(decision(safety_identifier=" ada ")).end_user == "ada"
    assert decision_body(decision(safety_identifier={"a": 1})).end_user == ""
    pair = {"model": "m", "documents": ["a"], "user": "ada"}
    assert rerank_body(orjson.dumps({**pair, "query": "q"})).end_user == "ada"
    assert score_body(orjson.dumps({**pair, "queries": "q"})).end_user == "ada"
    body = rerank_body(orjson.dumps({**pair, "query": "q"}))
    assert _question("/v1/rerank", body, asked(body)).end_user == "ada"


def test_log_probabilities_that_are_no_floats_are_no_answer() -> None:
    with pytest.raises(ValueError, match="four bytes"):
        render.logprobs_of(Scored(request_id="r", logprobs=b"abc", num_prompt_tokens=1))


def test_every_field_of_the_package_s_request_is_read() -> None:
    """The types of the installed `openai` are the definition that this follows."""
    fields = decision_create_params
    assert set(fields.DecisionCreateParams.__annotations__) == DecisionRequest.known_fields
    for theirs, ours in (
        (fields.QuestionQuestionParamPredicate, Predicate),
        (fields.QuestionQuestionParamChoice, Choice),
        (fields.QuestionQuestionParamChoiceChoice, Option),
        (fields.QuestionQuestionParamScore, Score),
        (fields.QuestionQuestionParamScoreLevel, Level),
        (fields.InputUnionMember1DecisionInputAssistantMessage, Message),
        (fields.InputUnionMember1DecisionInputFunctionCallOutput, CallOutput),
    ):
        assert set(theirs.__annotations__) == ours.known_fields
    calls = set(fields.InputUnionMember1DecisionInputFunctionCall.__annotations__) | set(
        fields.InputUnionMember1DecisionInputCustomToolCall.__annotations__
    )
    assert calls == Call.known_fields
