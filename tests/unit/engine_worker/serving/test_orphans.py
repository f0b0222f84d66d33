"""What an engine did for gateways that are gone is reported until it is safe, and bounded."""

from typing import Any

import pytest

from engine_worker.serving import orphans as orphans_module
from engine_worker.serving.orphans import KEEP_ENDED_S, RESEND_AFTER_S, OrphanTracker
from protocol.errors import ErrorCode
from protocol.wire.messages import (
    Delta,
    Failure,
    Finished,
    Generate,
    OrphanUsage,
    SamplingParams,
    StreamUsage,
    Usage,
)


class Bench:
    """A tracker whose clock the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.tracker = OrphanTracker("engine-1", lambda: self.now)

    def begin(self, request_id: str, choice: int = 0, gateway_id: str = "g", **more: Any) -> None:
        fields: dict[str, Any] = {"attempt": 1, "lease_id": f"lease-{request_id}", **more}
        self.tracker.on_generate(
            gateway_id,
            Generate(
                request_id=request_id,
                choice=choice,
                prompt_token_ids=(1, 2, 3),
                sampling=SamplingParams(),
                lease_tokens=100,
                deadline_s=1e6,
                **fields,
            ),
        )

    def tell(self, request_id: str, num_tokens: int, choice: int = 0, attempt: int = 1) -> None:
        delta = Delta(
            request_id=request_id, choice=choice, attempt=attempt, token_ids=(7,) * num_tokens
        )
        self.tracker.on_output("g", [delta], [])

    def end(self, request_id: str, num_tokens: int, attempt: int = 1) -> None:
        end = Finished(
            request_id=request_id,
            choice=0,
            attempt=attempt,
            finish_reason="stop",
            usage=Usage(prompt_tokens=3, completion_tokens=num_tokens),
        )
        self.tracker.on_output("g", [], [end])

    def reported(self) -> dict[str, tuple[str, int, int]]:
        """Stream → lease, prompt and completion tokens, once the gateway is lost."""
        self.tracker.on_gateway_lost("g")
        if self.tracker.next_due() is None:
            return {}
        return {
            one.stream: (one.lease_id, one.prompt_tokens, one.completion_tokens)
            for one in self.tracker.report().streams
        }


def test_running_streams_are_reported_with_what_their_gateway_was_told() -> None:
    bench = Bench()
    bench.begin("r", output_token_ids=(4, 5))
    bench.begin("r", choice=1)
    bench.begin("other", gateway_id="h")
    bench.tell("r", 3)
    bench.tell("r", 2, choice=1)
    bench.tell("r", 9, attempt=7)
    # The prompt is counted with its first choice; what an earlier engine made, with the stream.
    assert bench.reported() == {"r/0": ("lease-r", 3, 5), "r/1": ("lease-r", 0, 2)}


def refusal(request_id: str, choice: int) -> Failure:
    code = ErrorCode.CREDIT_EXCEEDED
    return Failure(request_id=request_id, choice=choice, attempt=1, code=code, message="full")


def test_a_prompt_is_charged_once_though_its_first_choice_was_refused_or_runs_elsewhere() -> None:
    bench = Bench()
    for choice in range(3):
        bench.begin("r", choice=choice)
    bench.tracker.on_output("g", [], [refusal("r", 0)])
    bench.tell("r", 2, choice=1)
    bench.begin("elsewhere", choice=1)
    assert bench.reported() == {
        "r/0": ("lease-r", 3, 0),
        "r/1": ("lease-r", 0, 2),
        "r/2": ("lease-r", 0, 0),
        "elsewhere/0": ("lease-elsewhere", 3, 0),
        "elsewhere/1": ("lease-elsewhere", 0, 0),
    }


def test_a_prompt_whose_choices_were_all_refused_is_charged_to_nobody() -> None:
    bench = Bench()
    for choice in range(2):
        bench.begin("r", choice=choice)
    bench.tracker.on_output("g", [], [refusal("r", 0), refusal("r", 1)])
    assert bench.reported() == {}


def test_a_stream_that_ended_a_moment_ago_is_reported_too_but_not_later() -> None:
    bench = Bench()
    bench.begin("old")
    bench.end("old", 8)
    bench.now += KEEP_ENDED_S + 1
    bench.begin("new")
    bench.tell("new", 2)
    bench.end("new", 4)
    assert bench.reported() == {"new/0": ("lease-new", 3, 4)}


def test_a_stream_without_a_lease_and_one_that_was_refused_charge_nobody() -> None:
    bench = Bench()
    bench.begin("free", lease_id="")
    bench.tell("free", 3)
    bench.begin("refused")
    bench.tracker.on_output("g", [], [refusal("refused", 0)])
    assert bench.reported() == {}


def test_a_report_is_repeated_until_it_is_noted_and_then_forgotten() -> None:
    bench = Bench()
    bench.begin("r")
    bench.tell("r", 1)
    bench.tracker.on_gateway_lost("g")
    first = bench.tracker.report()
    assert first.engine_id == "engine-1"
    assert bench.tracker.next_due() == bench.now + RESEND_AFTER_S
    assert bench.tracker.report() is first
    bench.tracker.on_noted("another")
    assert len(bench.tracker) == 1
    bench.tracker.on_noted(first.report_id)
    assert bench.tracker.next_due() is None
    assert len(bench.tracker) == 0


def test_what_comes_while_a_report_is_on_its_way_is_in_the_next_one() -> None:
    bench = Bench()
    bench.begin("a")
    bench.tracker.on_gateway_lost("g")
    first = bench.tracker.report()
    bench.begin("a")
    bench.tell("a", 5)
    bench.tracker.on_gateway_lost("g")
    bench.tracker.on_noted(first.report_id)
    (again,) = bench.tracker.report().streams
    assert again == StreamUsage(
        lease_id="lease-a", stream="a/0", prompt_tokens=3, completion_tokens=5
    )


def test_reports_and_memory_are_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(orphans_module, "MAX_USAGES", 10)
    monkeypatch.setattr(orphans_module, "MAX_USAGES_A_REPORT", 4)
    bench = Bench()
    for number in range(15):
        bench.begin(f"r{number}")
    bench.tracker.on_gateway_lost("g")
    assert len(bench.tracker) == 10
    assert "the usage of 5 choices" in caplog.text
    reports: list[OrphanUsage] = []
    while bench.tracker.next_due() is not None:
        reports.append(bench.tracker.report())
        bench.tracker.on_noted(reports[-1].report_id)
    assert [len(one.streams) for one in reports] == [4, 4, 2]
    assert len({one.report_id for one in reports}) == 3
    assert reports[0].streams[0].stream == "r5/0"
    for number in range(30):
        bench.begin(f"s{number}")
        bench.end(f"s{number}", 1)
    assert len(bench.tracker._ended) <= 10
