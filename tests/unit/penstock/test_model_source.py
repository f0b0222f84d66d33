"""Finding a model: what is refused, with which words, before anything is loaded."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from engine_worker.compute.models.quantization import QuantMethod
from penstock.config import ModelChoice, build_settings
from penstock.errors import ModelError
from penstock.model_source import (
    QUANT_METHODS,
    MemoryEstimate,
    estimate_memory,
    is_complete,
    refuse_foreign_formats,
    require_memory,
    resolve_model,
)
from protocol.runtime.container_limits import free_memory_bytes
from tests.fakes.container import v2_container

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 100,
}
SETTINGS = build_settings({}, {"HOME": "/home/someone"})


def make_folder(folder: Path, *, config: dict[str, object] | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or CONFIG), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    return folder


def test_the_estimate_counts_weights_and_the_cache_of_one_request() -> None:
    estimate = estimate_memory(CONFIG, 1000, dtype="auto", max_model_len=None)
    assert estimate == MemoryEstimate(1000, 2 * 3 * 2 * 16 * 100 * 2, 100)
    asked = estimate_memory(CONFIG, 1000, dtype="auto", max_model_len=10)
    assert asked == MemoryEstimate(1000, estimate.kv_bytes // 10, 10)


def test_a_context_that_nobody_asked_for_need_not_fit_whole() -> None:
    """The engine cuts it to what fits; models of 128k tokens were refused before it could."""
    config = CONFIG | {"max_position_embeddings": 131072}
    estimate = estimate_memory(config, 1000, dtype="auto", max_model_len=None)
    assert estimate.num_tokens == 2048
    assert estimate.kv_bytes == 2 * 3 * 2 * 16 * 2048 * 2
    asked = estimate_memory(config, 1000, dtype="auto", max_model_len=131072)
    assert asked.kv_bytes == 64 * estimate.kv_bytes


@pytest.mark.parametrize(
    ("differences", "cached"),
    [
        ({"kv_lora_rank": 40, "qk_rope_head_dim": 8}, 3 * 48 * 1000),
        (
            {
                "layer_types": ["full_attention", "sliding_attention", "linear_attention"],
                "sliding_window": 100,
            },
            64 * (1000 + 100),
        ),
        ({"layer_types": ["full_attention", "sliding_attention", "conv"]}, 64 * 2000),
        ({"layer_types": ["full_attention"], "sliding_window": 100}, 64 * 3000),
        ({"layer_types": None, "sliding_window": None}, 64 * 3000),
    ],
)
def test_layers_that_keep_less_of_a_token_or_fewer_of_them_count_so(
    differences: dict[str, object], cached: int
) -> None:
    config = CONFIG | differences
    estimate = estimate_memory(config, 1000, dtype="auto", max_model_len=1000)
    assert estimate.kv_bytes == cached * 2


def test_float32_doubles_a_16_bit_checkpoint() -> None:
    narrow = estimate_memory(CONFIG, 1000, dtype="auto", max_model_len=10)
    wide = estimate_memory(CONFIG, 1000, dtype="float32", max_model_len=10)
    assert wide.total_bytes == 2 * narrow.total_bytes


@pytest.mark.parametrize(("dtype", "share"), [("int8", 1 / 2), ("int4", 5 / 16)])
def test_quantised_weights_take_less_and_the_cache_as_much(dtype: str, share: float) -> None:
    plain = estimate_memory(CONFIG | {"dtype": "bfloat16"}, 1600, dtype="auto", max_model_len=10)
    small = estimate_memory(CONFIG | {"dtype": "bfloat16"}, 1600, dtype=dtype, max_model_len=10)
    assert small.weights_bytes == 1600 * share
    assert small.kv_bytes == plain.kv_bytes


@pytest.mark.parametrize(
    ("quantization", "widening"),
    [
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "gptq", "bits": 8}, 2),
        ({"quant_method": "fp8"}, 2),
        ({"quant_method": "mxfp4"}, 4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 2),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
            },
            4,
        ),
    ],
)
def test_quantised_checkpoints_take_what_their_weights_become(
    quantization: dict[str, object], widening: int
) -> None:
    config = CONFIG | {"dtype": "bfloat16", "quantization_config": quantization}
    estimate = estimate_memory(config, 1600, dtype="auto", max_model_len=10)
    assert estimate.weights_bytes == 1600 * widening
    packed = estimate_memory(config, 1600, dtype="int8", max_model_len=10)
    assert packed.weights_bytes == 1600 * widening // 2
    kept = estimate_memory(config, 1600, dtype="auto", max_model_len=10, keeps_stored=True)
    stays = quantization["quant_method"] in ("awq", "gptq", "compressed-tensors", "mxfp4")
    assert kept.weights_bytes == (1600 if stays else 1600 * widening)


def test_the_methods_let_through_are_those_that_the_engine_reads() -> None:
    assert set(QUANT_METHODS) == set(QuantMethod)


def test_a_model_too_large_is_refused_with_both_numbers_and_a_way_out() -> None:
    with pytest.raises(
        ModelError, match=r"needs about 30\.0 GiB.*2048 tok.*16\.0 GiB.*--max-model"
    ):
        require_memory("big", MemoryEstimate(20 * 2**30, 10 * 2**30, 2048), 16 * 2**30)


@pytest.mark.parametrize(
    ("config", "files", "named"),
    [
        ({"quantization_config": {"quant_method": "aqlm"}}, ["m.safetensors"], "aqlm.*gptq"),
        ({}, ["pytorch_model.bin"], "pickled"),
        ({}, ["README.md"], "no \\*.safetensors"),
    ],
)
def test_foreign_formats_are_refused_by_name(
    config: dict[str, object], files: list[str], named: str
) -> None:
    with pytest.raises(ModelError, match=named):
        refuse_foreign_formats("m", config, files)


def test_a_good_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    assert resolve_model(ModelChoice("m", str(folder)), SETTINGS) == folder


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is neither a folder nor a GGUF file"):
        resolve_model(ModelChoice("m", str(tmp_path / "nowhere")), SETTINGS)


def test_a_folder_without_a_config_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(ModelChoice("m", str(tmp_path)), SETTINGS)


def test_an_unreadable_config_names_the_file(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json can't be read"):
        resolve_model(ModelChoice("m", str(folder)), SETTINGS)


@pytest.mark.parametrize(
    "quantization",
    [{"quant_method": ["awq"]}, {"quant_method": "fp8", "config_groups": [1]}],
)
def test_a_quantisation_that_is_nonsense_is_one_clear_line(
    tmp_path: Path, quantization: dict[str, object]
) -> None:
    folder = make_folder(tmp_path / "m", config={**CONFIG, "quantization_config": quantization})
    with pytest.raises(ModelError):
        resolve_model(ModelChoice("m", str(folder)), SETTINGS)


def test_a_config_nested_beyond_measure_names_the_file(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"config\.json can't be read"):
        resolve_model(ModelChoice("m", str(folder)), SETTINGS)


def test_a_config_with_nonsense_numbers_is_one_clear_line(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", config={**CONFIG, "num_attention_heads": "many"})
    with pytest.raises(ModelError, match=r"config\.json of m is not valid"):
        resolve_model(ModelChoice("m", str(folder)), SETTINGS)


def test_deterministic_counts_as_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "m")
    needed = estimate_memory(CONFIG, 100, dtype="auto", max_model_len=None).total_bytes
    free = SimpleNamespace(available=2 * needed)
    monkeypatch.setattr("penstock.model_source.psutil.virtual_memory", lambda: free)
    model = ModelChoice("m", str(folder))
    assert resolve_model(model, SETTINGS) == folder
    with pytest.raises(ModelError, match="m needs about"):
        resolve_model(model, replace(SETTINGS, deterministic=True))


def test_a_model_that_fits_the_machine_but_not_the_container_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "m")
    needed = estimate_memory(CONFIG, 100, dtype="auto", max_model_len=None).total_bytes
    model = ModelChoice("m", str(folder))
    machine = SimpleNamespace(available=100 * needed)
    monkeypatch.setattr("penstock.model_source.psutil.virtual_memory", lambda: machine)
    v2_container(tmp_path, limit_bytes=2 * needed, used_bytes=0)
    within = partial(free_memory_bytes, root=tmp_path)
    monkeypatch.setattr("penstock.model_source.free_memory_bytes", within)
    assert resolve_model(model, SETTINGS) == folder
    v2_container(tmp_path, limit_bytes=2 * needed, used_bytes=needed + needed // 2)
    with pytest.raises(ModelError, match="m needs about"):
        resolve_model(model, SETTINGS)


def test_a_download_that_was_interrupted_is_not_taken_for_a_model(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    assert not is_complete(folder)  # no tokenizer yet
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert is_complete(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert not is_complete(folder)  # not even the index
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"a": parts[0], "b": parts[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert not is_complete(folder)
    (folder / parts[1]).write_bytes(b"")
    assert is_complete(folder)


def test_an_id_that_is_not_cached_is_refused_offline() -> None:
    with pytest.raises(ModelError, match="not in the local cache and HF_HUB_OFFLINE"):
        resolve_model(ModelChoice("m", "nobody/nothing"), SETTINGS)


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("Name or service not known"), httpx.ConnectTimeout("timed out")]
)
@pytest.mark.parametrize("source", ["nobody/nothing", "hf:nobody/nothing-GGUF:Q8_0"])
def test_a_hub_that_is_out_of_reach_is_one_clear_line(
    error: httpx.TransportError, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", ask)
    with pytest.raises(ModelError) as refused:
        resolve_model(ModelChoice("m", source), SETTINGS)
    repo = source.removeprefix("hf:").removesuffix(":Q8_0")
    assert refused.value.message == (
        f"{repo} is not a local folder and the hub can't be reached: {type(error).__name__}. "
        "Give the path of a local checkpoint folder."
    )


def test_the_demo_model_needs_no_folder() -> None:
    assert resolve_model(ModelChoice("penstock-demo", None), SETTINGS) is None
