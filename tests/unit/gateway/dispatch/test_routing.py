"""Routing by cached prefix: the longest wins, unless its engine has too much to do."""

import pytest
from msgspec import structs

from gateway.dispatch import routing
from gateway.dispatch.routing import PrefixRouter, Route
from gateway.dispatch.slots import EngineHandle
from protocol.version import PROTOCOL_VERSION
from protocol.wire.messages import CachedBlocks, Credits, EngineOffer, Load
from protocol.wire.peers import Peer

PROMPT = tuple(bytes([number]) * 16 for number in range(6))


def engine(name: str, num_running: int = 0, max_requests: int = 64) -> EngineHandle:
    offer = EngineOffer(
        model="m",
        fingerprint="f",
        resume_version=1,
        max_model_len=100,
        created=0,
        credits=Credits(max_requests=max_requests, max_tokens=10_000),
        max_num_seqs=16,
    )
    peer = Peer(
        identity=name.encode(),
        role="engine",
        instance_id=name,
        protocol_version=PROTOCOL_VERSION,
        build="",
        last_heard=0.0,
        progress_since=0.0,
        phase_since=0.0,
        phase="ready",
        engine=offer,
        load=Load(num_running=num_running),
    )
    return EngineHandle(peer, offer)


class Desk:
    """Three engines; the first has the slot."""

    def __init__(self, *num_running: int) -> None:
        loads = num_running or (0, 0, 0)
        self.engines = [engine(f"e{index}", load) for index, load in enumerate(loads)]
        self.router = PrefixRouter()

    def report(self, index: int, num_blocks: int, *, is_reset: bool = False) -> None:
        message = CachedBlocks(is_reset=is_reset, added=PROMPT[:num_blocks])
        self.router.on_cached_blocks(self.engines[index].peer, message)

    def choose(self, prompt: tuple[bytes, ...] = PROMPT) -> tuple[str, str]:
        route = self.router.choose(self.engines, self.engines[0], prompt, 10, lambda _: True)
        return route.engine.peer.instance_id, route.outcome


def test_the_longest_cached_beginning_wins() -> None:
    desk = Desk()
    desk.report(0, 1)
    desk.report(1, 4)
    desk.report(2, 3)
    assert desk.choose() == ("e1", "cached")


def test_a_prompt_that_nobody_has_stays_where_it_is() -> None:
    desk = Desk()
    desk.report(1, 0)
    assert desk.choose() == ("e0", "none")


def test_a_block_in_the_middle_is_worth_nothing_without_those_before_it() -> None:
    desk = Desk()
    desk.router.on_cached_blocks(desk.engines[1].peer, CachedBlocks(added=PROMPT[1:]))
    assert desk.choose() == ("e0", "none")


def test_of_equally_long_ones_the_slot_stays_and_else_the_less_loaded_is_taken() -> None:
    desk = Desk(0, 3, 1)
    desk.report(1, 4)
    desk.report(2, 4)
    assert desk.choose() == ("e2", "cached")
    desk.report(0, 4)
    assert desk.choose() == ("e0", "cached")


def test_an_engine_with_over_a_quarter_of_its_slots_more_to_do_is_passed_over() -> None:
    for load, expected in ((4, ("e1", "cached")), (5, ("e0", "overloaded"))):
        desk = Desk(0, load)
        desk.report(1, 6)
        assert desk.choose() == expected


def test_a_full_engine_is_passed_over_while_another_has_room() -> None:
    desk = Desk(15, 16)
    desk.report(1, 6)
    assert desk.choose() == ("e0", "overloaded")
    desk = Desk(16, 16)
    desk.report(1, 6)
    assert desk.choose() == ("e1", "cached")


def test_an_engine_beyond_its_credit_is_passed_over_for_the_next_best() -> None:
    desk = Desk()
    desk.engines[1] = engine("full", max_requests=0)
    desk.report(1, 6)
    desk.report(2, 2)
    assert desk.choose() == ("e2", "overloaded")


def test_an_engine_that_cannot_do_the_work_is_not_asked() -> None:
    desk = Desk()
    desk.report(1, 6)
    route = desk.router.choose(
        desk.engines, desk.engines[0], PROMPT, 10, lambda one: one is not desk.engines[1]
    )
    assert route == Route(desk.engines[0], "none")


def test_what_is_removed_or_reset_or_gone_counts_no_more() -> None:
    desk = Desk()
    desk.report(1, 6)
    desk.router.on_cached_blocks(desk.engines[1].peer, CachedBlocks(removed=PROMPT[2:]))
    desk.report(2, 3)
    assert desk.choose() == ("e2", "cached")
    desk.report(2, 1, is_reset=True)
    assert desk.choose() == ("e1", "cached")
    desk.router.forget(desk.engines[1].peer)
    assert desk.choose() == ("e2", "cached")


def test_a_prompt_follows_its_like_before_the_engine_reports_it() -> None:
    desk = Desk()
    desk.report(2, 0, is_reset=True)
    desk.router.expect(desk.engines[2], PROMPT)
    assert desk.choose() == ("e2", "cached")
    # The engine had to give up what was expected, or never had it.
    desk.router.on_cached_blocks(desk.engines[2].peer, CachedBlocks(removed=PROMPT))
    assert desk.choose() == ("e0", "none")


def test_of_an_engine_that_reports_nothing_nothing_is_expected() -> None:
    desk = Desk()
    desk.router.expect(desk.engines[2], PROMPT)
    assert desk.choose() == ("e0", "none")


def test_what_is_kept_of_an_engine_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_BLOCKS", 2)
    monkeypatch.setattr(routing, "MAX_EXPECTED", 2)
    desk = Desk()
    desk.report(1, 6)
    desk.router.on_cached_blocks(desk.engines[2].peer, CachedBlocks(added=(b"x" * 1000,)))
    desk.router.expect(desk.engines[2], PROMPT)
    kept = desk.router._blocks
    assert len(kept[desk.engines[1].peer].reported) == 2
    assert len(kept[desk.engines[2].peer].reported) == 0
    assert list(kept[desk.engines[2].peer].expected) == list(PROMPT[4:])


def test_names_up_to_64_bytes_are_kept() -> None:
    desk = Desk()
    longest = b"x" * 64
    desk.router.on_cached_blocks(desk.engines[1].peer, CachedBlocks(added=(longest, b"y" * 65)))
    assert desk.choose((longest,)) == ("e1", "cached")
    assert desk.choose((b"y" * 65,)) == ("e0", "none")


def test_what_is_reported_is_expected_no_more() -> None:
    desk = Desk()
    desk.report(2, 0, is_reset=True)
    desk.router.expect(desk.engines[2], PROMPT)
    desk.report(2, 2)
    desk.router.expect(desk.engines[2], PROMPT)
    assert list(desk.router._blocks[desk.engines[2].peer].expected) == list(PROMPT[2:])


def test_what_is_expected_again_stays_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_EXPECTED", 2)
    desk = Desk()
    desk.report(2, 0, is_reset=True)
    for name in (PROMPT[0], PROMPT[1], PROMPT[0], PROMPT[2]):
        desk.router.expect(desk.engines[2], (name,))
    assert list(desk.router._blocks[desk.engines[2].peer].expected) == [PROMPT[0], PROMPT[2]]


def test_an_engine_that_never_reported_can_be_forgotten() -> None:
    desk = Desk()
    desk.router.forget(desk.engines[1].peer)
    assert desk.choose() == ("e0", "none")


def test_an_engine_without_credit_for_the_tokens_is_passed_over() -> None:
    desk = Desk()
    desk.report(1, 6)
    desk.engines[1].num_requests, desk.engines[1].num_tokens = 1, 9_990
    assert desk.choose() == ("e1", "cached")
    desk.engines[1].num_tokens = 9_991
    assert desk.choose() == ("e0", "overloaded")


def test_an_engine_that_runs_one_at_a_time_is_full_with_one() -> None:
    desk = Desk(0, 1)
    offers = [structs.replace(one.offer, max_num_seqs=1) for one in desk.engines]
    for one, offer in zip(desk.engines, offers, strict=True):
        one.offer = offer
    desk.report(1, 6)
    assert desk.choose() == ("e0", "overloaded")
