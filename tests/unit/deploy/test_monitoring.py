"""Every expression of alerts and dashboard names metrics and labels that a gateway really
exposes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.metrics import GenerationRecord
from protocol.wire.messages import Usage
from tests.fakes.running_gateway import running_gateway

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"
SCRAPED = {"up": {"job", "instance"}}
ADDED_BY_PROMETHEUS = {"job", "instance"}
FUNCTIONS = {"sum", "max", "rate", "increase", "histogram_quantile", "absent", "label_values"}
KEYWORDS = {"by", "on", "unless"}
WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")

Exposed = dict[str, set[str]]


def rules() -> list[dict[str, Any]]:
    text = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    path = MONITORING / "grafana" / "dashboards" / "penstock.json"
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    shown = dashboard()
    yield from (target["expr"] for panel in shown["panels"] for target in panel["targets"])
    yield from (variable["definition"] for variable in shown["templating"]["list"])


def uses(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric of an expression with the labels that its selector names."""
    rest = re.sub(r"\b(?:by|on)\s*\([^)]*\)", "", expression)
    variables = re.search(r"label_values\((\w+), (\w+)\)", rest)
    if variables:
        yield variables[1], {variables[2]}
        return
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", lambda m: " " * len(m[0]), rest)
    for match in WORD.finditer(bare):
        if match[0] in FUNCTIONS | KEYWORDS:
            continue
        selector = re.match(r"\{([^}]*)\}", rest[match.end() :])
        labels = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector[1]) if selector else []
        yield match[0], set(labels)


def grouped_by(expression: str) -> set[str]:
    lists = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
    return {label.strip() for names in lists for label in names.split(",")}


@pytest.fixture
async def exposed(socket_dir: Path) -> Exposed:
    """Sample name → labels, of a gateway that has seen every kind of worker and one generation."""
    async with running_gateway(socket_dir) as gateway:
        await gateway.auth()
        await gateway.engine()
        await gateway.parser()
        answer = await gateway.chat()
        assert answer.status_code == 200
        usage = Usage(prompt_tokens=2, completion_tokens=2, cached_tokens=1, reasoning_tokens=1)
        gateway.application.metrics.observe_generation(
            GenerationRecord("demo", "failed", usage, 1.0, 0.5, 2, 1)
        )
        text = (await gateway.client.get("/metrics")).text
    found: Exposed = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_every_expression_names_metrics_and_labels_that_exist(exposed: Exposed) -> None:
    known = {name: labels | ADDED_BY_PROMETHEUS for name, labels in exposed.items()} | SCRAPED
    checked = 0
    for expression in expressions():
        named = list(uses(expression))
        assert named, f"no metric in {expression}"
        for metric, labels in named:
            assert metric in known, f"no gateway exposes {metric}: {expression}"
            wanted = labels | grouped_by(expression)
            assert wanted <= known[metric], f"{metric} has no {wanted - known[metric]}"
            checked += 1
    assert checked > 30


async def test_the_autoscaler_of_kubernetes_reads_what_a_gateway_exposes(exposed: Exposed) -> None:
    folder = MONITORING.parent / "kubernetes"
    (rule,) = yaml.safe_load((folder / "prometheus-adapter-rule.yaml").read_text())
    (metric,) = re.findall(r"^(\w+)\{", rule["seriesQuery"])
    scaler = yaml.safe_load((folder / "autoscaling.yaml").read_text())
    (asked,) = scaler["spec"]["metrics"]
    assert set(asked["external"]["metric"]["selector"]["matchLabels"]) <= exposed[metric]


async def test_label_values_that_are_compared_with_exist(exposed: Exposed) -> None:
    phases = {"starting", "downloading", "loading", "compiling", "ready", "draining"}
    allowed = {
        "phase": phases,
        "role": {"engine", "auth", "toolparser"},
        "outcome": {"finished", "aborted", "failed"},
        "kind": {"prompt", "cached", "completion", "reasoning"},
        "job": {"penstock"},
    }
    for expression in expressions():
        for label, text in re.findall(r'(\w+)\s*=~?\s*"([^"]*)"', expression):
            if label in allowed:
                assert set(text.split("|")) <= allowed[label], expression


@pytest.mark.parametrize("broken", ["sum(penstock_gateway_nothing)", 'up{nowhere="x"}'])
async def test_the_check_can_fail(exposed: Exposed, broken: str) -> None:
    known = {name: labels | ADDED_BY_PROMETHEUS for name, labels in exposed.items()} | SCRAPED
    (metric, labels), *_ = uses(broken)
    assert metric not in known or not labels <= known[metric]


def test_every_alert_says_how_bad_what_and_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "action"}


def test_the_dashboard_is_whole() -> None:
    shown = dashboard()
    ids = [panel["id"] for panel in shown["panels"]]
    assert len(set(ids)) == len(ids)
    provisioning = MONITORING / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())
    uid = source["datasources"][0]["uid"]
    assert {panel["datasource"]["uid"] for panel in shown["panels"]} == {uid}
