"""What `generation_config.json` recommends, and what becomes of advice that makes no sense."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from engine_worker.compute.weights.sampling_defaults import load_sampling_defaults
from protocol.wire.messages import SamplingDefaults
from protocol.wire.sampling_ranges import MAX_INT32


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
    ("config", "expected"),
    [
        ({"top_k": -1}, SamplingDefaults(top_k=0)),
        ({"top_k": 40.0}, SamplingDefaults(top_k=40)),
        ({"top_k": 1e300}, SamplingDefaults(top_k=MAX_INT32)),
        ({"top_p": 0}, SamplingDefaults(top_p=0.0)),
        ({"top_p": 2}, SamplingDefaults(top_p=1.0)),
        ({"min_p": -0.5}, SamplingDefaults(min_p=0.0)),
        ({"temperature": 2.5}, SamplingDefaults(temperature=2.0)),
        ({"temperature": math.inf}, SamplingDefaults(temperature=2.0)),
        ({"temperature": -1}, SamplingDefaults(temperature=0.0)),
        ({"repetition_penalty": 11}, SamplingDefaults(repetition_penalty=10.0)),
        ({"repetition_penalty": 0}, SamplingDefaults()),
        ({"repetition_penalty": -3}, SamplingDefaults()),
        ({"temperature": "hot"}, SamplingDefaults()),
        ({"temperature": math.nan}, SamplingDefaults()),
        ({"temperature": 10**400}, SamplingDefaults(temperature=2.0)),
        ({"top_k": -(10**400)}, SamplingDefaults(top_k=0)),
        ({"temperature": [0.5]}, SamplingDefaults()),
        ({"min_p": True}, SamplingDefaults()),
        (["not an object"], SamplingDefaults()),
        ("text", SamplingDefaults()),
    ],
)
def test_advice_that_no_request_could_send_is_clamped_or_left_out_and_told(
    tmp_path: Path, config: Any, expected: SamplingDefaults, caplog: pytest.LogCaptureFixture
) -> None:
    found = load_sampling_defaults(write(tmp_path, config))
    assert found == expected
    is_told = "generation_config.json" in caplog.text
    assert is_told == (config not in ({"top_p": 0}, {"top_k": 40.0}))
    for value in (found.temperature, found.top_k, found.top_p, found.min_p):
        assert value is None or math.isfinite(value)


@pytest.mark.parametrize("text", ["{", "", "\xff", "[" * 100_000, '{"top_k": 1' + "0" * 5000 + "}"])
def test_a_broken_file_is_told_and_left_out(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "generation_config.json").write_bytes(text.encode("latin-1"))
    assert load_sampling_defaults(tmp_path) == SamplingDefaults()
    assert "left out" in caplog.text


def test_one_wrong_value_leaves_the_others(tmp_path: Path) -> None:
    folder = write(tmp_path, {"temperature": "hot", "top_k": -1, "top_p": 0.9})
    assert load_sampling_defaults(folder) == SamplingDefaults(top_k=0, top_p=0.9)
