"""Usage that is read in several pages while more is used."""

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.http.routes.organization import usage
from protocol.wire.messages import Actor, ReadUsage, UsageFound, UsageRow


class Auth:
    """The auth worker's side: before each page but the first, somebody comes first of all."""

    def __init__(self, num_keys: int) -> None:
        self.rows = [self.row(f"key_{number:05}") for number in range(num_keys)]
        self.num_asked = 0

    @staticmethod
    def row(key_id: str) -> UsageRow:
        return UsageRow(key_id=key_id, endpoint="/v1/chat/completions", cost_micros=1)

    async def administer(self, question: ReadUsage, _kind: type[UsageFound]) -> UsageFound:
        if self.num_asked:
            self.rows.insert(0, self.row(f"key_-{self.num_asked}"))
        self.num_asked += 1
        end = question.skip + question.limit
        rows = tuple(self.rows[question.skip : end])
        return UsageFound(request_id="r", rows=rows, has_more=end < len(self.rows))


def test_a_line_item_is_a_model_also_where_costs_are_filtered_by_it() -> None:
    request: Any = SimpleNamespace(
        query_params=SimpleNamespace(getlist=lambda name: ["big"] if name == "line_items[]" else [])
    )
    names = SimpleNamespace(served=lambda name: {"big": "demo"}.get(name, name))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(usage, "parts_of", lambda _: SimpleNamespace(names=names))
        filters = usage.filters_of(request, usage._COST_FILTERS)
    assert filters == {"line_item": frozenset({"demo"})}
    assert usage.fits(UsageRow(model="demo"), filters)
    assert not usage.fits(UsageRow(model="other"), filters)


async def test_nobody_is_counted_twice_who_is_moved_on_by_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    auth = Auth(2500)
    monkeypatch.setattr(usage, "parts_of", lambda _: SimpleNamespace(auth=auth))
    monkeypatch.setattr(usage, "actor_of", lambda _: Actor(key_id="key_admin"))
    request: Any = SimpleNamespace(state=SimpleNamespace(request_id="r"))
    day = usage.COST_WIDTHS["1d"]
    asked = usage.asked_usage(day, 0, 86_400, None, ("api_key_id",), {})
    rows = await usage.usage_rows(request, asked)
    assert auth.num_asked == 3
    assert sum(row.cost_micros for row in rows) == 2500
    assert {row.key_id for row in rows} == {f"key_{number:05}" for number in range(2500)}
