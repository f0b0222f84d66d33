"""GGUF files of encoders that come with code of their own: the encoder and the tensors of the
folder that they were written from.

What these compute is held to their definitions in `tests/unit/engine_worker/embedding/`.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, PoolingType
from safetensors.numpy import save_file

from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.gguf.checkpoint import derive_config, open_gguf, read_metadata
from engine_worker.compute.weights.gguf.metadata import GgufMetadata
from engine_worker.embedding.encoder import EncoderGraph
from engine_worker.embedding.encoder_spec import EncoderSpec
from engine_worker.embedding.families.registry import encoder_spec, family_of
from engine_worker.errors import ModelLoadError
from tests.fakes.gguf_files import Keys, Tensor, write_gguf
from tests.unit.engine_worker.embedding import test_jina_bert as jina
from tests.unit.engine_worker.embedding import test_remote_code_encoders as others
from tests.unit.engine_worker.loading.test_gguf_hostile_values import ODD

Shapes = Mapping[str, tuple[int, ...]]
Named = Iterable[tuple[str, Tensor]]


def neobert(tensors: Mapping[str, Tensor], _: Keys) -> Named:
    for name, values in tensors.items():
        if not name.startswith("decoder."):
            yield name.removeprefix("model."), values


def nomic(tensors: Mapping[str, Tensor], config: Keys) -> Named:
    for name, values in tensors.items():
        if name.endswith("experts.bias"):
            continue
        if "experts.mlp" in name:
            stack = values.reshape(config["num_experts"], config["n_inner"], -1)
            if name.endswith("w2"):
                stack = np.ascontiguousarray(stack.swapaxes(1, 2))
            yield f"{name}.weight", stack
        else:
            yield name, values


def jina_bert(tensors: Mapping[str, Tensor], _: Keys, *, is_old: bool) -> Named:
    """Old converters took gate and up apart; the models with more norms have up first."""
    for name, values in tensors.items():
        if "pooler" in name:
            continue
        if not (is_old and "gated_layer" in name):
            yield name, values
            continue
        first, second = np.split(values, 2)
        gate, up = (second, first) if "up_gated" in name else (first, second)
        block = f"{name.partition('.mlp.')[0]}.mlp."
        yield f"{block}gated_layers_w.weight", gate
        yield f"{block}gated_layers_v.weight", up


@dataclass(frozen=True)
class Case:
    """One family.

    Attributes:
        config: Of the folder.
        shapes: Of its tensors.
        convert: What the converter makes of them.
        keys: That the converter writes for this family only.
        left_out: Endings of tensors that no file has.
    """

    arch: str
    config: Mapping[str, Any]
    shapes: Callable[[], Shapes]
    convert: Callable[[Mapping[str, Tensor], Keys], Named]
    keys: Mapping[str, int | float]
    left_out: tuple[str, ...] = ("pooler.dense.weight", "pooler.dense.bias")


def jina_shapes(*, has_more_norms: bool) -> Shapes:
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in jina.shapes(has_more_norms=has_more_norms).items():
        found[name] = shape
        if len(shape) == 1 or not (name.startswith("embeddings.") or "gated" in name):
            found[name.replace(".weight", ".bias")] = shape[:1]
    return found


JINA_KEYS = {"context_length": 8192, "attention.layer_norm_epsilon": 1e-5}
CASES = {
    "neo-bert": Case(
        "neo-bert",
        others.NEOBERT,
        others.neobert_shapes,
        neobert,
        {
            "context_length": 64,
            "feed_forward_length": 26,
            "rope.freq_base": 10_000.0,
            "attention.layer_norm_rms_epsilon": others.EPS,
        },
        ("decoder.weight", "decoder.bias"),
    ),
    "nomic-bert-moe": Case(
        "nomic-bert-moe",
        others.NOMIC,
        others.nomic_shapes,
        nomic,
        {"rope.freq_base": 10_000.0, "moe_every_n_layers": 2, "expert_used_count": 2},
        ("experts.bias",),
    ),
    **{
        f"jina-bert-v2-{norms}-{age}": Case(
            "jina-bert-v2",
            jina.CONFIG,
            partial(jina_shapes, has_more_norms=norms == "norms"),
            partial(jina_bert, is_old=age == "old"),
            JINA_KEYS,
        )
        for norms in ("plain", "norms")
        for age in ("new", "old")
    },
}


def written(case: Case, folder: Path, pooling: PoolingType = PoolingType.MEAN) -> Path:
    """A random folder, and the same as GGUF beside it."""
    generator = np.random.default_rng(5)
    tensors = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in case.shapes().items()
    }
    (folder / "config.json").write_text(json.dumps(case.config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")

    def more(writer: GGUFWriter) -> None:
        for key, value in case.keys.items():
            add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
            add(f"{case.arch}.{key}", value)
        writer.add_pooling_type(pooling)
        writer.add_causal_attention(False)

    path = folder / "m.gguf"
    write_gguf(path, folder, arch=case.arch, convert=case.convert, more=more)
    return path


def fitted(config: Mapping[str, Any], names: Iterable[str]) -> EncoderSpec:
    return family_of(config).fitted(encoder_spec(config), set(names))


@pytest.mark.parametrize("name", CASES)
def test_encoder_and_tensors_are_those_of_the_folder(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    checkpoint = open_gguf(written(case, tmp_path))
    original = open_checkpoint(tmp_path)
    config = derive_config(checkpoint.metadata)
    prefix = family_of(case.config).prefix_in(original.tensors)
    kept = {one for one in original.tensors if not one.endswith(case.left_out)}
    ours = fitted(config, checkpoint.tensors)
    theirs = fitted(case.config, kept)
    assert replace(ours, architecture="") == replace(theirs, architecture="")
    assert set(checkpoint.tensors) == {one.removeprefix(prefix) for one in kept}
    with checkpoint.reading() as read, original.reading() as read_original:
        for stored in kept:
            one = stored.removeprefix(prefix)
            assert checkpoint.tensors[one].shape == original.tensors[stored].shape
            np.testing.assert_array_equal(read(one), read_original(stored), err_msg=one)
    # Whatever the encoder asks for is there.
    sources = EncoderGraph(ours, np.float32).sources(family_of(config), checkpoint.tensors)
    asked = {(source.name, source.shape) for parts in sources for source in parts}
    assert asked == {(one, tensor.shape) for one, tensor in checkpoint.tensors.items()}


@pytest.mark.parametrize("name", CASES)
def test_any_value_of_a_file_makes_an_encoder_or_one_clear_refusal(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    metadata = read_metadata(written(case, tmp_path))
    keys = [key for key in metadata.values if key.startswith(case.arch)]
    num_read = 0
    for key in keys:
        for value in ODD:
            changed = GgufMetadata(metadata.files)
            changed.values = {**metadata.values, key: value}
            with suppress(ModelLoadError):
                encoder_spec(derive_config(changed))
                num_read += 1
    assert 0 < num_read < len(keys) * len(ODD)


@pytest.mark.parametrize("name", CASES)
def test_a_cross_encoder_is_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    metadata = read_metadata(written(CASES[name], tmp_path, PoolingType.RANK))
    with pytest.raises(ModelLoadError, match=r"m\.gguf.*cross-encoder.*safetensors"):
        derive_config(metadata)
