"""Configs of every family mean the same in the spelling before transformers 5 as in the one since.

Most files that people download were saved before: `rope_theta` and `rope_scaling` stood beside each
other, where `rope_parameters` holds both now, and `torch_dtype` was the name of `dtype`.
"""

import json
from typing import Any

import pytest

from engine_worker.compute.models.hf_config import decoder_spec
from tests.fakes.late import transformers
from tests.fakes.model_families import CASES

SINCE = {
    *("gemma4_with_shared_keys", "gemma4_with_experts_and_values_of_keys"),
    *("gemma4_beside_its_towers", "olmo3_with_yarn_on_full_layers"),
    "ministral_with_mixed_windows",
}
"""Whose ropes differ by the type of the layer, which the older spelling had no form for."""


def saved(name: str) -> dict[str, Any]:
    """The config of a case as transformers saves it now."""
    case = CASES[name]
    config: dict[str, Any] = json.loads(
        getattr(transformers, case.config)(**case.values).to_json_string(use_diff=False)
    )
    if case.wrapped_as:
        return {"architectures": [case.wrapped_as], "text_config": config}
    return config


def before(config: dict[str, Any]) -> dict[str, Any]:
    """The same as transformers 4 saved it."""
    old = dict(config)
    if isinstance(old.get("text_config"), dict):
        old["text_config"] = before(old["text_config"])
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    rope = old.pop("rope_parameters", None)
    if not rope:
        return old
    if "sliding_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    rope = dict(rope)
    for field in ("rope_theta", "partial_rotary_factor"):
        if field in rope:
            old[field] = rope.pop(field)
    kind = rope.pop("rope_type", "default")
    old["rope_scaling"] = None if kind == "default" else {**rope, "rope_type": kind}
    return old


@pytest.mark.parametrize("name", sorted(CASES.keys() - SINCE))
def test_a_config_of_transformers_4_means_what_one_of_transformers_5_does(name: str) -> None:
    new = saved(name)
    old = before(new)
    assert "rope_parameters" not in json.dumps({**old, "vision_config": None})
    assert decoder_spec(old) == decoder_spec(new)
    text = old.get("text_config", old)
    if "rope_scaling" in text and text["rope_scaling"] is not None:
        # The oldest name of its kind.
        text["rope_scaling"]["type"] = text["rope_scaling"].pop("rope_type")
        assert decoder_spec(old) == decoder_spec(new)
