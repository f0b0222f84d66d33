"""What a model folder says about pooling and encoders is read, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine_worker.config import ModelSettings
from engine_worker.embedding.encoder_spec import load_encoder_spec
from engine_worker.embedding.pooling import PoolingSpec, load_pooling
from engine_worker.errors import ModelLoadError
from engine_worker.loading.encoder import choose_pooling

BERT = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 200,
    "max_position_embeddings": 40,
}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def sentence_folder(folder: Path, pooling: dict[str, Any], *modules: str) -> Path:
    kinds = ["Transformer", "Pooling", *modules]
    write(
        folder / "modules.json",
        [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in kinds],
    )
    write(folder / "Pooling" / "config.json", pooling)
    return folder


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_lasttoken", "last"),
    ],
)
def test_pooling_and_normalising_are_what_the_folder_says(
    tmp_path: Path, mode: str, kind: str
) -> None:
    folder = sentence_folder(tmp_path, {mode: True, "pooling_mode_max_tokens": False}, "Normalize")
    write(folder / "sentence_bert_config.json", {"max_seq_length": 128})
    spec = load_pooling(folder)
    assert spec is not None
    assert (spec.kind, spec.normalize, spec.max_tokens) == (kind, True, 128)
    plain = load_pooling(sentence_folder(tmp_path, {mode: True}))
    assert plain is not None
    assert not plain.normalize


def test_a_folder_that_says_nothing_has_no_pooling_of_its_own(tmp_path: Path) -> None:
    assert load_pooling(tmp_path) is None


@pytest.mark.parametrize(
    ("pooling", "modules", "named"),
    [
        ({"pooling_mode_max_tokens": True}, (), "pooling_mode_max_tokens"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, (), "mean_tokens"),
        ({}, (), "without a mode"),
        ({"pooling_mode_mean_tokens": True}, ("Dense",), "Dense"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    tmp_path: Path, pooling: dict[str, Any], modules: tuple[str, ...], named: str
) -> None:
    with pytest.raises(ModelLoadError, match=named):
        load_pooling(sentence_folder(tmp_path, pooling, *modules))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[", encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"modules\.json"):
        load_pooling(tmp_path)


def test_the_setting_goes_before_the_folder(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, {"pooling_mode_cls_token": True})

    def chosen(pooling: str) -> PoolingSpec | None:
        return choose_pooling(ModelSettings(path=folder, name="m", pooling=pooling), None)

    assert chosen("auto") == PoolingSpec("cls", normalize=False)
    assert chosen("last") == PoolingSpec("last")
    assert chosen("none") is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "deberta"}, "deberta"),
        ({"hidden_act": "mish"}, "mish"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 5}, "hidden_size"),
        ({"vocab_size": 0}, "vocab_size"),
    ],
)
def test_an_encoder_that_cannot_be_served_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    write(tmp_path / "config.json", {**BERT, **changes})
    with pytest.raises(ModelLoadError, match=named):
        load_encoder_spec(tmp_path)


def test_roberta_begins_its_positions_after_the_padding_row(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {**BERT, "model_type": "roberta", "pad_token_id": 1})
    spec = load_encoder_spec(tmp_path)
    assert (spec.first_position, spec.max_tokens) == (2, 38)
