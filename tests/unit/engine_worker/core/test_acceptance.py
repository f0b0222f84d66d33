"""What a Generate becomes before it may share a step with others."""

from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET, structs

from engine_worker.core.acceptance import AcceptanceLimits, accept
from engine_worker.core.choice.choice import Choice
from engine_worker.errors import InvalidRequestError
from protocol.wire.messages import Generate, Grammar, SamplingParams
from protocol.wire.sampling_ranges import MAX_ALLOWED_TOKEN_IDS, NUMBER_RANGES, PARAMETERS

LIMITS = AcceptanceLimits(vocab_size=100, max_model_len=50, eos_token_ids=frozenset({1}))
PROTOCOL_PAGE = Path(__file__).parents[4] / "docs" / "protocol.md"


def accepted(**sampling: Any) -> Choice:
    """Accepts these sampling parameters, or `choice` and `grammar` of the command."""
    choice, grammar = sampling.pop("choice", 0), sampling.pop("grammar", None)
    command = Generate(
        request_id="r",
        choice=choice,
        attempt=0,
        prompt_token_ids=(2, 3),
        sampling=SamplingParams(**sampling),
        lease_tokens=10,
        deadline_s=1.0,
        grammar=grammar,
    )
    return accept("g", command, LIMITS, lambda words: [], received_at=0.0)


def refusal(**sampling: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        accepted(**sampling)
    return caught.value


def test_a_choice_that_the_device_cannot_hold_is_refused() -> None:
    assert accepted(choice=2**31 - 1).index == 2**31 - 1
    assert refusal(choice=2**31).param == "choice"


@pytest.mark.parametrize("name", NUMBER_RANGES)
def test_a_number_is_taken_up_to_its_bounds_and_refused_beyond_by_name_and_range(
    name: str,
) -> None:
    bounds = NUMBER_RANGES[name]
    integer = isinstance(getattr(SamplingParams(), name), int | None)
    step = 1 if integer else 1e-3
    for value in (bounds.minimum + (step if bounds.exclusive_minimum else 0), bounds.maximum):
        accepted(**{name: value})
    below = bounds.minimum if bounds.exclusive_minimum else bounds.minimum - step
    wrong = [below, bounds.maximum + step]
    if not integer:
        wrong += [float("nan"), float("inf")]
    for value in wrong:
        error = refusal(**{name: value})
        assert error.param == name
        assert str(bounds) in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", ("",)),
        ("stop", ("a",) * 17),
        ("stop", ("a" * 1025,)),
        ("bad_words", ("",)),
        ("bad_words", ("a",) * 129),
        ("bad_words", ("a" * 257,)),
        ("stop_token_ids", (1,) * 129),
        ("stop_token_ids", (100,)),
        ("logit_bias", tuple((index, 1.0) for index in range(1025))),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((100, 1.0),)),
        ("logit_bias", ((5, 1.0), (5, 2.0))),
        ("logit_bias", ((5, 100.5),)),
        ("logit_bias", ((5, float("nan")),)),
        ("allowed_token_ids", ()),
        ("allowed_token_ids", (5, 100)),
        ("allowed_token_ids", (5,) * (MAX_ALLOWED_TOKEN_IDS + 1)),
    ],
)
def test_a_list_that_the_table_does_not_allow_is_refused_by_name(name: str, value: Any) -> None:
    assert refusal(**{name: value}).param == name


def test_more_allowed_tokens_than_the_model_has_are_refused_with_both_numbers() -> None:
    accepted(allowed_token_ids=(5,) * 100)
    error = refusal(allowed_token_ids=(5,) * 101)
    assert error.param == "allowed_token_ids"
    assert "101 token ids, but this model has 100" in error.message


def test_min_tokens_above_max_tokens_is_refused() -> None:
    assert refusal(min_tokens=5, max_tokens=4).param == "min_tokens"


@pytest.mark.parametrize(("name", "value"), [("bad_words", ("a",)), ("ignore_eos", True)])
def test_what_contradicts_a_grammar_is_refused_beside_one(name: str, value: Any) -> None:
    grammar = Grammar(kind="json_object", source="")
    assert refusal(grammar=grammar, **{name: value}).param == name
    accepted(grammar=grammar, temperature=0.5, stop=("a",), logit_bias=((1, 2.0),))


def test_allowed_tokens_of_which_nothing_is_left_are_refused_before_anything_runs() -> None:
    assert refusal(allowed_token_ids=(1,), min_tokens=2).param == "allowed_token_ids"
    accepted(allowed_token_ids=(1,), min_tokens=2, ignore_eos=True)
    accepted(allowed_token_ids=(1, 2), min_tokens=2)


def test_words_that_cannot_be_encoded_are_refused_by_name() -> None:
    def encode(words: object) -> list[tuple[int, ...]]:
        raise InvalidRequestError("no")

    command = Generate(
        request_id="r",
        choice=0,
        attempt=0,
        prompt_token_ids=(2, 3),
        sampling=SamplingParams(bad_words=("a",)),
        lease_tokens=10,
        deadline_s=1.0,
    )
    with pytest.raises(InvalidRequestError) as caught:
        accept("g", command, LIMITS, encode, received_at=0.0)
    assert caught.value.param == "bad_words"


def test_the_table_has_every_parameter_of_the_wire_with_its_default() -> None:
    spelt = {None: "nil", (): "none", True: "true", False: "false"}
    fields = {field.name: field.default for field in structs.fields(SamplingParams)}
    assert UNSET not in fields.values()
    defaults = {
        name: spelt[default] if type(default) in (bool, tuple, type(None)) else str(default)
        for name, default in fields.items()
    }
    assert {parameter.name: parameter.default for parameter in PARAMETERS} == defaults


def test_a_top_p_of_zero_takes_the_most_likely_token_whatever_the_temperature() -> None:
    assert accepted(top_p=0.0, temperature=1.5).sampling.temperature == 0.0
    assert accepted(top_p=1e-6, temperature=1.5).sampling.temperature == 1.5


def test_the_protocols_page_shows_the_table() -> None:
    lines = [
        f"| `{one.name}` | {one.kind} | {one.allowed} | {one.default} | {one.meaning} |"
        for one in PARAMETERS
    ]
    assert "\n".join(lines) in PROTOCOL_PAGE.read_text(encoding="utf-8")
