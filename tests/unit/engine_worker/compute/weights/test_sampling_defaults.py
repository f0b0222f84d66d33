"""What `generation_config.json` recommends, and refusals that name the file and the field."""

import json
from pathlib import Path

import pytest

from engine_worker.compute.weights.sampling_defaults import load_sampling_defaults
from engine_worker.errors import ModelConfigError
from protocol.wire.messages import SamplingDefaults


def write(folder: Path, config: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_checkpoint_without_the_file_recommends_nothing(tmp_path: Path) -> None:
    assert load_sampling_defaults(tmp_path) == SamplingDefaults()


def test_listed_values_are_taken(tmp_path: Path) -> None:
    folder = write(tmp_path, {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20})
    assert load_sampling_defaults(folder) == SamplingDefaults(temperature=0.7, top_p=0.8, top_k=20)


def test_do_sample_false_is_greedy(tmp_path: Path) -> None:
    folder = write(tmp_path, {"do_sample": False, "temperature": 0.7})
    assert load_sampling_defaults(folder) == SamplingDefaults(temperature=0.0)


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": "hot"},
        {"top_p": 2},
        {"top_k": -1},
        {"min_p": True},
        {"repetition_penalty": 11},
        {"repetition_penalty": 0},
        ["not an object"],
    ],
)
def test_a_senseless_value_is_refused_with_the_file(tmp_path: Path, config: object) -> None:
    with pytest.raises(ModelConfigError, match=r"generation_config\.json"):
        load_sampling_defaults(write(tmp_path, config))
