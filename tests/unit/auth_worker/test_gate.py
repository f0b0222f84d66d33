"""A worker that stands by decides nothing, and one without its lease grants nothing."""

from pathlib import Path

from auth_worker.serving.gate import Gate
from protocol.errors import ErrorCode
from protocol.wire.messages import Adjust, Denied, Failure, Granted, Message, Metrics, Settle
from tests.fakes.auth_handler_bench import AuthHandlerBench
from tests.fakes.auth_parts import authorize


def test_a_closed_gate_refuses_who_waits_and_leaves_the_rest_for_the_active_worker() -> None:
    sent: list[tuple[str, Message]] = []
    gate = Gate(lambda gateway_id, message: sent.append((gateway_id, message)))
    gate.on_command("gateway-1", authorize())
    gate.on_command("gateway-1", Settle("lease", "req-1", 1, 1))
    gate.on_gateway_lost("gateway-1")
    gate.on_drain(1.0)
    ((gateway_id, denied),) = sent
    assert gateway_id == "gateway-1"
    assert isinstance(denied, Denied)
    assert denied.code is ErrorCode.WORKER_UNAVAILABLE
    assert denied.retry_after_s
    assert (gate.num_unfinished(), gate.progress_counter()) == (0, 0)
    assert active(gate) == 0


def active(gate: Gate) -> float:
    message = gate.message()
    assert isinstance(message, Metrics)
    (value,) = [one.value for one in message.samples if one.name == "penstock_auth_active"]
    return value


def test_an_open_gate_hands_everything_on(tmp_path: Path) -> None:
    bench = AuthHandlerBench(tmp_path)
    gate = Gate(lambda gateway_id, message: None)
    gate.open(bench.handler)
    gate.on_command("gateway-1", authorize())
    assert isinstance(bench.sent[-1][1], Granted)
    assert active(gate) == 1
    bench.store.close()


def test_without_the_lease_on_the_database_nothing_is_granted_and_nothing_grows(
    tmp_path: Path,
) -> None:
    held = [True]
    bench = AuthHandlerBench(tmp_path)
    bench.handler._holds_database = lambda: held[0]
    granted = bench.ask(authorize())
    assert isinstance(granted, Granted)
    held[0] = False
    denied = bench.ask(authorize(request_id="req-2"))
    assert isinstance(denied, Denied)
    assert denied.code is ErrorCode.WORKER_UNAVAILABLE
    failure = bench.ask(Adjust("req-1", granted.lease_id, 10, 500))
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.WORKER_UNAVAILABLE
    held[0] = True
    assert isinstance(bench.ask(authorize(request_id="req-2")), Granted)
    bench.store.close()
