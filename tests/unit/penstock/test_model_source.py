"""Finding a model: what is refused, with which words, before anything is loaded."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from penstock.config import ModelChoice, build_settings
from penstock.errors import ModelError
from penstock.memory_estimate import estimate_memory
from penstock.model_source import is_complete, refuse_foreign_formats, resolve_model
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


@pytest.mark.parametrize(
    ("config", "files", "named"),
    [
        ({"quantization_config": {"quant_method": "aqlm"}}, ["m.safetensors"], "aqlm.*gptq"),
        (
            {"text_config": {"quantization_config": {"quant_method": "aqlm"}}},
            ["m.safetensors"],
            "aqlm.*gptq",
        ),
        ({"compression_config": {"quant_method": "sparse"}}, ["m.safetensors"], "sparse.*gptq"),
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


def test_a_config_of_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    os.truncate(folder / "config.json", 2**33)
    with pytest.raises(ModelError, match=r"config\.json can't be read: it has 8589934592 bytes"):
        resolve_model(ModelChoice("m", str(folder)), SETTINGS)
    (folder / "tokenizer.json").touch()
    (folder / "config.json").write_text("{}")
    assert is_complete(folder)
    index = folder / "model.safetensors.index.json"
    index.touch()
    os.truncate(index, 2**33)
    assert not is_complete(folder)


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


def test_weights_that_are_there_once_more_in_another_form_take_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral's folders have shards and `consolidated.safetensors`: they were told to be twice as
    large."""
    folder = make_folder(tmp_path / "m")
    part = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / part)
    index = {"weight_map": {"a": part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    needed = estimate_memory(CONFIG, 100, dtype="auto", max_model_len=None).total_bytes
    (folder / "consolidated.safetensors").write_bytes(b"")
    os.truncate(folder / "consolidated.safetensors", 10 * needed)
    free = SimpleNamespace(available=2 * needed)
    monkeypatch.setattr("penstock.model_source.psutil.virtual_memory", lambda: free)
    assert resolve_model(ModelChoice("m", str(folder)), SETTINGS) == folder
    os.truncate(folder / part, 10 * needed)
    with pytest.raises(ModelError, match="m needs about"):
        resolve_model(ModelChoice("m", str(folder)), SETTINGS)


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


@pytest.mark.parametrize("name", ["tokenizer.json", "tekken.json", "tiktoken.model"])
def test_a_snapshot_with_any_tokenizer_is_whole(tmp_path: Path, name: str) -> None:
    """Mistral Small 3.2 has a `tekken.json` alone: offline it was not in the cache."""
    folder = make_folder(tmp_path / "m")
    (folder / name).touch()
    assert is_complete(folder)


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
