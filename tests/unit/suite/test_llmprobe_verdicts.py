"""How a report of llmprobe is judged, without running it."""

import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.suites import llmprobe
from tests.suites.llmprobe import EXCEPTIONS, WEAKNESSES, WISHES, judge, unpack


def check(*failures: tuple[str, str], surface: str = "chat", outcome: str = "fail") -> Any:
    return {
        "name": "a check",
        "surface": surface,
        "outcome": outcome,
        "failures": [
            {"id": id_, "severity": severity, "label": "a rule", "message": "it broke"}
            for id_, severity in failures
        ],
    }


def report(*checks: Any, passed: int = 9, total: int = 10) -> Any:
    return {
        "conformance": {
            "bySurface": [{"surface": "chat", "passed": passed, "total": total}],
            "results": list(checks),
            "inconclusive": [{"name": "a call", "reason": "none was made"}],
            "warnings": [{"label": "a wish", "message": "not granted"}],
        }
    }


def test_a_must_that_does_not_hold_fails_the_suite() -> None:
    verdict = judge(report(check(("chat-stop", "MUST"))))
    assert verdict.has_failed
    assert verdict.failures == ["a check: a rule (it broke)"]
    assert "**Fails:** a check" in verdict.markdown()
    assert "| chat | 9 of 10 |" in verdict.markdown()


def test_what_should_hold_and_what_the_model_did_not_lead_to_is_only_told() -> None:
    verdict = judge(report(check(("x", "SHOULD"), ("y", "MAY"), outcome="pass"), passed=10))
    assert not verdict.has_failed
    page = verdict.markdown()
    assert "- SHOULD: a wish (not granted)" in page
    label, reason = next(iter(WISHES.items()))
    told = report(check(("x", "SHOULD"), outcome="pass"))
    told["conformance"]["warnings"] = [{"label": label, "message": "no"}]
    assert f"- SHOULD: {label} (no): {reason}\n" in judge(told).markdown()
    assert "- The model didn't lead to it: a call (none was made)" in page


@pytest.mark.parametrize("id_", EXCEPTIONS)
def test_an_exception_is_told_with_its_reason_and_not_counted(id_: str) -> None:
    verdict = judge(report(check((id_, "MUST"))))
    assert not verdict.has_failed
    assert EXCEPTIONS[id_] in verdict.markdown()
    assert (verdict.passed["chat"], verdict.total["chat"]) == (9, 9)


@pytest.mark.parametrize("id_", WEAKNESSES)
def test_what_the_model_does_not_remember_is_told_and_not_counted(id_: str) -> None:
    verdict = judge(report(check((id_, "MUST"))))
    assert not verdict.has_failed
    assert f"- The model didn't lead to it: a check: a rule (it broke): {WEAKNESSES[id_]}" in (
        verdict.markdown()
    )
    assert (verdict.passed["chat"], verdict.total["chat"]) == (9, 9)


def test_a_run_that_measured_nothing_is_no_success() -> None:
    with pytest.raises(ValueError, match="measured nothing"):
        judge(report(passed=0, total=0))


def test_another_package_than_the_one_that_was_looked_at_is_not_run(tmp_path: Path) -> None:
    package = tmp_path / "llmprobe.tgz"
    with tarfile.open(package, "w:gz"):
        pass
    with pytest.raises(ValueError, match="SHA-512"):
        unpack(package, tmp_path)
    assert not (tmp_path / "llmprobe.mjs").exists()


def test_without_node_the_suite_is_skipped_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    (verdict,) = llmprobe.run()
    assert not verdict.has_failed
    assert "Skipped: node and npm missing on this machine." in verdict.markdown()
