"""What a model folder says about pooling and encoders is read, or refused by name."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine_worker.config import ModelSettings
from engine_worker.embedding.dense import DenseSpec, load_dense
from engine_worker.embedding.families.registry import load_encoder_spec
from engine_worker.embedding.pooling import PoolingSpec, load_pooling
from engine_worker.embedding.service import Embeddings
from engine_worker.errors import ModelLoadError
from engine_worker.loading.encoder import choose_pooling
from protocol.wire.messages import Embed
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

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
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_weightedmean_tokens", "weightedmean"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len"),
    ],
)
def test_pooling_and_normalising_are_what_the_folder_says(
    tmp_path: Path, mode: str, kind: str
) -> None:
    folder = sentence_folder(tmp_path, {"pooling_mode_max_tokens": False, mode: True}, "Normalize")
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
    ("mode", "kind"),
    [
        ("mean", "mean"),
        ("cls", "cls"),
        ("lasttoken", "last"),
        (["lasttoken"], "last"),
        ("max", "max"),
        ("weightedmean", "weightedmean"),
        ("mean_sqrt_len_tokens", "mean_sqrt_len"),
    ],
)
def test_the_layout_since_release_5_4_names_its_pooling(
    tmp_path: Path, mode: Any, kind: str
) -> None:
    folder = sentence_folder(
        tmp_path, {"embedding_dimension": 32, "pooling_mode": mode, "include_prompt": True}
    )
    write(
        folder / "modules.json",
        [
            {"type": "sentence_transformers.base.modules.transformer.Transformer", "path": ""},
            {
                "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
                "path": "Pooling",
            },
            {
                "type": "sentence_transformers.base.modules.normalize.Normalize",
                "path": "2_Normalize",
            },
        ],
    )
    write(folder / "sentence_bert_config.json", {"transformer_task": "feature-extraction"})
    write(folder / "tokenizer_config.json", {"model_max_length": 96})
    spec = load_pooling(folder)
    assert spec == PoolingSpec(spec.kind if spec else "cls", True, 96)
    assert spec.kind == kind


@pytest.mark.parametrize(
    ("stated", "length", "expected"),
    [
        ({"max_seq_length": 64}, 96, 64),
        ({"max_seq_length": None}, 96, 96),
        ({}, 96, 96),
        ({}, 10**30, None),
        ({}, 1e30, None),
        ({}, "96", None),
    ],
)
def test_the_longest_text_is_the_folder_s_or_the_tokenizer_s(
    tmp_path: Path, stated: dict[str, Any], length: Any, expected: int | None
) -> None:
    folder = sentence_folder(tmp_path, {"pooling_mode": "mean"})
    write(folder / "sentence_bert_config.json", stated)
    write(folder / "tokenizer_config.json", {"model_max_length": length})
    spec = load_pooling(folder)
    assert spec is not None
    assert spec.max_tokens == expected


def test_a_default_prompt_stands_before_texts(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, {"pooling_mode": "mean"})
    prompts = {"query": "query: ", "document": ""}
    for name, expected in (("query", "query: "), ("document", ""), (None, "")):
        write(
            folder / "config_sentence_transformers.json",
            {"prompts": prompts, "default_prompt_name": name},
        )
        spec = load_pooling(folder)
        assert spec is not None
        assert spec.prompt == expected
    write(folder / "config_sentence_transformers.json", {"default_prompt_name": "none"})
    with pytest.raises(ModelLoadError, match="default_prompt_name"):
        load_pooling(folder)


def test_a_prompt_is_put_in_lower_case_with_its_text() -> None:
    """As by sentence-transformers, which puts it before the text first."""
    tokenizer = byte_level_tokenizer()
    pooling = PoolingSpec("mean", prompt="Query: ", lowercase=True)
    embedder: Any = SimpleNamespace(pooling=pooling, max_tokens=64, num_dimensions=4)
    reader = Embeddings(embedder, tokenizer, 1000)
    (row,) = reader.rows(Embed(request_id="", deadline_s=0.0, texts=("Ab",)), 0, 1)
    assert row.token_ids == tokenizer.encode("query: ab", add_special_tokens=True)


def test_a_pooling_that_leaves_the_prompt_out_is_refused_where_there_is_one(
    tmp_path: Path,
) -> None:
    folder = sentence_folder(tmp_path, {"pooling_mode": "mean", "include_prompt": False})
    assert load_pooling(folder) is not None
    write(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
    )
    with pytest.raises(ModelLoadError, match="include_prompt"):
        load_pooling(folder)


def test_dense_layers_are_read_in_their_order(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, {"pooling_mode": "mean"}, "Dense", "Normalize")
    tanh = "torch.nn.modules.activation.Tanh"
    write(
        folder / "Dense" / "config.json",
        {"in_features": 32, "out_features": 8, "bias": False, "activation_function": tanh},
    )
    spec = load_pooling(folder)
    assert spec is not None
    assert spec.dense == (DenseSpec(folder / "Dense", 32, 8, False, "Tanh"),)
    save_file({"linear.weight": np.ones((8, 32), np.float16)}, folder / "Dense/model.safetensors")
    weights = load_dense(spec.dense[0])
    assert weights.weight.shape == (8, 32)
    assert weights.weight.dtype == np.dtype(np.float32)
    assert not weights.bias.any()
    save_file({"linear.weight": np.ones((8, 31), np.float32)}, folder / "Dense/model.safetensors")
    with pytest.raises(ModelLoadError, match=r"linear\.weight"):
        load_dense(spec.dense[0])


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"activation_function": "torch.nn.Softplus"}, "Softplus"),
        ({"use_residual": True}, "use_residual"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
        ({"in_features": 0}, "in_features"),
    ],
)
def test_a_dense_layer_that_is_not_computed_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    folder = sentence_folder(tmp_path, {"pooling_mode": "mean"}, "Dense")
    write(folder / "Dense" / "config.json", {"in_features": 32, "out_features": 8, **config})
    with pytest.raises(ModelLoadError, match=named):
        load_pooling(folder)


def test_modules_stay_within_their_folder(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, {"pooling_mode": "mean"})
    write(folder / "modules.json", [{"type": "x.Pooling", "path": "../elsewhere"}])
    with pytest.raises(ModelLoadError, match="elsewhere"):
        load_pooling(folder)


@pytest.mark.parametrize(
    ("pooling", "modules", "named"),
    [
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, (), "mean_tokens"),
        ({}, (), "without a mode"),
        ({"pooling_mode": "attention"}, (), "attention"),
        ({"pooling_mode": ["mean", "max"]}, (), "mean, max"),
        ({"pooling_mode": 5}, (), "5"),
        ({"pooling_mode_mean_tokens": True}, ("LSTM",), "LSTM"),
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
    write(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
    )
    assert chosen("last") == PoolingSpec("last", prompt="q: ", prompts=(("query", "q: "),))


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
