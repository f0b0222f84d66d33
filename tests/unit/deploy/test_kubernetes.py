"""The Kubernetes manifests: valid by the API's own schemas, and they fit together."""

import copy
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from auth_worker.service import SETTLEMENT_PATIENCE_S
from tests.fakes.documented_settings import documented_settings
from tests.fakes.late import kubernetes_validate

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
VERSIONS = ("1.29", "1.33")
NAME = "app.kubernetes.io/name"
ROLES = {"gateway": "gateway", "engine": "engine", "auth": "auth", "toolparser": "toolparser"}
Resource = dict[str, Any]


def kustomization() -> Resource:
    loaded: Resource = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    return loaded


def resources() -> list[Resource]:
    return copy.deepcopy(_read())


@functools.cache
def _read() -> list[Resource]:
    return [
        resource
        for name in kustomization()["resources"]
        for resource in yaml.safe_load_all((FOLDER / name).read_text())
    ]


def of(kind: str) -> dict[str, Resource]:
    return {r["metadata"]["name"]: r for r in resources() if r["kind"] == kind}


def pods() -> Iterator[tuple[str, Resource]]:
    """Name and pod spec of each Deployment and Job."""
    for kind in ("Deployment", "Job"):
        for name, resource in of(kind).items():
            yield name, resource["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid_by_the_schemas_of_the_api(version: str) -> None:
    found = resources()
    assert len(found) > 15
    for resource in found:
        kubernetes_validate.validate(resource, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    engine = of("Deployment")["engine"]
    engine["spec"]["template"]["spec"]["terminationGracePeriod"] = 90
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(engine, VERSIONS[-1], strict=True)


def test_every_file_of_manifests_is_applied() -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")}
    outside = {"kustomization.yaml", "prometheus-adapter-rule.yaml"}
    assert set(kustomization()["resources"]) == files - outside


def test_every_image_is_renamed_and_is_a_target_of_the_dockerfile() -> None:
    dockerfile = (FOLDER.parents[1] / "Dockerfile").read_text()
    targets = set(re.findall(r"^FROM runtime AS (\S+)", dockerfile, re.MULTILINE))
    used = {container["image"] for _, spec in pods() for container in spec["containers"]}
    assert {image["name"] for image in kustomization()["images"]} == used
    assert {image.removeprefix("penstock-") for image in used} <= targets


def test_what_pods_mount_exists_or_is_made_by_the_script() -> None:
    script = (FOLDER / "make-secrets.sh").read_text()
    (roles,) = re.findall(r'^roles="(.*)"$', script, re.MULTILINE)
    secrets = {f"keys-{role}" for role in roles.split()} | {"admin-key"}
    assert "create secret generic admin-key" in script
    for name, spec in pods():
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes), name
        for volume in volumes.values():
            if "secret" in volume:
                assert volume["secret"]["secretName"] in secrets
                assert volume["secret"]["defaultMode"] == 0o440
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in of("PersistentVolumeClaim")
    subprocess.run(["bash", "-n", FOLDER / "make-secrets.sh"], check=True)


def test_a_pod_gets_the_keys_of_its_own_role_only() -> None:
    for name, spec in pods():
        mounted = {
            volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume
        }
        wanted = {f"keys-{name}"} if name in ROLES else set()
        assert mounted - {"admin-key"} == wanted
        assert ("admin-key" in mounted) == (name == "auth")


def test_selectors_meet_pods() -> None:
    labels = {
        name: resource["spec"]["template"]["metadata"]["labels"][NAME]
        for name, resource in of("Deployment").items()
    }
    assert labels == ROLES
    for name, resource in of("Deployment").items():
        assert resource["spec"]["selector"]["matchLabels"] == {NAME: name}
    for service in of("Service").values():
        assert service["spec"]["selector"][NAME] in labels
    for name, budget in of("PodDisruptionBudget").items():
        assert budget["spec"]["selector"]["matchLabels"] == {NAME: name}
    assert set(of("PodDisruptionBudget")) == {"gateway", "engine", "toolparser"}
    scaler = of("HorizontalPodAutoscaler")["engine"]["spec"]
    assert scaler["scaleTargetRef"]["name"] in of("Deployment")
    assert "replicas" not in of("Deployment")["engine"]["spec"]


def test_workers_dial_a_service_that_leads_to_every_gateway() -> None:
    wire = of("Service")["gateway-wire"]["spec"]
    assert wire["clusterIP"] == "None"
    assert wire["publishNotReadyAddresses"]
    ports = {port["name"]: port["port"] for port in wire["ports"]}
    (gateway,) = of("Deployment")["gateway"]["spec"]["template"]["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in gateway["ports"]} == {
        "http": 8000,
        **ports,
    }
    for role in ("engine", "auth", "toolparser"):
        (container,) = of("Deployment")[role]["spec"]["template"]["spec"]["containers"]
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        endpoint = environment[f"PENSTOCK_{role.upper()}_ENDPOINT"]
        assert endpoint == f"tcp://gateway-wire:{ports[role]}"


def test_a_pod_has_longer_to_end_than_the_drain_takes() -> None:
    drain_timeout_s = float(
        of("ConfigMap")["penstock-settings"]["data"]["PENSTOCK_DRAIN_TIMEOUT_S"]
    )
    for name, spec in pods():
        if name in ROLES:
            assert spec["terminationGracePeriodSeconds"] >= drain_timeout_s + 15


def test_every_container_is_locked_down() -> None:
    for _, spec in pods():
        assert spec["securityContext"]["runAsNonRoot"]
        assert not spec["automountServiceAccountToken"]
        for container in spec["containers"]:
            locked = container["securityContext"]
            assert locked["readOnlyRootFilesystem"]
            assert not locked["allowPrivilegeEscalation"]
            assert locked["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


def test_every_setting_exists() -> None:
    given = set(of("ConfigMap")["penstock-settings"]["data"])
    for _, spec in pods():
        for container in spec["containers"]:
            given |= {entry["name"] for entry in container.get("env", [])}
    assert {name for name in given if name.startswith("PENSTOCK_")} <= documented_settings()


def test_gateways_drain_before_whom_their_requests_need() -> None:
    """Where all pods end at once, workers get SIGTERM after the gateways, and time for it."""
    drain_timeout_s = float(
        of("ConfigMap")["penstock-settings"]["data"]["PENSTOCK_DRAIN_TIMEOUT_S"]
    )
    pauses_s = {}
    for name, deployment in of("Deployment").items():
        spec = deployment["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        command, pause_s = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep"
        pauses_s[name] = float(pause_s)
        longest_s = pauses_s[name] + drain_timeout_s + SETTLEMENT_PATIENCE_S
        assert spec["terminationGracePeriodSeconds"] > longest_s, name
    assert pauses_s.pop("gateway") < min(pauses_s.values())
    assert set(pauses_s) == {"engine", "auth", "toolparser"}


def test_prometheus_has_a_key_and_finds_every_gateway() -> None:
    """By the fields of prometheus-operator's `PodMonitor`; the API's schemas don't know it."""
    (monitor,) = yaml.safe_load_all((FOLDER / "metrics" / "podmonitor.yaml").read_text())
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["spec"]["selector"]["matchLabels"] == {NAME: "gateway"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (gateway,) = of("Deployment")["gateway"]["spec"]["template"]["spec"]["containers"]
    assert endpoint["port"] in {port["name"] for port in gateway["ports"]}
    assert endpoint["path"] == "/metrics"
    secret = endpoint["authorization"]["credentials"]
    applied = (FOLDER / "metrics" / "kustomization.yaml").read_text()
    make = f"create secret generic {secret['name']} --from-literal={secret['key']}="
    guide = (FOLDER.parents[1] / "docs" / "deployment.md").read_text()
    assert make in applied
    assert make in guide
    # The alerts ask for that job.
    (relabeling,) = endpoint["relabelings"]
    assert (relabeling["targetLabel"], relabeling["replacement"]) == ("job", "penstock")
    loaded = yaml.safe_load(applied)
    assert loaded["resources"] == ["podmonitor.yaml", "prometheusrule.yaml"]
    assert loaded["namespace"] == kustomization()["namespace"]


def test_the_operators_alerts_are_those_of_the_file() -> None:
    (rule,) = yaml.safe_load_all((FOLDER / "metrics" / "prometheusrule.yaml").read_text())
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    alerts = yaml.safe_load((FOLDER.parent / "monitoring" / "alerts.yml").read_text())
    assert rule["spec"] == alerts
    assert alerts["groups"]


def test_the_autoscaler_asks_for_the_metric_that_the_rule_makes() -> None:
    (metric,) = of("HorizontalPodAutoscaler")["engine"]["spec"]["metrics"]
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter-rule.yaml").read_text())
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    assert rule["metricsQuery"].startswith("sum(penstock_gateway_queue_depth{")


def test_a_rollout_waits_for_pods_that_really_serve() -> None:
    for name, deployment in of("Deployment").items():
        spec = deployment["spec"]
        (container,) = spec["template"]["spec"]["containers"]
        probe = container["readinessProbe"]
        if name == "gateway":
            assert container["livenessProbe"]["httpGet"]["path"] == "/live"
        else:
            assert probe["exec"]["command"] == ["python", "-m", "protocol", "ready"]
            assert "livenessProbe" not in container
        if name != "auth":
            assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        if name in {"engine", "toolparser"}:
            assert spec["minReadySeconds"] >= probe["periodSeconds"]


def merged(base: Any, patch: Any) -> Any:
    """A strategic merge, as far as the component needs one: lists of named things go by name."""
    if isinstance(base, dict) and isinstance(patch, dict):
        both = {key: merged(base.get(key), value) for key, value in patch.items()}
        return {key: value for key, value in (base | both).items() if value is not None}
    if isinstance(base, list) and isinstance(patch, list) and "name" in (patch[0] or {}):
        changes = {item["name"]: item for item in patch}
        kept = [merged(item, changes.pop(item["name"], {})) for item in base]
        return kept + list(changes.values())
    return patch


@pytest.mark.parametrize("version", VERSIONS)
def test_with_postgresql_two_auth_workers_share_a_database_and_hold_no_volume(version: str) -> None:
    folder = FOLDER / "postgres"
    component = yaml.safe_load((folder / "kustomization.yaml").read_text())
    (patch,) = component["patches"]
    base = of("Deployment")["auth"]
    auth = merged(base, yaml.safe_load((folder / patch["path"]).read_text()))
    kubernetes_validate.validate(auth, version, strict=True)
    spec = auth["spec"]["template"]["spec"]
    assert auth["spec"]["replicas"] == 2
    assert auth["spec"]["strategy"]["type"] == "RollingUpdate"
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert "persistentVolumeClaim" not in volumes["data"]
    (container,) = spec["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == set(volumes)
    environment = {item["name"]: item.get("value") for item in container["env"]}
    assert str(environment["PENSTOCK_DATABASE_URL_FILE"]).startswith(mounts["database"])
    assert set(environment) <= documented_settings()
    for name in component["resources"]:
        policy = yaml.safe_load((folder / name).read_text())
        kubernetes_validate.validate(policy, version, strict=True)
        selected = policy["spec"]["podSelector"]["matchLabels"]
        assert selected.items() <= auth["spec"]["template"]["metadata"]["labels"].items()


def test_gateways_keep_nothing_on_a_disk_of_their_own_that_others_would_be_asked_for() -> None:
    """A client's next request goes to any pod; and a pod that fills its disk is evicted."""
    gateway = of("Deployment")["gateway"]["spec"]
    assert gateway["replicas"] > 1
    volumes = {one["name"]: one for one in gateway["template"]["spec"]["volumes"]}
    assert "emptyDir" in volumes["data"]
    (container,) = gateway["template"]["spec"]["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert given["PENSTOCK_STORE_URL"] == "none"
    assert given["PENSTOCK_MAX_FILE_BYTES"] == "0"


@pytest.mark.parametrize("version", VERSIONS)
def test_auth_workers_reach_issuers_and_webhooks_where_it_is_asked_for(version: str) -> None:
    folder = FOLDER / "outbound"
    (name,) = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    policy = yaml.safe_load((folder / name).read_text())
    kubernetes_validate.validate(policy, version, strict=True)
    assert policy["spec"]["podSelector"]["matchLabels"] == {NAME: "auth"}
    (rule,) = policy["spec"]["egress"]
    assert rule == {"ports": [{"port": 443, "protocol": "TCP"}]}
