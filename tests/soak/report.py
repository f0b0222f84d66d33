"""What a soak found, as numbers and as a page of Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.soak.accounts import UNKNOWN, Account, render_accounts
from tests.soak.chaos import Fault
from tests.soak.traffic import Ledger
from tests.soak.warm_up import WarmUp


@dataclass(frozen=True)
class Calm:
    """Many short requests after the chaos.

    Attributes:
        num_failed: How many did not end well, without those of the warm-up.
        growth: Process → memory after them over memory before them.
        warm_up: The requests before them.
        deaths: Processes that died meanwhile.
    """

    num_requests: int
    num_failed: int
    growth: Mapping[str, float]
    warm_up: WarmUp
    deaths: Sequence[str] = ()

    @property
    def is_clean(self) -> bool:
        """Whether no request failed and no process died."""
        return not (self.num_failed or self.warm_up.num_failed or self.deaths)


@dataclass
class Findings:
    """All that is counted.

    Attributes:
        settled_completion_tokens: What auth has booked for the clients' key.
        accounts: Cause → what was settled and what arrived, of the clients' keys.
        open_leases: Leases that nobody settled, after everything ended.
        calm: What came after it; None when it was left out.
    """

    duration_s: float
    ledger: Ledger
    faults: Sequence[Fault]
    settled_prompt_tokens: int = 0
    settled_completion_tokens: int = 0
    accounts: Mapping[str, Account] = field(default_factory=dict)
    open_leases: int = 0
    calm: Calm | None = None

    @property
    def num_streams(self) -> int:
        """Answers of any kind."""
        return sum(self.ledger.endings.values())

    @property
    def num_unexplained(self) -> int:
        """Answers that were charged and that no client can have lost with its gateway."""
        unknown = self.accounts.get(UNKNOWN, Account())
        return max(0, unknown.num_answers - self.ledger.num_lost_early)

    @property
    def is_clean(self) -> bool:
        """Whether no stream failed, lied, lacked its one end or a client, and no lease is left."""
        ledger = self.ledger
        has_faults = ledger.failures or ledger.wrong or ledger.without_one_end
        is_calm_clean = self.calm is None or self.calm.is_clean
        return is_calm_clean and not (has_faults or self.open_leases or self.num_unexplained)


def render(findings: Findings) -> str:
    """The findings as Markdown."""
    ledger = findings.ledger
    moved = [fault for fault in findings.faults if fault.moved]
    recoveries = sorted(gap for fault in moved for gap in fault.recovery_s)
    rows = [
        ("duration", f"{findings.duration_s / 60:.1f} min"),
        ("streams", f"{findings.num_streams}"),
        ("finished", f"{ledger.endings['finished']}"),
        ("left by their client in mid-stream", f"{ledger.endings['left']}"),
        ("503 with Retry-After before the first byte", f"{ledger.endings['refused']}"),
        ("came while no gateway took connections", f"{ledger.endings['unreachable']}"),
        ("died with the socket of a killed gateway", f"{ledger.endings['gateway_lost']}"),
        ("of these, before the head of their answer", f"{ledger.num_lost_early}"),
        ("**failed**", f"**{ledger.endings['failed']}**"),
        ("choices with wrong or duplicated text", f"{len(ledger.wrong)}"),
        ("requests without exactly one end", f"{len(ledger.without_one_end)}"),
        ("leases left open", f"{findings.open_leases}"),
        ("faults", f"{len(findings.faults)}"),
        ("of these, that hit unfinished streams", f"{sum(f.counts for f in findings.faults)}"),
        ("streams moved to another engine or parser", f"{sum(len(f.moved) for f in moved)}"),
    ]
    if recoveries:
        p99 = recoveries[min(len(recoveries) - 1, int(len(recoveries) * 0.99))]
        rows.append(
            (
                "from the fault to a moved stream's next token, median / p99",
                f"{statistics.median(recoveries):.2f} / {p99:.2f} s",
            )
        )
    rows += [
        (
            "output tokens settled / delivered",
            f"{findings.settled_completion_tokens} / {ledger.delivered_completion_tokens}",
        ),
        ("requests whose usage no client saw (left, lost)", f"{ledger.num_unknown_usage}"),
        ("charged, and no client lost so many before a head", f"{findings.num_unexplained}"),
    ]
    if findings.calm is not None:
        rows += _calm_rows(findings.calm)
    lines = ["| counted | figure |", "|---|---|"]
    lines += [f"| {name} | {figure} |" for name, figure in rows]
    lines += ["", *render_accounts(findings.accounts)]
    lines += ["", *_fault_table(findings.faults)]
    for title, entries in (
        ("Failures", ledger.failures),
        ("Wrong text", ledger.wrong),
        ("Without one end", ledger.without_one_end),
    ):
        if entries:
            lines += ["", f"{title}:", "", *(f"- {entry[:400]}" for entry in entries[:20])]
    return "\n".join(lines) + "\n"


def _calm_rows(calm: Calm) -> list[tuple[str, str]]:
    warm = calm.warm_up
    rows = [
        ("calm requests, of these failed", f"{calm.num_requests}, {calm.num_failed}"),
        (
            "requests before them to warm up, of these failed",
            f"{warm.num_requests}, {warm.num_failed}",
        ),
        (
            "memory growth over the calm requests",
            ", ".join(f"{name} {100 * (g - 1):+.1f} %" for name, g in calm.growth.items()),
        ),
    ]
    if warm.cold:
        cold = ", ".join(f"{number} of role {role}" for role, number in warm.cold.items())
        rows.append(("processes that served too little before, whose growth says nothing", cold))
    if calm.deaths:
        rows.append(("**processes that died in the calm**", ", ".join(calm.deaths)))
    return rows


def _fault_table(faults: Sequence[Fault]) -> list[str]:
    lines = [
        "| fault | times | hit open streams | streams open (mean) | streams moved "
        "| next token median / max s | whole again median s |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(fault.kind for fault in faults):
        group = [fault for fault in faults if fault.kind == kind]
        gaps = [gap for fault in group for gap in fault.recovery_s]
        times = f"{statistics.median(gaps):.2f} / {max(gaps):.2f}" if gaps else "-"
        lines.append(
            f"| {kind} | {len(group)} | {sum(fault.counts for fault in group)} "
            f"| {statistics.mean(len(fault.open_streams) for fault in group):.0f} "
            f"| {sum(len(fault.moved) for fault in group)} | {times} "
            f"| {statistics.median(fault.ready_s for fault in group):.1f} |"
        )
    return lines
