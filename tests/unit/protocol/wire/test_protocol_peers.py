"""The gateway's view of its workers: who is ready, silent, hung, lost."""

from typing import Any

import pytest

from protocol.errors import ErrorCode
from protocol.version import PROTOCOL_VERSION, ProtocolVersion
from protocol.wire.messages import (
    AuthOffer,
    Credits,
    Drain,
    EngineOffer,
    Failure,
    Goodbye,
    Heartbeat,
    Load,
    Message,
    Ping,
    Pong,
    Ready,
    Refused,
    StepOutput,
)
from protocol.wire.peers import MAX_HOST_CHARS, Outcome, PeerEvent, PeerLimits, PeerTable

OFFER = EngineOffer(
    model="m",
    fingerprint="f",
    resume_version=1,
    max_model_len=8,
    created=0,
    credits=Credits(max_requests=1, max_tokens=8),
)
GATEWAY_HEARTBEAT = Heartbeat(instance_id="gateway", phase="ready")
LIMITS = PeerLimits(
    silent_s=3.0, dead_s=15.0, stall_timeout_s=60.0, start_dead_s=60.0, max_sweep_gap_s=1e9
)


def new_table(limits: PeerLimits = LIMITS) -> PeerTable:
    return PeerTable("engine", lambda _peer: GATEWAY_HEARTBEAT, limits)


def ready(instance_id: str = "e1", **changes: Any) -> Ready:
    fields: dict[str, Any] = {
        "role": "engine",
        "instance_id": instance_id,
        "protocol_version": PROTOCOL_VERSION,
        "build": "test",
        "phase": "ready",
        "engine": OFFER,
    }
    return Ready(**{**fields, **changes})


def test_the_name_of_a_host_is_bounded_and_older_workers_have_none() -> None:
    table = new_table()
    table.on_message(b"c1", ready("e1"), now=1.0)
    table.on_message(b"c2", ready("e2", host="h" * 1000), now=1.0)
    assert [peer.host for peer in table.peers()] == ["", "h" * MAX_HOST_CHARS]


def heartbeat(**changes: Any) -> Heartbeat:
    return Heartbeat(**{"instance_id": "e1", "phase": "ready", **changes})


def kinds(events: tuple[PeerEvent, ...]) -> list[str]:
    return [event.kind for event in events]


def joined(limits: PeerLimits = LIMITS, **changes: Any) -> PeerTable:
    table = new_table(limits)
    table.on_message(b"c1", ready(**changes), now=0.0)
    return table


def test_a_ready_worker_joins_and_is_answered_with_a_heartbeat() -> None:
    outcome = new_table().on_message(b"c1", ready(), now=0.0)
    assert kinds(outcome.events) == ["joined", "ready"]
    assert outcome.replies == (GATEWAY_HEARTBEAT,)


def test_a_loading_worker_joins_but_takes_no_work_until_it_offers_something() -> None:
    table = new_table()
    outcome = table.on_message(b"c1", ready(phase="loading", engine=None), now=0.0)
    assert kinds(outcome.events) == ["joined", "updated"]
    outcome = table.on_message(b"c1", heartbeat(phase="compiling", fraction=0.5), now=1.0)
    assert kinds(outcome.events) == ["updated"]
    assert not table.peers()[0].takes_work
    outcome = table.on_message(b"c1", ready(), now=2.0)
    assert kinds(outcome.events) == ["ready"]
    assert table.peers()[0].takes_work


def test_an_offer_of_another_role_is_no_offer() -> None:
    table = new_table()
    table.on_message(b"c1", ready(engine=None, auth=AuthOffer(epoch=1)), now=0.0)
    assert not table.peers()[0].takes_work


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (ready(protocol_version=ProtocolVersion(2, 0)), ErrorCode.VERSION_MISMATCH),
        (ready(role="auth"), ErrorCode.INVALID_REQUEST),
    ],
)
def test_another_major_version_or_role_is_refused(message: Ready, code: ErrorCode) -> None:
    table = new_table()
    outcome = table.on_message(b"c1", message, now=0.0)
    (refused,) = outcome.replies
    assert isinstance(refused, Refused)
    assert refused.code == code
    assert table.peers() == ()


def test_a_later_minor_version_is_welcome() -> None:
    version = ProtocolVersion(PROTOCOL_VERSION.major, PROTOCOL_VERSION.minor + 7)
    assert joined(protocol_version=version).peers()


def test_the_number_of_peers_is_bounded() -> None:
    table = joined(PeerLimits(max_peers=1))
    outcome = table.on_message(b"c2", ready("e2"), now=0.0)
    assert isinstance(outcome.replies[0], Refused)
    assert len(table.peers()) == 1


def test_anybody_may_ping() -> None:
    outcome = new_table().on_message(b"x", Ping(nonce=7), now=0.0)
    assert outcome.replies == (Pong(nonce=7, protocol_version=PROTOCOL_VERSION),)


@pytest.mark.parametrize(
    ("message", "replies"),
    [
        (heartbeat(), (Goodbye(reason="announce yourself with Ready"),)),
        (StepOutput(), ()),
        (Goodbye(), ()),
    ],
)
def test_who_was_not_introduced_is_told_so_by_its_heartbeats_only(
    message: Message, replies: tuple[Message, ...]
) -> None:
    assert new_table().on_message(b"x", message, now=0.0) == Outcome(replies=replies)


def test_three_seconds_of_silence_stop_new_work_and_one_word_brings_it_back() -> None:
    table = joined()
    assert table.sweep(2.9) == ()
    assert kinds(table.sweep(3.0)) == ["updated"]
    assert not table.peers()[0].takes_work
    assert table.sweep(4.0) == ()
    assert kinds(table.on_message(b"c1", heartbeat(), now=5.0).events) == ["ready"]


def test_fifteen_seconds_of_silence_lose_a_peer_for_ever() -> None:
    table = joined()
    events = table.sweep(15.0)
    assert [(event.kind, event.reason) for event in events] == [("lost", "silent")]
    assert table.peers() == ()
    outcome = table.on_message(b"c1", heartbeat(), now=16.0)
    assert isinstance(outcome.replies[0], Goodbye)


def test_a_worker_that_compiles_may_be_silent_for_longer() -> None:
    table = joined(phase="compiling")
    assert "lost" not in kinds(table.sweep(59.0))
    assert kinds(table.sweep(60.0)) == ["lost"]


def test_running_work_without_progress_is_hung() -> None:
    table = joined()
    for now in range(70):
        running = heartbeat(progress_counter=5, load=Load(num_running=1))
        table.on_message(b"c1", running, now=float(now))
        events = table.sweep(float(now))
        if events:
            break
    assert [(event.reason, now) for event in events] == [("hung", 60)]


def test_a_compile_of_thirty_seconds_with_work_running_is_no_death() -> None:
    table = joined(PeerLimits())
    for second in range(1, 31):
        # The engine's thread sits in the compiler; only the heartbeats go on.
        beat = heartbeat(load=Load(num_running=3), progress_counter=7)
        table.on_message(b"c1", beat, now=float(second))
        assert table.sweep(float(second)) == ()
    assert table.peers()[0].takes_work


def test_a_starved_worker_that_beats_only_now_and_then_is_no_death() -> None:
    table = joined(PeerLimits())
    lost = []
    for second in range(1, 121):
        if second % 10 == 0:
            beat = heartbeat(load=Load(num_running=3), progress_counter=second)
            table.on_message(b"c1", beat, now=float(second))
        lost += [event for event in table.sweep(float(second)) if event.kind == "lost"]
    assert lost == []


def test_a_hang_is_found_within_the_stall_timeout_although_the_heart_beats() -> None:
    table = joined(PeerLimits(stall_timeout_s=60.0))
    found = None
    for second in range(1, 100):
        beat = heartbeat(load=Load(num_running=1), progress_counter=min(second, 5))
        table.on_message(b"c1", beat, now=float(second))
        if any(event.reason == "hung" for event in table.sweep(float(second))):
            found = second
            break
    assert found == 5 + 60


@pytest.mark.parametrize("num_running", [0, 1])
def test_idle_or_moving_workers_are_not_hung(num_running: int) -> None:
    table = joined()
    for now in range(200):
        counter = now if num_running else 0
        beat = heartbeat(progress_counter=counter, load=Load(num_running=num_running))
        table.on_message(b"c1", beat, now=float(now))
        assert table.sweep(float(now)) == ()


def test_outputs_count_as_progress_and_carry_load_and_credits() -> None:
    table = joined()
    granted = Credits(max_requests=3, max_tokens=9)
    output = StepOutput(progress_counter=9, load=Load(num_running=2), credits=granted)
    outcome = table.on_message(b"c1", output, now=1.0)
    peer = table.peers()[0]
    assert outcome.peer is peer
    assert (peer.progress_counter, peer.load.num_running, peer.credits) == (9, 2, granted)
    table.on_message(b"c1", StepOutput(progress_counter=10), now=2.0)
    assert peer.credits == granted


def test_a_start_that_goes_nowhere_is_hung() -> None:
    table = joined(PeerLimits(start_stall_timeout_s=10.0, max_sweep_gap_s=1e9), phase="loading")
    for now in range(1, 10):
        table.on_message(b"c1", heartbeat(phase="loading"), now=float(now))
        assert table.sweep(float(now)) == ()
    assert [event.reason for event in table.sweep(10.5)] == ["hung"]


def test_a_gateway_that_slept_does_not_blame_its_workers() -> None:
    table = joined(PeerLimits(max_sweep_gap_s=2.0))
    table.sweep(0.5)
    assert table.sweep(100.0) == ()
    assert kinds(table.sweep(101.0)) == []
    assert table.peers()[0].takes_work


def test_a_worker_that_connects_anew_replaces_its_old_self() -> None:
    table = joined()
    outcome = table.on_message(b"c2", ready(), now=1.0)
    assert [(event.kind, event.reason) for event in outcome.events[:2]] == [
        ("lost", "replaced"),
        ("joined", None),
    ]
    assert [peer.identity for peer in table.peers()] == [b"c2"]


@pytest.mark.parametrize("recovery", [{"progress_counter": 6}, {"load": Load()}])
def test_who_was_hung_gets_no_work_on_a_new_connection_until_it_moves(
    recovery: dict[str, Any],
) -> None:
    table = joined(PeerLimits(stall_timeout_s=10.0))
    stuck = {"load": Load(num_running=1), "progress_counter": 5}
    lost = []
    for second in range(1, 20):
        table.on_message(b"c1", heartbeat(**stuck), now=float(second))
        lost += [event.reason for event in table.sweep(float(second)) if event.kind == "lost"]
    assert lost == ["hung"]
    table.on_message(b"c2", ready(), now=20.0)
    table.on_message(b"c2", heartbeat(**stuck), now=20.0)
    (peer,) = table.peers()
    assert not peer.takes_work
    outcome = table.on_message(b"c2", heartbeat(**{**stuck, **recovery}), now=21.0)
    assert kinds(outcome.events) == ["ready"]
    # That is over: the next connection is taken as it comes.
    table.on_gone(b"c2")
    table.on_message(b"c3", ready(), now=22.0)
    assert table.peers()[0].takes_work


def test_another_worker_of_the_same_id_is_refused_and_the_first_one_stays() -> None:
    table = joined(incarnation="one")
    outcome = table.on_message(b"c2", ready(incarnation="two"), now=1.0)
    assert outcome.events == ()
    (refused,) = outcome.replies
    assert isinstance(refused, Refused)
    assert "`e1`" in refused.message
    assert [peer.identity for peer in table.peers()] == [b"c1"]
    # The same process on a new connection is welcome, and so is one whose namesake is silent.
    assert kinds(table.on_message(b"c3", ready(incarnation="one"), now=1.0).events)[0] == "lost"
    outcome = table.on_message(b"c4", ready(incarnation="two"), now=LIMITS.silent_s + 1.0)
    assert kinds(outcome.events)[:2] == ["lost", "joined"]


def test_goodbye_and_a_closed_connection_lose_a_peer_once() -> None:
    table = joined()
    assert kinds(table.on_message(b"c1", Goodbye(reason="bye"), now=1.0).events) == ["lost"]
    assert table.on_gone(b"c1") == ()
    table = joined()
    assert [event.reason for event in table.on_gone(b"c1")] == ["disconnected"]


def test_a_draining_peer_takes_no_new_work_but_goes_on_answering() -> None:
    table = joined()
    assert kinds(table.on_message(b"c1", Drain(timeout_s=5.0), now=1.0).events) == ["updated"]
    assert not table.peers()[0].takes_work
    assert table.on_message(b"c1", StepOutput(), now=2.0).peer is table.peers()[0]


def test_failures_of_requests_are_work_but_failures_of_frames_are_not() -> None:
    table = joined()
    failure = Failure(request_id="r", code=ErrorCode.INTERNAL_ERROR, message="")
    assert table.on_message(b"c1", failure, now=1.0).peer is not None
    frame = Failure(request_id="", code=ErrorCode.INVALID_REQUEST, message="")
    assert table.on_message(b"c1", frame, now=1.0).peer is None
