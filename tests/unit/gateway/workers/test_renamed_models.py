"""An engine that announces itself anew, under another model's name."""

import asyncio

from tests.fakes.request_parts import Parts, engine_offer


async def test_an_engine_that_renames_its_model_keeps_what_it_joined_with() -> None:
    parts = Parts()
    one = parts.engine("e")
    started = await parts.running()
    one.engine = engine_offer(model="other")
    parts.link.on_peer_updated(one)
    assert [handle.offer.model for handle in parts.directory.engines("m")] == ["m"]
    assert not parts.directory.engines("other")
    parts.lose(one)
    await asyncio.sleep(0)
    assert not started.work.is_at_worker
