"""What a WebSocket remembers, and what its events say beside themselves."""

import json

from gateway.http.answers.socket_lanes import MAX_LANES, LaneEvents, LaneTurns
from gateway.http.connections.caller_memory import CallerMemory
from gateway.http.response_turns.stored_turns import LocalTurn


def turn(name: str, num_bytes: int = 400) -> LocalTurn:
    return LocalTurn(name, b"x" * num_bytes, is_stored=False)


def known(*lanes: LaneTurns) -> str:
    """Names of one letter that are remembered, by connection."""
    return " ".join("".join(one for one in "abcdefgh" if own.find(one)) for own in lanes)


def test_what_the_sockets_of_one_caller_remember_is_bounded() -> None:
    """There may be a hundred thousand of them, and what is said to each may cost nothing."""
    memory = CallerMemory(1000)
    one, two, other = (LaneTurns(800, memory, caller) for caller in (b"k", b"k", b"o"))
    one.remember("", turn("a"))
    one.remember("lane", turn("b"))
    other.remember("", turn("c"))
    assert known(one, two, other) == "ab  c"
    two.remember("", turn("d"))
    assert known(one, two, other) == "b d c"  # the oldest of the same caller has gone
    one.remember("lane", turn("e"))  # in the place of the one before
    two.remember("lane", turn("f"))
    assert known(one, two, other) == "e f c"
    two.forget("f")
    one.remember("", turn("g", 300))
    two.remember("", turn("h", 300))
    assert known(one, two) == "eg h"
    one.close()
    two.remember("lane", turn("a", 500))
    assert known(one, two) == " ah"
    two.close()
    other.close()
    assert memory._callers == {}


def test_a_connection_remembers_so_many_lanes_and_bytes() -> None:
    lanes = LaneTurns(1000, CallerMemory(10**6), b"k")
    for number in range(MAX_LANES + 1):
        lanes.remember(str(number), turn(f"r{number}", 1))
    assert lanes.find("r0") is None
    assert lanes.find("r1") is not None
    lanes.remember("x", turn("large", 990))
    assert lanes.find(f"r{MAX_LANES}") is not None
    assert lanes.find(f"r{MAX_LANES - 10}") is None


def test_what_no_grammar_enforces_is_told_with_the_next_event_and_once() -> None:
    frames = LaneEvents("lane", ["x"])

    def told() -> dict[str, object]:
        found: dict[str, object] = json.loads(frames.frame(b'{"type":"t"}'))
        return {name: one for name, one in found.items() if name not in ("type", "stream_id")}

    assert told() == {"ignored_fields": ["x"]}
    frames.note(())
    assert told() == {}
    frames.note(("/uniqueItems",))
    assert told() == {"unenforced": ["/uniqueItems"]}
    frames.note(("/uniqueItems",))
    assert told() == {}
    frames.note(("/contains",))  # of another turn
    assert told() == {"unenforced": ["/contains"]}
