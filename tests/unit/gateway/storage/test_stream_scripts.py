"""How a stream has told its response: kept with it, counted with it, and gone with it."""

import pytest

from gateway.errors import InvalidRequestError
from gateway.storage.database import Engine
from gateway.storage.records import StoredResponse
from tests.fakes.store_shelf import Shelf, play

MADE = StoredResponse("r", "completed", None, None, 1, b"{}", b"[]", b"[]")


def test_it_is_its_tenants_and_goes_where_its_response_goes(engine: Engine) -> None:
    async def story(shelf: Shelf) -> None:
        store = shelf.store()
        await store.responses.save("t", MADE, (), b'[["response.created"]]')
        assert await store.responses.script("t", "r") == b'[["response.created"]]'
        assert await store.responses.script("other", "r") == b""
        # It is no event, and makes no response one of the background.
        assert await store.jobs.events_after("t", "r", -1) == ([], "completed")
        with pytest.raises(InvalidRequestError, match="not made in the background"):
            await store.jobs.cancel("t", "r", lambda _response, _number: NotImplemented)
        assert shelf.raw("SELECT num_stored, num_bytes FROM tenants") == [(1, 6 + 22)]
        await store.responses.remove("t", "r")
        assert await store.responses.script("t", "r") == b""
        assert shelf.raw("SELECT num_stored, num_bytes FROM tenants") == [(0, 0)]

    play(engine, story)
