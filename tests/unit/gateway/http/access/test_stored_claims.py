"""A request's place in the store: what it may have made stays its own, however it ends."""

from pathlib import Path

from gateway.errors import DeniedError, GatewayError, StoreUnavailableError
from gateway.http.access.stored_claims import StoredClaim
from gateway.storage.database import SqliteEngine
from protocol.errors import ErrorCode
from tests.fakes.store_shelf import Shelf, play

REFUSED = DeniedError("slower", code=ErrorCode.RATE_LIMIT_EXCEEDED)


def test_what_goes_on_and_is_refused_makes_nothing_twice(tmp_path: Path) -> None:
    async def story(shelf: Shelf) -> None:
        stores = [shelf.store(owner).answers for owner in ("one", "two")]
        made: list[str] = []

        async def attempt(gateway: int, error: GatewayError) -> None:
            claim = StoredClaim(stores[gateway], "t", "POST /v1/batches", "key", 10_000)
            assert await claim.claim(b"fingerprint") is None
            made.append(claim.made_id)
            assert await claim.end(None, error)
            shelf.clock.now_s += 1

        await attempt(0, StoreUnavailableError("it may have been made"))
        for gateway in (1, 0, 1):
            await attempt(gateway, REFUSED)
        assert len(set(made)) == 1

    play(SqliteEngine(tmp_path / "store.db"), story)


def test_what_is_refused_at_its_first_attempt_begins_anew(tmp_path: Path) -> None:
    async def story(shelf: Shelf) -> None:
        answers = shelf.store("one").answers
        for body in (b"one", b"another"):
            claim = StoredClaim(answers, "t", "POST /v1/batches", "key", 10_000)
            assert await claim.claim(body) is None
            assert await claim.end(None, REFUSED)

    play(SqliteEngine(tmp_path / "store.db"), story)
