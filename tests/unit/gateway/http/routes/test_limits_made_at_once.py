"""Of a limit that two administrators set for the first time at once, one is left."""

import asyncio
from typing import Any

import orjson
import pytest
from msgspec import structs

from gateway.errors import RemoteFailureError
from gateway.http.routes.organization import limits
from gateway.http.schemas.administration.organization import SpendLimitRequest
from protocol.errors import ErrorCode
from protocol.wire.messages import LimitSettings, Resource, ResourcesFound

REQUEST: Any = None


class Limits:
    """The auth worker's side: whoever looks first waits until `num_first` do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_first: int = 0) -> None:
        self.kept: list[Resource] = []
        self._num_made = 0
        self._num_first = num_first
        self._first = asyncio.Barrier(num_first) if num_first else None
        for name in ("find", "make", "change", "delete", "one"):
            monkeypatch.setattr(limits, name, getattr(self, name))

    async def find(self, _request: Any, _kind: str, **_wanted: Any) -> ResourcesFound:
        seen = tuple(self.kept)
        if self._first is not None and self._num_first:
            self._num_first -= 1
            await self._first.wait()
        return ResourcesFound(request_id="r", resources=seen)

    async def make(self, _request: Any, _kind: str, settings: LimitSettings) -> Resource:
        self._num_made += 1
        made = Resource(resource_id=f"bud_{self._num_made}", settings=settings, created_at=1)
        self.kept.insert(0, made)
        await asyncio.sleep(0)
        return made

    async def change(
        self, _request: Any, _kind: str, resource_id: str, _fields: Any, settings: LimitSettings
    ) -> Resource:
        (at,) = (at for at, one in enumerate(self.kept) if one.resource_id == resource_id)
        self.kept[at] = structs.replace(self.kept[at], settings=settings)
        return self.kept[at]

    async def delete(self, _request: Any, _kind: str, resource_id: str) -> None:
        await asyncio.sleep(0)
        if resource_id not in (one.resource_id for one in self.kept):
            raise RemoteFailureError("There is none.", code=ErrorCode.NOT_FOUND)
        self.kept = [one for one in self.kept if one.resource_id != resource_id]

    async def one(self, _request: Any, _kind: str, _resource_id: str) -> None:
        """Every team is there."""


async def test_of_two_first_spend_limits_the_newest_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = Limits(monkeypatch, num_first=2)
    amounts = iter((300, 500))

    async def body_of(*_: Any) -> SpendLimitRequest:
        return SpendLimitRequest(currency="USD", interval="month", threshold_amount=next(amounts))

    monkeypatch.setattr(limits, "body_of", body_of)
    answers = await asyncio.gather(*(limits.set_spend_limit(REQUEST) for _ in range(2)))
    (left,) = house.kept
    assert isinstance(left.settings, LimitSettings)
    assert left.resource_id == "bud_2"
    told = [orjson.loads(bytes(answer.body))["threshold_amount"] for answer in answers]
    assert told == [left.settings.amount // 10_000] * 2


async def test_of_two_first_rates_of_a_model_the_newest_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    team = Limits(monkeypatch, num_first=2)  # each looks before the other has made one
    await asyncio.gather(
        *(
            limits.set_rate_limits(
                REQUEST, "team_1", "demo", [limits.Rate("r", "requests", "minute", amount)]
            )
            for amount in (10, 20)
        )
    )
    (left,) = team.kept
    assert left.resource_id == "bud_2"


async def test_limits_of_a_model_are_set_together_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A team has so many limits at most: the second new one is refused."""
    team = Limits(monkeypatch)
    await limits.set_rate_limits(
        REQUEST, "team_1", "demo", [limits.Rate("old", "requests", "minute", 10)]
    )
    make = team.make

    async def make_one_more(*args: Any) -> Resource:
        if len(team.kept) == 2:
            raise RemoteFailureError("There may be no more.", code=ErrorCode.INVALID_REQUEST)
        return await make(*args)

    monkeypatch.setattr(limits, "make", make_one_more)
    wanted = [
        limits.Rate("old", "requests", "minute", 99),
        limits.Rate("new", "tokens", "minute", 5),
        limits.Rate("newer", "requests", "day", 6),
    ]
    with pytest.raises(RemoteFailureError, match="no more"):
        await limits.set_rate_limits(REQUEST, "team_1", "demo", wanted)
    assert amounts(team) == [10]
    gone = limits.Rate("old", "requests", "minute", None)
    await limits.set_rate_limits(REQUEST, "team_1", "demo", [wanted[1], gone])
    assert amounts(team) == [5]


def amounts(limits: Limits) -> list[int]:
    kept = [one.settings for one in limits.kept]
    return [one.amount for one in kept if isinstance(one, LimitSettings)]
