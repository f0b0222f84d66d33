"""What the suites of JSON schemas show otherwise than it should be has a reason, or fails them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.suites.json_schema import run
from tests.suites.json_schema_reasons import FIRST, why_refused, why_wrong


@pytest.mark.parametrize(
    ("case", "description", "has_left", "words"),
    [
        ("time: validation of time strings", "valid leap second, large offset", False, "leap"),
        ("date-time: x", "a valid date-time with a leap second, with minus offset", False, "leap"),
        ("format: email format", "x is only an annotation by default", False, "annotation"),
        ("type: integer", "a plain one", True, "left to the model"),
        ("type: integer", "a plain one", False, None),
        ("time: validation of time strings", "a plain one", False, None),
    ],
)
def test_a_valid_instance_is_refused_for_a_reason_or_for_none(
    case: str, description: str, has_left: bool, words: str | None
) -> None:
    reason = why_refused(case, description, has_left=has_left)
    assert (words is None) if reason is None else (words or "?") in reason


def test_a_sentence_is_wrong_for_a_reason_or_for_none() -> None:
    assert "U+FEFF" in (why_wrong(r"ecmascript-regex: ECMA 262 \s matches whitespace") or "")
    assert why_wrong("type: integer") is None


def written(folder: Path, **instances: bool) -> Path:
    """A folder of data with a single real schema, whose instances are valid or said to be."""
    tests: list[dict[str, Any]] = [
        {"data": {"a": json.loads(text)}, "valid": is_valid} for text, is_valid in instances.items()
    ]
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}}
    (folder / "json-schema" / "sample").mkdir(parents=True)
    path = folder / "json-schema" / "sample" / "one.json"
    path.write_text(json.dumps({"schema": schema, "tests": tests}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("said", "has_failed"), [(False, False), (True, True)])
def test_what_is_refused_without_a_reason_fails_the_suite(
    tmp_path: Path, said: bool, has_failed: bool
) -> None:
    report, compared = run(written(tmp_path, **{"true": True, "7": said}))
    assert report.has_failed is has_failed
    assert ("refused although valid" in report.markdown()) is has_failed
    assert len(compared.rows) == len(FIRST)
    assert compared.rows[-1][1] == "287 of 288 → 1 of 1"
