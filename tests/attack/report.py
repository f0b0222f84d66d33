"""What attacks did, as a page of Markdown."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.attack.run import Finding

_MB = 1e6


def render(findings: Sequence[Finding], command: str) -> str:
    """A table with a row an attack, and what went wrong in words."""
    lines = [
        "# Attacks",
        "",
        f"`{command}` on {_machine()}, {datetime.now(UTC):%Y-%m-%d}.",
        "",
        "Beside each attack a well-behaved client sends small chats at a steady rate, and a probe",
        "asks `/live` every 50 ms. *Control* is the slowest answer of a server that does nothing,",
        "at the same time on the same machine. Durations in ms, calm → under attack.",
        "",
        "| attack | p50 | p99 | times | failed | `/live` max (control) | gateway peak MB "
        "| holds more | harm |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(finding) for finding in findings),
    ]
    for finding in findings:
        lines += ["", f"## {finding.attack.name}", "", f"{finding.attack.summary}.", ""]
        counts = ", ".join(f"{name}: {n}" for name, n in sorted(finding.outcome.counts.items()))
        lines.append(f"- the attacker's counts: {counts or 'none'}")
        memory = (
            f"{name} {finding.before.memory_bytes[name] / _MB:.0f} → "
            f"{finding.after.memory_bytes[name] / _MB:.0f} (peak {peak / _MB:.0f})"
            for name, peak in finding.under_attack.peak_bytes.items()
        )
        lines.append(f"- memory, MB: {', '.join(memory)}")
        lines.append(
            f"- descriptors of the gateway: {finding.before.num_descriptors} → "
            f"{finding.after.num_descriptors}; {finding.settled_s:.0f} s after the attack"
        )
        for title, entries in (
            ("note", finding.outcome.notes),
            ("harm", finding.verdicts),
            ("a good request", finding.under_attack.good.failures[:3]),
            ("a wrong answer", finding.outcome.faults[:10]),
            ("traceback", finding.tracebacks[:3]),
            ("the gateway's loop stood", finding.stalls),
        ):
            lines += [f"- {title}: {_one_line(entry)}" for entry in entries]
    return "\n".join(lines) + "\n"


def _row(finding: Finding) -> str:
    calm, attacked = finding.calm, finding.under_attack
    usual, slow = calm.good.quantile(0.99), attacked.good.quantile(0.99)
    growth = [
        f"{name} {100 * (ratio - 1):+.0f} %"
        for name, ratio in finding.growth.items()
        if ratio > 1.05
    ]
    peak = attacked.peak_bytes.get("gateway", 0) / _MB
    return (
        f"| {finding.attack.name} "
        f"| {calm.good.quantile(0.5):.0f} → {attacked.good.quantile(0.5):.0f} "
        f"| {usual:.0f} → {slow:.0f} | {slow / usual if usual else 0:.1f} "
        f"| {attacked.good.num_failed} of {attacked.good.num_failed + len(attacked.good.ms)} "
        f"| {attacked.live.quantile(1):.0f} ({attacked.control.quantile(1):.0f}) "
        f"| {calm.peak_bytes.get('gateway', 0) / _MB:.0f} → {peak:.0f} "
        f"| {', '.join(growth) or '-'} | {len(finding.verdicts) or 'none'} |"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cpu = next(names, platform.processor() or platform.machine())
    return f"{os.cpu_count()} × {cpu}, {platform.system()}, Python {platform.python_version()}"
