"""Which GGUF file is meant, and what it will take, before anything is loaded."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGUFWriter

from penstock.config import ModelChoice, build_settings, parse_model
from penstock.errors import ModelError
from penstock.gguf_source import HubName, choose_files, config_of, config_of_hub, hub_name
from penstock.memory_estimate import estimate_memory
from penstock.model_source import resolve_model

SETTINGS = build_settings({}, {"HOME": "/home/someone"})


def written(path: Path, kv: int | list[int] = 2, split: int = 0) -> Path:
    """A model of 3 layers with 10 × 32 + 32 numbers."""
    writer = GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_block_count(3)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(kv)
    writer.add_context_length(100)
    writer.add_tensor("token_embd.weight", np.zeros((10, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kv", [2, [0, 2, 1]])
def test_the_estimate_counts_numbers_in_16_bits_and_one_request(
    tmp_path: Path, kv: int | list[int]
) -> None:
    config, size = config_of(written(tmp_path / "m.gguf", kv))
    assert size == (10 * 32 + 32) * 2
    estimate = estimate_memory(config, size, dtype="auto", max_model_len=None)
    assert estimate.weights_bytes == size
    assert estimate.kv_bytes == 2 * 3 * 2 * 16 * 100 * 2
    small = estimate_memory(config, size, dtype="int8", max_model_len=None)
    assert small.weights_bytes == size / 2


def test_numbers_that_stay_as_they_are_count_as_the_file_has_them() -> None:
    config = {"dtype": "bfloat16", "stored_bytes": 300}
    kept = estimate_memory(config, 1000, dtype="auto", max_model_len=1, keeps_stored=True)
    assert kept.weights_bytes == 300
    # F32 becomes bfloat16 all the same.
    wide = {**config, "stored_bytes": 2000}
    assert (
        estimate_memory(wide, 1000, dtype="auto", max_model_len=1, keeps_stored=True).weights_bytes
        == 1000
    )


def test_a_file_is_taken_by_its_path(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    assert resolve_model(ModelChoice("m", str(path)), SETTINGS) == path
    # A folder with one file is that file.
    assert resolve_model(ModelChoice("m", str(tmp_path)), SETTINGS) == path


def test_a_link_stays_one_because_its_neighbours_may_be_parts(tmp_path: Path) -> None:
    path = written(tmp_path / "blob")
    link = tmp_path / "m.gguf"
    link.symlink_to(path)
    assert resolve_model(ModelChoice("m", str(link)), SETTINGS) == link
    assert parse_model(str(link)).name == "m"


def test_parts_are_one_model_named_by_the_first(tmp_path: Path) -> None:
    written(tmp_path / "m.gguf", split=1)
    first = tmp_path / "m-00001-of-00002.gguf"
    assert resolve_model(ModelChoice("m", str(tmp_path)), SETTINGS) == first
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelError, match=r"m-00002-of-00002\.gguf is missing"):
        resolve_model(ModelChoice("m", str(first)), SETTINGS)


def test_a_folder_with_several_models_lists_them(tmp_path: Path) -> None:
    for name in ("a-Q4_0.gguf", "a-Q8_0.gguf", "mmproj-a.gguf"):
        written(tmp_path / name)
    with pytest.raises(ModelError, match=r"2 GGUF models \(a-Q4_0\.gguf, a-Q8_0\.gguf\); name"):
        resolve_model(ModelChoice("m", str(tmp_path)), SETTINGS)


def test_safetensors_or_a_tokenizer_make_it_a_folder(tmp_path: Path) -> None:
    written(tmp_path / "a.gguf")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    (tmp_path / "model.safetensors").write_bytes(bytes(8))
    assert resolve_model(ModelChoice("m", str(tmp_path)), SETTINGS) == tmp_path


def test_a_broken_file_is_one_clear_line(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match=r"m\.gguf: is cut off.*download it again"):
        resolve_model(ModelChoice("m", str(path)), SETTINGS)
    with pytest.raises(ModelError, match=r"There is no file .*none\.gguf"):
        resolve_model(ModelChoice("m", str(tmp_path / "none.gguf")), SETTINGS)


def test_a_model_that_doesnt_fit_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "m.gguf")
    free = SimpleNamespace(available=1000)
    monkeypatch.setattr("penstock.model_source.psutil.virtual_memory", lambda: free)
    with pytest.raises(ModelError, match="m needs about .* int8"):
        resolve_model(ModelChoice("m", str(path)), SETTINGS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hf:org/repo:Q4_K_M", HubName("org/repo", "Q4_K_M")),
        ("org/repo:Q4_K_M", HubName("org/repo", "Q4_K_M")),
        ("hf:org/repo", HubName("org/repo", None)),
        ("org/repo", HubName("org/repo", None)),
    ],
)
def test_names_of_the_hub_say_repository_and_file(text: str, found: HubName) -> None:
    assert hub_name(text) == found
    assert parse_model(text).name == text.removeprefix("hf:")


FILES = [
    "README.md",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "m-UD-Q6_K.gguf",
    "m-BF16-00001-of-00002.gguf",
    "m-BF16-00002-of-00002.gguf",
    "Q8_0/m-Q8_0-00001-of-00002.gguf",
    "Q8_0/m-Q8_0-00002-of-00002.gguf",
    "IQ4_XS/m.gguf",
    "mmproj-m-Q4_K_M.gguf",
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("Q4_K_M", ("m-Q4_K_M.gguf",)),
        ("q4_k_s", ("m-Q4_K_S.gguf",)),
        ("Q6_K", ("m-UD-Q6_K.gguf",)),
        ("UD-Q6_K", ("m-UD-Q6_K.gguf",)),
        ("BF16", ("m-BF16-00001-of-00002.gguf", "m-BF16-00002-of-00002.gguf")),
        ("Q8_0", ("Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf")),
        ("IQ4_XS", ("IQ4_XS/m.gguf",)),
        ("m-Q4_K_S.gguf", ("m-Q4_K_S.gguf",)),
    ],
)
def test_a_file_is_found_by_how_its_numbers_are_kept(wanted: str, found: tuple[str, ...]) -> None:
    assert choose_files("org/repo", FILES, wanted) == found


@pytest.mark.parametrize("wanted", ["Q2_K", "", "K_M", "_M", "mmproj-m-Q4_K_M.gguf"])
def test_what_is_not_there_is_refused_with_what_is(wanted: str) -> None:
    with pytest.raises(ModelError, match=r"no single GGUF file.*m-Q4_K_M\.gguf, m-Q4_K_S\.gguf"):
        choose_files("org/repo", FILES, wanted)


def test_without_a_name_only_a_single_model_is_taken() -> None:
    assert choose_files("r", ["a.gguf", "mmproj-a.gguf"], None) == ("a.gguf",)
    with pytest.raises(ModelError, match=r"several GGUF models.*name one as hf:ORG/REPO:FILE"):
        choose_files("r", FILES, None)
    with pytest.raises(ModelError, match="no GGUF file"):
        choose_files("r", ["README.md"], "Q4_0")


def test_a_part_that_the_hub_lacks_is_named() -> None:
    with pytest.raises(ModelError, match=r"lacks m-00002-of-00002\.gguf, one of 2"):
        choose_files("r", ["m-00001-of-00002.gguf"], None)


@pytest.mark.parametrize(
    ("told", "size"), [({"total": 1000}, 2000), (None, 700), ({"total": "x"}, 700), ({}, 700)]
)
def test_before_the_download_the_hubs_count_is_taken(told: dict[str, object], size: int) -> None:
    assert config_of_hub(told, 700) == ({"dtype": "bfloat16", "stored_bytes": 700}, size)
