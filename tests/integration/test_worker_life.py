"""A real worker and a real gateway socket: ready, heartbeats, loss, drain, goodbye."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from protocol.errors import ConfigurationError, ErrorCode
from protocol.wire import codec
from protocol.wire.endpoints import Endpoint
from protocol.wire.messages import (
    Abort,
    Delta,
    EngineCommand,
    EngineEvent,
    EngineOffer,
    Failure,
    Finished,
    Prepare,
    Role,
    StepOutput,
    Usage,
)
from protocol.wire.messages.control import Credits
from protocol.wire.peers import PeerLimits
from protocol.wire.transport import TransportLimits
from protocol.wire.worker import Worker, WorkerSettings
from tests.fakes.echo_worker import RecordingHandler
from tests.fakes.recording_gateway import RecordingGateway

SETTINGS = WorkerSettings(
    heartbeat_interval_s=0.05,
    gateway_silence_s=5.0,
    ready_interval_s=0.2,
    drain_timeout_s=5.0,
    handle_signals=False,
)
OFFER = EngineOffer(
    model="m",
    fingerprint="f",
    resume_version=1,
    max_model_len=128,
    created=0,
    credits=Credits(max_requests=4, max_tokens=1000),
)
Handler = RecordingHandler[EngineCommand]
MakeGateway = Callable[..., RecordingGateway[EngineEvent]]
MakeWorker = Callable[..., tuple[Worker[EngineCommand], Handler]]


@pytest.fixture
def make_worker() -> Iterator[MakeWorker]:
    workers: list[Worker[EngineCommand]] = []

    def make(
        *endpoints: Endpoint, settings: WorkerSettings = SETTINGS, **options: Any
    ) -> tuple[Worker[EngineCommand], Handler]:
        handler = Handler()
        worker = Worker(
            role="engine",
            decoder=codec.engine_command_decoder(),
            handler=handler,
            endpoints=endpoints,
            settings=settings,
            **options,
        )
        workers.append(worker)
        worker.start()
        return worker, handler

    yield make
    for worker in workers:
        worker.stop()


@pytest.fixture
async def make_gateway() -> AsyncIterator[MakeGateway]:
    gateways: list[RecordingGateway[EngineEvent]] = []

    def make(
        endpoint: str, instance_id: str = "gateway-1", role: Role = "engine", **options: Any
    ) -> RecordingGateway[EngineEvent]:
        decoder = codec.engine_event_decoder()
        gateway = RecordingGateway(role, endpoint, decoder, instance_id=instance_id, **options)
        gateways.append(gateway)
        return gateway

    yield make
    for gateway in gateways:
        gateway.server.close()


async def test_a_worker_announces_its_phases_and_then_takes_work(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock")
    worker, handler = make_worker(gateway.start())
    await gateway.until(lambda: "joined" in gateway.kinds())
    worker.set_phase("loading", 0.5, "weights")
    await gateway.until(lambda: gateway.server.peers()[0].fraction == 0.5)
    assert not gateway.server.peers()[0].takes_work
    worker.announce(OFFER)
    peer = await gateway.a_ready_peer()
    assert peer.engine == OFFER
    await gateway.until(lambda: peer.credits == Credits(max_requests=9, max_tokens=1))
    gateway.server.send(peer, Abort(request_id="r", attempt=0))
    await asyncio.to_thread(handler.wait_until, lambda: len(handler.commands) == 1)
    assert handler.commands == [("gateway-1", Abort(request_id="r", attempt=0))]
    assert worker.gateway_ids() == ("gateway-1",)


async def test_outputs_arrive_whole_and_in_order_however_fast_they_are_sent(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock")
    worker, _ = make_worker(gateway.start())
    worker.announce(OFFER)
    peer = await gateway.a_ready_peer()
    await gateway.until(lambda: peer.credits is not None)
    num_sent = 3000

    def send_all() -> None:
        for number in range(num_sent):
            delta = Delta(request_id="r", choice=0, attempt=0, text="x", token_ids=(number,))
            worker.send("gateway-1", StepOutput(deltas=(delta,), progress_counter=number))

    await asyncio.to_thread(send_all)
    await gateway.until(lambda: received_token_ids(gateway) == list(range(num_sent)))
    assert gateway.events[-1].progress_counter == num_sent - 1  # type: ignore[union-attr]


def received_token_ids(gateway: RecordingGateway[EngineEvent]) -> list[int]:
    return [
        token_id
        for event in gateway.events
        if isinstance(event, StepOutput)
        for delta in event.deltas
        for token_id in delta.token_ids
    ]


async def test_a_worker_outlives_its_gateway_and_joins_the_next_one(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    endpoint = f"ipc://{socket_dir}/e.sock"
    first = make_gateway(endpoint, "gateway-1")
    worker, handler = make_worker(first.start())
    worker.announce(OFFER)
    await first.a_ready_peer()
    await first.until(lambda: first.server.peers()[0].credits is not None)
    first.server.close()
    await asyncio.to_thread(handler.wait_until, lambda: handler.lost == ["gateway-1"])
    second = make_gateway(endpoint, "gateway-2")
    second.start()
    peer = await second.a_ready_peer()
    assert peer.engine == OFFER


async def test_a_worker_that_dies_is_lost_at_once(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock", peer_limits=PeerLimits(dead_s=1000.0))
    worker, _ = make_worker(gateway.start())
    worker.announce(OFFER)
    await gateway.a_ready_peer()
    # As a kill -9 looks from outside: the socket closes and nobody says goodbye.
    for link in worker._io._links.values():
        worker.call_soon(link.dealer.close)
    await gateway.until(lambda: gateway.losses() == ["disconnected"])


async def test_a_busy_main_thread_does_not_stop_the_heartbeats(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway(
        f"ipc://{socket_dir}/e.sock", peer_limits=PeerLimits(silent_s=0.5, dead_s=1.0)
    )
    worker, _ = make_worker(gateway.start())
    worker.announce(OFFER)
    peer = await gateway.a_ready_peer()
    released = threading.Event()
    busy = threading.Thread(target=released.wait)
    busy.start()
    heard = peer.last_heard
    await gateway.until(lambda: peer.last_heard > heard + 1.2 or look_again(gateway))
    released.set()
    busy.join()
    assert gateway.losses() == []


def look_again(gateway: RecordingGateway[EngineEvent]) -> bool:
    """Look again soon: plain heartbeats change nothing that would be reported."""
    asyncio.get_running_loop().call_later(0.05, gateway._changed.set)
    return False


async def test_a_drain_waits_for_running_work_and_ends_with_goodbye(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock")
    worker, handler = make_worker(gateway.start())
    worker.announce(OFFER)
    peer = await gateway.a_ready_peer()
    await gateway.until(lambda: peer.credits is not None)
    handler.unfinished = 1
    worker.drain()
    await gateway.until(lambda: peer.phase == "draining")
    assert not peer.takes_work
    assert not worker.is_finished
    end = Finished(request_id="r", choice=0, attempt=0, finish_reason="stop", usage=Usage())
    worker.send("gateway-1", StepOutput(ends=(end,)))
    handler.unfinished = 0
    assert await asyncio.to_thread(worker.wait) == 0
    await gateway.until(lambda: len(gateway.losses()) == 1)
    assert gateway.losses() == ["goodbye"]
    assert handler.drains == [5.0]
    assert gateway.events == [StepOutput(ends=(end,))]


async def test_a_drain_ends_at_its_timeout_and_says_what_is_left(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock")
    worker, handler = make_worker(gateway.start())
    await gateway.until(lambda: "joined" in gateway.kinds())
    handler.unfinished = 3
    worker.drain(0.1)
    assert await asyncio.to_thread(worker.wait) == 0
    await gateway.until(lambda: len(gateway.losses()) == 1)
    assert gateway.losses() == ["goodbye"]
    assert gateway.peer_events[-1].message == "drained with 3 requests unfinished"


async def test_a_worker_refused_for_its_role_exits_with_a_code_and_both_sides_say_why(
    socket_dir: Path,
    make_gateway: MakeGateway,
    make_worker: MakeWorker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/a.sock", role="auth")
    worker, _ = make_worker(gateway.start())
    assert await asyncio.to_thread(worker.wait) == 1
    assert gateway.peer_events == []
    why = "This socket is for workers of role auth, not engine."
    logged = {record.name for record in caplog.records if why in record.getMessage()}
    assert logged == {"penstock.peers", "penstock.worker"}


async def test_one_worker_serves_two_gateways_apart(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    one = make_gateway(f"ipc://{socket_dir}/1.sock", "gateway-1")
    two = make_gateway(f"ipc://{socket_dir}/2.sock", "gateway-2")
    worker, handler = make_worker(one.start(), two.start())
    worker.announce(OFFER)
    await one.a_ready_peer()
    await two.a_ready_peer()
    await one.until(lambda: one.server.peers()[0].credits is not None)
    await two.until(lambda: two.server.peers()[0].credits is not None)
    worker.send("gateway-2", StepOutput(progress_counter=2))
    await two.until(lambda: two.events == [StepOutput(progress_counter=2)])
    one.server.close()
    await asyncio.to_thread(handler.wait_until, lambda: handler.lost == ["gateway-1"])
    worker.send("gateway-1", StepOutput(progress_counter=1))
    worker.send("gateway-2", StepOutput(progress_counter=3))
    await two.until(lambda: len(two.events) == 2)
    assert one.events == []


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:0", "ipc"])
async def test_a_gateway_knows_where_its_workers_run(
    make_gateway: MakeGateway, make_worker: MakeWorker, socket_dir: Path, text: str
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/where" if text == "ipc" else text)
    worker, _ = make_worker(gateway.start())
    worker.announce(OFFER)
    await gateway.until(lambda: "joined" in gateway.kinds())
    (peer,) = gateway.server.peers()
    assert peer.host == socket.gethostname()
    assert peer.address == ("" if text == "ipc" else "127.0.0.1")


async def test_two_addresses_of_one_gateway_end_in_one_connection(
    make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway("tcp://127.0.0.1:0")
    bound = gateway.start()
    host = "::ffff:127.0.0.1"
    twin = Endpoint(f"tcp://[{host}]:{bound.port}", host, bound.port)
    worker, _ = make_worker(bound, twin)
    worker.announce(OFFER)
    await gateway.until(lambda: gateway.kinds().count("joined") >= 2)
    await gateway.until(lambda: len(gateway.losses()) >= 1)
    await gateway.until(
        lambda: (
            (len(gateway.server.peers()) == 1 and worker.gateway_ids() == ("gateway-1",))
            or look_again(gateway)
        )
    )


async def test_three_addresses_of_one_gateway_do_not_take_turns(
    make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway("tcp://127.0.0.1:0")
    bound = gateway.start()
    hosts = ("::ffff:127.0.0.1", "::ffff:7f00:1")
    twins = [Endpoint(f"tcp://[{host}]:{bound.port}", host, bound.port) for host in hosts]
    worker, _ = make_worker(bound, *twins)
    worker.announce(OFFER)
    await gateway.until(lambda: gateway.kinds().count("joined") >= 3)
    await gateway.until(
        lambda: (
            any(peer.last_heard - peer.phase_since > 0.5 for peer in gateway.server.peers())
            or look_again(gateway)
        )
    )


async def test_new_addresses_of_a_name_are_found_and_dialled(
    make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway("tcp://127.0.0.1:0")
    bound = gateway.start()
    name = Endpoint(f"tcp://gateway:{bound.port}", "gateway", bound.port)
    # The second is what Python raises for a name that is too long for any server.
    errors: list[Exception] = [OSError("no such name yet"), UnicodeError("label too long")]

    def resolve(_host: str, _port: int) -> list[str]:
        if errors:
            raise errors.pop(0)
        return ["127.0.0.1"]

    settings = WorkerSettings(
        heartbeat_interval_s=0.05, resolve_interval_s=0.05, handle_signals=False
    )
    worker, _ = make_worker(name, settings=settings, resolve=resolve)
    worker.announce(OFFER)
    await gateway.a_ready_peer()


class Panic(BaseException):
    """As a native library's, which is no `Exception`."""


@pytest.mark.parametrize("error", [RuntimeError, Panic])
async def test_a_handler_that_fails_costs_one_request_not_the_worker(
    socket_dir: Path,
    make_gateway: MakeGateway,
    make_worker: MakeWorker,
    error: type[BaseException],
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock")
    worker, handler = make_worker(gateway.start())
    worker.announce(OFFER)
    peer = await gateway.a_ready_peer()
    await gateway.until(lambda: peer.credits is not None)

    def fail(_gateway_id: str, _command: EngineCommand) -> None:
        raise error("boom")

    handler.answer = fail
    gateway.server.send(peer, Abort(request_id="r1", attempt=0))
    await gateway.until(lambda: len(gateway.events) == 1)
    failure = gateway.events[0]
    assert isinstance(failure, Failure)
    assert failure.request_id == "r1"
    assert "boom" not in failure.message
    handler.answer = None
    gateway.server.send(peer, Abort(request_id="r2", attempt=0))
    await asyncio.to_thread(handler.wait_until, lambda: len(handler.commands) == 1)


async def test_an_io_thread_that_ends_is_a_failure(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    """The process ended as if it had been asked to."""
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock")
    worker, handler = make_worker(gateway.start())
    worker.announce(OFFER)
    peer = await gateway.a_ready_peer()

    def leave(_gateway_id: str, _command: EngineCommand) -> None:
        raise SystemExit(0)

    handler.answer = leave
    gateway.server.send(peer, Abort(request_id="r", attempt=0))
    assert await asyncio.to_thread(worker.wait) == 1


async def test_a_failure_of_the_handler_names_choice_and_attempt(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock")
    worker, handler = make_worker(gateway.start())
    worker.announce(OFFER)
    peer = await gateway.a_ready_peer()
    await gateway.until(lambda: peer.credits is not None)

    def fail(_gateway_id: str, _command: EngineCommand) -> None:
        raise RuntimeError("boom")

    handler.answer = fail
    gateway.server.send(peer, Abort(request_id="r", choice=2, attempt=3))
    await gateway.until(lambda: len(gateway.events) == 1)
    failure = gateway.events[0]
    assert isinstance(failure, Failure)
    assert (failure.choice, failure.attempt) == (2, 3)


async def test_an_answer_that_cannot_be_encoded_becomes_a_failure(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock")
    worker, _ = make_worker(gateway.start())
    worker.announce(OFFER)
    peer = await gateway.a_ready_peer()
    await gateway.until(lambda: peer.credits is not None)
    worker.send(
        "gateway-1", Failure(request_id="r", code=ErrorCode.TEMPLATE_ERROR, message="\ud800")
    )
    await gateway.until(lambda: len(gateway.events) == 1)
    failure = gateway.events[0]
    assert isinstance(failure, Failure)
    assert (failure.request_id, failure.code) == ("r", ErrorCode.INTERNAL_ERROR)


async def test_one_bad_output_of_a_step_costs_nobody_else_anything(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock")
    worker, _ = make_worker(gateway.start())
    worker.announce(OFFER)
    peer = await gateway.a_ready_peer()
    await gateway.until(lambda: peer.credits is not None)
    good = Delta(request_id="good", choice=0, attempt=1, text="x")
    bad = Delta(request_id="bad", choice=2, attempt=1, text="\ud83d")
    end = Finished(
        request_id="ends",
        choice=0,
        attempt=1,
        finish_reason="stop",
        usage=Usage(prompt_tokens=1, completion_tokens=1),
    )
    worker.send("gateway-1", StepOutput(deltas=(good, bad), ends=(end,), progress_counter=1))
    await gateway.until(lambda: len(gateway.events) == 3)
    first, failure, last = gateway.events
    assert isinstance(first, StepOutput)
    assert first.deltas == (good,)
    assert isinstance(failure, Failure)
    assert (failure.request_id, failure.choice, failure.attempt) == ("bad", 2, 1)
    assert failure.code == ErrorCode.INTERNAL_ERROR
    assert isinstance(last, StepOutput)
    assert last.ends == (end,)


async def test_an_answer_beyond_the_limit_of_a_message_fails_and_the_worker_stays(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    limits = TransportLimits(max_message_bytes=10_000)
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock", limits=limits)
    worker, _ = make_worker(gateway.start(), limits=limits)
    worker.announce(OFFER)
    peer = await gateway.a_ready_peer()
    await gateway.until(lambda: peer.credits is not None)
    deltas = tuple(
        Delta(request_id=name, choice=0, attempt=1, text="x" * size)
        for name, size in (("small", 1), ("huge", 10_000))
    )
    worker.send("gateway-1", StepOutput(deltas=deltas))
    await gateway.until(lambda: len(gateway.events) == 2)
    assert isinstance(gateway.events[0], StepOutput)
    failure = gateway.events[1]
    assert isinstance(failure, Failure)
    assert (failure.request_id, failure.code) == ("huge", ErrorCode.REQUEST_TOO_LARGE)
    assert "10000 bytes" in failure.message
    assert gateway.losses() == []


async def test_a_command_that_cannot_be_sent_fails_as_if_the_worker_had_refused_it(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway(
        f"ipc://{socket_dir}/e.sock", limits=TransportLimits(max_message_bytes=10_000)
    )
    worker, handler = make_worker(gateway.start())
    worker.announce(OFFER)
    peer = await gateway.a_ready_peer()
    gateway.server.send(
        peer, Prepare(request_id="bad", kind="completion", deadline_s=1.0, prompt="\ud800")
    )
    gateway.server.send(
        peer, Prepare(request_id="huge", kind="completion", deadline_s=1.0, prompt="x" * 10_000)
    )
    gateway.server.send(
        peer, Prepare(request_id="good", kind="completion", deadline_s=1.0, prompt="x")
    )
    assert gateway.events == []  # the caller is amid something else
    await gateway.until(lambda: len(gateway.events) == 2)
    assert [
        (event.request_id, event.code) for event in gateway.events if isinstance(event, Failure)
    ] == [("bad", ErrorCode.INTERNAL_ERROR), ("huge", ErrorCode.REQUEST_TOO_LARGE)]
    await asyncio.to_thread(handler.wait_until, lambda: len(handler.commands) == 1)
    assert handler.commands == [
        ("gateway-1", Prepare(request_id="good", kind="completion", deadline_s=1.0, prompt="x"))
    ]


async def test_a_detail_that_no_utf8_can_spell_stops_no_heartbeat(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock")
    worker, _ = make_worker(gateway.start())
    await gateway.until(lambda: "joined" in gateway.kinds())
    worker.set_phase("loading", 0.5, "weights of /models/\udcff")
    await gateway.until(lambda: gateway.server.peers()[0].phase == "loading")


async def test_an_offer_that_cannot_be_told_stops_the_start(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock")
    worker, _ = make_worker(gateway.start())
    with pytest.raises(ConfigurationError, match="offers can't be told"):
        worker.announce(structs.replace(OFFER, labels=("\ud800",)))


async def test_a_silent_gateway_is_lost_and_greeted_anew_when_it_speaks_again(
    socket_dir: Path, make_gateway: MakeGateway, make_worker: MakeWorker
) -> None:
    settings = WorkerSettings(
        heartbeat_interval_s=0.05, gateway_silence_s=0.5, handle_signals=False
    )
    gateway = make_gateway(f"ipc://{socket_dir}/e.sock", heartbeat_interval_s=1.5)
    worker, handler = make_worker(gateway.start(), settings=settings)
    worker.announce(OFFER)
    await gateway.a_ready_peer()
    await asyncio.to_thread(handler.wait_until, lambda: handler.lost == ["gateway-1"])
    await gateway.until(lambda: gateway.kinds().count("joined") >= 2)
    assert gateway.losses()[0] in ("disconnected", "replaced")


async def test_a_worker_that_cannot_dial_at_all_fails_instead_of_waiting_for_ever(
    make_worker: MakeWorker,
) -> None:
    worker, _ = make_worker(Endpoint("carrier-pigeon://nowhere"))
    assert await asyncio.to_thread(worker.wait) == 1


@pytest.mark.parametrize("recovers", [False, True])
async def test_a_worker_told_that_it_hangs_ends_unless_it_moves(
    socket_dir: Path,
    make_gateway: MakeGateway,
    make_worker: MakeWorker,
    caplog: pytest.LogCaptureFixture,
    recovers: bool,
) -> None:
    limits = PeerLimits(stall_timeout_s=0.2)
    gateway = make_gateway(f"ipc://{socket_dir}/a.sock", peer_limits=limits)
    # Shorter than the pause before it dials again, so that it is over once the worker is back.
    settings = replace(SETTINGS, hang_grace_s=0.01)
    worker, handler = make_worker(gateway.start(), settings=settings)
    handler.unfinished = 1
    note_loss = handler.on_gateway_lost

    def on_gateway_lost(gateway_id: str) -> None:
        handler.unfinished = 0 if recovers else 1
        note_loss(gateway_id)

    handler.on_gateway_lost = on_gateway_lost  # type: ignore[method-assign]
    worker.announce(OFFER)
    await gateway.until(lambda: gateway.losses()[:1] == ["hung"])
    if recovers:
        await gateway.until(lambda: gateway.kinds().count("ready") == 2)
        assert not worker.is_finished
    else:
        assert await asyncio.to_thread(worker.wait) == 1
        assert "this worker hangs" in caplog.text
