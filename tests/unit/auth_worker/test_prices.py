"""What tokens cost: which price is a model's at a moment, and the sum of one request."""

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth_worker.principals import prices
from auth_worker.principals.prices import Price, PriceTable, cost, highest_cost

HOUR_MS = 3_600_000
PRICE = Price(
    price_id="price_1",
    version=1,
    models="demo",
    valid_from_ms=HOUR_MS,
    prompt=1_000_000,
    cached_prompt=100_000,
    completion=3_000_000,
    reasoning=2_000_000,
    embedding=20_000,
)
COUNTS = st.integers(0, 10**9)


def priced(models: str, price_id: str, **fields: Any) -> Price:
    return replace(PRICE, models=models, price_id=price_id, **fields)


def test_cached_and_reasoning_tokens_are_priced_as_such() -> None:
    assert cost(PRICE, prompt_tokens=1000, completion_tokens=0) == 1000
    assert cost(PRICE, prompt_tokens=1000, completion_tokens=0, cached_tokens=900) == 190
    assert cost(PRICE, prompt_tokens=0, completion_tokens=100) == 300
    assert cost(PRICE, prompt_tokens=0, completion_tokens=100, reasoning_tokens=50) == 250
    assert cost(replace(PRICE, request=7), prompt_tokens=0, completion_tokens=0) == 7


def test_embedding_has_a_price_of_its_own() -> None:
    assert cost(PRICE, prompt_tokens=1000, completion_tokens=0, endpoint="/v1/embeddings") == 20


def test_a_request_is_rounded_once_and_half_up() -> None:
    cheap = replace(PRICE, prompt=1, cached_prompt=1, completion=1, reasoning=1)
    assert cost(cheap, prompt_tokens=499_999, completion_tokens=0) == 0
    assert cost(cheap, prompt_tokens=250_000, completion_tokens=250_000) == 1


@given(COUNTS, COUNTS, COUNTS, COUNTS, st.tuples(*[st.integers(0, 10**8)] * 4))
def test_no_request_costs_more_than_the_most_that_was_reserved_for_it(
    prompt: int, completion: int, cached: int, reasoning: int, amounts: tuple[int, ...]
) -> None:
    names = ("prompt", "cached_prompt", "completion", "reasoning")
    price = priced("demo", "price_1", **dict(zip(names, amounts, strict=True)))
    paid = cost(
        price,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
    )
    assert 0 <= paid <= highest_cost(price, prompt_tokens=prompt, completion_tokens=completion)


def test_the_closest_price_is_taken() -> None:
    table = PriceTable(
        [
            priced("*", "price_all"),
            priced("demo*", "price_family"),
            priced("demo-la*", "price_large"),
            priced("demo", "price_one"),
        ]
    )
    found = {
        model: table.price_of(model, HOUR_MS) for model in ("demo", "demo-x", "demo-large", "other")
    }
    assert {model: price and price.price_id for model, price in found.items()} == {
        "demo": "price_one",
        "demo-x": "price_family",
        "demo-large": "price_large",
        "other": "price_all",
    }


@pytest.mark.parametrize(
    ("at_ms", "version"),
    [
        (HOUR_MS - 1, None),
        (HOUR_MS, 1),
        (2 * HOUR_MS - 1, 1),
        (2 * HOUR_MS, 2),
        (3 * HOUR_MS, None),
        (4 * HOUR_MS, 4),
    ],
)
def test_a_price_holds_from_its_moment_until_the_next_ones(at_ms: int, version: int | None) -> None:
    table = PriceTable([PRICE])
    assert table.price_of("demo", 2 * HOUR_MS) == PRICE  # remembered, and then replaced
    table.put(replace(PRICE, version=2, valid_from_ms=2 * HOUR_MS, prompt=5))
    table.put(replace(PRICE, version=3, valid_from_ms=3 * HOUR_MS, is_ended=True))
    table.put(replace(PRICE, version=4, valid_from_ms=4 * HOUR_MS))
    price = table.price_of("demo", at_ms)
    assert (None if price is None else price.version) == version


@given(
    st.lists(st.tuples(st.sampled_from(["demo", "dem*", "*"]), st.integers(0, 9), st.booleans())),
    st.lists(st.integers(0, 10), min_size=1),
)
def test_what_is_remembered_of_one_moment_is_not_said_of_another(
    versions: list[tuple[str, int, bool]], moments: list[int]
) -> None:
    prices = [
        priced(models, f"price_{models}", version=number, valid_from_ms=since_ms, is_ended=is_ended)
        for number, (models, since_ms, is_ended) in enumerate(versions)
    ]
    table = PriceTable(prices)
    for at_ms in moments:
        assert table.price_of("demo", at_ms) == PriceTable(prices).price_of("demo", at_ms)


GLOBS = ("*", "d*", "de?o", "[d]emo", "demo", "demo-*", "*-x", "demo-x", "other")


@given(st.lists(st.sampled_from(GLOBS)), st.sampled_from(["demo", "demo-x", "d", "", "d-x", "o"]))
def test_a_price_is_found_among_those_that_begin_alike(globs: list[str], model: str) -> None:
    all_of_them = [priced(glob, f"price_{number}") for number, glob in enumerate(globs)]
    fitting = [price for price in all_of_them if fnmatchcase(model, price.models)]
    expected = max(fitting, key=prices._closeness, default=None)
    assert PriceTable(all_of_them).price_of(model, HOUR_MS) == expected


def test_a_made_up_name_is_held_against_the_globs_that_begin_like_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = PriceTable([priced(f"model-{number}-*", f"price_{number}") for number in range(1000)])
    table.put(priced("*", "price_all"))
    compared: list[str] = []

    def watched(name: str, glob: str) -> bool:
        compared.append(glob)
        return fnmatchcase(name, glob)

    monkeypatch.setattr(prices, "fnmatchcase", watched)
    price = table.price_of("made-up", HOUR_MS)
    assert price is not None
    assert price.price_id == "price_all"
    price = table.price_of("model-77-x", HOUR_MS)
    assert price is not None
    assert price.price_id == "price_77"
    assert set(compared) == {"*", "model-77-*"}


def test_a_price_that_gets_another_glob_is_found_by_it() -> None:
    table = PriceTable([priced("demo*", "price_1")])
    table.put(priced("other*", "price_1", version=2, valid_from_ms=2 * HOUR_MS))
    for model, at_ms, version in (("demo-x", HOUR_MS, 1), ("other-x", 2 * HOUR_MS, 2)):
        price = table.price_of(model, at_ms)
        assert price is not None
        assert price.version == version
    assert table.price_of("demo-x", 2 * HOUR_MS) is None


def test_a_correction_of_what_was_to_come_takes_its_place() -> None:
    table = PriceTable([PRICE])
    table.put(replace(PRICE, version=2, valid_from_ms=9 * HOUR_MS))
    table.put(replace(PRICE, version=3, valid_from_ms=5 * HOUR_MS))
    for at_ms, version in ((4 * HOUR_MS, 1), (5 * HOUR_MS, 3), (10 * HOUR_MS, 3)):
        price = table.price_of("demo", at_ms)
        assert price is not None
        assert price.version == version


def test_a_price_is_found_by_its_own_words() -> None:
    table = PriceTable([PRICE, priced("demo*", "price_family", is_ended=True)])
    assert table.find("demo") == PRICE
    assert table.find("demo*") is None
    assert [price.version for price in table.versions("price_1")] == [1]


def test_names_that_callers_make_up_are_not_remembered_without_end() -> None:
    table = PriceTable([PRICE])
    for number in range(5000):
        assert table.price_of(f"made-up-{number}", HOUR_MS) is None
    assert max(len(table._of_model), len(table._found)) <= 4096
