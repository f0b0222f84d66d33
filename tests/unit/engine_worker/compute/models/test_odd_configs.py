"""Values that a config shouldn't have, in every field of every family's: refused or read.

Nothing else is raised, so that a folder that can't be served is told in a line that names the
field.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
import transformers

from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.errors import ModelLoadError
from tests.fakes.model_families import CASES, FamilyCase

ODD: Final[tuple[Any, ...]] = (
    *(None, -1, 0, 1, 3, 10**400, 1e30, float("nan"), float("inf"), -0.5, True, False),
    *("x", "", [], [None], [1, 2], [1, 10**400], [[]], [{}], ["full_attention"], {}, {"a": None}),
)
_ROPES: Final = ("rope_parameters", "rope_scaling")


def values_of(case: FamilyCase) -> dict[str, Any]:
    """The `config.json` of a case, as transformers writes it."""
    config: Any = getattr(transformers, case.config)(**case.values)
    values: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    architecture = case.wrapped_as or case.model
    if case.wrapped_as:
        values = {"text_config": values}
    if architecture.startswith("Auto"):
        names = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        architecture = names[config.model_type]
    return {**values, "architectures": [architecture]}


def objects_of(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config, its text model's, and their ropes."""
    yield values
    for name in ("text_config", *_ROPES):
        inner = values.get(name)
        if isinstance(inner, dict):
            yield from objects_of(inner)
    for inner in values.values():
        if isinstance(inner, dict) and "rope_theta" in inner:
            yield inner


@pytest.mark.parametrize("name", CASES)
def test_an_odd_value_is_refused_as_such_or_read(name: str) -> None:
    values = values_of(CASES[name])
    decoder_spec(values)
    for holder in list(objects_of(values)):
        for field, stated in list(holder.items()):
            for odd in ODD:
                holder[field] = odd
                with contextlib.suppress(ModelLoadError):
                    decoder_spec(values)
            del holder[field]
            with contextlib.suppress(ModelLoadError):
                decoder_spec(values)
            holder[field] = stated
