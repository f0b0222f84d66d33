"""However much of a body is wrong, few errors are kept of it: every request model is walked."""

from collections.abc import Iterator
from typing import Any, Final

from pydantic import ValidationError

from gateway.http.schemas.base.body import RequestModel
from tests.fakes.request_models import MODELS

NUM_MEMBERS: Final = 2000
MAX_ERRORS: Final = 64
"""Of a body in which one field is wrong throughout; the fields that are missing count, too."""
MEMBERS: Final[list[Any]] = [1, -1, 1.5, "x", "", "x" * 1000, True, None, [], [1], {}, {"x": 1}]


def large_values() -> Iterator[Any]:
    for member in MEMBERS:
        many = [member] * NUM_MEMBERS
        by_name = {f"name{number}": member for number in range(NUM_MEMBERS)}
        yield from (many, by_name, [many], {"name": many}, [by_name])
    yield {f"{number}{'x' * 1000}": "a" for number in range(NUM_MEMBERS)}
    yield {"": "a", **{f" {number}": "a" for number in range(NUM_MEMBERS)}}


LARGE: Final = list(large_values())


def test_the_models_are_found() -> None:
    assert len(MODELS) > 100


def num_errors(model: type[RequestModel], body: dict[str, Any]) -> int:
    try:
        model.model_validate(body)
    except ValidationError as error:
        return error.error_count()
    return 0


def test_a_field_that_is_wrong_throughout_is_a_few_errors() -> None:
    for model in MODELS:
        for name in model.model_fields:
            for value in LARGE:
                assert num_errors(model, {name: value}) <= MAX_ERRORS, (model.__name__, name)
