"""Decisions, rerank and score through the real processes, with the `openai` package and by hand."""

from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Harness

pytestmark = pytest.mark.process
MODEL = "penstock-demo"
REVIEW = "I love this film. It was the best evening of my life, and I will watch it again."
QUESTIONS: list[dict[str, Any]] = [
    {"type": "predicate", "name": "liked", "instructions": "The writer likes the film."},
    {
        "type": "choice",
        "name": "about",
        "instructions": "What is it about?",
        "choices": [
            {"value": "a film", "description": "something to watch"},
            {"value": "a meal"},
            {"value": True},
            {"value": "true"},
        ],
    },
    {
        "type": "score",
        "instructions": [
            {"type": "input_text", "text": "How good?"},
            {"type": "input_json", "data": {"scale": [{"of": 3}]}},
        ],
        "levels": [{"label": "bad"}, {"label": "fair"}, {"label": "good", "description": "loved"}],
    },
]


def decide(client: Any, questions: list[dict[str, Any]], **fields: Any) -> Any:
    options = {"model": MODEL, "input": REVIEW, **fields}
    return client.decisions.create(questions=questions, **options)


def test_the_package_reads_each_kind_of_answer(client: Any) -> None:
    answer = decide(client, QUESTIONS)
    liked, about, good = answer.answers
    assert answer.model == MODEL
    assert (liked.type, liked.name) == ("predicate", "liked")
    assert 0 <= liked.probability <= 1
    assert [one.value for one in about.probabilities] == ["a film", "a meal", True, "true"]
    assert about.choice == max(about.probabilities, key=lambda one: one.probability).value
    assert sum(one.probability for one in about.probabilities) == pytest.approx(1, abs=1e-5)
    assert 0 <= about.confidence <= 1
    assert (good.type, good.name) == ("score", None)
    assert [(one.value, one.label) for one in good.probabilities] == [
        (0, "bad"),
        (1, "fair"),
        (2, "good"),
    ]
    expected = sum(one.value * one.probability for one in good.probabilities)
    assert good.score == pytest.approx(expected, abs=1e-5)
    usage = answer.usage
    assert usage.output_tokens == usage.output_tokens_details.reasoning_tokens == 0
    assert usage.input_tokens == usage.total_tokens > 100


def test_an_answer_is_the_same_whatever_is_asked_beside_it(client: Any) -> None:
    """The shared deployment is deterministic: every digit is the same."""
    together = decide(client, QUESTIONS).answers
    backwards = decide(client, QUESTIONS[::-1]).answers
    alone = [decide(client, [question]).answers[0] for question in QUESTIONS]
    assert together == backwards[::-1] == alone


def test_the_beginning_is_found_in_the_cache_by_the_next_request(client: Any) -> None:
    state = "A long state. " * 40
    decide(client, QUESTIONS, input=state)
    again = decide(client, QUESTIONS[:1], input=state)
    assert again.usage.input_tokens_details.cached_tokens > 100


def test_a_conversation_is_judged_and_not_continued(client: Any) -> None:
    answer = decide(
        client,
        QUESTIONS[:1],
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "What is the time?"}]},
            {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "ten past four"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Ten past four."}]},
        ],
    )
    assert answer.answers[0].type == "predicate"


def test_four_hundred_questions_of_255_options(client: Any) -> None:
    many: list[dict[str, Any]] = [
        {"type": "predicate", "name": str(number), "instructions": f"It is about {number}."}
        for number in range(399)
    ]
    many.append(
        {
            "type": "choice",
            "instructions": "Which number?",
            "choices": [{"value": str(number)} for number in range(255)],
        }
    )
    answers = decide(client, many).answers
    assert [one.name for one in answers[:-1]] == [str(number) for number in range(399)]
    assert len(answers[-1].probabilities) == 255
    assert sum(one.probability for one in answers[-1].probabilities) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"questions": []}, "questions"),
        ({"questions": [{"type": "predicate", "instructions": "x"}] * 401}, "questions"),
        ({"questions": [{"type": "riddle", "instructions": "x"}]}, "questions[0]"),
        (
            {
                "questions": [
                    {
                        "type": "choice",
                        "instructions": "x",
                        "choices": [{"value": "a"}, {"value": "a"}],
                    }
                ]
            },
            "questions[0].choices[1].value",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            "input[0].call_id",
        ),
        (
            {
                "input": [
                    {
                        "role": "user",
                        "content": [{"type": "input_image", "image_url": "data:image/png;base64,"}],
                    }
                ]
            },
            "input[0].content[0]",
        ),
        ({"input": "x " * 5000}, "input"),
    ],
)
def test_what_is_wrong_is_named(client: Any, fields: dict[str, Any], param: str) -> None:
    body = {"model": MODEL, "input": REVIEW, "questions": QUESTIONS[:1], **fields}
    with pytest.raises(openai.BadRequestError) as raised:
        client.decisions.create(**body)
    assert raised.value.param == param


def test_systemone_answers_by_name(harness: Harness) -> None:
    answer = post(
        harness,
        "/v1/systemone",
        {
            "model": MODEL,
            "state": {"review": REVIEW},
            "questions": {
                "liked": {"type": "noul", "instructions": "The writer likes it."},
                "about": {
                    "type": "choice",
                    "instructions": "What is it about?",
                    "criteria": {"film": "to watch", "meal": None},
                },
                "good": {"type": "score", "instructions": "How good?", "criteria": ["bad", "good"]},
            },
        },
    )
    answers = answer["answers"]
    assert list(answers) == ["liked", "about", "good"]
    assert answers["liked"].keys() == {"type", "noul", "x_label_mass"}
    assert answers["about"]["probabilities"].keys() == {"film", "meal"}
    assert answers["good"]["legend"] == {"0": "bad", "1": "good"}
    assert answers["good"]["probabilities"].keys() == {"0", "1"}
    assert answer["usage"]["output_tokens"] == 0


def post(harness: Harness, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{harness.url}{path}", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


DOCUMENTS = ["Ducks swim in ponds.", "A penstock leads water to a turbine.", "x " * 5000]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_rerank_in_the_shapes_that_clients_of_jina_and_cohere_send(
    harness: Harness, path: str
) -> None:
    query = {"model": MODEL, "query": "What is a penstock?"}
    jina = post(harness, path, {**query, "documents": DOCUMENTS, "top_n": 2})
    assert len(jina["results"]) == 2
    scores = [one["relevance_score"] for one in jina["results"]]
    assert scores == sorted(scores, reverse=True)
    for one in jina["results"]:
        assert one["document"]["text"] == DOCUMENTS[one["index"]]
    assert jina["usage"]["total_tokens"] > 0
    cohere = post(
        harness,
        path,
        {
            **query,
            "documents": [{"text": text} for text in DOCUMENTS],
            "max_tokens_per_doc": 300,
            "return_documents": False,
        },
    )
    assert sorted(one["index"] for one in cohere["results"]) == [0, 1, 2]
    assert all(one.keys() == {"index", "relevance_score"} for one in cohere["results"])
    assert cohere["meta"]["billed_units"] == {"search_units": 1}


def test_score_keeps_the_order_and_a_pair_has_one_score(harness: Harness) -> None:
    def scores(**fields: Any) -> list[float]:
        answer = post(harness, "/v1/score", {"model": MODEL, **fields})
        assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
        return [one["score"] for one in answer["data"]]

    together = scores(text_1="What is a penstock?", text_2=DOCUMENTS[:2])
    assert together == scores(queries=["What is a penstock?"] * 2, documents=DOCUMENTS[:2])
    assert together[1:] == scores(text_1="What is a penstock?", text_2=DOCUMENTS[1])
    both = scores(text_1=["a", "What is a penstock?"], text_2=DOCUMENTS[:2])
    assert both[1] == together[1]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (
            "/v1/systemone",
            {"state": "x " * 5000, "questions": {"a": {"type": "noul", "instructions": "b"}}},
            "state",
        ),
        (
            "/v1/rerank",
            {"query": "a", "documents": DOCUMENTS, "truncation": False},
            "documents",
        ),
        ("/v1/rerank", {"query": "x " * 5000, "documents": ["a"]}, "query"),
        ("/v1/score", {"queries": "a", "items": DOCUMENTS}, "items"),
    ],
)
def test_what_is_too_long_is_named_as_its_client_named_it(
    harness: Harness, path: str, fields: dict[str, Any], param: str
) -> None:
    body = {"model": MODEL, **fields}
    answer = httpx.post(f"{harness.url}{path}", json=body, timeout=120, trust_env=False)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == param


def test_a_key_without_the_scope_decides_nothing_and_reranks_nothing(harness: Harness) -> None:
    """The shared deployment asks for no keys; the table of scopes is held by the auth worker's
    tests."""
    answer = httpx.post(
        f"{harness.url}/v1/decisions", json={"model": "other"}, timeout=30, trust_env=False
    )
    assert answer.status_code == 400
