"""Another release and back, service by service with deploy/roll.sh, while clients stream."""

from collections.abc import Sequence

from tests.e2e_docker.engine import DockerEngine, run, say
from tests.e2e_docker.everyday import expect_nothing_left
from tests.e2e_docker.load import StreamingLoad, learn
from tests.e2e_docker.project import ROOT, Project

_FULL = {"engine": 1, "auth": 1, "toolparser": 1}
_ROLLED = ("gateway", "toolparser_worker", "engine_worker")
_NEXT = "e2e-next"
_IMAGES = ("setup", "gateway", "engine", "auth", "toolparser")
# The images of today with a wire version of tomorrow.
_NEXT_DOCKERFILE = """
FROM {image}
USER root
RUN file=$(python -c 'import protocol.version as v; print(v.__file__)') \\
 && sed -i 's/^\\(PROTOCOL_VERSION = ProtocolVersion(1, \\).*/\\199)/' \\
      "$file" && grep -q '(1, 99)' "$file"
USER 10001:10001
"""


def upgrade(engine: DockerEngine, compose: Sequence[str]) -> None:
    """Two gateways behind nginx go to a release with a newer wire and back; no request fails."""
    _make_next_images(engine)
    nginx = engine.image_with("penstock-e2e-nginx", "nginx-light", "nginx:1.28-alpine")
    settings = {
        # Texts must not depend on who runs beside whom, since the load compares them.
        "PENSTOCK_DETERMINISTIC": "true",
        "PENSTOCK_DRAIN_TIMEOUT_S": "20",
        "PENSTOCK_NGINX_IMAGE": nginx,
        # Counts as `.env` gives them: no command below names one.
        "PENSTOCK_GATEWAYS": "2",
    }
    files = ("compose.yaml", "compose.nginx.yaml")
    with Project(engine, compose, files, settings) as project:
        project.up()
        project.wait_ready(**_FULL)
        assert len(project.containers("gateway")) == 2
        front, key = project.url("nginx", 8080), project.new_key()
        texts = learn(front, key)
        for tag in (_NEXT, "latest"):
            with StreamingLoad([front], key, texts, num_clients=4) as load:
                load.wait_for(4)
                project.settings["PENSTOCK_TAG"] = tag
                for service in _ROLLED:
                    roll(project, service)
                num_refused = load.tally.num_refused
                assert not num_refused, "a service was refused that had a substitute"
                project.compose("up", "-d", "auth_worker")
                load.wait_for(8)
            tally = load.tally
            say(
                f"  to {tag} under load: {tally.num_right} streams right, {tally.num_refused} "
                f"refused with 503 while auth was away, {len(tally.failures)} failed"
            )
            assert not tally.failures, tally.failures[:3]
            project.wait_ready(**_FULL)
            _everything_is(project, tag)
        _a_plain_up_replaces_nothing(project)
    expect_nothing_left(project)
    for role in _IMAGES:
        engine.docker("rmi", f"penstock-{role}:{_NEXT}", check=False)


def _make_next_images(engine: DockerEngine) -> None:
    for role in _IMAGES:
        text = _NEXT_DOCKERFILE.format(image=f"penstock-{role}:latest")
        engine.docker("build", "--quiet", "--tag", f"penstock-{role}:{_NEXT}", "-", stdin=text)


def roll(project: Project, service: str) -> None:
    """Replace a service's containers with the script of docs/deployment.md."""
    env = {**project.engine.environment, **project.settings, **project.as_environment()}
    said = run([ROOT / "deploy" / "roll.sh", service], env=env, cwd=ROOT)
    assert f"{service}: " in said, said
    assert "ended with" not in said, said


def _everything_is(project: Project, tag: str) -> None:
    for service in (*_ROLLED, "auth_worker"):
        for container in project.containers(service):
            image = project.inspect(container, "{{.Config.Image}}")
            assert image.endswith(f":{tag}"), (service, image)


def _a_plain_up_replaces_nothing(project: Project) -> None:
    services = (*_ROLLED, "auth_worker")
    before = {service: project.containers(service) for service in services}
    project.compose("up", "-d")
    assert {service: project.containers(service) for service in services} == before
