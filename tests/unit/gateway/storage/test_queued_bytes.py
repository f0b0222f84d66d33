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
