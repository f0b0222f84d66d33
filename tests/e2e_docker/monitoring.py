"""Prometheus beside the deployment: it scrapes with its own key, and every expression evaluates
there."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.e2e_docker.engine import DockerEngine, say
from tests.e2e_docker.project import ROOT, Project, eventually

_FOLDER = ROOT / "deploy" / "monitoring"
_OFFICIAL = "prom/prometheus:v3.4.0"


def monitoring(engine: DockerEngine, compose: Sequence[str]) -> None:
    """Two gateways are scraped, the alerts load, and all expressions of ours are good PromQL.

    Grafana is left out: there is no Debian package to stand in for its image.
    """
    image = engine.image_with("penstock-e2e-prometheus", "prometheus", _OFFICIAL)
    settings = {"PENSTOCK_PROMETHEUS_IMAGE": image}
    files = ["compose.yaml", "compose.monitoring.yaml"]
    if image != _OFFICIAL:
        files.append(_as_official(engine))
    with Project(engine, compose, files, settings) as project:
        names = ("gateway", "auth_worker", "toolparser_worker", "metrics_key", "prometheus")
        scale = ("--scale", "gateway=2", "--scale", "engine_worker=0")
        project.compose("up", "-d", *scale, *names)
        base = project.url("prometheus", 9090)
        eventually("both gateways are scraped", lambda: _num_up(base) == 2, 120)
        groups = _get(base, "/api/v1/rules")["groups"]
        loaded = {rule["query"] for group in groups for rule in group["rules"]}
        assert len(loaded) == len(_alerts())
        for expression in _alerts() + _panels():
            _get(base, "/api/v1/query", query=expression)
        (auth,) = project.containers("auth_worker")
        listed = project.exec(auth, "penstock", "keys", "list")
        assert "prometheus" in listed
        say(f"  Prometheus scrapes both gateways, {len(_alerts())} alerts and every panel evaluate")


def _as_official(engine: DockerEngine) -> str:
    """An override that starts Debian's package as the official image starts by itself."""
    path = engine.scratch / "prometheus.yaml"
    override = {"services": {"prometheus": {"entrypoint": ["prometheus"], "user": "0"}}}
    path.write_text(yaml.safe_dump(override), encoding="utf-8")
    return str(path)


def _get(base: str, path: str, **params: str) -> Any:
    response = httpx.get(f"{base}{path}", params=params, timeout=30.0)
    answer = response.json()
    assert answer["status"] == "success", (params, answer)
    return answer["data"]


def _num_up(base: str) -> int:
    try:
        found = _get(base, "/api/v1/query", query='up{job="penstock"} == 1')
    except (httpx.TransportError, ValueError):
        return 0
    return len(found["result"])


def _alerts() -> list[str]:
    text = (_FOLDER / "alerts.yml").read_text(encoding="utf-8")
    return [rule["expr"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def _panels() -> list[str]:
    path: Path = _FOLDER / "grafana" / "dashboards" / "penstock.json"
    panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
    # Grafana puts the chosen models in; "All" stands for any.
    return [
        target["expr"].replace("$model", ".*") for panel in panels for target in panel["targets"]
    ]
