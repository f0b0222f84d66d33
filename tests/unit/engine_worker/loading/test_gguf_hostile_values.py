"""Metadata of the right form whose values are nonsense: a model, or one clear refusal."""

import array
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.models.support import check_supported
from engine_worker.compute.weights.gguf.checkpoint import open_gguf
from engine_worker.compute.weights.gguf.families import FAMILIES
from engine_worker.compute.weights.gguf.family import parts_of
from engine_worker.compute.weights.gguf.metadata import GgufMetadata
from engine_worker.errors import CheckpointError, ModelLoadError
from engine_worker.loading.gguf_folder import derived_files
from engine_worker.text.gguf_vocabulary import GgufTokenizer, read_gguf_tokenizer
from protocol.runtime.gguf_header import GgufTensor
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.gguf_families import GGUF_FAMILIES, GgufCase
from tests.fakes.gguf_files import write_gguf
from tests.fakes.tiny_checkpoint import random_tensors, write_checkpoint
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

ODD: tuple[Any, ...] = (
    *(0, -1, 1, 3, 2**31 - 1, 2**64 - 1, True, "", "x", "\x00", "yarn", "llama"),
    *(0.0, -1.0, 1e-45, 3e38, 1e300, float("nan"), float("inf")),
    *([], ["a"], ["a", "a"], ["a b", "ab"] * 40),
    *(
        array.array("i"),
        array.array("i", [-1, 2]),
        array.array("f", [0.5]),
        array.array("B", b"ab"),
    ),
)

HELD_WHOLLY = next(case for case in GGUF_FAMILIES if case.arch == "llama")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of each case's file."""
    found = []
    for case in GGUF_FAMILIES:
        folder = tmp_path_factory.mktemp("m")
        config = dict(case.config)
        write_checkpoint(folder, config, case.spelled(random_tensors(config)))
        (folder / "tokenizer.json").write_text(byte_level_tokenizer().serialized())
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
        path = folder / "m.gguf"
        write_gguf(path, folder, arch=case.arch, convert=case.convert, more=case.more)
        found.append(path)
    return found


@pytest.mark.parametrize("case", GGUF_FAMILIES, ids=lambda case: case.config["architectures"][0])
def test_any_value_makes_a_model_or_one_clear_refusal(paths: list[Path], case: GgufCase) -> None:
    index = GGUF_FAMILIES.index(case)
    path = paths[index]
    checkpoint = open_gguf(path)
    values = dict(checkpoint.metadata.values)
    # The lists decide, where a whole tokenizer.json would go before them.
    values.pop("tokenizer.huggingface.json", None)
    others = ("tokenizer.ggml.scores", "tokenizer.ggml.pre", f"{case.arch}.rope.scaling.type")
    of_vocabulary = [key for key in values if key.startswith("tokenizer.")]
    is_first = case is HELD_WHOLLY
    # What all share is tried with one of them, and some of the values with each of the others.
    shared = {*of_vocabulary, *(key for key in values if key.startswith("general."))}
    keys = {*values, *others} - (set() if is_first else shared)
    odd = ODD if is_first or EFFORT > 1 else ODD[index % 24 :: 24]
    tokenizer = read_gguf_tokenizer(values, path)
    num_loaded = 0
    for key in sorted(keys):
        for value in odd:
            with suppress(ModelLoadError):
                changed = {**values, key: value}
                if key.startswith("tokenizer."):
                    tokenizer = read_gguf_tokenizer(changed, path)
                load(checkpoint.metadata, changed, tokenizer)
                num_loaded += 1
    assert 0 < num_loaded < len(keys) * len(odd)


class ManyExperts(GgufMetadata):
    """Layers that are all experts; of a file that nobody has to write."""

    def __init__(self, num_layers: int, num_experts: int) -> None:
        self.path = Path("many.gguf")
        shape = (num_experts, 1, 1)
        tensor = GgufTensor("ffn_up_exps", self.path, shape, "F32", 0, 4 * num_experts)
        self.architecture = "qwen3moe"
        names = [f"blk.{index}.ffn_up_exps.weight" for index in range(num_layers)]
        self.tensors = dict.fromkeys(names, tensor)


def test_experts_of_more_layers_than_any_model_has_are_refused_before_they_have_names() -> None:
    (family,) = FAMILIES["qwen3moe"]
    assert len(parts_of(family, ManyExperts(3, 4096))) == 3 * 4096
    with pytest.raises(CheckpointError, match="there are 1052672 matrices of experts; at most"):
        parts_of(family, ManyExperts(257, 4096))


def load(metadata: GgufMetadata, values: dict[str, Any], tokenizer: GgufTokenizer) -> None:
    """All that is done with a file's metadata before its numbers are read."""
    changed = GgufMetadata(metadata.files)
    changed.values = values
    changed.architecture = values.get("general.architecture")
    files = derived_files(changed, tokenizer)
    spec = decoder_spec(json.loads(files["config.json"]))
    check_supported(spec)
    declare(spec, "float32")
