"""Classification and cross-encoders: what an engine is asked, and what its logits are told as."""

import math
from array import array
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.bodies.parsers import CLASSIFY, EMBEDDING, RERANK, SCORE, BodyKind, ParseContext
from gateway.http.schemas.inference.embedding import EmbeddingRequest, prompt_name_of
from gateway.http.scoring.classify import (
    ClassifyBody,
    ClassifyRequest,
    activated,
    classify_answer,
    classify_body,
    most_tokens,
    rows_of,
)
from gateway.http.scoring.rerank import (
    RerankBody,
    RerankRequest,
    ScoreRequest,
    rerank_answer,
    rerank_body,
    score_body,
)
from protocol.wire.messages import Classified, Classify, Credits, EngineOffer, Score, Usage


def offer(**fields: Any) -> EngineOffer:
    values: dict[str, Any] = {
        "model": "m",
        "fingerprint": "f",
        "resume_version": 1,
        "max_model_len": 64,
        "created": 1,
        "credits": Credits(1, 1),
        "capabilities": ("classify",),
        "labels": ("bad", "good"),
        "problem_type": "single_label",
    }
    return EngineOffer(**(values | fields))


def classified(*rows: list[float], truncated: tuple[int, ...] = ()) -> Classified:
    return Classified(
        request_id="r",
        num_labels=len(rows[0]),
        logits=array("f", [number for row in rows for number in row]).tobytes(),
        num_tokens=(3,) * len(rows),
        truncated=truncated,
    )


def body_of(**fields: Any) -> ClassifyBody:
    return classify_body(orjson.dumps({"model": "m", "input": "a", **fields}))


def rerank(**fields: Any) -> RerankBody:
    body = {"model": "m", "query": "q", "documents": ["a", {"text": "bc"}], **fields}
    return rerank_body(orjson.dumps(body), lambda _: offer(labels=("LABEL_0",)))


def pairs_of(body: RerankBody) -> Classify:
    assert isinstance(body.message, Classify)
    return body.message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", (("a",), (), ())),
        (["a", "b"], (("a", "b"), (), ())),
        ([["a", "b"], ["c", ""]], (("a", "c"), ("b", ""), ())),
        ([1, 2], ((), (), ((1, 2),))),
        ([[1, 2], [3]], ((), (), ((1, 2), (3,)))),
    ],
)
def test_an_input_is_texts_pairs_or_token_ids(value: Any, expected: Any) -> None:
    message = body_of(input=value).message
    assert (message.texts, message.second_texts, message.token_ids) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [["a", "b"], ["c"]]}, "input[1]"),
        ({"input": [["a", "b", "c"]]}, "input[0]"),
        ({"input": [["a", "b"], "c"]}, "input[1]"),
        ({"input": [["a", 1]]}, "input[0]"),
        ({"input": [["a", "b"]] * 2049}, "input"),
        ({"input": [[]]}, "input[0]"),
        ({"input": {"text": "a"}}, "input"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"priority": 2}, "priority"),
        ({"input": [[1] * 2**19] * 3}, "input"),
    ],
)
def test_what_is_wrong_with_a_classification_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        body_of(**fields)
    assert raised.value.param == param


def test_a_single_label_has_probabilities_that_sum_to_one() -> None:
    answer = orjson.loads(
        classify_answer(
            classified([1.0, 3.0], [2.0, 0.0], truncated=(1,)),
            body_of(input=["a", "b"]),
            offer(),
            Usage(prompt_tokens=6),
            "id",
            5,
        )
    )
    first, second = answer["data"]
    expected = 1 / (1 + math.exp(-2))
    assert (first["label"], first["num_classes"]) == ("good", 2)
    assert first["probs"] == pytest.approx([1 - expected, expected], abs=1e-6)
    assert (second["label"], second["truncated"]) == ("bad", True)
    assert "truncated" not in first
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6, "completion_tokens": 0}


def test_of_several_labels_each_has_its_own_chance() -> None:
    answer = orjson.loads(
        classify_answer(
            classified([0.0, 2.0, -3.0]),
            body_of(),
            offer(labels=("x", "y", "z"), problem_type="multi_label"),
            Usage(),
            "id",
            5,
        )
    )
    (one,) = answer["data"]
    assert one["labels"] == ["x", "y"]
    assert one["probs"] == pytest.approx([0.5, 0.880797, 0.047426], abs=1e-6)


def test_numbers_of_a_regression_are_told_as_they_are_and_a_single_one_as_a_score() -> None:
    assert activated([1.5, -2.0], "regression") == [1.5, -2.0]
    assert activated([0.0], "regression") == [0.5]
    assert activated([-1000.0], "regression") == [0.0]
    assert activated([1000.0], "multi_label") == [1.0]
    raw = classify_answer(
        classified([1.5, -2.0]),
        body_of(use_activation=False),
        offer(problem_type="regression"),
        Usage(),
        "id",
        5,
    )
    (one,) = orjson.loads(raw)["data"]
    assert (one["label"], one["probs"]) == (None, [1.5, -2.0])


def test_logits_that_are_no_whole_rows_are_no_answer() -> None:
    broken = Classified(request_id="r", num_labels=2, logits=b"\0" * 12, num_tokens=(1,))
    with pytest.raises(ValueError, match="whole rows"):
        rows_of(broken)


def test_a_cross_encoder_gets_the_query_once_and_each_document() -> None:
    body = rerank()
    message = pairs_of(body)
    assert (message.texts, message.second_texts) == (("q",), ("a", "bc"))
    assert (message.truncate_prompt_tokens, message.num_inputs) == (-1, 2)
    # The query counts in every pair.
    assert body.num_bytes == most_tokens(message) == 2 * 1 + 3 + 2 * 8
    answer = orjson.loads(
        rerank_answer(classified([-1.0], [2.0], truncated=(0,)), body, Usage(prompt_tokens=9), "id")
    )
    best, second = answer["results"]
    assert (best["index"], best["document"]) == (1, {"text": "bc"})
    assert best["relevance_score"] == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-6)
    assert (second["truncated"], "truncated" in best) == (True, False)


def test_logits_are_told_where_they_are_asked_for() -> None:
    body = rerank(use_activation=False)
    answer = orjson.loads(rerank_answer(classified([-1.0], [2.5]), body, Usage(), "id"))
    assert [one["relevance_score"] for one in answer["results"]] == [2.5, -1.0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (-1, None)),
        ({"truncation": False}, (None, None)),
        ({"truncate_prompt_tokens": 20}, (20, None)),
        ({"max_tokens_per_doc": 7}, (-1, 7)),
    ],
)
def test_how_much_of_a_pair_is_read(fields: dict[str, Any], expected: Any) -> None:
    message = pairs_of(rerank(**fields))
    assert (message.truncate_prompt_tokens, message.max_second_tokens) == expected


def test_a_cross_encoder_takes_no_instruction() -> None:
    with pytest.raises(UnsupportedFieldError) as raised:
        rerank(instruction="Find jokes.")
    assert raised.value.param == "instruction"


def test_a_score_refuses_long_pairs_unless_told_to_cut() -> None:
    def message(**fields: Any) -> Any:
        value = {"model": "m", "text_1": ["a", "b"], "text_2": ["c", "d"], **fields}
        return score_body(orjson.dumps(value), lambda _: offer()).message

    assert message().truncate_prompt_tokens is None
    assert message(truncate_prompt_tokens=-1).truncate_prompt_tokens == -1
    assert (message().texts, message().second_texts) == (("a", "b"), ("c", "d"))


def test_who_is_served_decides_how_a_rerank_is_asked() -> None:
    raw = orjson.dumps({"model": "alias", "query": "q", "documents": ["a"]})
    context = ParseContext({"m": offer()}, aliases={"alias": "m"})
    assert isinstance(RERANK.parse(raw, context).message, Classify)
    chat = ParseContext({"alias": offer(capabilities=("scores",))})
    assert isinstance(RERANK.parse(raw, chat).message, Score)


def test_a_model_that_was_trained_to_rerank_is_asked_in_its_own_words() -> None:
    raw = orjson.dumps({"model": "m", "query": "q", "documents": ["a"]})
    served = offer(capabilities=("scores",), rerank_wording="qwen3-reranker")
    message = rerank_body(raw, lambda _: served).message
    assert isinstance(message, Score)
    system, user = orjson.loads(message.messages_json)
    assert message.label_sets == (("yes", "no"),)
    assert 'answer can only be "yes" or "no".' in system["content"]
    assert user["content"] == (
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
        "<Query>: q\n<Document>: "
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ""),
        ({"prompt_name": "s2p"}, "s2p"),
        ({"input_type": "query"}, "query"),
        ({"input_type": "search_query"}, "query"),
        ({"input_type": "search_document"}, "passage"),
    ],
)
def test_the_prompt_before_texts_is_named_or_follows_from_what_they_are(
    fields: dict[str, Any], expected: str
) -> None:
    context = ParseContext({"m": offer(prompt_names=("query", "s2p", "passage"))})
    raw = orjson.dumps({"model": "m", "input": "a", **fields})
    assert EMBEDDING.parse(raw, context).message.prompt_name == expected


def test_a_model_without_prompts_needs_none() -> None:
    assert prompt_name_of(None, "query", ()) == ""


def test_a_prompt_is_named_once() -> None:
    raw = orjson.dumps({"model": "m", "input": "a", "prompt_name": "x", "input_type": "query"})
    with pytest.raises(InvalidRequestError) as raised:
        EMBEDDING.parse(raw, ParseContext({}))
    assert raised.value.param == "input_type"


_SCALARS = st.none() | st.booleans() | st.integers(-9, 2**40) | st.text(max_size=4)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["text", "image"]), inner, max_size=2)
    ),
    max_leaves=10,
)
_NAMES = sorted(
    ClassifyRequest.known_fields
    | RerankRequest.known_fields
    | ScoreRequest.known_fields
    | EmbeddingRequest.known_fields
)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from([CLASSIFY, RERANK, SCORE, EMBEDDING]),
    body=st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=8),
)
def test_whatever_comes_in_is_a_question_or_the_clients_error(
    kind: BodyKind[Any], body: dict[str, Any]
) -> None:
    context = ParseContext({"m": offer(prompt_names=("query",))})
    with suppress(InvalidRequestError):
        kind.parse(orjson.dumps({"model": "m", **body}), context)
