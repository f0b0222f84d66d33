"""The stack of deploy/swarm on a swarm of one node."""

from collections.abc import Sequence

import httpx

from tests.e2e_docker.engine import DockerEngine, run, say
from tests.e2e_docker.everyday import use_unmodified_client
from tests.e2e_docker.load import StreamingLoad, learn
from tests.e2e_docker.project import ROOT, eventually, free_port

_STACK = "pst-swarm"
_SERVICE_LABEL = f"com.docker.swarm.service.name={_STACK}_"


def swarm(engine: DockerEngine, compose: Sequence[str]) -> None:
    """The stack serves with three engines after scaling, and goes without a trace."""
    del compose  # a stack is deployed by docker itself
    if engine.docker("info", "--format", "{{.Swarm.LocalNodeState}}").strip() != "inactive":
        raise RuntimeError("This engine is part of a swarm already; it is not touched.")
    engine.docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    try:
        port = free_port()
        env = {
            **engine.environment,
            "PENSTOCK_PORT": str(port),
            "PENSTOCK_MAX_NUM_SEQS": "8",
            "PENSTOCK_DETERMINISTIC": "true",
            "PENSTOCK_NGINX_IMAGE": engine.image_with(
                "penstock-e2e-nginx", "nginx-light", "nginx:1.28-alpine"
            ),
        }
        run([ROOT / "deploy/swarm/make-secrets.sh"], env=env)
        run([ROOT / "deploy/swarm/make-secrets.sh"], env=env)  # a second run keeps them
        engine.give_programs(f"{_STACK}_compile-cache", "8-true")
        stack = str(ROOT / "deploy/swarm/stack.yaml")
        deploy = ["docker", "stack", "deploy", "--resolve-image", "never", "-c", stack, _STACK]
        run(deploy, env=env, cwd=ROOT)
        base = f"http://127.0.0.1:{port}"
        eventually("the stack has two engines", lambda: _num_engines(base) == 2, 900)
        key = _new_key(engine)
        use_unmodified_client(base, key)
        _update_gateways(base, key, env)
        run(["docker", "service", "scale", "--detach", f"{_STACK}_engine_worker=3"], env=env)
        eventually("the stack has three engines", lambda: _num_engines(base) == 3, 900)
        say("  the stack serves, and scales to three engines")
    finally:
        engine.docker("stack", "rm", _STACK, check=False)
        eventually("the stack is gone", lambda: not _containers(engine), 120)
        engine.docker("swarm", "leave", "--force", check=False)
        for volume in engine.docker("volume", "ls", "-q").split():
            if volume.startswith(f"{_STACK}_"):
                engine.docker("volume", "rm", "--force", volume, check=False)


def _update_gateways(base: str, key: str, env: dict[str, str]) -> None:
    texts = learn(base, key)
    with StreamingLoad([base], key, texts, num_clients=4) as load:
        load.wait_for(4)
        service = f"{_STACK}_gateway"
        run(["docker", "service", "update", "--force", "--detach=false", service], env=env)
        load.wait_for(8)
    tally = load.tally
    say(
        f"  gateways updated by force under load: {tally.num_right} streams right, "
        f"{tally.num_refused} refused with 503, {len(tally.failures)} failed"
    )
    assert not tally.failures, tally.failures[:3]
    assert not tally.num_refused


def _containers(engine: DockerEngine, service: str = "") -> list[str]:
    label = f"label=com.docker.stack.namespace={_STACK}"
    more = ["--filter", f"label={_SERVICE_LABEL}{service}"] if service else []
    return engine.docker("ps", "-q", "--filter", label, *more).split()


def _num_engines(base: str) -> int:
    try:
        answer = httpx.get(f"{base}/ready", timeout=10.0).json()
    except (httpx.TransportError, ValueError):
        return 0
    if answer.get("status") != "ready":  # nginx says 502 while no gateway is there
        return 0
    phases = [(worker["role"], worker["phase"]) for worker in answer["workers"]]
    return phases.count(("engine", "ready"))


def _new_key(engine: DockerEngine) -> str:
    auth = _containers(engine, "auth_worker")[0]
    return engine.docker("exec", auth, "penstock", "keys", "create", "swarm").strip()
