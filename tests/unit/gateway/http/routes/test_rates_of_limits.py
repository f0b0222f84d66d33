"""Which limits count as the rate of a key, and as a model's rate limit in OpenAI's words."""

from typing import Any

import pytest

from gateway.http.organization import shapes
from gateway.http.routes.administration.usage import rate_limits
from protocol.wire.messages import LimitSettings, LimitStanding


def standing(amount: int, **fields: Any) -> LimitStanding:
    defaults: dict[str, Any] = {
        "name": "l",
        "holder": "key",
        "measure": "requests",
        "amount": amount,
        "window": "minute",
    }
    return LimitStanding(
        limit_id=f"lim_{amount}",
        settings=LimitSettings(**{**defaults, **fields}),
        amount=amount,
        used=0,
        reserved=0,
    )


def test_the_rates_of_a_key_are_those_that_hold_for_all_that_it_asks() -> None:
    found = rate_limits(
        [
            standing(9),
            standing(7, holder="house"),
            standing(1, models=("big-*",)),
            standing(2, endpoints=("/v1/embeddings",)),
            standing(3, holder="end_user"),
            standing(4, is_hard=False),
            standing(50, window="day"),
        ]
    )
    assert found == {"per_minute": 7, "per_hour": None, "per_day": 50}


@pytest.mark.parametrize(
    ("changes", "is_one"),
    [
        ({}, True),
        ({"models": ("demo", "x")}, False),
        ({"window": "hour"}, False),
        ({"is_hard": False}, False),
        ({"endpoints": ("/v1/embeddings",)}, False),
    ],
)
def test_a_rate_limit_of_a_model_is_a_hard_one_on_every_route(
    changes: dict[str, Any], is_one: bool
) -> None:
    limit = standing(5, **{"models": ("demo",), **changes}).settings
    assert shapes.is_rate_limit(limit, "requests", "minute", "demo") == is_one
    shown = shapes.rate_limit("demo", [limit])["max_requests_per_1_minute"]
    assert (shown == 5) == is_one
