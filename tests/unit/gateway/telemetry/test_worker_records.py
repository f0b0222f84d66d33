"""How workers have done lately."""

import pytest

from gateway.errors import GatewayError
from gateway.telemetry.worker_records import NUM_REMEMBERED, WorkerRecord, WorkerRecords
from protocol.errors import ErrorCode
from protocol.version import PROTOCOL_VERSION
from protocol.wire.peers import Peer


def failure(code: ErrorCode = ErrorCode.INTERNAL_ERROR) -> GatewayError:
    return GatewayError("broken", code=code)


def test_a_worker_that_did_nothing_has_no_rate_and_no_latency() -> None:
    record = WorkerRecord()
    assert (record.success_rate, record.latency_s(0.5)) == (None, None)


def test_rates_and_latencies_are_of_the_last_requests_only() -> None:
    record = WorkerRecord()
    for _ in range(NUM_REMEMBERED):
        record.note(9.0, failure(), 1.0)
    assert record.success_rate == 0.0
    for number in range(NUM_REMEMBERED):
        record.note(number / 1000, None, 2.0)
    assert record.success_rate == 1.0
    assert (record.num_answered, record.num_failed) == (NUM_REMEMBERED, NUM_REMEMBERED)
    assert record.latency_s(0.5) == pytest.approx(0.128)
    assert record.latency_s(0.99) == pytest.approx(0.253)
    assert record.latency_s(1.0) == pytest.approx(0.255)
    assert record.last_failure == (ErrorCode.INTERNAL_ERROR, "broken", 1.0)


@pytest.mark.parametrize("code", [ErrorCode.INVALID_REQUEST, ErrorCode.PERMISSION_DENIED])
def test_what_a_request_is_to_blame_for_is_an_answer(code: ErrorCode) -> None:
    record = WorkerRecord()
    record.note(0.5, failure(code), 1.0)
    assert (record.num_answered, record.success_rate) == (1, 1.0)
    assert record.last_failure is None


def test_the_oldest_latency_is_the_next_to_go() -> None:
    record = WorkerRecord()
    for number in range(NUM_REMEMBERED + 3):
        record.note(float(number), None, 0.0)
    assert (record.latency_s(0.0), record.latency_s(1.0)) == (3.0, NUM_REMEMBERED + 2.0)


def peer(name: str) -> Peer:
    return Peer(name.encode(), "engine", name, PROTOCOL_VERSION, "", 0.0, 0.0, 0.0)


def test_a_worker_that_has_left_is_forgotten_when_another_one_comes() -> None:
    records = WorkerRecords(lambda: 1.0)
    first, second, third = peer("first"), peer("second"), peer("third")
    for one in (first, second):
        records.note(one, 0.5)
    first.loss_reason = "disconnected"
    records.note(third, 0.5)
    assert records.of(second).num_answered == 1
    assert records.of(first).num_answered == 0
