"""Cross-encoders and classifiers through the real processes, with keys, against transformers."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from tests.e2e.harness import Harness, eventually
from tests.fakes.text_model_folders import MAX_TOKENS, TextModels

pytestmark = pytest.mark.process
QUERY = "what is a river"
DOCUMENTS = ["river stone light", "copper garden " * 20, "north", ""]
TEXTS = ["quiet paper", "seven north window light stone", "who"]


class Library(NamedTuple):
    """The deployment with keys, and its models for texts as transformers has them."""

    harness: Harness
    models: TextModels
    key: str
    admin: httpx.Client

    def post(self, path: str, **body: Any) -> Any:
        response = self.raw(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def raw(self, path: str, key: str | None = None, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        return httpx.post(
            f"{self.harness.url}{path}", json=body, headers=headers, trust_env=False, timeout=60
        )


@pytest.fixture
def library(locked: Harness, text_models: TextModels) -> Iterator[Library]:
    admin_key = (locked.data_dir / "admin.key").read_text(encoding="utf-8").strip()
    headers = {"Authorization": f"Bearer {admin_key}"}
    with httpx.Client(base_url=locked.url, headers=headers, trust_env=False) as admin:
        yield Library(locked, text_models, new_key(admin)["key"], admin)


def new_key(admin: httpx.Client, **fields: Any) -> Any:
    response = admin.post("/v1/admin/keys", json={"name": "test", **fields})
    assert response.status_code == 201, response.text
    return response.json()


def expected_logits(library: Library, name: str, *texts: list[str]) -> list[list[float]]:
    import torch

    found = []
    for parts in zip(*texts, strict=True):
        inputs = library.models.tokenizer(
            *([part] for part in parts),
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
            return_token_type_ids=name == "ranker",
        )
        with torch.no_grad():
            found.append(getattr(library.models, name)(**inputs).logits[0].tolist())
    return found


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def test_documents_are_ordered_by_the_logits_of_their_pairs(library: Library) -> None:
    answer = library.post("/v1/rerank", model="ranker", query=QUERY, documents=DOCUMENTS)
    queries = [QUERY] * len(DOCUMENTS)
    logits = [row[0] for row in expected_logits(library, "ranker", queries, DOCUMENTS)]
    found = {one["index"]: one["relevance_score"] for one in answer["results"]}
    assert [found[index] for index in range(4)] == pytest.approx(
        [sigmoid(logit) for logit in logits], abs=2e-5
    )
    scores = [one["relevance_score"] for one in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    cut = {one["index"] for one in answer["results"] if one.get("truncated")}
    assert cut == {1}
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 30
    top = library.post("/v2/rerank", model="ranker", query=QUERY, documents=DOCUMENTS, top_n=1)
    assert [one["index"] for one in top["results"]] == [answer["results"][0]["index"]]
    raw = library.post(
        "/v1/score", model="ranker", text_1=QUERY, text_2=DOCUMENTS[:1], use_activation=False
    )
    assert raw["data"][0]["score"] == pytest.approx(logits[0], abs=1e-4)


def test_a_pair_that_is_too_long_is_refused_where_it_is_not_to_be_cut(library: Library) -> None:
    body: dict[str, Any] = {"model": "ranker", "text_1": QUERY, "text_2": DOCUMENTS}
    refused = library.raw("/v1/score", **body)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "text_2")
    told = library.post("/v1/score", **body, truncate_prompt_tokens=-1)["data"]
    assert [one.get("truncated", False) for one in told] == [False, True, False, False]


def test_labels_have_the_probabilities_of_transformers(library: Library) -> None:
    import torch

    answer = library.post("/v1/classify", model="topics", input=TEXTS)
    for row, one in zip(expected_logits(library, "topics", TEXTS), answer["data"], strict=True):
        chances = torch.softmax(torch.tensor(row), 0).tolist()
        assert one["probs"] == pytest.approx(chances, abs=2e-5)
        assert one["label"] == ["water", "metal", "air"][chances.index(max(chances))]
        assert one["num_classes"] == 3
    ids = [library.models.tokenizer(text)["input_ids"] for text in TEXTS]
    by_ids = library.post("/v1/classify", model="topics", input=ids)
    assert by_ids["data"] == answer["data"]
    assert by_ids["usage"] == answer["usage"]
    assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_what_a_model_does_not_do_is_refused_by_name(library: Library) -> None:
    asked = {"role": "user", "content": "a"}
    for path, body in (
        ("/v1/rerank", {"model": "topics", "query": "a", "documents": ["a"]}),
        ("/v1/embeddings", {"model": "topics", "input": "a"}),
        ("/v1/rerank", {"model": "ranker", "query": "a", "documents": ["a"], "instruction": "x"}),
        ("/v1/chat/completions", {"model": "topics", "messages": [asked]}),
        ("/v1/classify", {"model": "topics", "input": [[999]]}),
    ):  # fmt: skip
        response = library.raw(path, **body)
        assert response.status_code == 400, (path, response.text)
        assert response.json()["error"]["message"]


def test_keys_need_the_scope_and_pay_for_the_tokens(library: Library) -> None:
    body = {"model": "topics", "input": TEXTS}
    assert library.raw("/v1/classify", key="psk-wrong", **body).status_code == 401
    narrow = new_key(library.admin, scopes=["embeddings.create"])
    assert library.raw("/v1/classify", key=narrow["key"], **body).status_code == 403
    made = new_key(library.admin, scopes=["rerank"])
    answer = library.raw("/v1/classify", key=made["key"], **body).json()

    def record() -> Any:
        page = library.admin.get("/v1/admin/keys").json()
        return next(key for key in page["data"] if key["id"] == made["id"])

    eventually(lambda: record()["total_requests"] == 1)
    assert record()["total_prompt_tokens"] == answer["usage"]["prompt_tokens"]
