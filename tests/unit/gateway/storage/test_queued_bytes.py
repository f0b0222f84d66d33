"""Background responses that wait are bounded by their bytes: nothing of them can be dropped."""

import pytest

from gateway.errors import DeniedError
from gateway.storage.database import Engine
from tests.fakes.store_shelf import Shelf, play
from tests.unit.gateway.storage.test_store import FIRST, response


def test_what_waits_may_have_so_many_bytes(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store(max_tenant_bytes=1000)
        # One alone is taken: it may be larger than what is kept of others.
        await store.jobs.enqueue("alone", response("x", status="queued"), b"x" * 2000, FIRST)
        await store.jobs.enqueue("t", response("a", status="queued"), b"x" * 600, FIRST)
        with pytest.raises(DeniedError, match="PENSTOCK_STORE_MAX_TENANT_BYTES") as refused:
            await store.jobs.enqueue("t", response("b", status="queued"), b"x" * 600, FIRST)
        assert refused.value.retry_after_s is not None
        await store.jobs.enqueue("t", response("c", status="queued"), b"x" * 100, FIRST)
        await store.jobs.enqueue("u", response("d", status="queued"), b"x" * 600, FIRST)
        # Once it has ended there is room.
        await store.jobs.beat()
        while (job := await store.jobs.claim()) is not None:
            if job.tenant == "t":
                await store.jobs.finish(response(job.response_id), None)
        await store.jobs.enqueue("t", response("b", status="queued"), b"x" * 600, FIRST)

    play(engine, story)


def test_what_waits_keeps_the_bytes_of_all_tenants_within_their_bound(engine: Engine) -> None:
    """Of the tenant that has most nothing can be dropped; of the others it can."""

    async def story(shelf: Shelf) -> None:
        store = shelf.store(max_bytes=1000)
        waiting = response("waits", status="queued", body=b"x" * 600)
        await store.jobs.enqueue("much", waiting, b"x", FIRST)
        for number in range(4):
            shelf.clock.now_s += 1
            await store.responses.save(f"t{number % 2}", response(f"r{number}", body=b"x" * 150))
        assert await store.sweep() == 2
        ((num_bytes,),) = shelf.raw("SELECT SUM(num_bytes) FROM tenants")
        assert num_bytes <= 1000
        left = {row[0] for row in shelf.raw("SELECT id FROM responses")}
        assert left == {"waits", "r2", "r3"}

    play(engine, story)
