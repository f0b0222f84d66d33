"""`PENSTOCK_LORA`: what is loaded, kept and shown is of the model with its adapter."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import declare
from engine_worker.compute.models.hf_config import load_spec
from engine_worker.config import ModelSettings
from engine_worker.loading.quality_record import quality_path, read_quality, write_quality
from engine_worker.loading.weights import load_for_backend, packed_path

GOLDEN = Path(__file__).parents[1] / "compute" / "weights" / "lora" / "golden"
BASE, ADAPTER = GOLDEN / "base", GOLDEN / "plain"


def test_the_setting_names_a_folder() -> None:
    environment = {"PENSTOCK_MODEL_PATH": str(BASE), "PENSTOCK_LORA": str(ADAPTER)}
    assert ModelSettings.from_env(environment).lora == ADAPTER
    assert ModelSettings.from_env({}).lora is None


def test_the_backend_gets_the_merged_weights() -> None:
    backend = XlaBackend(declare(load_spec(BASE), np.float32))
    leaves = load_for_backend(BASE, backend, None, lambda done, text: None, ADAPTER).leaves
    names = [parameter.path for parameter in backend.graph.parameters]
    down = np.asarray(leaves[names.index("layers.1.mlp.down.weight")])
    expected = load_file(ADAPTER / "merged.safetensors")["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_allclose(down, expected, rtol=1e-5, atol=1e-6)


def test_packed_weights_and_their_quality_are_kept_apart_from_the_models_own(
    tmp_path: Path,
) -> None:
    backend = XlaBackend(declare(load_spec(BASE), np.float32), "int8")
    key = "0" * 64
    own = packed_path(tmp_path, BASE, backend, key)
    assert own != packed_path(tmp_path, BASE, backend, key, ADAPTER)
    for adapter in (None, ADAPTER):
        load_for_backend(BASE, backend, tmp_path, lambda done, text: None, adapter)
    assert len(list(tmp_path.glob("*.packed"))) == 2
    write_quality({"weights": "int8"}, tmp_path, BASE, backend, ADAPTER)
    assert quality_path(tmp_path, BASE, backend, ADAPTER).is_file()
    assert read_quality(tmp_path, BASE, backend) == ""
    assert "int8" in read_quality(tmp_path, BASE, backend, ADAPTER)
