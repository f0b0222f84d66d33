"""Room for lines of batches: an absence comes first, and token ids fit one tokenizer."""

import asyncio

import pytest

from gateway.batches.idle_room import IdleRoom
from gateway.batches.line_room import OnTheirWay
from gateway.batches.lines import Wanted
from gateway.dispatch.admission import Admission
from protocol.wire.messages import Load
from tests.unit.gateway.request.jobs.test_model_names import Engines

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
NOBODY: OnTheirWay = {}


class Room:
    """Engines of the model `a`; `b` is configured and away, with `a` as a fallback if wanted."""

    def __init__(self, *, falls_back: bool = False, share: float = 0.75) -> None:
        self.engines = Engines()
        self.engines.serve("a", tokenizer="{}", vocab_size=10)
        self.takes_requests = self.knows_all = True
        directory = self.engines.directory
        self.admission = Admission(directory.engines, 10)
        fallbacks: dict[str, tuple[str, ...]] = {"b": ("a",)} if falls_back else {}
        names = self.engines.names({"far": "b"}, fallbacks)
        self.idle = IdleRoom(
            ["a", "b"],
            directory,
            self.admission,
            names,
            lambda: self.takes_requests,
            lambda: self.knows_all,
            share,
        )

    def num_free(
        self,
        model: str | None,
        *,
        names_token_ids: bool = False,
        endpoint: str = CHAT,
        on_their_way: OnTheirWay = NOBODY,
    ) -> int | None:
        return self.idle.num_free(endpoint, Wanted(model, names_token_ids), on_their_way)


def lines(model: str, number: int, endpoint: str = CHAT) -> dict[tuple[str, Wanted], int]:
    return {(endpoint, Wanted(model, False)): number}


@pytest.mark.parametrize("why", ["nobody", "waits", "draining"])
async def test_a_model_that_is_away_is_not_back_because_somebody_waits(why: str) -> None:
    room = Room()
    waiting = None
    if why == "waits":
        waiting = asyncio.ensure_future(
            room.admission.acquire(
                "a", tenant="t", priority=1, tokens=1, accepts=lambda engine: False
            )
        )
        await asyncio.sleep(0)
        assert room.admission.num_waiting("a") == 1
    room.takes_requests = why != "draining"
    assert room.num_free("b") is None
    assert room.num_free("far") is None
    assert (room.num_free("a") or 0) > 0 if why == "nobody" else room.num_free("a") == 0
    assert room.num_free("none") == room.num_free(None) == (1 if why == "nobody" else 0)
    if waiting is not None:
        waiting.cancel()


def test_a_fallback_has_room_for_what_holds_no_ids_of_another_tokenizer() -> None:
    room = Room(falls_back=True)
    assert room.num_free("b") == room.num_free("a") != 0
    assert room.num_free("b", names_token_ids=True) is None
    assert room.num_free("b", endpoint=EMBEDDINGS) is None


def test_with_all_engines_away_nobody_knows_which_names_are_models() -> None:
    room = Room()
    room.engines.stop("a")
    assert room.num_free("a") is None
    assert room.num_free("none") == room.num_free(None) == 0


def test_a_name_that_no_engine_has_announced_yet_may_be_a_models() -> None:
    room = Room()
    room.knows_all = False
    assert room.num_free("none") is None
    assert room.num_free("b") is None
    assert room.num_free("a") == 6
    assert room.num_free(None) == 1
    room.knows_all = True
    assert room.num_free("none") == 1
    room.engines.serve("none")
    assert room.num_free("none") == 6


def test_lines_may_fill_what_the_operator_gives_them_of_an_engine() -> None:
    assert [Room(share=share).num_free("a") for share in (0.01, 0.5, 0.75, 1.0)] == [1, 4, 6, 8]


def test_lines_on_their_way_count_beside_what_the_engines_have() -> None:
    """An engine knows of a line only once that has its lease and its prompt."""
    room = Room()
    room.engines.serve("other")
    ways = [lines("a", number) for number in (0, 2, 6)]
    assert [room.num_free("a", on_their_way=way) for way in ways] == [6, 4, 0]
    (engine,) = room.engines.directory.engines("a")
    engine.num_requests = 2  # of clients, or lines that have come to it
    assert [room.num_free("a", on_their_way=way) for way in ways] == [4, 2, -2]
    assert [room.num_free("other", on_their_way=way) for way in ways] == [6, 6, 6]


def test_lines_on_their_way_count_by_whatever_name_they_have_the_model() -> None:
    room = Room(falls_back=True)
    way = lines("a", 1) | lines("b", 1) | lines("far", 1) | lines("a", 1, EMBEDDINGS)
    unknown = lines("none", 3) | lines("b", 3, EMBEDDINGS)
    for name in ("a", "b"):
        assert room.num_free(name, on_their_way=way | unknown) == 6 - 4
    assert room.num_free("a", endpoint=EMBEDDINGS, on_their_way=way) == 6 - 4


def test_lines_that_have_ended_since_the_last_report_of_an_engine_make_room() -> None:
    room = Room()
    (engine,) = room.engines.directory.engines("a")
    engine.num_requests = 4
    engine.peer.load = Load(num_running=5)  # one is another gateway's
    assert room.num_free("a") == 1
    engine.num_requests = 1
    assert room.num_free("a") == 4
    engine.peer.load = Load(num_running=1)
    assert room.num_free("a") == 5
