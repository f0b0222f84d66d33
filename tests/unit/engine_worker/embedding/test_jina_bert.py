"""Jina's BERT, held to its definition in torch: transformers has it with code of its own only."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine_worker.config import ModelSettings
from engine_worker.embedding import attention, row_programs
from engine_worker.embedding.classifier import Classifier
from engine_worker.embedding.embedder import Embedder
from engine_worker.embedding.labels import read_labels
from engine_worker.embedding.pooling import PoolingSpec
from engine_worker.loading.text_models import load_text_model
from tests.fakes.late import torch
from tests.fakes.quick_compile import two_lengths

HIDDEN, INNER, HEADS, LAYERS, LABELS = 48, 40, 6, 2, 3
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["JinaBertForMaskedLM"],
    "vocab_size": 90,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 8192,
    "type_vocab_size": 2,
    "position_embedding_type": "alibi",
    "feed_forward_type": "geglu",
    "layer_norm_eps": 1e-5,
}
LENGTHS = (1, 2, 17, 40)


def shapes(*, has_more_norms: bool) -> dict[str, tuple[int, ...]]:
    """Of all tensors but biases, which are those whose matrix or norm has one.

    Args:
        has_more_norms: As in the models of other languages and of code.
    """
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (90, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "pooler.dense.weight": (HIDDEN, HIDDEN),
    }
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}."
        found |= {
            f"{block}attention.self.{name}.weight": (HIDDEN, HIDDEN)
            for name in ("query", "key", "value")
        }
        found |= {
            f"{block}attention.output.dense.weight": (HIDDEN, HIDDEN),
            f"{block}attention.output.LayerNorm.weight": (HIDDEN,),
        }
        if has_more_norms:
            found |= {
                f"{block}attention.self.layer_norm_q.weight": (HIDDEN,),
                f"{block}attention.self.layer_norm_k.weight": (HIDDEN,),
                f"{block}layer_norm_1.weight": (HIDDEN,),
                f"{block}layer_norm_2.weight": (HIDDEN,),
                f"{block}mlp.up_gated_layer.weight": (2 * INNER, HIDDEN),
                f"{block}mlp.down_layer.weight": (HIDDEN, INNER),
            }
            continue
        found |= {
            f"{block}mlp.gated_layers.weight": (2 * INNER, HIDDEN),
            f"{block}mlp.wo.weight": (HIDDEN, INNER),
            f"{block}mlp.layernorm.weight": (HIDDEN,),
        }
    return found


def saved(folder: Path, *, is_classifier: bool, has_more_norms: bool = False) -> dict[str, Any]:
    """A random model in a folder: its tensors in torch, without what stands before names."""
    generator = np.random.default_rng(5)
    tensors = {}
    wanted = shapes(has_more_norms=has_more_norms) | (
        {"classifier.weight": (LABELS, HIDDEN)} if is_classifier else {}
    )
    for name, shape in wanted.items():
        is_norm = len(shape) == 1
        tensors[name] = (is_norm + 0.3 * generator.standard_normal(shape)).astype(np.float32)
        if (not name.startswith("embeddings.") and "gated" not in name) or is_norm:
            bias = name.replace(".weight", ".bias")
            tensors[bias] = (0.3 * generator.standard_normal(shape[0])).astype(np.float32)
    more: dict[str, Any] = {}
    if is_classifier:
        labels = {str(index): f"L{index}" for index in range(LABELS)}
        more = {"architectures": ["JinaBertForSequenceClassification"], "id2label": labels}
    (folder / "config.json").write_text(json.dumps(CONFIG | more), encoding="utf-8")
    save_file(
        {
            name if not is_classifier or name.startswith("classifier") else f"bert.{name}": values
            for name, values in tensors.items()
        },
        folder / "model.safetensors",
    )
    return {name: torch.from_numpy(values) for name, values in tensors.items()}


def slopes(num_heads: int) -> list[float]:
    """Press and others' own function."""

    def of_a_power(count: int) -> list[float]:
        start = 2 ** (-(2 ** -(math.log2(count) - 3)))
        return [start * start**index for index in range(count)]

    if math.log2(num_heads).is_integer():
        return of_a_power(num_heads)
    power = 2 ** math.floor(math.log2(num_heads))
    return of_a_power(power) + slopes(2 * power)[0::2][: num_heads - power]


def reference(tensors: dict[str, Any], row: list[int], types: list[int]) -> Any:
    """[T, hidden] of one row."""

    def linear(name: str, x: Any) -> Any:
        return torch.nn.functional.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(name: str, x: Any) -> Any:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, (HIDDEN,), weight, bias, 1e-5)

    x = tensors["embeddings.word_embeddings.weight"][row]
    x = norm("embeddings.LayerNorm", x + tensors["embeddings.token_type_embeddings.weight"][types])
    places = torch.arange(len(row))
    distances = (places[None] - places[:, None]).abs()
    biases = -torch.tensor(slopes(HEADS))[:, None, None] * distances
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}."
        parts = [linear(f"{block}attention.self.{name}", x) for name in ("query", "key", "value")]
        has_more_norms = f"{block}layer_norm_1.weight" in tensors
        if has_more_norms:
            parts[:2] = (
                norm(f"{block}attention.self.layer_norm_{name}", part)
                for name, part in zip("qk", parts[:2], strict=True)
            )
        q, k, v = (part.view(len(row), HEADS, -1).transpose(0, 1) for part in parts)
        scores = q @ k.transpose(1, 2) / (HIDDEN // HEADS) ** 0.5 + biases
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(row), HIDDEN)
        mixed = linear(f"{block}attention.output.dense", mixed)
        attended = norm(f"{block}attention.output.LayerNorm", mixed + x)
        if has_more_norms:
            x = norm(f"{block}layer_norm_1", attended + x)
            up, gate = linear(f"{block}mlp.up_gated_layer", x).split(INNER, dim=-1)
            down = linear(f"{block}mlp.down_layer", up * torch.nn.functional.gelu(gate))
            x = norm(f"{block}layer_norm_2", down + x)
            continue
        x = attended
        gate, up = linear(f"{block}mlp.gated_layers", x).split(INNER, dim=-1)
        down = linear(f"{block}mlp.wo", torch.nn.functional.gelu(gate) * up)
        x = norm(f"{block}mlp.layernorm", down + x)
    return x


@pytest.mark.parametrize(
    ("is_classifier", "queries", "has_more_norms"),
    [
        (False, attention.MAX_QUERIES, False),
        (False, 16, True),
        (True, 512, False),
    ],
)
def test_vectors_and_logits_are_those_of_its_definition(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_classifier: bool,
    queries: int,
    has_more_norms: bool,
) -> None:
    monkeypatch.setattr(row_programs, "batch_shapes", two_lengths)
    monkeypatch.setattr(attention, "MAX_QUERIES", queries)
    tensors = saved(tmp_path, is_classifier=is_classifier, has_more_norms=has_more_norms)
    loaded = load_text_model(ModelSettings(path=tmp_path, name="m"), lambda done, text: None)
    assert loaded.max_tokens == 8192
    generator = np.random.default_rng(0)
    rows = [generator.integers(3, 90, size=length).tolist() for length in LENGTHS]
    types = [[int(2 * place >= len(row)) for place in range(len(row))] for row in rows]
    hidden = [reference(tensors, row, kinds) for row, kinds in zip(rows, types, strict=True)]
    if is_classifier:
        assert loaded.head is not None
        labels = read_labels(json.loads((tmp_path / "config.json").read_text()))
        ours = Classifier(loaded.model, loaded.head, labels, 64).compute(rows, types)
        theirs = np.stack([logits(tensors, one[0]) for one in hidden])
    else:
        embedder = Embedder(loaded.model, PoolingSpec("mean", normalize=False), 64)
        ours = embedder.compute(rows, types)
        theirs = np.stack([one.mean(0).numpy() for one in hidden])
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(theirs.std()))


def logits(tensors: dict[str, Any], first: Any) -> np.ndarray:
    pooled = torch.tanh(tensors["pooler.dense.weight"] @ first + tensors["pooler.dense.bias"])
    found: np.ndarray = (tensors["classifier.weight"] @ pooled + tensors["classifier.bias"]).numpy()
    return found
