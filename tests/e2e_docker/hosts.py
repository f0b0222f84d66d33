"""Engines on another machine: another network, the published port, CURVE and one folder of keys."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.e2e_docker.engine import DockerEngine, run, say
from tests.e2e_docker.everyday import use_unmodified_client
from tests.e2e_docker.project import ROOT, Project, eventually

TAKE_KEYS_OUT = "run --rm --no-deps -T keygen tar -C /keys/engine -c ."
"""Of `docker compose`; a unit test holds the guide to it."""


def two_hosts(engine: DockerEngine, compose: Sequence[str]) -> None:
    """Engines of another project, which shares no network, serve through the published port."""
    settings = {"PENSTOCK_ENGINE_PORT": "0", "PENSTOCK_WIRE_BIND": "0.0.0.0"}
    files = ("compose.yaml", "compose.remote-engines.yaml")
    with (
        Project(engine, compose, files, settings) as near,
        tempfile.TemporaryDirectory(prefix="e2e-keys-") as keys,
    ):
        near.up(engine_worker=0)
        (gateway,) = near.containers("gateway")
        eventually("the gateway answers", lambda: near.ready(near.gateway_urls()[0]) is not None)
        port = engine.docker("port", gateway, "5551").split()[0].rsplit(":", 1)[1]
        _carry_keys(near, Path(keys))
        settings = {"GATEWAY": f"tcp://{_address_of_this_machine(near)}:{port}", "KEYS": keys}
        with Project(engine, compose, ("deploy/engine-host/compose.yaml",), settings) as far:
            far.up(engine_worker=2)
            near.wait_ready(engine=2, auth=1, toolparser=1)
            engines = far.containers("engine_worker")
            assert not set(networks(near, gateway)) & set(networks(far, engines[0]))
            use_unmodified_client(near.gateway_urls()[0], near.new_key())
            say("  two engines on another network serve through the published port")


def networks(project: Project, container: str) -> list[str]:
    """Names of the networks that a container is on."""
    template = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}"
    return project.inspect(container, template).split()


def _carry_keys(near: Project, keys: Path) -> None:
    """The command of docs/deployment.md that takes the engines' folder of keys out."""
    env = {**near.engine.environment, **near.settings, **near.as_environment()}
    command = f"$COMPOSE {TAKE_KEYS_OUT} | tar -C {keys} -x"
    run(["bash", "-euo", "pipefail", "-c", command], env=env, cwd=ROOT)
    assert sorted(path.name for path in keys.iterdir()) == [
        "engine.public", "engine.secret", "gateway.public",
    ]  # fmt: skip


def _address_of_this_machine(near: Project) -> str:
    """An address of the host, which a container on any network reaches by way of the host."""
    template = "{{(index .IPAM.Config 0).Gateway}}"
    network = f"{near.name}_edge"
    return near.engine.docker("network", "inspect", network, "--format", template).strip()
