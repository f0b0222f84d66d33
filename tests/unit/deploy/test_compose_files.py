"""The compose files and the Swarm stack: settings that exist, time to drain, and one truth."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.http.errors.error_table import (
    ERROR_TABLE,
    HEAD_TOO_LARGE,
    METHOD_NOT_ALLOWED,
    NOT_IMPLEMENTED,
)
from protocol.wire.worker_handler import WorkerSettings
from tests.e2e_docker.hosts import TAKE_KEYS_OUT
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
    "compose.postgres.yaml",
    "compose.outbound.yaml",
    "deploy/engine-host/compose.yaml",
    "deploy/swarm/stack.yaml",
)
OURS = ("gateway", "engine_worker", "auth_worker", "toolparser_worker")
PENSTOCK_IMAGE = re.compile(
    r"\$\{PENSTOCK_IMAGE_PREFIX:-penstock\}-([a-z-]+):\$\{PENSTOCK_TAG:-latest\}"
)
NOT_SETTINGS = re.compile(
    r"PENSTOCK_(IMAGE_PREFIX|TAG|PYTHON_IMAGE|\w+_IMAGE|BIND|WIRE_BIND|ENGINE_PORT|NGINX_PORT|"
    r"PROMETHEUS_PORT|GRAFANA_PORT|GPU_MEMORY_FRACTION|GATEWAYS|ENGINES|PARSERS|AUTH_WORKERS|"
    r"(GATEWAY|ENGINE|AUTH|PARSER|POSTGRES)_MEMORY|PROXY_SUBNET)"
)
"""What only Compose reads: images, ports, counts and limits."""
FIXED_BY_COMPOSE = {
    "gateway": {
        "PENSTOCK_PORT_FILE",
        "PENSTOCK_REQUIRE_KEYS",
        "PENSTOCK_ALLOWED_HOSTS",
        "PENSTOCK_SHARE_PORT",
    },
    "engine_worker": {
        "PENSTOCK_COMPILE_CACHE_DIR",
        "PENSTOCK_WEIGHTS_CACHE_DIR",
        "PENSTOCK_PROFILE_DIR",
        "PENSTOCK_READY_FILE",
    },
    "auth_worker": {"PENSTOCK_ALLOW_ANONYMOUS"},
    "toolparser_worker": set(),
}
"""What the images set, or what means nothing in a container or where keys are required."""
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


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("compose.gpu.yaml", "engine_worker_gpu1"),
        ("deploy/engine-host/compose.yaml", "engine_worker"),
    ],
)
def test_another_engine_of_the_model_has_the_settings_of_the_first(file: str, name: str) -> None:
    """One that didn't would answer otherwise, or would not be taken for the same model."""
    first = services("compose.yaml")["engine_worker"]["environment"]
    other = services(file)[name]["environment"]
    assert set(first) - set(other) == set()
    of_the_gpu = {"PENSTOCK_KV_MEMORY"} if "gpu" in file else set()
    assert {key: other[key] for key in set(first) - of_the_gpu} == {
        key: first[key] for key in set(first) - of_the_gpu
    }


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


def merged_into_another_file(file: str, name: str) -> bool:
    """Whether a service only adds to the one of compose.yaml."""
    return file != "compose.yaml" and name in services("compose.yaml") and "/" not in file


@pytest.mark.parametrize("file", [file for file in FILES if "swarm" not in file])
def test_every_container_has_limits_and_rotates_its_log(file: str) -> None:
    """Ours and others': a log without bounds, or a leak, would fill the host."""
    for name, service in services(file).items():
        if merged_into_another_file(file, name):
            continue
        assert service["mem_limit"], name
        assert service["pids_limit"] >= 64, name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name


def test_every_service_of_the_stack_has_limits_and_rotates_its_log() -> None:
    for name, service in services("deploy/swarm/stack.yaml").items():
        assert set(service["deploy"]["resources"]["limits"]) == {"memory", "pids"}, name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name


def test_counts_stand_in_the_environment_so_that_a_plain_up_keeps_them() -> None:
    found = {name: service.get("scale") for name, service in of_ours("compose.yaml").items()}
    assert found == {
        "gateway": "${PENSTOCK_GATEWAYS:-1}",
        "engine_worker": "${PENSTOCK_ENGINES:-1}",
        "toolparser_worker": "${PENSTOCK_PARSERS:-1}",
        "auth_worker": None,  # one authority
    }
    far = services("deploy/engine-host/compose.yaml")["engine_worker"]
    assert far["scale"] == found["engine_worker"]


def test_an_engine_host_fetches_models_of_the_hub_as_the_gateways_host_does() -> None:
    far, near = services("deploy/engine-host/compose.yaml"), services("compose.yaml")
    assert far["weights"]["environment"] == near["weights"]["environment"]
    assert far["weights"]["command"] == near["weights"]["command"]
    assert far["engine_worker"]["depends_on"]["weights"] == {
        "condition": "service_completed_successfully"
    }


@pytest.mark.parametrize("folder", ["", "deploy/engine-host"])
def test_every_variable_of_an_example_of_settings_is_read_by_a_compose_file(folder: str) -> None:
    text = (ROOT / folder / ".env.example").read_text(encoding="utf-8")
    named = set(re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE))
    assert len(named) > 5
    files = [file for file in FILES if file.startswith(folder)]
    read = {
        name
        for file in files
        for name in re.findall(r"\$\{([A-Z_]+)", (ROOT / file).read_text(encoding="utf-8"))
    }
    assert named - {"COMPOSE_PROJECT_NAME", "COMPOSE_FILE"} <= read


def test_no_command_of_the_guide_depends_on_the_name_of_the_folder() -> None:
    """Names of volumes begin with the project's, which is the folder's unless `.env` says so."""
    guide = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert not re.findall(r"(?:-v|--volume) penstock_\S+", guide)
    assert f"docker compose {TAKE_KEYS_OUT}" in guide


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


def test_nobody_but_the_auth_worker_has_the_admin_key() -> None:
    """It speaks with strangers: whoever breaks into a gateway must not administer keys."""
    allowed = {"keygen", "auth_worker", "metrics_key"}
    having = {
        name
        for file in FILES
        for name, service in services(file).items()
        if re.search("admin[-_]key", json.dumps(service, default=str), re.IGNORECASE)
    }
    assert having == allowed
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", dockerfile, re.M | re.S))
    assert "ADMIN_KEY" not in dockerfile
    assert "rm /opt/venv/bin/penstock" in stages["gateway-build"]


def test_the_stack_has_the_services_and_settings_of_compose() -> None:
    stack, compose = of_ours("deploy/swarm/stack.yaml"), of_ours("compose.yaml")
    assert set(stack) == set(compose)
    for name, service in stack.items():
        ours, theirs = service["environment"], compose[name]["environment"]
        assert set(ours) == set(theirs), name
        for setting in set(ours) - {"PENSTOCK_ADMIN_KEY_FILE", "PENSTOCK_TRUSTED_PROXIES"}:
            assert ours[setting] == theirs[setting], (name, setting)
        assert service["image"] == compose[name]["image"]
        assert service["stop_grace_period"] == compose[name]["stop_grace_period"]
        assert service["deploy"]["endpoint_mode"] == "dnsrr"


def test_the_script_makes_every_secret_that_the_stack_names() -> None:
    stack = yaml.safe_load((ROOT / "deploy/swarm/stack.yaml").read_text(encoding="utf-8"))
    script = (ROOT / "deploy/swarm/make-secrets.sh").read_text(encoding="utf-8")
    (roles,) = re.findall(r'^roles="(.*)"$', script, re.MULTILINE)
    secrets = {entry["name"] for entry in stack["secrets"].values()}
    configs = {entry["name"] for entry in stack["configs"].values() if entry.get("external")}
    assert secrets == {f"penstock_{role}_secret" for role in roles.split()} | {"penstock_admin_key"}
    assert configs == {f"penstock_{role}_public" for role in roles.split()}


FAKE_DOCKER = """#!/usr/bin/env bash
# Keeps secrets and configs as files of $STATE, and makes keys that tell the call they come from.
case "$1 $2" in
  "secret inspect"|"config inspect") [ -e "$STATE/$1-$3" ] ;;
  "secret create"|"config create") [ ! -e "$STATE/$1-$3" ] && cp "$4" "$STATE/$1-$3" ;;
  "info --format") echo node ;;
  "node update") echo "$@" >> "$STATE/labels" ;;
  "create --network") echo container ;;
  "cp container:/keys")
    for role in gateway engine auth toolparser; do
      mkdir -p "$3/$role"; echo $$ > "$3/$role/$role.secret"; echo $$ > "$3/$role/$role.public"
    done ;;
  "cp container:/admin/admin.key") echo $$ > "$3" ;;
  "start --attach"|"rm --force") ;;
  *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""


def make_secrets(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the script with a docker that keeps things in `tmp_path / "state"`."""
    state, folder = tmp_path / "state", tmp_path / "bin"
    state.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    docker = folder / "docker"
    docker.write_text(FAKE_DOCKER, encoding="utf-8")
    docker.chmod(0o755)
    return subprocess.run(
        [ROOT / "deploy/swarm/make-secrets.sh"],
        env={"PATH": f"{folder}:/usr/bin:/bin", "STATE": str(state)},
        capture_output=True,
        text=True,
        check=False,
    )


def kept(tmp_path: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (tmp_path / "state").glob("*-penstock_*")}


def test_the_script_may_run_twice_and_keeps_the_keys(tmp_path: Path) -> None:
    first = make_secrets(tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    made = kept(tmp_path)
    assert len(made) == 9
    second = make_secrets(tmp_path)
    assert (second.returncode, second.stderr) == (0, "")
    assert "already" in second.stdout
    assert kept(tmp_path) == made


def test_the_script_mixes_no_old_keys_with_new_ones(tmp_path: Path) -> None:
    assert make_secrets(tmp_path).returncode == 0
    (tmp_path / "state" / "secret-penstock_engine_secret").unlink()
    left = kept(tmp_path)
    refused = make_secrets(tmp_path)
    assert refused.returncode == 1
    assert "missing: penstock_engine_secret" in refused.stderr
    assert "docker secret rm penstock_gateway_secret" in refused.stderr
    assert kept(tmp_path) == left


def test_a_gateway_of_the_stack_is_updated_while_another_serves() -> None:
    stack = services("deploy/swarm/stack.yaml")
    deploy = stack["gateway"]["deploy"]
    assert deploy["replicas"] == "${PENSTOCK_GATEWAYS:-2}"
    assert deploy["update_config"]["order"] == "start-first"
    # Beyond the time in which workers find a new gateway's address.
    assert seconds(deploy["update_config"]["delay"]) >= 2 * WorkerSettings().resolve_interval_s
    # A port of the node would forbid it.
    assert "ports" not in stack["gateway"]
    assert [port["mode"] for port in stack["nginx"]["ports"]] == ["host"]
    assert "gateway-http" in stack["gateway"]["networks"]["proxy"]["aliases"]
    assert "proxy" in stack["nginx"]["networks"]


def test_nginx_holds_nothing_back() -> None:
    text = (ROOT / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    assert "proxy_buffering off;" in text
    assert "listen 8080;" in text


def test_nginx_hands_websockets_on() -> None:
    """`GET /v1/responses` is one; without the two headers its gateway never learns of it."""
    text = (ROOT / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    (switch,) = re.findall(r"map \$http_upgrade \$connection_upgrade \{([^}]*)\}", text)
    assert re.findall(r"(\S+) (\S+);", switch) == [("default", '""'), ("~*^websocket$", "upgrade")]
    assert "proxy_set_header Upgrade $http_upgrade;" in text
    assert "proxy_set_header Connection $connection_upgrade;" in text
    # A location with a header of its own would have none of these.
    assert not any("proxy_set_header" in body for _, body in locations(text))


def test_nginx_takes_files_as_large_as_a_gateway_does() -> None:
    text = (ROOT / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    ((matches, files),) = [one for one in locations(text) if "files" in one[0]]
    assert re.search(matches.removeprefix("~ "), "/llm/v1/files")
    assert not re.search(matches.removeprefix("~ "), "/v1/files/file-1/content")
    # Not kept in nginx's own memory, which `/tmp` is; the gateway has the limit.
    assert "client_max_body_size 0;" in files
    assert "proxy_request_buffering off;" in files
    assert "proxy_pass http://$gateways;" in files


def locations(text: str) -> list[tuple[str, str]]:
    """What each location of nginx is for, and what stands in it."""
    found: list[tuple[str, str]] = re.findall(r"location (.+?) \{\n(.*?)\n    \}", text, re.DOTALL)
    return found


def test_nginx_passes_over_a_gateway_that_is_gone_or_drains() -> None:
    text = (ROOT / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    assert "proxy_next_upstream error timeout http_503 non_idempotent;" in text
    assert "proxy_next_upstream_timeout 10s;" in text


def test_nginx_answers_as_a_gateway_does_when_it_answers_itself() -> None:
    """OpenAI's error object with the gateway's codes, and Retry-After where trying again helps."""
    text = (ROOT / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    bodies = dict(re.findall(r"^ +(default|\d{3}) '(\{.*\})';$", text, re.MULTILINE))
    handled = re.findall(r"error_page ([\d ]+)(?:=(\d+) )?/-/error;", text)
    statuses = {status or code for codes, status in handled for code in codes.split()}
    assert {"400", "404", "413", "431", "502", "503", "504"} <= statuses
    rows = {
        (str(row.status), row.type, row.code)
        for row in (*ERROR_TABLE.values(), HEAD_TOO_LARGE, METHOD_NOT_ALLOWED, NOT_IMPLEMENTED)
    }
    known = {(type_, code) for _, type_, code in rows}
    for status, body in bodies.items():
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["code"]) in known, status
        # These have no row of their own.
        if status not in {"default", "414", "502"}:
            assert (status, error["type"], error["code"]) in rows
    assert statuses - set(bodies) <= {"500", "505"}  # the default speaks for them
    assert "add_header Retry-After $error_retry_after always;" in text
    assert re.search(r"map \$status \$error_retry_after \{[^}]*~\^50\[234\]\$ 2;", text)


def test_gateways_believe_nginx_and_nobody_else_about_addresses() -> None:
    loaded = yaml.safe_load((ROOT / "compose.nginx.yaml").read_text(encoding="utf-8"))
    gateway, nginx = loaded["services"]["gateway"], loaded["services"]["nginx"]
    ((name, network),) = loaded["networks"].items()
    assert network["internal"]
    (subnet,) = network["ipam"]["config"]
    assert gateway["environment"]["PENSTOCK_TRUSTED_PROXIES"] == subnet["subnet"]
    assert name in nginx["networks"]
    assert set(gateway["networks"]) == {name}
    (alias,) = gateway["networks"][name]["aliases"]
    # By that name nginx comes from its address on that network, not from one that clients share.
    text = (ROOT / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    assert f"set $gateways {alias}:8000;" in text
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in text


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


def test_with_postgresql_several_auth_workers_read_its_address_from_a_file() -> None:
    found = services("compose.postgres.yaml")
    auth = found["auth_worker"]
    assert auth["scale"] == "${PENSTOCK_AUTH_WORKERS:-2}"
    secret = "database-secret:/run/database-secret:ro"
    assert secret in auth["volumes"]
    assert secret in found["postgres"]["volumes"]
    assert auth["environment"] == {"PENSTOCK_DATABASE_URL_FILE": "/run/database-secret/url"}
    text = (ROOT / "compose.postgres.yaml").read_text(encoding="utf-8")
    loaded = yaml.safe_load(text)
    assert loaded["networks"] == {"database": {"internal": True}}
    (script,) = found["database-secret"]["command"]
    for name in ("url", "password"):
        assert f"/admin/{name}" in script
    # In plain text on a network of one machine that nobody else is on, and so decided for.
    assert "@postgres/penstock?sslmode=disable" in script


def test_an_auth_worker_has_a_way_to_issuers_and_webhooks_where_it_is_asked_for() -> None:
    networks = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["networks"]
    assert services("compose.yaml")["auth_worker"]["networks"] == ["wire"]
    assert networks["wire"]["internal"]
    outbound = yaml.safe_load((ROOT / "compose.outbound.yaml").read_text(encoding="utf-8"))
    (network,) = outbound["services"]["auth_worker"]["networks"]
    assert outbound["networks"] == {network: {}}
