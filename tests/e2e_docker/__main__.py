"""`python -m tests.e2e_docker`: every scenario with Compose 2, the everyday ones with 1.29 as
well."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.e2e_docker.bad_input import bad_deployments
from tests.e2e_docker.engine import DockerEngine, say
from tests.e2e_docker.everyday import one_command, second_model
from tests.e2e_docker.hosts import two_hosts
from tests.e2e_docker.losses import scaled_and_broken
from tests.e2e_docker.monitoring import monitoring
from tests.e2e_docker.new_weights import new_weights
from tests.e2e_docker.project import COMPOSE_1, COMPOSE_2, Project
from tests.e2e_docker.stop import stop_everything
from tests.e2e_docker.swarm import swarm
from tests.e2e_docker.upgrade import upgrade

Scenario = Callable[[DockerEngine, Sequence[str]], None]
VERSIONS = {"1": COMPOSE_1, "2": COMPOSE_2}
SCENARIOS: dict[str, tuple[Scenario, str]] = {
    "one_command": (one_command, "12"),
    "scaled_and_broken": (scaled_and_broken, "12"),
    "new_weights": (new_weights, "12"),
    "upgrade": (upgrade, "12"),
    "stop_everything": (stop_everything, "2"),
    "second_model": (second_model, "2"),
    "two_hosts": (two_hosts, "2"),
    "bad_deployments": (bad_deployments, "2"),
    "monitoring": (monitoring, "2"),
    "swarm": (swarm, "2"),
}
"""Name → the scenario and the versions of Compose that run it."""


def main(arguments: Sequence[str]) -> int:
    """Build the images and run the scenarios; 0 when all of them held."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e_docker", description=__doc__)
    parser.add_argument("--only", choices=SCENARIOS, nargs="+", default=list(SCENARIOS))
    parser.add_argument("--compose", choices=VERSIONS, nargs="+", default=list(VERSIONS))
    parser.add_argument("--engine-dir", type=Path, help="keep the engine's images in this folder")
    options = parser.parse_args(arguments)
    with DockerEngine(options.engine_dir) as engine:
        begin = time.monotonic()
        say("building the images")
        # Compose 1.29 with BuildKit and Compose 2 build the same images; once is enough.
        Project(engine).compose("build")
        say(f"images built in {time.monotonic() - begin:.0f} s")
        for name in options.only:
            scenario, versions = SCENARIOS[name]
            for version in (v for v in options.compose if v in versions):
                begin = time.monotonic()
                say(f"{name} (Compose {version})")
                scenario(engine, VERSIONS[version])
                say(f"{name} (Compose {version}) held, {time.monotonic() - begin:.0f} s")
    say("every scenario held")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
