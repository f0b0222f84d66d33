"""When a name that no engine has announced is known to be no model's."""

from gateway.workers.announcements import Announcements
from gateway.workers.engine_directory import EngineDirectory
from protocol.wire.peers import Peer
from tests.fakes.request_parts import engine_offer, peer


class Gateway:
    """A gateway that expects `configured`, and hears of engines."""

    def __init__(self, *configured: str) -> None:
        self.now = 100.0
        self.peers: list[Peer] = []
        self.directory = EngineDirectory(lambda model: None)
        self.announcements = Announcements(
            configured, self.directory, lambda: self.peers, 15.0, lambda: self.now
        )

    def engine(self, model: str, phase: str = "ready") -> Peer:
        offer = engine_offer(model=model) if phase == "ready" else None
        found = peer("engine", model, engine=offer)
        found.phase, found.phase_since = phase, self.now  # type: ignore[assignment]
        self.peers.append(found)
        self.directory.update(found)
        return found


def test_nothing_is_known_before_an_engine_serves_and_all_once_the_others_had_their_time() -> None:
    gateway = Gateway()
    assert not gateway.announcements.are_complete()
    gateway.engine("a")
    gateway.now += 14
    gateway.engine("b")
    assert not gateway.announcements.are_complete()
    gateway.now += 1
    assert gateway.announcements.are_complete()


def test_what_is_configured_is_waited_for_no_longer_than_it_takes() -> None:
    gateway = Gateway("a", "b")
    gateway.engine("a")
    assert not gateway.announcements.are_complete()
    gateway.engine("b")
    assert gateway.announcements.are_complete()


def test_one_of_the_configured_that_stays_away_keeps_nobody_waiting_for_ever() -> None:
    gateway = Gateway("a", "b")
    gateway.engine("a")
    gateway.now += 15
    assert gateway.announcements.are_complete()


def test_an_engine_that_still_loads_may_turn_out_to_serve_any_name() -> None:
    gateway = Gateway()
    gateway.engine("a")
    loading = gateway.engine("b", "compiling")
    gateway.now += 1000
    assert not gateway.announcements.are_complete()
    gateway.peers.remove(loading)
    assert gateway.announcements.are_complete()


def test_other_workers_say_nothing_of_models() -> None:
    gateway = Gateway()
    gateway.peers.append(peer("auth", "auth"))
    gateway.now += 1000
    assert not gateway.announcements.are_complete()
