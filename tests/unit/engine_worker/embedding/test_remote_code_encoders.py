"""Encoders that transformers has with code of their own only, held to their definitions in torch.

NeoBERT (arXiv 2502.19587), the experts of nomic-embed-text-v2-moe (arXiv 2502.07972), and the names
that jina-reranker-v2 gives to the tensors of XLM-RoBERTa.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine_worker.config import ModelSettings
from engine_worker.embedding import row_programs
from engine_worker.embedding.embedder import Embedder
from engine_worker.embedding.pooling import PoolingSpec
from engine_worker.loading.text_models import load_text_model
from tests.fakes.late import torch
from tests.fakes.quick_compile import two_lengths

HIDDEN, HEADS, VOCAB = 32, 4, 90
HEAD_DIM = HIDDEN // HEADS
LENGTHS = (1, 2, 17, 40)
EPS = 1e-5
Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Any]

NEOBERT: dict[str, Any] = {
    "model_type": "neobert",
    "architectures": ["NeoBERTLMHead"],
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    # Two thirds are 26, which become 32.
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_length": 64,
    "norm_eps": EPS,
}
NOMIC_EXPERTS, NOMIC_INNER = 5, 24
NOMIC: dict[str, Any] = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "vocab_size": VOCAB,
    "n_embd": HIDDEN,
    "n_layer": 2,
    "n_head": HEADS,
    "n_inner": NOMIC_INNER,
    "n_positions": 64,
    "max_trained_positions": 64,
    "activation_function": "gelu",
    "rotary_emb_base": 10_000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "layer_norm_epsilon": EPS,
    "type_vocab_size": 1,
    "qkv_proj_bias": True,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "prenorm": False,
    "moe_every_n_layers": 2,
    "num_experts": NOMIC_EXPERTS,
    "moe_top_k": 2,
    "moe_normalize_expert_weights": False,
    "num_shared_experts": 0,
    "expert_choice_router": False,
    "ffn_div": 1,
}
XLMR_INNER = 48
XLMR: dict[str, Any] = {
    "model_type": "xlm-roberta",
    "architectures": ["XLMRobertaModel"],
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": XLMR_INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 66,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "layer_norm_eps": EPS,
}


def with_biases(*names: str, shapes: Shapes) -> Shapes:
    return shapes | {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in names}


def neobert_shapes() -> Shapes:
    found: Shapes = {
        "model.encoder.weight": (VOCAB, HIDDEN),
        "model.layer_norm.weight": (HIDDEN,),
        "decoder.weight": (VOCAB, HIDDEN),
        "decoder.bias": (VOCAB,),
    }
    for layer in range(2):
        block = f"model.transformer_encoder.{layer}."
        found |= {
            f"{block}qkv.weight": (3 * HIDDEN, HIDDEN),
            f"{block}wo.weight": (HIDDEN, HIDDEN),
            f"{block}ffn.w12.weight": (2 * 32, HIDDEN),
            f"{block}ffn.w3.weight": (HIDDEN, 32),
            f"{block}attention_norm.weight": (HIDDEN,),
            f"{block}ffn_norm.weight": (HIDDEN,),
        }
    return found


def rms_norm(x: Any, weight: Any) -> Any:
    return torch.nn.functional.rms_norm(x, (HIDDEN,), weight, EPS)


def angles(num_tokens: int) -> Any:
    frequencies = 1.0 / 10_000.0 ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    return torch.outer(torch.arange(num_tokens).float(), frequencies)


def attended(q: Any, k: Any, v: Any) -> Any:
    """[T, H, D] each; every token sees all."""
    mixed = torch.nn.functional.scaled_dot_product_attention(
        *(one.transpose(0, 1)[None] for one in (q, k, v))
    )
    return mixed[0].transpose(0, 1).reshape(len(q), HIDDEN)


def neobert(tensors: Tensors, row: list[int]) -> Any:
    """Neighbours are pairs, turned as complex numbers; q, k and v stand side by side by head."""
    turn = torch.polar(torch.ones(len(row), HEAD_DIM // 2), angles(len(row)))[:, None]

    def turned(x: Any) -> Any:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)

    x = tensors["model.encoder.weight"][row]
    for layer in range(2):
        block = f"model.transformer_encoder.{layer}."
        normed = rms_norm(x, tensors[f"{block}attention_norm.weight"])
        qkv = (normed @ tensors[f"{block}qkv.weight"].T).view(len(row), HEADS, 3 * HEAD_DIM)
        q, k, v = qkv.chunk(3, dim=-1)
        x = x + attended(turned(q), turned(k), v) @ tensors[f"{block}wo.weight"].T
        normed = rms_norm(x, tensors[f"{block}ffn_norm.weight"])
        gate, up = (normed @ tensors[f"{block}ffn.w12.weight"].T).chunk(2, dim=-1)
        x = x + (torch.nn.functional.silu(gate) * up) @ tensors[f"{block}ffn.w3.weight"].T
    return rms_norm(x, tensors["model.layer_norm.weight"])


def flash_shapes(head: str, mixer: str, inner: int) -> Shapes:
    """What nomic's and Jina's code for flash attention call alike: two layers."""
    found: Shapes = {f"{head}emb_ln.weight": (HIDDEN,), f"{head}emb_ln.bias": (HIDDEN,)}
    for layer in range(2):
        block = f"{head}encoder.layers.{layer}."
        weights: Shapes = {
            f"{block}{mixer}.Wqkv.weight": (3 * HIDDEN, HIDDEN),
            f"{block}{mixer}.out_proj.weight": (HIDDEN, HIDDEN),
            f"{block}norm1.weight": (HIDDEN,),
            f"{block}norm2.weight": (HIDDEN,),
            f"{block}mlp.fc1.weight": (inner, HIDDEN),
            f"{block}mlp.fc2.weight": (HIDDEN, inner),
        }
        names = (name.removesuffix(".weight") for name in weights)
        found |= with_biases(*names, shapes=weights)
    return found


def nomic_shapes() -> Shapes:
    found = flash_shapes("", "attn", NOMIC_INNER)
    dense = [name for name in found if name.startswith("encoder.layers.1.mlp.")]
    stack = (NOMIC_EXPERTS * NOMIC_INNER, HIDDEN)
    return {name: shape for name, shape in found.items() if name not in dense} | {
        "embeddings.word_embeddings.weight": (VOCAB, HIDDEN),
        "embeddings.token_type_embeddings.weight": (1, HIDDEN),
        "encoder.layers.1.mlp.router.layer.weight": (NOMIC_EXPERTS, HIDDEN),
        "encoder.layers.1.mlp.experts.mlp.w1": stack,
        "encoder.layers.1.mlp.experts.mlp.w2": stack,
        "encoder.layers.1.mlp.experts.bias": (HIDDEN,),
    }


def linear(tensors: Tensors, name: str, x: Any) -> Any:
    return torch.nn.functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def layer_norm(tensors: Tensors, name: str, x: Any) -> Any:
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    return torch.nn.functional.layer_norm(x, (HIDDEN,), weight, bias, EPS)


def flash_layers(
    tensors: Tensors,
    x: Any,
    head: str,
    mixer: str,
    turned: Callable[[Any], Any],
    mlp: Callable[[str, Any], Any],
) -> Any:
    for layer in range(2):
        block = f"{head}encoder.layers.{layer}."
        qkv = linear(tensors, f"{block}{mixer}.Wqkv", x).view(len(x), 3, HEADS, HEAD_DIM)
        mixed = attended(turned(qkv[:, 0]), turned(qkv[:, 1]), qkv[:, 2])
        added = linear(tensors, f"{block}{mixer}.out_proj", mixed)
        x = layer_norm(tensors, f"{block}norm1", x + added)
        x = layer_norm(tensors, f"{block}norm2", x + mlp(f"{block}mlp.", x))
    return x


def nomic(tensors: Tensors, row: list[int]) -> Any:
    """Halves are pairs. Of a softmax over all experts two count, as they are."""
    cosine, sine = (
        torch.cat([one, one], dim=-1)[:, None]
        for one in (angles(len(row)).cos(), angles(len(row)).sin())
    )

    def turned(x: Any) -> Any:
        first, second = x.chunk(2, dim=-1)
        return x * cosine + torch.cat([-second, first], dim=-1) * sine

    def mlp(block: str, x: Any) -> Any:
        if f"{block}router.layer.weight" not in tensors:
            inner = torch.nn.functional.gelu(linear(tensors, f"{block}fc1", x))
            return linear(tensors, f"{block}fc2", inner)
        scores = (x @ tensors[f"{block}router.layer.weight"].T).softmax(-1)
        weights, chosen = scores.topk(2, dim=-1)
        shape = (NOMIC_EXPERTS, NOMIC_INNER, HIDDEN)
        up, down = (tensors[f"{block}experts.mlp.{name}"].view(shape) for name in ("w1", "w2"))
        rows = []
        for token, its_weights, experts in zip(x, weights, chosen, strict=True):
            outputs = (
                weight * (torch.nn.functional.gelu(token @ up[expert].T) @ down[expert])
                for weight, expert in zip(its_weights, experts, strict=True)
            )
            rows.append(sum(outputs))
        return torch.stack(rows) + tensors[f"{block}experts.bias"]

    words = tensors["embeddings.word_embeddings.weight"][row]
    types = tensors["embeddings.token_type_embeddings.weight"][[0] * len(row)]
    x = layer_norm(tensors, "emb_ln", words + types)
    return flash_layers(tensors, x, "", "attn", turned, mlp)


def xlmr_shapes() -> Shapes:
    return flash_shapes("roberta.", "mixer", XLMR_INNER) | {
        "roberta.embeddings.word_embeddings.weight": (VOCAB, HIDDEN),
        "roberta.embeddings.position_embeddings.weight": (66, HIDDEN),
        "roberta.embeddings.token_type_embeddings.weight": (1, HIDDEN),
    }


def xlmr(tensors: Tensors, row: list[int]) -> Any:
    def mlp(block: str, x: Any) -> Any:
        inner = torch.nn.functional.gelu(linear(tensors, f"{block}fc1", x))
        return linear(tensors, f"{block}fc2", inner)

    head = "roberta.embeddings."
    positions = list(range(2, 2 + len(row)))
    x = tensors[f"{head}word_embeddings.weight"][row]
    x = x + tensors[f"{head}position_embeddings.weight"][positions]
    x = x + tensors[f"{head}token_type_embeddings.weight"][[0] * len(row)]
    x = layer_norm(tensors, "roberta.emb_ln", x)
    return flash_layers(tensors, x, "roberta.", "mixer", lambda one: one, mlp)


@pytest.mark.parametrize(
    ("config", "shapes", "reference"),
    [
        (NEOBERT, neobert_shapes, neobert),
        (NOMIC, nomic_shapes, nomic),
        (XLMR, xlmr_shapes, xlmr),
    ],
    ids=["neobert", "nomic-moe", "jina-reranker-v2"],
)
def test_vectors_are_those_of_its_definition(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    shapes: Callable[[], Shapes],
    reference: Callable[[Tensors, list[int]], Any],
) -> None:
    monkeypatch.setattr(row_programs, "batch_shapes", two_lengths)
    generator = np.random.default_rng(5)
    stored = {
        name: (
            (len(shape) == 1 and name.endswith(".weight")) + 0.3 * generator.standard_normal(shape)
        ).astype(np.float32)
        for name, shape in shapes().items()
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(stored, tmp_path / "model.safetensors")
    loaded = load_text_model(ModelSettings(path=tmp_path, name="m"), lambda done, text: None)
    assert loaded.max_tokens == 64
    rows = [generator.integers(3, VOCAB, size=length).tolist() for length in LENGTHS]
    ours = Embedder(loaded.model, PoolingSpec("mean", normalize=False), 64).compute(rows)
    tensors = {name: torch.from_numpy(values) for name, values in stored.items()}
    theirs = np.stack([reference(tensors, row).mean(0).numpy() for row in rows])
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(theirs.std()))
