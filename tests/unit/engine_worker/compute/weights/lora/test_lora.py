"""LoRA adapters, held to the weights that PEFT itself merges; `write_golden.py` has made the
files."""

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.fingerprint import fingerprint
from engine_worker.compute.weights.loader import with_own_head
from engine_worker.errors import CheckpointError, ModelConfigError, UnsupportedFormatError

GOLDEN = Path(__file__).parent / "golden"
BASE = GOLDEN / "base"
ADAPTERS = sorted(path.name for path in GOLDEN.iterdir() if path != BASE)
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_weight_is_the_one_that_peft_merges(name: str) -> None:
    checkpoint = open_checkpoint(BASE, GOLDEN / name)
    expected = load_file(GOLDEN / name / "merged.safetensors")
    base = open_checkpoint(BASE)
    changed = 0
    with checkpoint.reading() as read, base.reading() as read_base:
        assert set(checkpoint.tensors) == set(base.tensors) == set(expected)
        for tensor, values in expected.items():
            np.testing.assert_allclose(read(tensor), values, rtol=1e-5, atol=1e-6)
            assert checkpoint.tensors[tensor].shape == values.shape
            changed += not np.array_equal(read_base(tensor), values)
    assert changed >= 3


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_fingerprint_is_that_of_model_and_adapter(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / name, tmp_path, dirs_exist_ok=True)
    prints = {fingerprint(BASE, {}), fingerprint(BASE, {}, tmp_path)}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 11}))
    prints.add(fingerprint(BASE, {}, tmp_path))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first] + 1}, tmp_path / "adapter_model.safetensors")
    prints.add(fingerprint(BASE, {}, tmp_path))
    assert len(prints) == 4


def test_a_head_that_the_adapter_brings_goes_before_a_tied_config(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "base")
    config = json.loads((BASE / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    tensors = load_file(BASE / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "base", GOLDEN / "embedding_and_head")
    graph = declare(load_spec(tmp_path / "base"), np.float32)
    assert graph.spec.tied_head
    assert not with_own_head(graph, checkpoint).spec.tied_head


def adapter(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    whole = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def pair(module: str, a: tuple[int, int], b: tuple[int, int]) -> dict[str, np.ndarray]:
    return {
        f"{module}.lora_A.weight": np.ones(a, np.float32),
        f"{module}.lora_B.weight": np.ones(b, np.float32),
    }


def refused(folder: Path, kind: type[Exception], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        open_checkpoint(BASE, folder)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("in_files", "in_adapter"),
    [
        ("language_model.model.", "model.language_model."),
        ("model.language_model.", "language_model.model."),
        ("language_model.model.", "model."),
        ("model.", "model.language_model."),
        ("", "model."),
        ("model.", ""),
    ],
)
def test_an_adapter_may_call_the_modules_as_transformers_does_now(
    tmp_path: Path, in_files: str, in_adapter: str
) -> None:
    """Gemma 3 and Mistral 3 lie on the hub under other names than their models have in memory."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text((BASE / "config.json").read_text())
    tensors = load_file(BASE / "model.safetensors")
    save_file(
        {name.replace("model.", in_files, 1): one for name, one in tensors.items()},
        base / "model.safetensors",
    )
    module = "layers.0.self_attn.q_proj"
    folder = adapter(
        tmp_path,
        pair(f"base_model.model.{in_adapter}{module}", (2, 16), (16, 2))
        | {f"base_model.model.{in_adapter}norm.weight": np.full(16, 7, np.float32)},
        alpha_pattern={f"^{in_adapter}{module}": 8},
    )
    checkpoint = open_checkpoint(base, folder)
    assert set(checkpoint.tensors) == set(open_checkpoint(base).tensors)
    with checkpoint.reading() as read:
        name = f"{module}.weight"
        # Two ranks of ones, times 8 / 2.
        np.testing.assert_allclose(
            read(f"{in_files}{name}"), tensors[f"model.{name}"] + 8, rtol=1e-6
        )
        np.testing.assert_array_equal(read(f"{in_files}norm.weight"), np.full(16, 7, np.float32))


def test_a_weight_is_changed_once(tmp_path: Path) -> None:
    """Under two names it would have had one of both changes."""
    other = Q_PROJ.replace("model.layers", "layers")
    folder = adapter(tmp_path, pair(Q_PROJ, (2, 16), (16, 2)) | pair(other, (2, 16), (16, 2)))
    refused(folder, CheckpointError, "q_proj", "another one")


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_merging_takes_no_more_memory_than_the_weight_in_float32(tmp_path: Path, kind: str) -> None:
    """The change and the sum took as much again each, which no estimate had."""
    rows, columns, rank = 4096, 2048, 4
    name = "model.embed_tokens" if kind == "embedding" else "model.layers.0.self_attn.q_proj"
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text((BASE / "config.json").read_text())
    values = np.zeros((rows, columns), ml_dtypes.bfloat16)
    save_file({f"{name}.weight": values}, base / "model.safetensors")
    generator = np.random.default_rng(2)
    a, b = (generator.standard_normal(shape, np.float32) for shape in ((rank, 1), (1, rank)))
    left, right = np.repeat(b, rows, axis=0), np.repeat(a, columns, axis=1)
    module = f"base_model.model.{name}"
    parts = {f"{module}.lora_A.weight": right, f"{module}.lora_B.weight": left}
    if kind == "embedding":
        parts = {f"{module}.lora_embedding_A": left.T, f"{module}.lora_embedding_B": right.T}
    parts = {part: np.ascontiguousarray(one) for part, one in parts.items()}
    checkpoint = open_checkpoint(base, adapter(tmp_path, parts, r=rank))
    with checkpoint.reading() as read:
        tracemalloc.start()
        try:
            merged = read(f"{name}.weight")
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    np.testing.assert_allclose(merged, np.full((rows, columns), (b @ a).item()), rtol=1e-5)
    piece = 4 * 2**20
    assert most < values.nbytes + merged.nbytes + 2 * piece + 2**20


def test_weights_that_lie_transposed(tmp_path: Path) -> None:
    # k_proj is [8, 16]: as [in, out] it takes 8 and gives 16.
    module = Q_PROJ.replace("q_proj", "k_proj")
    folder = adapter(tmp_path, pair(module, (2, 8), (16, 2)), fan_in_fan_out=True)
    name = "model.layers.0.self_attn.k_proj.weight"
    with open_checkpoint(BASE, folder).reading() as read, open_checkpoint(BASE).reading() as base:
        # Two ranks of ones, times 4 / 2.
        np.testing.assert_allclose(read(name), base(name) + 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "parts"),
    [
        (
            pair(Q_PROJ.replace("q_proj", "q_prox"), (2, 16), (16, 2)),
            ("q_prox", "q_proj", "doesn't hold"),
        ),
        (pair(Q_PROJ, (2, 16), (8, 2)), ("[8, 16]", "[16, 16]")),
        (pair(Q_PROJ, (2, 16), (16, 3)), ("[2, 16]", "[16, 3]")),
        ({f"{Q_PROJ}.lora_A.weight": np.ones((2, 16), np.float32)}, ("lora_A", "missing")),
        ({f"{Q_PROJ}.lora_B.bias": np.ones(16, np.float32)}, ("lora_B.bias", "no part")),
        ({f"{Q_PROJ}.hada_w1": np.ones((2, 2), np.float32)}, ("hada_w1", "no part")),
        (
            {"base_model.model.lm_head.weight": np.ones((33, 16), np.float32)},
            ("[33, 16]", "[32, 16]"),
        ),
        (
            {"base_model.model.score.weight": np.ones((2, 16), np.float32)},
            ("score", "doesn't hold"),
        ),
        ({f"{Q_PROJ}.lora_A.weight": np.ones((2, 16), np.int8)}, ("I8",)),
        ({}, ("holds no tensor of an adapter",)),
    ],
)
def test_an_adapter_of_another_model_is_refused_naming_tensor_and_way_out(
    tmp_path: Path, tensors: dict[str, np.ndarray], parts: tuple[str, ...]
) -> None:
    refused(adapter(tmp_path, tensors), CheckpointError, "adapter_model.safetensors", *parts)


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "LOHA"},
        {"init_lora_weights": "pissa_niter_4"},
        {"target_parameters": ["experts.down_proj"]},
        {"alora_invocation_tokens": [1]},
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = adapter(tmp_path, pair(Q_PROJ, (2, 16), (16, 2)), **config)
    refused(folder, UnsupportedFormatError, next(iter(config)), "merge the adapter with PEFT")


@pytest.mark.parametrize(
    "config", [{"lora_alpha": "x"}, {"lora_alpha": 0}, {"alpha_pattern": {"(a+)+$": 2}}]
)
def test_values_without_a_meaning_are_refused_naming_the_field(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = adapter(tmp_path, pair(Q_PROJ, (2, 16), (16, 2)), **config)
    refused(folder, ModelConfigError, "adapter_config.json", next(iter(config)))


def test_what_is_missing_or_a_pickle_is_said(tmp_path: Path) -> None:
    refused(tmp_path, ModelConfigError, "no adapter_config.json")
    folder = adapter(tmp_path, pair(Q_PROJ, (2, 16), (16, 2)))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(folder, UnsupportedFormatError, "adapter_model.bin is a pickle", "penstock convert")
    (folder / "adapter_model.bin").unlink()
    refused(folder, CheckpointError, "adapter_model.safetensors", "missing")


def test_of_several_patterns_that_fit_the_first_says_alpha(tmp_path: Path) -> None:
    tensors = pair(Q_PROJ, (2, 16), (16, 2))
    patterns = {"layers.0.self_attn.q_proj": 12, "q_proj": 4}
    adapter(tmp_path, tensors, alpha_pattern=patterns)
    name = "model.layers.0.self_attn.q_proj.weight"
    change = tensors[f"{Q_PROJ}.lora_B.weight"] @ tensors[f"{Q_PROJ}.lora_A.weight"]
    with open_checkpoint(BASE).reading() as read:
        expected = read(name) + 12 / 2 * change
    with open_checkpoint(BASE, tmp_path).reading() as read:
        np.testing.assert_allclose(read(name), expected, rtol=1e-5, atol=1e-6)
