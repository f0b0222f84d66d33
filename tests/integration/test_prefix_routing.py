"""A real gateway sends prompts to the engine that reported their beginning."""

from pathlib import Path

import pytest

from protocol.wire.messages import CachedBlocks, Generate
from tests.fakes.fake_workers import FakeEngine
from tests.fakes.running_gateway import RunningGateway, running_gateway

NAMES = tuple(bytes([number]) * 16 for number in range(4))


async def engines_with_a_prefix(gateway: RunningGateway) -> tuple[FakeEngine, FakeEngine]:
    """Two engines, of which the second one has the prompt of every request cached."""
    await gateway.auth()
    cold, warm = await gateway.engine(), await gateway.engine()
    for engine, names in ((cold, ()), (warm, NAMES)):
        engine.block_hashes = NAMES
        engine.gateway_id = engine.worker.gateway_ids()[0]
        engine.send(CachedBlocks(is_reset=True, added=names))
    known = gateway.application.prefixes._blocks
    await gateway.until(lambda: len(known) == 2)
    return cold, warm


async def test_every_choice_goes_to_the_engine_that_has_the_prompt(socket_dir: Path) -> None:
    async with running_gateway(socket_dir) as gateway:
        cold, warm = await engines_with_a_prefix(gateway)
        for _ in range(4):
            assert (await gateway.chat(n=2)).status_code == 200
        assert (len(cold.of(Generate)), len(warm.of(Generate))) == (0, 8)
        page = (await gateway.client.get("/metrics")).text
        counter = "penstock_gateway_routed_choices_total"
        assert f'{counter}{{model="demo",outcome="cached"}} 8.0' in page
        assert all(
            engine.num_requests == 0 for engine in gateway.application.directory.engines("demo")
        )


async def test_routing_by_load_looks_at_no_prefix(socket_dir: Path) -> None:
    async with running_gateway(socket_dir, routing="load") as gateway:
        cold, warm = await engines_with_a_prefix(gateway)
        for _ in range(6):
            assert (await gateway.chat()).status_code == 200
        assert (len(cold.of(Generate)), len(warm.of(Generate))) == (3, 3)


@pytest.mark.parametrize("is_reset", [True, False])
async def test_what_an_engine_lost_attracts_nothing(socket_dir: Path, is_reset: bool) -> None:
    async with running_gateway(socket_dir) as gateway:
        cold, warm = await engines_with_a_prefix(gateway)
        warm.send(CachedBlocks(is_reset=is_reset, removed=NAMES))
        peer = next(
            engine.peer
            for engine in gateway.application.directory.engines("demo")
            if engine.peer.instance_id == warm.worker.instance_id
        )
        blocks = gateway.application.prefixes._blocks
        await gateway.until(lambda: not blocks[peer].reported)
        assert (await gateway.chat()).status_code == 200
        # It was expected of the first one that got it, so the next follow.
        first = cold if cold.of(Generate) else warm
        for _ in range(3):
            await gateway.chat()
        assert len(first.of(Generate)) == 4
