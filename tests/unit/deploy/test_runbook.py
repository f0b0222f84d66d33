"""docs/runbook.md has one row for each alert: what clients notice, why, and what to do."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]


def alerts() -> list[str]:
    text = (ROOT / "deploy" / "monitoring" / "alerts.yml").read_text(encoding="utf-8")
    return [rule["alert"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def test_every_alert_has_its_row_and_every_row_its_alert() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert [name for name, *_ in rows] == alerts()
    assert all(cell.strip() for row in rows for cell in row)
