"""What an administrator gets wrong: a clear line in the logs, and the rest of the deployment goes
on."""

import tempfile
from collections.abc import Sequence

from tests.e2e_docker.engine import DockerEngine, say
from tests.e2e_docker.hosts import networks
from tests.e2e_docker.project import Project, eventually


def bad_deployments(engine: DockerEngine, compose: Sequence[str]) -> None:
    """A second auth worker on SQLite, unreadable keys, foreign keys, a full disk."""
    with Project(engine, compose) as project:
        project.up()
        project.wait_ready(engine=1, auth=1, toolparser=1)
        _second_auth_worker(project)
        _unreadable_keys(project)
        _full_disk(project)
        _foreign_keys(project)
        assert project.is_complete(project.gateway_urls()[0], engine=1, auth=1, toolparser=1)


def _start_beside(project: Project, service: str, *options: str) -> str:
    """One more container of a service's image on its network; its name."""
    (like,) = project.containers(service)
    (network,) = networks(project, like)
    name = f"{project.name}-beside"
    image = project.inspect(like, "{{.Config.Image}}")
    project.engine.docker("run", "--detach", "--name", name, "--network", network, *options, image)
    return name


def _lines_and_exit(project: Project, service: str, *options: str, exit_code: int = 1) -> list[str]:
    """The lines that a container logs before it ends with this code."""
    name = _start_beside(project, service, *options)
    try:
        eventually(
            f"{name} ends", lambda: project.inspect(name, "{{.State.Status}}") == "exited", 60
        )
        log = project.log_of(name)
        assert project.inspect(name, "{{.State.ExitCode}}") == str(exit_code), log
    finally:
        project.engine.docker("rm", "--force", name)
    return log.splitlines()


def _second_auth_worker(project: Project) -> None:
    waits, line = _lines_and_exit(
        project, "auth_worker",
        "--volume", f"{project.name}_keys-auth:/keys/auth:ro",
        "--volume", f"{project.name}_auth-data:/var/lib/penstock",
    )  # fmt: skip
    assert "waiting" in waits, waits
    assert "Another auth worker" in line, line
    say("  a second auth worker on the same SQLite file waits for the first, then says so and ends")


def _unreadable_keys(project: Project) -> None:
    (line,) = _lines_and_exit(
        project, "toolparser_worker", "--user", "4242:4242",
        "--volume", f"{project.name}_keys-toolparser:/keys/toolparser:ro",
    )  # fmt: skip
    assert "PENSTOCK_KEY_DIR" in line, line
    assert "Permission denied" in line, line
    say("  an unreadable key volume ends the start with one line")


def _full_disk(project: Project) -> None:
    (line,) = _lines_and_exit(
        project, "auth_worker",
        "--volume", f"{project.name}_keys-auth:/keys/auth:ro",
        "--tmpfs", "/var/lib/penstock:rw,size=16k,uid=10001,gid=10001,mode=0700",
        exit_code=75,  # worth another try
    )  # fmt: skip
    assert "bytes are free on that disk" in line, line
    say("  a full disk for SQLite ends the start with one line")


def _foreign_keys(project: Project) -> None:
    with tempfile.TemporaryDirectory(prefix="e2e-keys-") as folder:
        project.engine.docker(
            "run", "--rm", "--user", "0", "--network", "none", "--volume", f"{folder}:/keys",
            "penstock-setup", "sh", "-c",
            "penstock keygen /keys --by-role && chown -R 10001 /keys && chmod 755 /keys",
        )  # fmt: skip
        name = _start_beside(
            project, "toolparser_worker",
            "--volume", f"{folder}/toolparser:/keys/toolparser:ro",
        )  # fmt: skip
        (gateway,) = project.containers("gateway")
        try:
            eventually(
                "both sides say why",
                lambda: (
                    "is our gateway.public its key?" in project.log_of(name)
                    and "failed its handshake" in project.log_of(gateway)
                ),
                60,
            )
            assert project.inspect(name, "{{.State.Status}}") == "running"
        finally:
            project.engine.docker("rm", "--force", name)
    say("  a worker with the keys of another deployment stays outside, and both logs say why")
