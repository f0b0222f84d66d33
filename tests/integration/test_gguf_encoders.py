"""Encoders in GGUF files, written as llama.cpp's converter does: the vectors of transformers."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter, PoolingType, quants
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from engine_worker.compute.weights.gguf.checkpoint import read_metadata
from engine_worker.compute.weights.gguf.encoder_families import ENCODERS
from engine_worker.compute.weights.gguf.metadata import GgufMetadata
from engine_worker.config import ModelSettings
from engine_worker.embedding.families.registry import encoder_spec, is_encoder
from engine_worker.embedding.pooling import PoolingKind, PoolingSpec, load_pooling
from engine_worker.embedding.row_programs import RowPrograms, Vectors
from engine_worker.embedding.service import Embeddings
from engine_worker.errors import ModelLoadError
from engine_worker.loading.encoder import ServedEncoder, is_encoder_folder, load_encoder
from engine_worker.loading.gguf_folder import derived_files, with_model_folder
from tests.fakes.gguf_files import Keys, Tensor, add_word_pieces, write_gguf
from tests.fakes.tokenizer_shapes import TEXTS, file_of
from tests.integration.test_encoder_parity import assert_alike, randomize
from tests.unit.engine_worker.compute.weights.test_gguf_own_code_encoders import CASES as OWN_CODE
from tests.unit.engine_worker.loading.test_gguf_hostile_values import ODD

Convert = Callable[[Mapping[str, Tensor], Keys], Iterable[tuple[str, Tensor]]]
VOCABULARY = 520
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 80,
}
GEMMA: dict[str, Any] = {
    **SIZES,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    # Half of it on either side: shorter than the texts.
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "use_bidirectional_attention": True,
}


def without_pooler(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    for name, values in tensors.items():
        if "pooler" not in name and "position_ids" not in name:
            yield name, values


def roberta(tensors: Mapping[str, Tensor], config: Keys) -> Iterable[tuple[str, Tensor]]:
    """Positions begin behind that of padding."""
    for name, values in without_pooler(tensors, config):
        is_table = name.endswith("position_embeddings.weight")
        yield (
            name.removeprefix("roberta."),
            values[config["pad_token_id"] + 1 :] if is_table else values,
        )


def nomic(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    """Under the names of the checkpoints that are converted."""
    names = {
        "self_attn.o_proj": "attn.out_proj",
        "post_attention_layernorm": "norm1",
        "mlp.up_proj": "mlp.fc11",
        "mlp.gate_proj": "mlp.fc12",
        "mlp.down_proj": "mlp.fc2",
        "post_mlp_layernorm": "norm2",
    }
    for name, values in without_pooler(tensors, {}):
        if ".self_attn.q_proj" in name:
            parts = [tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj")]
            parts.append(tensors[name.replace("q_proj", "v_proj")])
            yield f"encoder.{name}".replace("self_attn.q_proj", "attn.Wqkv"), np.concatenate(parts)
        elif ".k_proj" not in name and ".v_proj" not in name:
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            name = name.replace("embeddings.LayerNorm", "emb_ln")
            yield (f"encoder.{name}" if name.startswith("layers") else name), values


def base_names(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    for name, values in tensors.items():
        yield name.removeprefix("model."), values


def gemma(tensors: Mapping[str, Tensor], config: Keys) -> Iterable[tuple[str, Tensor]]:
    for name, values in base_names(tensors, config):
        yield name, values + 1 if name.endswith("norm.weight") else values


@dataclass(frozen=True)
class Case:
    """One family.

    Attributes:
        arch: llama.cpp's name of it.
        model: Its class in transformers.
        config: Of transformers.
        convert: What happens to tensors.
        keys: That the converter writes for this family only.
        layers: Matrices behind the last layer: outputs of each.
        pooling: How tokens' vectors become one.
    """

    arch: str
    model: str
    config: Callable[[], Any]
    convert: Convert = without_pooler
    keys: Mapping[str, int | float | str] | None = None
    layers: tuple[int, ...] = ()
    pooling: PoolingType = PoolingType.MEAN


CASES = {
    "bert": Case(
        "bert", "BertModel", lambda: transformers.BertConfig(**SIZES), pooling=PoolingType.CLS
    ),
    "roberta": Case(
        "bert",
        "RobertaModel",
        lambda: transformers.RobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1),
        roberta,
    ),
    "distilbert": Case(
        "bert",
        "DistilBertModel",
        lambda: transformers.DistilBertConfig(
            dim=32,
            n_layers=3,
            n_heads=4,
            hidden_dim=64,
            vocab_size=VOCABULARY,
            max_position_embeddings=80,
        ),
        keys={
            "block_count": 3,
            "attention.head_count": 4,
            "embedding_length": 32,
            "feed_forward_length": 64,
            "attention.layer_norm_epsilon": 1e-12,
        },
    ),
    "nomic-bert": Case(
        "nomic-bert",
        "NomicBertModel",
        lambda: transformers.NomicBertConfig(**SIZES),
        nomic,
        keys={"rope.freq_base": 1000.0},
    ),
    "modern-bert": Case(
        "modern-bert",
        "ModernBertModel",
        lambda: transformers.ModernBertConfig(
            **{**SIZES, "num_hidden_layers": 5},
            local_attention=8,
            global_attn_every_n_layers=3,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
        base_names,
        keys={
            "attention.sliding_window": 8,
            "attention.sliding_window_pattern": 3,
            "attention.layer_norm_epsilon": 1e-5,
            "rope.freq_base": 160_000.0,
        },
        pooling=PoolingType.CLS,
    ),
    "gemma-embedding": Case(
        "gemma-embedding",
        "Gemma3TextModel",
        lambda: transformers.Gemma3TextConfig(**GEMMA),
        gemma,
        keys={
            "attention.sliding_window": 8,
            "attention.sliding_window_pattern": 2,
            "rope.freq_base": 1_000_000.0,
        },
        layers=(48, 24),
    ),
    "modern-bert-silu": Case(
        "modern-bert",
        "ModernBertModel",
        lambda: transformers.ModernBertConfig(
            **SIZES,
            hidden_activation="silu",
            local_attention=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
        base_names,
        keys={
            "attention.sliding_window": 8,
            "attention.sliding_window_pattern": 3,
            "attention.layer_norm_epsilon": 1e-5,
            "rope.freq_base": 160_000.0,
            "hidden_activation": "silu",
        },
        pooling=PoolingType.CLS,
    ),
    "eurobert": Case(
        "eurobert",
        "EuroBertModel",
        lambda: transformers.EuroBertConfig(
            **SIZES,
            num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id"), 0),
        ),
        base_names,
        keys={"rope.freq_base": 5000.0},
        pooling=PoolingType.LAST,
    ),
}


def tokenizer() -> Backend:
    """BERT's, as `tokenizer.json` has it."""
    backend = Backend.from_str(file_of("wordpiece"))
    ids = {text: backend.token_to_id(text) for text in ("[CLS]", "[SEP]")}
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=list(ids.items()),
    )
    return backend


@dataclass
class Model:
    """A random model of transformers and what is behind it, and its file."""

    whole: Any
    layers: list[Any]
    path: Path


def written(case: Case, folder: Path, kind: str = "F32") -> Model:
    torch.manual_seed(1)
    config = case.config()
    config._attn_implementation = "eager"
    whole = getattr(transformers, case.model)(config).eval()
    randomize(whole)
    whole.save_pretrained(folder)
    layers, width = [], SIZES["hidden_size"]
    for outputs in case.layers:
        layers.append(torch.nn.Linear(width, outputs, bias=False))
        width = outputs

    def more(writer: GGUFWriter) -> None:
        for key, value in (case.keys or {}).items():
            add: Any = {int: writer.add_uint32, str: writer.add_string}.get(
                type(value), writer.add_float32
            )
            add(f"{case.arch}.{key}", value)
        writer.add_pooling_type(case.pooling)
        add_word_pieces(writer, tokenizer())
        for number, layer in enumerate(layers, 2):
            writer.add_tensor(f"dense_{number}.weight", layer.weight.detach().numpy())

    path = folder / "m.gguf"
    write_gguf(path, folder, arch=case.arch, kind=kind, convert=case.convert, more=more)
    return Model(whole, layers, path)


def served(path: Path, folder: Path) -> ServedEncoder:
    settings = ModelSettings(path=path, name="m", weights_cache_dir=folder / "cache")
    return load_encoder(with_model_folder(settings), lambda phase, fraction, detail: None)


def inputs_of(whole: Any, token_ids: list[int]) -> dict[str, Any]:
    """RoBERTa would take a token of this vocabulary for padding, which has no place."""
    inputs = {"input_ids": torch.tensor([token_ids])}
    if whole.config.model_type != "roberta":
        return inputs
    first = whole.config.pad_token_id + 1
    return {**inputs, "position_ids": torch.arange(first, first + len(token_ids))[None]}


def vectors_of(model: Model, case: Case, texts: Iterable[str]) -> Vectors:
    """As transformers computes them, with the ids of the original tokenizer."""
    backend, found = tokenizer(), []
    base = getattr(model.whole, model.whole.base_model_prefix, model.whole)
    for text in texts:
        with torch.no_grad():
            hidden = base(**inputs_of(model.whole, backend.encode(text).ids)).last_hidden_state[0]
            vector = {
                PoolingType.MEAN: hidden.mean(0),
                PoolingType.CLS: hidden[0],
                PoolingType.LAST: hidden[-1],
            }[case.pooling]
            vector = torch.nn.Sequential(*model.layers)(vector)
            found.append((vector / vector.norm()).numpy())
    return np.stack(found)


@pytest.fixture(autouse=True)
def compiled_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of each length is what takes the time."""
    monkeypatch.setattr(RowPrograms, "warm_up", lambda programs, progress: None)


QUESTIONS = ["a river of lower stones", "MiXeD cases, ÄÖÜ!", "def f(a, b): return {'k': [1, 2]}"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("bert", "gemma-embedding") else pytest.mark.parity)
        for name in CASES
    ],
)
def test_a_file_of_an_encoder_gives_the_vectors_of_its_original(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = written(case, tmp_path)
    encoder = served(model.path, tmp_path)
    assert encoder.embedder is not None
    embeddings = Embeddings(encoder.embedder, encoder.tokenizer, encoder.vocab_size)
    vectors, _ = embeddings.embed_texts(QUESTIONS)
    assert_alike(vectors, vectors_of(model, case, QUESTIONS))
    assert encoder.offer.pooling == {1: "mean", 2: "cls", 3: "last"}[case.pooling.value]


def test_a_quantised_file_gives_the_vectors_of_its_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = written(CASES["bert"], tmp_path, kind="Q8_0")
    with torch.no_grad():
        for name, parameter in model.whole.named_parameters():
            if parameter.ndim == 2 and "pooler" not in name:
                q8 = GGMLQuantizationType.Q8_0
                blocks = quants.quantize(parameter.numpy(), q8)
                parameter.copy_(torch.from_numpy(quants.dequantize(blocks, q8)))
    with caplog.at_level(logging.INFO):
        encoder = served(model.path, tmp_path)
    assert "m is stored as GGUF Q8_0; its numbers become float32" in caplog.text
    assert encoder.embedder is not None
    embeddings = Embeddings(encoder.embedder, encoder.tokenizer, encoder.vocab_size)
    vectors, _ = embeddings.embed_texts(QUESTIONS)
    assert_alike(vectors, vectors_of(model, CASES["bert"], QUESTIONS))


def test_a_cross_encoders_file_gives_the_logits_of_its_original(tmp_path: Path) -> None:
    """As bge-reranker's: dense, tanh and one label behind the first token of XLM-RoBERTa."""
    torch.manual_seed(1)
    config = transformers.RobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1, num_labels=1)
    config._attn_implementation = "eager"
    whole = transformers.RobertaForSequenceClassification(config).eval()
    randomize(whole)
    whole.save_pretrained(tmp_path)

    def more(writer: GGUFWriter) -> None:
        writer.add_pooling_type(PoolingType.RANK)
        add_word_pieces(writer, tokenizer())

    path = tmp_path / "m.gguf"
    write_gguf(path, tmp_path, arch="bert", convert=roberta, more=more)
    encoder = served(path, tmp_path)
    assert encoder.classifier is not None
    backend = tokenizer()
    rows = [backend.encode(text, "some lower stones").ids for text in QUESTIONS]
    with torch.no_grad():
        logits = [whole(**inputs_of(whole, row)).logits[0].numpy() for row in rows]
    np.testing.assert_allclose(encoder.classifier.compute(rows), np.stack(logits), atol=1e-4)
    (tmp_path / "other").mkdir()
    # BERT's own has a layer before the labels that the converter leaves out.
    half = replace(CASES["bert"], pooling=PoolingType.RANK)
    model = written(half, tmp_path / "other")
    with pytest.raises(ModelLoadError, match=r"cls\.output\.weight.*safetensors"):
        served(model.path, tmp_path)


def test_a_decoders_file_that_names_its_pooling_makes_embeddings_beside_texts(
    tmp_path: Path,
) -> None:
    """As Qwen3-Embedding's, of which nothing else tells that it is one."""
    config = transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8)
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    path, found = tmp_path / "m.gguf", {}
    kinds: dict[PoolingType | None, PoolingKind | None] = {None: None, PoolingType.LAST: "last"}
    for pooling, kind in kinds.items():

        def more(writer: GGUFWriter, pooling: PoolingType | None = pooling) -> None:
            add_word_pieces(writer, tokenizer())
            if pooling is not None:
                writer.add_pooling_type(pooling)

        path = tmp_path / f"{kind}.gguf"
        write_gguf(path, tmp_path, arch="qwen3", convert=as_they_are, more=more)
        settings = ModelSettings(path=path, name="m", weights_cache_dir=tmp_path / "cache")
        settings = with_model_folder(settings)
        assert not is_encoder_folder(settings)
        found[kind] = load_pooling(settings.path)
    assert found == {None: None, "last": PoolingSpec("last", normalize=True)}


def as_they_are(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    yield from tensors.items()


@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
def test_word_pieces_of_a_file_have_the_ids_of_the_original(tmp_path: Path, is_old: bool) -> None:
    original = tokenizer()
    whole = transformers.BertModel(transformers.BertConfig(**SIZES))
    whole.save_pretrained(tmp_path)
    write_gguf(
        tmp_path / "m.gguf",
        tmp_path,
        arch="bert",
        convert=without_pooler,
        more=lambda writer: add_word_pieces(writer, original, is_old=is_old),
    )
    encoder = served(tmp_path / "m.gguf", tmp_path)
    # Old files don't say which other tokens are tokens of their own.
    texts = [text for text in TEXTS if not is_old or "<" not in text]
    for text in texts:
        assert encoder.tokenizer.encode(text, add_special_tokens=True) == original.encode(text).ids
    first, second = (encoder.tokenizer.encode_part(text) for text in QUESTIONS[:2])
    ids, types = encoder.tokenizer.join_pair(first.cut(len(first)), second.cut(len(second)))
    pair = original.encode(QUESTIONS[0], QUESTIONS[1])
    assert (ids, types) == (pair.ids, pair.type_ids)


def test_the_cases_cover_every_family_that_transformers_has() -> None:
    held = {case.arch for case in CASES.values()} | {case.arch for case in OWN_CODE.values()}
    assert held == {name for name, _ in ENCODERS}


@pytest.mark.parametrize("name", CASES)
def test_any_value_of_an_encoders_file_makes_a_model_or_one_clear_refusal(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    metadata = read_metadata(written(case, tmp_path).path)
    keys = [key for key in metadata.values if key.startswith(case.arch)]
    keys += [f"{case.arch}.classifier.output_labels", f"{case.arch}.attention.causal"]
    num_loaded = 0
    for key in keys:
        for value in ODD:
            changed = GgufMetadata(metadata.files)
            changed.values = {**metadata.values, key: value}
            with suppress(ModelLoadError):
                files = derived_files(changed, None)
                config = json.loads(files["config.json"])
                if is_encoder(config):
                    encoder_spec(config)
                num_loaded += 1
    assert 0 < num_loaded < len(keys) * len(ODD)
