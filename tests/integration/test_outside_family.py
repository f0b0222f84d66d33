"""The example of a package that brings an architecture: installed, found, and computed right."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from engine_worker.compute.models.decoder import DecoderWeights, declare
from engine_worker.compute.models.families import llama
from engine_worker.compute.models.families.outside import (
    GROUP,
    load_families,
    outside_families,
)
from engine_worker.compute.models.families.registry import find_family, origin_of
from engine_worker.compute.models.hf_config import decoder_spec, load_spec
from engine_worker.compute.models.reference import ReferenceCache, reference_step
from engine_worker.compute.weights.loader import load_weights
from engine_worker.errors import FamilyPackageError, UnsupportedArchitectureError
from tests.fakes.tiny_checkpoint import random_tensors, write_checkpoint

EXAMPLE = Path(__file__).parents[2] / "examples" / "model_family"
NAME = "TinyGlotForCausalLM"
GLOT: dict[str, Any] = {
    "architectures": [NAME],
    "model_type": "tiny_glot",
    "width": 16,
    "depth": 2,
    "heads": 4,
    "length": 64,
    "vocabulary": 64,
}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    source, target = tmp_path / "source", tmp_path / "site"
    # Building writes into the folder.
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(str(target))
    outside_families.cache_clear()
    yield
    outside_families.cache_clear()
    sys.modules.pop("penstock_example_family", None)


def logits(weights: DecoderWeights) -> np.ndarray:
    ids, positions = (np.arange(start, start + 16, dtype=np.int32) for start in (3, 0))
    cache = ReferenceCache.empty(weights.graph.spec, len(ids)).layers
    step = jax.jit(reference_step, static_argnums=0)
    return np.asarray(step(weights.graph, weights.leaves, cache, ids, positions)[0])


def glot_tensors(tensors: dict[str, Any]) -> dict[str, Any]:
    """A Llama's tensors under the names of the example."""
    names = {
        "model.embed_tokens.weight": "words.weight",
        "model.norm.weight": "last_norm.scale",
        **({"lm_head.weight": "out.weight"} if "lm_head.weight" in tensors else {}),
    }
    for index in range(2):
        theirs, ours = f"model.layers.{index}.", f"blocks.{index}."
        names |= {
            f"{theirs}input_layernorm.weight": f"{ours}norm_1.scale",
            f"{theirs}self_attn.o_proj.weight": f"{ours}mix.weight",
            f"{theirs}post_attention_layernorm.weight": f"{ours}norm_2.scale",
            **{f"{theirs}mlp.{n}_proj.weight": f"{ours}{n}.weight" for n in ("gate", "up", "down")},
        }
    found = {ours: tensors[theirs] for theirs, ours in names.items()}
    for index in range(2):
        parts = [tensors[f"model.layers.{index}.self_attn.{n}_proj.weight"] for n in "qkv"]
        found[f"blocks.{index}.qkv.weight"] = np.concatenate(parts)
    return found


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.long)])
def test_an_installed_family_computes_what_the_same_llama_does(tmp_path: Path, tied: bool) -> None:
    for name in ("llama", "glot"):
        (tmp_path / name).mkdir()
    config = LLAMA | {"tie_word_embeddings": tied}
    tensors = random_tensors(config)
    write_checkpoint(tmp_path / "llama", config, tensors)
    write_checkpoint(tmp_path / "glot", GLOT | {"tied": tied}, glot_tensors(tensors))
    ours, theirs = (
        load_weights(tmp_path / name, declare(load_spec(tmp_path / name), np.float32))
        for name in ("glot", "llama")
    )
    assert ours.graph.spec.architecture == NAME
    assert origin_of(NAME) == "penstock-example-family 1.0"
    assert origin_of("LlamaForCausalLM") == ""
    np.testing.assert_allclose(logits(ours), logits(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("installed")
def test_it_is_found_by_its_model_type_and_named_among_those_supported() -> None:
    by_type = {key: value for key, value in GLOT.items() if key != "architectures"}
    assert decoder_spec(by_type).architecture == NAME
    with pytest.raises(UnsupportedArchitectureError, match=f"nearest that is: {NAME}"):
        decoder_spec({"architectures": ["TinyGlotModelForCausalLM"]})


def test_without_the_package_the_architecture_is_refused() -> None:
    outside_families.cache_clear()
    assert find_family(NAME) is None
    with pytest.raises(UnsupportedArchitectureError, match=NAME):
        decoder_spec(GLOT)


def entry(value: str, name: str = "x") -> EntryPoint:
    return EntryPoint(name=name, value=value, group=GROUP)


@pytest.mark.parametrize(
    ("plugins", "named"),
    [
        ([entry("there_is_no_such_module:X")], "'x' of penstock.models .*ModuleNotFoundError"),
        ([entry("json:no_such_thing")], "AttributeError"),
        ([entry("json:dumps")], "holds a function, not a Family"),
        (
            [entry(f"{llama.__name__}:FAMILIES", name) for name in ("a", "b")],
            "a and b both bring LlamaForCausalLM",
        ),
    ],
)
def test_a_package_that_cannot_be_used_is_named(plugins: list[EntryPoint], named: str) -> None:
    with pytest.raises(FamilyPackageError, match=named):
        load_families(plugins)


def test_a_broken_package_does_not_keep_other_models_from_being_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> None:
        raise FamilyPackageError("broken")

    monkeypatch.setattr("engine_worker.compute.models.families.registry.outside_families", broken)
    assert decoder_spec(LLAMA).architecture == "LlamaForCausalLM"
    both = LLAMA | {"architectures": ["MyOwnForCausalLM", "LlamaForCausalLM"]}
    assert decoder_spec(both).architecture == "LlamaForCausalLM"
    with pytest.raises(FamilyPackageError):
        decoder_spec(LLAMA | {"architectures": ["MyOwnForCausalLM"]})
