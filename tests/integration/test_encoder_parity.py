"""Every family of encoders gives transformers' vectors and logits, in torch, on small configs."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_worker.config import ModelSettings
from engine_worker.embedding import attention, row_programs
from engine_worker.embedding.classifier import Classifier
from engine_worker.embedding.embedder import Embedder
from engine_worker.embedding.families.registry import FAMILIES
from engine_worker.embedding.labels import read_labels
from engine_worker.embedding.pooling import POOLING_KINDS, PoolingKind, PoolingSpec
from engine_worker.embedding.row_programs import Vectors
from engine_worker.loading.text_models import TextModel, is_text_model, load_text_model
from tests.fakes.encoder_families import BY_DEFINITION, CASES, EncoderCase
from tests.fakes.late import torch, transformers
from tests.fakes.quick_compile import EVERYDAY, two_lengths

LENGTHS = (1, 2, 5, 16, 40, 60)
"""All but the shortest ones are longer than the window of the local layers."""


def cases(names: Iterable[str], *everyday: str) -> Any:
    """Parameters: those that `make test` runs too are named."""
    parity = pytest.mark.parity
    return [pytest.param(name, marks=() if name in everyday else parity) for name in names]


def saved(case: EncoderCase, model: str, folder: Path, **more: Any) -> Any:
    """A random model in a folder, its norms and biases away from ones and zeros."""
    torch.manual_seed(1)
    config = case.config(**more)
    config._attn_implementation = "eager"
    whole: Any = getattr(transformers, model)(config).eval()
    randomize(whole)
    whole.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(case.edit(json.loads(path.read_text()))), encoding="utf-8")
    return whole


def randomize(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def load(folder: Path) -> TextModel:
    return load_text_model(ModelSettings(path=folder, name="m"), lambda fraction, text: None)


def rows_of(lengths: Sequence[int]) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 200, size=length).tolist() for length in lengths]


def types_of(rows: Sequence[Sequence[int]], model: Any) -> list[list[int]]:
    """The second half of each row is a second text, where the model tells them apart."""
    has_types = getattr(model.config, "type_vocab_size", 0) > 1
    return [[int(has_types and 2 * i >= len(row)) for i in range(len(row))] for row in rows]


def inputs_of(row: Sequence[int], types: Sequence[int]) -> dict[str, Any]:
    inputs = {"input_ids": torch.tensor([row])}
    return inputs | ({"token_type_ids": torch.tensor([types])} if any(types) else {})


def pooled(hidden: Any, kind: PoolingKind) -> Vectors:
    weights = torch.arange(1.0, len(hidden) + 1)[:, None]
    by_kind = {
        "mean": hidden.mean(0),
        "cls": hidden[0],
        "last": hidden[-1],
        "max": hidden.max(0).values,
        "weightedmean": (hidden * weights).sum(0) / weights.sum(),
        "mean_sqrt_len": hidden.sum(0) / len(hidden) ** 0.5,
    }
    vector: Vectors = by_kind[kind].numpy()
    return vector


def assert_alike(ours: Vectors, theirs: Vectors) -> None:
    cosines = np.einsum("nd,nd->n", ours, theirs)
    cosines /= np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert cosines.min() >= 0.99999
    # Not their directions alone.
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(np.std(theirs)))


@pytest.fixture(autouse=True)
def fewer_programs(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `make test`, programs of two lengths."""
    if pytestconfig.getoption("-m") == EVERYDAY:
        monkeypatch.setattr(row_programs, "batch_shapes", two_lengths)


@pytest.mark.parametrize("name", cases(CASES, "mpnet", "gte-own-config-ntk"))
def test_vectors_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    whole = saved(case, case.model, tmp_path)
    base = getattr(whole, whole.base_model_prefix, whole)
    loaded = load(tmp_path)
    assert loaded.head is None
    rows = rows_of(LENGTHS)
    types = types_of(rows, whole)
    with torch.no_grad():
        hidden = [
            base(**inputs_of(row, kinds)).last_hidden_state[0]
            for row, kinds in zip(rows, types, strict=True)
        ]
    for kind in POOLING_KINDS if name == "bert" else ("mean",):
        embedder = Embedder(loaded.model, PoolingSpec(kind, normalize=False), 64)
        theirs = np.stack([pooled(one, kind) for one in hidden])
        assert_alike(embedder.compute(rows, types), theirs)


@pytest.mark.parametrize("name", cases(CASES, "modernbert-biases", "deberta-v3"))
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    whole = saved(case, case.classifier, tmp_path, num_labels=3)
    loaded = load(tmp_path)
    assert loaded.head is not None
    labels = read_labels(json.loads((tmp_path / "config.json").read_text()))
    rows = rows_of(LENGTHS)
    types = types_of(rows, whole)
    with torch.no_grad():
        theirs = np.stack(
            [
                whole(**inputs_of(row, kinds)).logits[0].numpy()
                for row, kinds in zip(rows, types, strict=True)
            ]
        )
    classifier = Classifier(loaded.model, loaded.head, labels, 64)
    np.testing.assert_allclose(
        classifier.compute(rows, types), theirs, atol=1e-3 * float(np.std(theirs))
    )


@pytest.mark.parametrize("name", cases(["modernbert", "mpnet", "bert"], "modernbert"))
def test_a_row_longer_than_what_is_held_at_once_gives_the_same_vectors(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turns of 16 queries, each with the window of a local layer around it."""
    monkeypatch.setattr(attention, "MAX_QUERIES", 16)
    case = CASES[name]
    whole = saved(case, case.model, tmp_path)
    rows = rows_of((3, 31, 64))
    with torch.no_grad():
        theirs = [pooled(whole(torch.tensor([row])).last_hidden_state[0], "mean") for row in rows]
    embedder = Embedder(load(tmp_path).model, PoolingSpec("mean", normalize=False), 64)
    assert_alike(embedder.compute(rows), np.stack(theirs))


def test_the_cases_cover_every_family() -> None:
    titles = {family.title for family in FAMILIES}
    assert {case.title for case in CASES.values()} == titles - BY_DEFINITION


_DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 200,
    "max_position_embeddings": 80,
    "head_dim": 8,
    "pad_token_id": 0,
}
DECODERS = {
    "qwen2": (
        "Qwen2Config",
        "Qwen2Model",
        "Qwen2ForSequenceClassification",
    ),
    "qwen3": (
        "Qwen3Config",
        "Qwen3Model",
        "Qwen3ForSequenceClassification",
    ),
    "llama": (
        "LlamaConfig",
        "LlamaModel",
        "LlamaForSequenceClassification",
    ),
}


def decoder_case(config: str, model: str) -> EncoderCase:
    """A small decoder of one of transformers' classes."""

    def make(**more: Any) -> Any:
        return getattr(transformers, config)(**_DECODER, **more)

    return EncoderCase("", make, model, model)


@pytest.mark.parametrize("name", cases(DECODERS))
def test_a_decoder_saved_without_its_head_gives_the_vector_of_its_last_token(
    name: str, tmp_path: Path
) -> None:
    """As embedding models of decoders are shared: `Qwen3Model`, no `model.` before the names."""
    kind, base, _ = DECODERS[name]
    whole = saved(decoder_case(kind, base), base, tmp_path)
    assert is_text_model(json.loads((tmp_path / "config.json").read_text()))
    rows = rows_of(LENGTHS)
    with torch.no_grad():
        theirs = [pooled(whole(torch.tensor([row])).last_hidden_state[0], "last") for row in rows]
    embedder = Embedder(load(tmp_path).model, PoolingSpec("last", normalize=False), 64)
    assert_alike(embedder.compute(rows), np.stack(theirs))


@pytest.mark.parametrize("name", cases(DECODERS, "qwen3"))
def test_a_decoder_with_a_classifier_gives_the_logits_of_its_last_token(
    name: str, tmp_path: Path
) -> None:
    kind, _, model = DECODERS[name]
    whole = saved(decoder_case(kind, model), model, tmp_path, num_labels=2)
    loaded = load(tmp_path)
    assert loaded.head is not None
    rows = rows_of(LENGTHS)
    with torch.no_grad():
        theirs = np.stack([whole(torch.tensor([row])).logits[0].numpy() for row in rows])
    labels = read_labels(json.loads((tmp_path / "config.json").read_text()))
    classifier = Classifier(loaded.model, loaded.head, labels, 64)
    np.testing.assert_allclose(classifier.compute(rows), theirs, atol=1e-3 * float(np.std(theirs)))


@pytest.mark.parametrize("length", [64, pytest.param(40, marks=pytest.mark.parity)])
def test_a_decoder_whose_tokens_see_all_of_their_row_gives_the_vectors_of_eurobert(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a decoder it gave vectors of another model, without a word."""
    monkeypatch.setattr(attention, "MAX_QUERIES", length - 24)
    values = {**_DECODER, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
    base = "EuroBertModel"
    case = EncoderCase("", lambda: transformers.EuroBertConfig(**values), base, "")
    whole = saved(case, base, tmp_path)
    assert is_text_model(json.loads((tmp_path / "config.json").read_text()))
    rows = rows_of((1, 5, 24, length))
    with torch.no_grad():
        theirs = [pooled(whole(torch.tensor([row])).last_hidden_state[0], "mean") for row in rows]
    embedder = Embedder(load(tmp_path).model, PoolingSpec("mean", normalize=False), length)
    assert_alike(embedder.compute(rows), np.stack(theirs))


@pytest.mark.parity
def test_gemma_3_that_sees_all_of_a_row_gives_the_vectors_of_embedding_gemma(
    tmp_path: Path,
) -> None:
    """A window that is stated whole lies on both sides of a token, a half on each."""
    values = {
        **_DECODER,
        "num_hidden_layers": 3,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 8,
        "use_bidirectional_attention": True,
    }
    base = "Gemma3TextModel"
    case = EncoderCase(
        "",
        lambda: transformers.Gemma3TextConfig(**values),
        base,
        "",
        # As in the file before transformers halves it.
        lambda config: {**config, "sliding_window": 16},
    )
    whole = saved(case, base, tmp_path)
    assert is_text_model(json.loads((tmp_path / "config.json").read_text()))
    rows = rows_of((1, 9, 40, 60))
    with torch.no_grad():
        theirs = [pooled(whole(torch.tensor([row])).last_hidden_state[0], "mean") for row in rows]
    embedder = Embedder(load(tmp_path).model, PoolingSpec("mean", normalize=False), 64)
    assert_alike(embedder.compute(rows), np.stack(theirs))
