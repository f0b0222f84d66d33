"""Who is under suspicion, who is convicted, and for how long."""

from typing import Any

import pytest

from gateway.dispatch import quarantine as quarantine_module
from gateway.dispatch.quarantine import QUARANTINE_S, Quarantine, Suspicion
from gateway.dispatch.slots import EngineHandle, Slot
from gateway.errors import (
    GatewayError,
    PoisonRequestError,
    RemoteFailureError,
    WorkerLostError,
)
from gateway.request.jobs.job import GenerationJob, job_fingerprint
from protocol.errors import ErrorCode
from protocol.version import PROTOCOL_VERSION
from protocol.wire.messages import (
    NUM_ALONE_TOKENS,
    Credits,
    EngineOffer,
    Load,
    Prepare,
    SamplingParams,
)
from protocol.wire.peers import LossReason, Peer

STEP_FAILED = RemoteFailureError("step", code=ErrorCode.WORKER_LOST)


def slot(*, is_alone: bool = False, load: Load | None = None) -> Slot:
    offer = EngineOffer(
        model="m",
        fingerprint="f",
        resume_version=1,
        max_model_len=100,
        created=0,
        credits=Credits(max_requests=4, max_tokens=1000),
    )
    peer = Peer(
        identity=b"e",
        role="engine",
        instance_id="e",
        protocol_version=PROTOCOL_VERSION,
        build="",
        last_heard=0.0,
        progress_since=0.0,
        phase_since=0.0,
        load=load or Load(num_running=1),
    )
    return Slot(EngineHandle(peer, offer), 10, is_alone=is_alone)


def lost(reason: LossReason) -> WorkerLostError:
    return WorkerLostError("lost", reason=reason)


def suspicion(deaths: int = 0) -> Suspicion:
    suspect = Suspicion(Quarantine(lambda: 0.0), lambda: b"prompt")
    for _ in range(deaths):
        suspect.on_failure(lost("disconnected"), slot())
    return suspect


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (lost("disconnected"), True),
        (lost("failed"), True),
        (lost("silent"), True),
        (lost("hung"), True),
        (STEP_FAILED, True),
        (lost("goodbye"), False),
        (lost("replaced"), False),
        (lost("overflow"), False),
        (WorkerLostError("it was never there"), False),
        (RemoteFailureError("full", code=ErrorCode.CREDIT_EXCEEDED), False),
    ],
)
def test_only_what_may_be_the_requests_fault_speaks_against_it(
    error: GatewayError, counts: bool
) -> None:
    suspect = suspicion(deaths=1)
    assert suspect.on_failure(error, slot()) is error
    assert suspect.needs_isolation == counts
    # Alone, the same convicts it, or doesn't.
    convicted = suspect.on_failure(error, slot(is_alone=True))
    assert isinstance(convicted, PoisonRequestError) == counts


def test_what_never_began_is_nobodys_fault() -> None:
    suspect = suspicion(deaths=1)
    suspect.on_failure(lost("disconnected"), None)
    assert not suspect.needs_isolation


def test_company_is_an_alibi() -> None:
    suspect = suspicion(deaths=2)
    busy = slot(is_alone=True, load=Load(num_running=1, num_waiting=1))
    assert isinstance(suspect.on_failure(lost("disconnected"), busy), WorkerLostError)


def test_enough_tokens_in_one_attempt_clear_a_choice_once() -> None:
    suspect = suspicion(deaths=2)
    suspect.on_attempt()
    assert not suspect.on_tokens(NUM_ALONE_TOKENS - 1)
    suspect.on_attempt()
    assert not suspect.on_tokens(NUM_ALONE_TOKENS - 1)
    seen = [suspect.needs_isolation, suspect.on_tokens(5), suspect.needs_isolation]
    assert seen == [True, True, False]
    assert not suspect.on_tokens(500)


def test_choices_inherit_what_their_prompt_did_and_then_go_their_own_way() -> None:
    prompt = suspicion(deaths=1)
    one, other = prompt.copy(), prompt.copy()
    one.on_failure(lost("hung"), slot())
    assert one.needs_isolation
    assert not other.needs_isolation


def test_quarantine_ends_by_time_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine_module, "MAX_QUARANTINED", 3)
    now = 0.0
    quarantine = Quarantine(lambda: now)
    for number in range(5):
        quarantine.convict(bytes([number]))
    assert len(quarantine) == 3
    quarantine.check(bytes([0]))
    with pytest.raises(PoisonRequestError, match="10 more minutes"):
        quarantine.check(bytes([4]))
    now = QUARANTINE_S - 1.0
    quarantine.convict(bytes([4]))
    now += 2.0
    assert len(quarantine) == 1
    with pytest.raises(PoisonRequestError):
        quarantine.check(bytes([4]))
    now += QUARANTINE_S
    quarantine.check(bytes([4]))


def test_while_nothing_is_convicted_no_fingerprint_need_be_made() -> None:
    now = 0.0
    quarantine = Quarantine(lambda: now)
    states = [quarantine.is_empty]
    quarantine.convict(b"prompt")
    states.append(quarantine.is_empty)
    now = QUARANTINE_S - 0.1
    states.append(quarantine.is_empty)
    now = QUARANTINE_S
    states.append(quarantine.is_empty)
    assert states == [True, False, False, True]


def test_a_conviction_concerns_its_own_fingerprint_only() -> None:
    quarantine = Quarantine(lambda: 0.0)
    quarantine.convict(b"tenant a, prompt")
    quarantine.check(b"tenant b, prompt")
    with pytest.raises(PoisonRequestError):
        quarantine.check(b"tenant a, prompt")


def test_the_refusal_says_how_long_it_lasts() -> None:
    now = 1000.0
    quarantine = Quarantine(lambda: now)
    assert str(quarantine.convict(b"prompt")) == (
        "This request makes engines fail: several were lost while it ran, the last one when it "
        "ran alone."
    )
    now += QUARANTINE_S - 60.5
    with pytest.raises(PoisonRequestError) as caught:
        quarantine.check(b"prompt")
    assert str(caught.value) == (
        "This request has made engines fail, also when it ran alone; it is refused for 2 more "
        "minutes."
    )


def test_who_is_convicted_again_is_the_last_to_be_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quarantine_module, "MAX_QUARANTINED", 2)
    quarantine = Quarantine(lambda: 0.0)
    for name in (b"a", b"b", b"a", b"c"):
        quarantine.convict(name)
    quarantine.check(b"b")
    for name in (b"a", b"c"):
        with pytest.raises(PoisonRequestError):
            quarantine.check(name)


def test_a_conviction_is_of_the_request_and_names_the_engine_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quarantine = Quarantine(lambda: 0.0)
    suspect = Suspicion(quarantine, lambda: b"prompt").copy()
    suspect.on_failure(lost("hung"), slot(is_alone=True))
    with pytest.raises(PoisonRequestError):
        quarantine.check(b"prompt")
    assert [record.getMessage() for record in caplog.records] == [
        "engine e died of a request that ran alone"
    ]


def test_a_choice_is_cleared_by_exactly_so_many_tokens() -> None:
    suspect = suspicion(deaths=2)
    assert not suspect.on_tokens(NUM_ALONE_TOKENS - 1)
    assert suspect.on_tokens(1)
    assert not suspect.on_tokens(1)
    suspect.on_failure(lost("hung"), slot())
    assert not suspect.needs_isolation
    suspect.on_failure(lost("hung"), slot())
    assert suspect.needs_isolation


def job(**changes: Any) -> GenerationJob:
    fields: dict[str, Any] = {"kind": "completion", "prompt": "x", **changes}
    model = fields.pop("model", "m")
    prepare = Prepare(request_id="", deadline_s=0.0, **fields)
    return GenerationJob(
        endpoint="/v1/completions",
        model=model,
        prepares=(prepare,),
        sampling=SamplingParams(),
        max_tokens=None,
        prompt_bytes=1,
    )


def test_a_prompt_is_known_by_its_text_and_model_whatever_else_is_asked() -> None:
    same = job_fingerprint(job(), "tenant")
    assert job_fingerprint(job(max_tokens=5), "tenant") == same
    for other in ({"prompt": "y"}, {"model": "n"}, {"tools_json": "[]"}):
        assert job_fingerprint(job(**other), "tenant") != same
