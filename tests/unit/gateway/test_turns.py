"""Places by caller, handed on in turn."""

import asyncio

from gateway.turns import Turns


async def test_a_place_freed_while_the_first_waiter_is_cancelled_goes_to_the_next() -> None:
    turns = Turns(2, 1)
    await turns.take(b"a")
    second = asyncio.create_task(turns.take(b"a"))
    third = asyncio.create_task(turns.take(b"a"))
    await asyncio.sleep(0)
    second.cancel()  # its client leaves in the tick in which the first one is done
    turns.give(b"a")
    async with asyncio.timeout(60):
        await third
    assert second.cancelled()
