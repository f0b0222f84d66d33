"""GGUF files that differ from what their family's newest model is converted to."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import decoder_spec, load_spec
from engine_worker.compute.models.spec import RopeSpec
from engine_worker.compute.weights.gguf.checkpoint import derive_config, open_gguf
from engine_worker.compute.weights.loader import load_weights
from tests.fakes.gguf_case import config_of
from tests.fakes.gguf_files import Tensor, llama_tensors, mixtral_tensors, write_gguf
from tests.fakes.tiny_checkpoint import random_tensors, write_checkpoint

MIXTRAL = config_of(
    "MixtralForCausalLM",
    "mixtral",
    hidden_size=32,
    intermediate_size=64,
    num_local_experts=5,
    num_experts_per_tok=2,
)
EXPERT = re.compile(r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.w(\d)\.weight")
NAMES = {"1": "ffn_gate", "2": "ffn_down", "3": "ffn_up"}


def apart(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Iterable[tuple[str, Tensor]]:
    """Each expert's matrix in a tensor of its own, as before April 2024."""
    for name, values in llama_tensors(tensors, config):
        found = EXPERT.fullmatch(name)
        yield (
            name if found is None else f"blk.{found[1]}.{NAMES[found[3]]}.{found[2]}.weight",
            values,
        )


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_experts_in_tensors_of_their_own_are_those_of_a_stack(tmp_path: Path, kind: str) -> None:
    write_checkpoint(tmp_path, dict(MIXTRAL), random_tensors(dict(MIXTRAL)))
    for name, convert in (("apart", apart), ("stacked", mixtral_tensors)):
        folder = tmp_path / name
        folder.mkdir()
        write_gguf(folder / "m.gguf", tmp_path, kind=kind, convert=convert)
    graph = declare(decoder_spec(MIXTRAL), np.float32)
    checkpoints = [open_gguf(tmp_path / name / "m.gguf") for name in ("apart", "stacked")]
    assert derive_config(checkpoints[0].metadata) == derive_config(checkpoints[1].metadata)
    older, newer = (load_weights(tmp_path / name, graph).leaves for name in ("apart", "stacked"))
    for one, other in zip(older, newer, strict=True):
        np.testing.assert_array_equal(one, other)


def test_mistral_small_has_the_name_of_ministral_and_no_scaled_rope(tmp_path: Path) -> None:
    """It was refused: Ministral 3, which the name is of, has keys of YaRN in its files."""
    config = config_of("Ministral3ForCausalLM", "ministral3", head_dim=8, rope_theta=1e9)
    write_checkpoint(tmp_path, config)
    write_gguf(tmp_path / "m.gguf", tmp_path, arch="mistral3")
    spec = decoder_spec(derive_config(open_gguf(tmp_path / "m.gguf").metadata))
    assert spec == load_spec(tmp_path)
    attention = spec.layers[0].attention
    assert attention.rope == RopeSpec(theta=1e9)
    assert (attention.window, attention.query_scale) == (None, None)
