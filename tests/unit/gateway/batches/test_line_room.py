"""What lines of batches take of the room that engines have."""

import asyncio
from collections import Counter
from pathlib import Path

from gateway.batches.line_room import LineAnswer, OnTheirWay
from gateway.batches.lines import Wanted
from gateway.request.callers.caller import Caller
from tests.unit.gateway.batches.test_runner import CHAT, Harness, bad, good


async def test_a_line_is_on_its_way_until_an_engine_knows_of_it(tmp_path: Path) -> None:
    """One that is asked again is on its way again."""
    seen: list[int] = []
    is_seen = asyncio.Event()

    class Watched(Harness):
        def num_free_of(self, endpoint: str, wanted: Wanted, on_their_way: OnTheirWay) -> int:
            assert set(on_their_way) <= {(CHAT, Wanted(None, False))}
            seen.append(sum(on_their_way.values()))
            if seen[-1]:
                is_seen.set()
            return 1 - seen[-1] - self.under_way

        async def ask(self, path: str, body: bytes, caller: Caller) -> LineAnswer:
            if len(self.asked) < 3:  # there is a line left for which room is looked for
                is_seen.clear()
                await is_seen.wait()
            return await super().ask(path, body, caller)

    harness = Watched(tmp_path)
    answers = iter([bad(503)])
    harness.answer = lambda _id: next(answers, good())
    await harness.until_ended(harness.create(3))
    assert set(seen) == {0, 1}
    assert harness.most_under_way == 1
    assert len(harness.asked) == 4
    assert harness.ledger.used() == Counter({f"c{one}": 1 for one in range(3)})
