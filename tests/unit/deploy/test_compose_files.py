"""The compose files and the Swarm stack: settings that exist, time to drain, and one truth."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.documented_settings import documented_settings
from tools.settings_tables import tables

ROOT = Path(__file__).parents[3]
FILES = (
    "compose.yaml",
    "compose.nginx.yaml",
    "compose.second-model.yaml",
    "compose.remote-engines.yaml",
    "compose.gpu.yaml",
    "compose.monitoring.yaml",
    "deploy/engine-host/compose.yaml",
    "deploy/swarm/stack.yaml",
)
OURS = ("gateway", "engine_worker", "auth_worker", "toolparser_worker")
PENSTOCK_IMAGE = re.compile(r"\$\{PENSTOCK_IMAGE_PREFIX:-penstock\}-(\S+)")
NOT_SETTINGS = re.compile(
    r"PENSTOCK_(IMAGE_PREFIX|PYTHON_IMAGE|\w+_IMAGE|BIND|WIRE_BIND|ENGINE_PORT|NGINX_PORT|"
    r"PROMETHEUS_PORT|GRAFANA_PORT|GPU_MEMORY_FRACTION)"
)
FIXED_BY_COMPOSE = {
    "gateway": {"PENSTOCK_PORT_FILE", "PENSTOCK_REQUIRE_KEYS", "PENSTOCK_ALLOWED_HOSTS"},
    "engine_worker": {
        "PENSTOCK_COMPILE_CACHE_DIR",
        "PENSTOCK_PROFILE_DIR",
        "PENSTOCK_READY_FILE",
    },
    "auth_worker": {"PENSTOCK_ALLOW_ANONYMOUS"},
    "toolparser_worker": set(),
}
"""What the images set, or what means nothing where keys are required."""
Services = dict[str, dict[str, Any]]


def services(file: str) -> Services:
    loaded: Services = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["services"]
    return loaded


def of_ours(file: str) -> Services:
    """The services of a file that run an image of ours for good."""
    return {
        name: service
        for name, service in services(file).items()
        if name.startswith(OURS) and "image" in service
    }


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


@pytest.mark.parametrize("file", FILES)
def test_every_setting_of_a_compose_file_exists(file: str) -> None:
    known = documented_settings()
    for service in services(file).values():
        given = set(service.get("environment", {}))
        assert {name for name in given if name.startswith("PENSTOCK_")} <= known
    named = set(re.findall(r"\$\{(PENSTOCK_\w+)", (ROOT / file).read_text(encoding="utf-8")))
    assert {name for name in named if not NOT_SETTINGS.fullmatch(name)} <= known


def test_every_setting_of_a_service_can_be_given_to_compose() -> None:
    settings, of_compose = tables(), of_ours("compose.yaml")
    for name, fixed in FIXED_BY_COMPOSE.items():
        own = {declared.name for declared in settings[name]}
        assert own - set(of_compose[name]["environment"]) == fixed, name


@pytest.mark.parametrize("file", FILES)
def test_docker_waits_longer_than_the_drain_takes(file: str) -> None:
    for name, service in of_ours(file).items():
        if file == "compose.gpu.yaml" and name == "engine_worker":
            continue  # merged into the one of compose.yaml
        default = service["environment"]["PENSTOCK_DRAIN_TIMEOUT_S"]
        drain_timeout_s = float(default.split(":-")[1].rstrip("}"))
        assert seconds(service["stop_grace_period"]) >= drain_timeout_s + 15, name


@pytest.mark.parametrize("file", FILES)
def test_containers_of_ours_are_locked_down(file: str) -> None:
    for name, service in services(file).items():
        if not PENSTOCK_IMAGE.match(service.get("image", "")):
            continue
        if file == "compose.gpu.yaml" and name == "engine_worker":
            continue  # merged into the one of compose.yaml
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name


def test_every_image_is_a_target_of_the_dockerfile() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^FROM runtime AS (\S+)", text, re.MULTILINE))
    used = set()
    for file in FILES:
        for service in services(file).values():
            match = PENSTOCK_IMAGE.fullmatch(service.get("image", ""))
            if match:
                used.add(match[1])
            if "build" in service:
                assert match is not None
                assert service["build"]["target"] == match[1]
    assert used == targets


def test_no_compose_file_needs_what_only_compose_2_knows() -> None:
    for file in FILES:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not re.search(r"\$\{[^}]*\$\{", text), f"{file} nests variables"
        assert not re.search(r"\$\{\w+:?\+", text), f"{file} uses an alternate value"
        assert not re.search(r"^name:|!reset|!override|start_interval|include:", text, re.MULTILINE)


def test_each_worker_sees_the_keys_of_its_own_role_only() -> None:
    for name, service in of_ours("compose.yaml").items():
        keys = [volume for volume in service["volumes"] if volume.startswith("keys-")]
        role = name.removesuffix("_worker")
        assert keys == [f"keys-{role}:/keys/{role}:ro"]


def test_the_stack_has_the_services_and_settings_of_compose() -> None:
    stack, compose = of_ours("deploy/swarm/stack.yaml"), of_ours("compose.yaml")
    assert set(stack) == set(compose)
    for name, service in stack.items():
        ours, theirs = service["environment"], compose[name]["environment"]
        for setting in set(ours) - {"PENSTOCK_ADMIN_KEY_FILE"}:
            assert ours[setting] == theirs[setting], (name, setting)
        assert service["image"] == compose[name]["image"]
        assert service["stop_grace_period"] == compose[name]["stop_grace_period"]
        assert service["deploy"]["endpoint_mode"] == "dnsrr"


def test_the_script_makes_every_secret_that_the_stack_names() -> None:
    stack = yaml.safe_load((ROOT / "deploy/swarm/stack.yaml").read_text(encoding="utf-8"))
    script = (ROOT / "deploy/swarm/make-secrets.sh").read_text(encoding="utf-8")
    (roles,) = re.findall(r"^for role in (.*); do$", script, re.MULTILINE)
    secrets = {entry["name"] for entry in stack["secrets"].values()}
    configs = {entry["name"] for entry in stack["configs"].values()}
    assert secrets == {f"penstock_{role}_secret" for role in roles.split()} | {"penstock_admin_key"}
    assert configs == {f"penstock_{role}_public" for role in roles.split()}


def test_nginx_holds_nothing_back() -> None:
    text = (ROOT / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    assert "proxy_buffering off;" in text
    assert "listen 8080;" in text


def test_nginx_passes_over_a_gateway_that_is_gone_or_drains() -> None:
    text = (ROOT / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    assert "proxy_next_upstream error timeout http_503 non_idempotent;" in text
    assert "proxy_next_upstream_timeout 10s;" in text


def test_nginx_keeps_metrics_inside() -> None:
    text = (ROOT / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    assert re.search(r"location = /metrics \{\s*return 404;", text)


def health_checks() -> dict[str, str]:
    """Target of the Dockerfile → its health check."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = re.split(r"^FROM \S+ AS (\S+)$", text, flags=re.MULTILINE)[1:]
    found = dict(zip(stages[::2], stages[1::2], strict=True))
    checks = {
        name: re.search(r"HEALTHCHECK .*\n  CMD (.*)", stage) for name, stage in found.items()
    }
    return {name: match[1] for name, match in checks.items() if match is not None}


def test_an_image_is_healthy_when_its_worker_gets_work_or_its_gateway_lives() -> None:
    checks = health_checks()
    assert set(checks) == {"gateway", "engine", "engine-gpu", "auth", "toolparser"}
    assert "/live" in checks.pop("gateway")
    assert set(checks.values()) == {'["python", "-m", "protocol", "ready"]'}
    assert "\nENV PENSTOCK_READY_FILE=/tmp/" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_gateways_stop_before_whom_their_requests_need() -> None:
    engines = {name for name in of_ours("compose.yaml") if name.endswith("_worker")}
    assert engines <= set(services("compose.yaml")["gateway"]["depends_on"])
    assert "engine_worker_second" in services("compose.second-model.yaml")["gateway"]["depends_on"]


def test_a_rolling_update_of_the_stack_waits_for_workers_that_get_work() -> None:
    for name, service in of_ours("deploy/swarm/stack.yaml").items():
        check = service["healthcheck"]
        if name == "gateway":
            assert "/live" in check["test"][-1]
            continue
        assert check["test"] == ["CMD", "python", "-m", "protocol", "ready"]
        # A gateway that is away for less than an hour costs no worker its life.
        assert check["retries"] * seconds(check["interval"]) >= 3600
        order = service["deploy"]["update_config"]["order"]
        assert order == ("stop-first" if name == "auth_worker" else "start-first")
