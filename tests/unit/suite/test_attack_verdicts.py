"""What `make attack` calls harm."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.attack.catalogue import ATTACKS
from tests.attack.client import Latencies
from tests.attack.harness import BUSY_GAUGES, Snapshot, gauges_of
from tests.attack.raw_http import Answer
from tests.attack.report import render
from tests.attack.run import Finding, Traffic
from tests.attack.stalls import Stall, queued_s, summary
from tests.attack.target import Outcome

CALM = Snapshot({"gateway": 100_000_000}, 40, {})


def traffic(good_ms: float = 90.0, live_ms: float = 5.0, **failed: int) -> Traffic:
    return Traffic(
        good=Latencies([good_ms] * 99 + [2 * good_ms], failed.get("good", 0)),
        live=Latencies([2.0, live_ms], failed.get("live", 0)),
    )


def finding(**changes: Any) -> Finding:
    harmless = Finding(
        attack=ATTACKS[0],
        calm=traffic(),
        under_attack=traffic(),
        before=CALM,
        after=CALM,
        outcome=Outcome(),
        settled_s=0.0,
        tracebacks=[],
        deaths=[],
    )
    return replace(harmless, **changes)


def test_a_deployment_that_is_as_before_took_no_harm() -> None:
    assert finding().verdicts == []
    assert finding().has_settled


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"under_attack": traffic(good_ms=271.0)}, "3.0 times"),
        ({"under_attack": traffic(good=1)}, "1 good"),
        ({"under_attack": traffic(live_ms=100.0)}, "/live took 100"),
        ({"under_attack": traffic(live=2)}, "/live failed 2"),
        ({"after": replace(CALM, memory_bytes={"gateway": 111_000_000})}, "gateway holds +11 %"),
        ({"after": replace(CALM, num_descriptors=43)}, "40 → 43"),
        ({"after": replace(CALM, busy={"penstock_auth_open_leases": 2.0})}, "leases is 2"),
        ({"deaths": ["gateway"]}, "1 deaths"),
        ({"tracebacks": ["gateway: …"]}, "1 tracebacks"),
        ({"outcome": Outcome(Counter(faults=3))}, "3 wrong"),
    ],
)
def test_every_harm_is_told_with_its_figure(changes: dict[str, Any], word: str) -> None:
    (verdict,) = finding(**changes).verdicts
    assert word in verdict
    assert verdict in render([finding(**changes)], "make attack")


@pytest.mark.parametrize(
    ("status", "headers", "is_fault"),
    [
        (400, {}, False),
        (501, {}, False),
        (503, {"retry-after": "2"}, False),
        (503, {}, True),
        (500, {}, True),
        (504, {}, True),
    ],
)
def test_a_5xx_is_a_fault_unless_it_says_when_to_come_again(
    status: int, headers: dict[str, str], is_fault: bool
) -> None:
    outcome = Outcome()
    outcome.take(Answer(status, headers, b""), "a request")
    assert bool(outcome.faults) is is_fault


def test_a_gauge_that_is_missing_counts_as_busy() -> None:
    text = "".join(f'{name}{{model="m"}} 0.0\n' for name in BUSY_GAUGES[1:])
    assert gauges_of(text) == {**dict.fromkeys(BUSY_GAUGES, 0.0), BUSY_GAUGES[0]: -1.0}


def test_attacks_have_names_of_their_own() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


def test_a_stall_is_told_from_a_wait_for_a_core() -> None:
    assert queued_s("4321 2500000 7\n") == 0.0025
    of_the_machine = Stall(80.0, computed_ms=1.0, queued_ms=79.0, where=("a.py:1 f",))
    of_ours = Stall(30.0, computed_ms=20.0, queued_ms=5.0, where=("b.py:2 g", "c.py:3 h"))
    lines = summary([of_the_machine, of_ours, of_ours], 10.0)
    assert lines[0].startswith("3 in 10 s; not for want of a core 51 ms in all, the longest 25 ms")
    assert lines[1] == "50 ms in all: b.py:2 g < c.py:3 h"
    assert lines[3].startswith("25 ms (20 computed, 5 more for want of a core): b.py:2 g")
    assert summary([], 10.0)[0].startswith("0 in 10 s")


def test_stalls_stand_in_the_report() -> None:
    page = render([finding(stalls=["25 ms: b.py:2 g"])], "command")
    assert "- the gateway's loop stood: 25 ms: b.py:2 g" in page
