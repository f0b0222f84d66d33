"""Values that a config shouldn't have, in every field of every family's: refused or read.

Nothing else is raised, so that a folder that can't be served is told in a line that names the
field.
"""

import contextlib
import json
from typing import Any

import pytest

from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.errors import ModelLoadError
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.late import transformers
from tests.fakes.model_families import CASES, FamilyCase
from tests.fakes.odd_values import with_odd_values


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


@pytest.mark.parametrize("name", CASES)
def test_an_odd_value_is_refused_as_such_or_read(name: str) -> None:
    values = values_of(CASES[name])
    decoder_spec(values)
    # Families share most of the reading: a third of the values for each, all with more effort.
    every = 1 if EFFORT > 1 else 3
    for odd in list(with_odd_values(values))[list(CASES).index(name) % every :: every]:
        with contextlib.suppress(ModelLoadError):
            decoder_spec(odd)
