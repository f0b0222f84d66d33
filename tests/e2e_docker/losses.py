"""Three engines, two parsers and two gateways behind nginx: what a death or a drain costs
clients."""

import time
from collections.abc import Sequence

import httpx

from tests.e2e_docker.engine import DockerEngine, say
from tests.e2e_docker.everyday import expect_nothing_left
from tests.e2e_docker.load import StreamingLoad, learn
from tests.e2e_docker.project import WORKERS, Project

# Engines must give the same text whoever runs beside whom, since the load compares texts.
_SETTINGS = {"PENSTOCK_DETERMINISTIC": "true", "PENSTOCK_DRAIN_TIMEOUT_S": "20"}
_FULL = {"engine": 3, "auth": 1, "toolparser": 2}


def scaled_and_broken(engine: DockerEngine, compose: Sequence[str]) -> None:
    """Three engines, two parsers and two gateways behind nginx; each kind is killed under load."""
    nginx = engine.image_with("penstock-e2e-nginx", "nginx-light", "nginx:1.28-alpine")
    settings = {**_SETTINGS, "PENSTOCK_NGINX_IMAGE": nginx}
    files = ("compose.yaml", "compose.nginx.yaml")
    with Project(engine, compose, files, settings) as project:
        project.up(engine_worker=3, toolparser_worker=2, gateway=2)
        seconds = project.wait_ready(**_FULL)
        say(f"  three engines on one compile cache and two gateways ready: {seconds:.1f} s")
        _one_compile_cache(project)
        front = project.url("nginx", 8080)
        key = project.new_key()
        assert httpx.get(f"{front}/metrics").status_code == 404
        _streams_arrive_piece_by_piece(front, key)
        texts = learn(front, key)
        _lose_workers(project, front, key, texts)
        _drain(project, front, key, texts)
        _lose_a_gateway(project, key, texts)
        _nginx_answers_as_gateways_do(project, front)
    expect_nothing_left(project)


def _one_compile_cache(project: Project) -> None:
    # Beside the packed weights: a folder by version, processor and flags.
    script = "cd /var/cache/penstock && ls -d */ | grep -vc weights; ls * | wc -l"
    counts = {project.exec(c, "sh", "-c", script) for c in project.containers("engine_worker")}
    (shared,) = counts
    folders, files = (int(number) for number in shared.split())
    assert folders == 1
    assert files > 0


def _nginx_answers_as_gateways_do(project: Project, front: str) -> None:
    """What nginx itself refuses is OpenAI's error object, with Retry-After where it helps."""
    large = httpx.post(f"{front}/v1/chat/completions", content=bytes(33 * 2**20), timeout=60.0)
    address = httpx.get(f"{front}/{'x' * 40_000}")
    head = httpx.get(f"{front}/live", headers={"X-Long": "x" * 40_000})
    project.compose("stop", "gateway")
    away = httpx.get(f"{front}/v1/models", timeout=60.0)
    for answer, status, code in (
        (large, 413, "request_too_large"),
        (address, 414, "invalid_request"),
        (head, 431, "headers_too_large"),
        (away, 502, "worker_unavailable"),
    ):
        assert answer.status_code == status, (answer.status_code, answer.text)
        assert answer.json()["error"]["code"] == code
        assert ("retry-after" in answer.headers) == (status >= 500)


def _streams_arrive_piece_by_piece(front: str, key: str) -> None:
    with httpx.stream(
        "POST",
        f"{front}/v1/chat/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={
            "model": "penstock-demo",
            "messages": [{"role": "user", "content": "Count from 1 to 30."}],
            "stream": True,
            "max_tokens": 120,
            "ignore_eos": True,
        },
        timeout=60.0,
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        pieces = list(response.iter_raw())
    # One that was buffered comes in one or two.
    assert len(pieces) > 10, len(pieces)


def _lose_workers(project: Project, front: str, key: str, texts: dict[str, str]) -> None:
    for service in WORKERS:
        with StreamingLoad([front], key, texts) as load:
            load.wait_for(8)
            project.kill(project.containers(service)[0])
            load.wait_for(16)
            seconds = project.wait_ready(**_FULL)
            load.wait_for(8)
        tally = load.tally
        say(
            f"  {service} killed under load: {tally.num_right} streams right, "
            f"{tally.num_refused} refused with 503, {len(tally.failures)} failed; "
            f"whole again after {seconds:.1f} s"
        )
        assert not tally.failures, tally.failures[:3]


def _drain(project: Project, front: str, key: str, texts: dict[str, str]) -> None:
    for service in ("engine_worker", "toolparser_worker", "gateway"):
        container = project.containers(service)[0]
        with StreamingLoad([front], key, texts) as load:
            load.wait_for(4)
            begin = time.monotonic()
            project.engine.docker("stop", "--time", "45", container)
            seconds = time.monotonic() - begin
            load.wait_for(4)
            code = project.inspect(container, "{{.State.ExitCode}}")
            project.engine.docker("start", container)
            project.wait_ready(**_FULL)
        tally = load.tally
        say(
            f"  docker stop {service}: {seconds:.1f} s, exit code {code}, {tally.num_right} "
            f"streams right, {len(tally.failures)} failed"
        )
        assert code == "0"
        assert not tally.failures, tally.failures[:3]


def _lose_a_gateway(project: Project, key: str, texts: dict[str, str]) -> None:
    doomed, other = project.gateway_urls()
    with StreamingLoad([doomed, other], key, texts, excuse=lambda base: base == doomed) as load:
        load.wait_for(8)
        project.kill(project.containers("gateway")[0])
        load.wait_for(8)
    tally = load.tally
    say(f"  gateway killed under load: {tally.num_right} streams right, none of the other's failed")
    assert not tally.failures, tally.failures[:3]
    project.wait_ready(**_FULL)
