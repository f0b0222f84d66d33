"""Everything is stopped while streams run that need more of their lease: they end whole."""

import threading
import time
from collections.abc import Callable, Sequence

import httpx

from tests.e2e_docker.engine import DockerEngine, say
from tests.e2e_docker.load import Outcome, stream
from tests.e2e_docker.project import WORKERS, Project

_PROMPT = "Count from 1 to 30."
_NUM_STREAMS = 6
_SETTINGS = {
    # Texts must not depend on who runs beside whom, since they are compared.
    "PENSTOCK_DETERMINISTIC": "true",
    # A stream asks for more of its lease again and again.
    "PENSTOCK_LEASE_SLICE_TOKENS": "16",
}


def stop_everything(engine: DockerEngine, compose: Sequence[str]) -> None:
    """Once by `docker compose stop`, and once by SIGTERM to every container at the same time."""
    with Project(engine, compose, settings=_SETTINGS) as project:
        _stop(project, "docker compose stop", lambda: project.compose("stop"))
        together = ("kill", "-s", "SIGTERM", "auth_worker", "engine_worker", "toolparser_worker")
        _stop(project, "SIGTERM to all", lambda: project.compose(*together, "gateway"))


def _stop(project: Project, what: str, stop: Callable[[], object]) -> None:
    project.up()
    project.wait_ready(engine=1, auth=1, toolparser=1)
    base, key = project.gateway_urls()[0], project.new_key()
    with httpx.Client(timeout=120.0) as client:
        wanted = stream(client, base, key, _PROMPT, max_tokens=None)
    assert wanted.problem is None, wanted
    outcomes: list[Outcome] = []
    begun = threading.Barrier(_NUM_STREAMS + 1, timeout=120.0)

    def ask() -> None:
        with httpx.Client(timeout=120.0) as client:
            outcomes.append(
                stream(client, base, key, _PROMPT, max_tokens=None, on_begun=begun.wait)
            )

    threads = [threading.Thread(target=ask) for _ in range(_NUM_STREAMS)]
    for thread in threads:
        thread.start()
    begun.wait()
    num_open = _NUM_STREAMS - len(outcomes)
    begin = time.monotonic()
    stop()
    for thread in threads:
        thread.join(180.0)
    seconds = time.monotonic() - begin
    assert num_open > 0, "every stream had ended before the stop"
    assert [outcome.problem for outcome in outcomes] == [None] * _NUM_STREAMS
    assert {outcome.text for outcome in outcomes} == {wanted.text}
    for service in ("gateway", *WORKERS):
        (container,) = project.containers(service, every=True)
        project.engine.docker("wait", container)
        code = project.inspect(container, "{{.State.ExitCode}}")
        assert code == "0", (service, code, project.log_of(container)[-2000:])
    say(f"  {what}: {_NUM_STREAMS} streams whole, {num_open} of them open then; {seconds:.1f} s")
