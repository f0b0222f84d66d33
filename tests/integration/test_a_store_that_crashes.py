"""PostgreSQL crashes while a response is made in the background: it ends once all the same."""

import signal
from pathlib import Path

import pytest

from protocol.wire.messages import Generate
from tests.fakes.postgres_server import PostgresServer
from tests.fakes.running_gateway import running_gateway
from tests.integration.test_background_responses import Harness, text_of, told, told_text

pytestmark = pytest.mark.asyncio


async def test_a_background_response_outlives_its_store(
    socket_dir: Path, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.http.background.background_take.RETRY_S", 0.01)
    monkeypatch.setattr("gateway.http.background.background_responses.BEAT_S", 0.1)
    url = postgres_server.url(postgres_server.new_database())
    async with running_gateway(socket_dir, store_url=url) as gateway:
        await gateway.parser()
        harness = Harness(gateway, await gateway.auth(), await gateway.engine(text=None))
        made = await harness.create()
        first = await harness.generate()
        harness.engine.emit(first, "Hello, w")
        before = await told(gateway, made["id"], "Hello, w")
        postgres_server.stop(signal.SIGQUIT)
        try:
            harness.engine.emit(first, "or")
            background = gateway.application.background
            assert background is not None
            await gateway.until(lambda: not background._takes)
            report = gateway.application.parts.readiness
            await gateway.until(lambda: report.look().status == "degraded", 60)
            assert report.look().missing == ("housekeeping: making background responses",)
        finally:
            postgres_server.start()
        second = await harness.generate(2)
        harness.engine.emit(second, "Hello, world")
        harness.engine.finish(second, completion_tokens=7)
        ended = await harness.ended(made["id"])
        assert (ended["status"], text_of(ended)) == ("completed", "Hello, world")
        events = await harness.events(made["id"])
        assert events[: len(before)] == before
        assert told_text(events) == "Hello, world"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert len(harness.engine.of(Generate)) == 2
        await harness.auth.until(lambda: len(harness.auth.settled()) >= 2)
        booked = [(one.lease_id, one.completion_tokens) for one in harness.booked()]
        assert booked == [(first.lease_id, 7)]
        await gateway.until(lambda: report.look().status == "ready", 60)
