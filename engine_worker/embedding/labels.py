"""What the numbers of a sequence classifier mean, as its `config.json` says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.errors import UnsupportedFeatureError

ProblemType = Literal["single_label", "multi_label", "regression"]
_PROBLEM_TYPES: Final[dict[str, ProblemType]] = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
_CLASSIFIER: Final = "ForSequenceClassification"
_MAX_LABELS: Final = 4096
"""They travel with what an engine announces."""
_MAX_NAME_CHARACTERS: Final = 256

assert set(_PROBLEM_TYPES.values()) == set(get_args(ProblemType))


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a classifier.

    Attributes:
        names: In the order of the logits.
        problem_type: `single_label`: softmax, one label holds. `multi_label`: a sigmoid each, any
            may hold. `regression`: numbers; the sigmoid of a single one is a score.
    """

    names: tuple[str, ...]
    problem_type: ProblemType


def has_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of a model with a sequence classifier on top."""
    named = ConfigFields(config).strings("architectures") or ()
    return any(name.endswith(_CLASSIFIER) for name in named)


def read_labels(config: Mapping[str, Any]) -> Labels:
    """The labels of a `config.json`: `id2label`, else `num_labels` numbered ones, else two.

    Raises:
        ModelConfigError: Its ids have gaps, or there are too many.
        UnsupportedFeatureError: It names an unknown problem type.
    """
    fields = ConfigFields(config)
    stated = fields.mapping("id2label")
    if stated is None:
        num_labels = fields.size("num_labels", 2, maximum=_MAX_LABELS)
        names = tuple(f"LABEL_{index}" for index in range(num_labels))
    else:
        if not 1 <= len(stated) <= _MAX_LABELS:
            raise fields.error("id2label", f"must hold 1 to {_MAX_LABELS} labels", len(stated))
        try:
            names = tuple(str(stated[str(index)]) for index in range(len(stated)))
        except KeyError:
            raise fields.error("id2label", "must have ids from 0 without gaps", stated) from None
    longest = max(names, key=len)
    if len(longest) > _MAX_NAME_CHARACTERS:
        raise fields.error(
            "id2label", f"must hold names of at most {_MAX_NAME_CHARACTERS} characters", longest
        )
    if not fields.present("problem_type"):
        # As transformers decides when it trains, and vLLM when it serves.
        return Labels(names, "regression" if len(names) == 1 else "single_label")
    problem = fields.text("problem_type")
    if problem not in _PROBLEM_TYPES:
        raise UnsupportedFeatureError(f"config.json: not supported: problem_type {problem!r:.80}")
    kind = _PROBLEM_TYPES[problem]
    return Labels(names, "regression" if len(names) == 1 and kind == "single_label" else kind)
