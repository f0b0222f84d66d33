"""A day without trouble: one command, a second model, keys required, containers locked down."""

import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import httpx
import openai

from tests.e2e_docker.engine import DockerEngine, say
from tests.e2e_docker.project import WORKERS, Project, eventually


def one_command(engine: DockerEngine, compose: Sequence[str]) -> None:
    """`up` without any setting serves the bundled model, keys required, locked-down containers."""
    settings = {"PENSTOCK_MAX_NUM_SEQS": ""}
    with Project(engine, compose, settings=settings) as project:
        begin = time.monotonic()
        project.up()
        project.wait_ready(engine=1, auth=1, toolparser=1)
        say(f"  ready {time.monotonic() - begin:.1f} s after `up`")
        base = project.gateway_urls()[0]
        _keys_are_required(base)
        use_unmodified_client(base, project.new_key("readme"))
        _containers_are_locked_down(project)
        _logs_are_json(project)
        for service in ("gateway", *WORKERS):
            (container,) = project.containers(service)
            eventually(f"{service} is healthy", partial(_is_healthy, project, container), 300)
        project.compose("down", "--timeout", "15")
        begin = time.monotonic()
        project.up()
        project.wait_ready(engine=1, auth=1, toolparser=1)
        say(f"  ready {time.monotonic() - begin:.1f} s after `up` with warm caches")
    expect_nothing_left(project)


def _is_healthy(project: Project, container: str) -> bool:
    return project.inspect(container, "{{.State.Health.Status}}") == "healthy"


def _keys_are_required(base: str) -> None:
    for headers in ({}, {"Authorization": "Bearer psk-nobody-knows-this-key-0123456789"}):
        assert httpx.get(f"{base}/v1/models", headers=headers).status_code == 401


def use_unmodified_client(base: str, key: str) -> None:
    """Ask through the `openai` package, streamed and not.

    Raises:
        AssertionError: The answer is wrong.
    """
    question: Any = [{"role": "user", "content": "What is 12 + 30?"}]
    with openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0, timeout=120) as opened:
        client: Any = opened
        body = {"model": "penstock-demo", "messages": question, "temperature": 0}
        completion = client.chat.completions.create(**body)
        assert "42" in completion.choices[0].message.content, completion
        chunks = client.chat.completions.create(**body, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == completion.choices[0].message.content


def _containers_are_locked_down(project: Project) -> None:
    for service in ("gateway", *WORKERS):
        (container,) = project.containers(service)
        assert project.exec(container, "id", "-u").strip() == "10001", service
        for place in ("/opt/venv/touched", "/touched"):
            script = f"touch {place} 2>&1 && echo written"
            assert "written" not in project.exec(container, "sh", "-c", script, check=False)
        secrets = project.exec(container, "sh", "-c", "ls /keys/*/*.secret 2>/dev/null || true")
        role = service.removesuffix("_worker")
        assert secrets.split() == [f"/keys/{role}/{role}.secret"], (service, secrets)
        admin = project.exec(container, "sh", "-c", "cat /admin/admin.key 2>/dev/null || true")
        assert bool(admin) == (service == "auth_worker"), service
    others = {"gateway": "jax", "auth_worker": "fastapi", "toolparser_worker": "sqlalchemy"}
    for service, foreign in others.items():
        (container,) = project.containers(service)
        script = f"python -c 'import {foreign}' 2>/dev/null && echo there"
        assert "there" not in project.exec(container, "sh", "-c", script, check=False), service


def _logs_are_json(project: Project) -> None:
    for service in ("gateway", *WORKERS):
        lines = project.logs(service).splitlines()
        assert lines, service
        for line in lines:
            assert json.loads(line)["process"] == service.removesuffix("_worker"), line


def expect_nothing_left(project: Project) -> None:
    """No container, volume or network of a project that was taken down.

    Raises:
        AssertionError: Something is left.
    """
    label = f"label=com.docker.compose.project={project.name}"
    for kind in (["ps", "-aq"], ["volume", "ls", "-q"], ["network", "ls", "-q"]):
        left = project.engine.docker(*kind, "--filter", label).split()
        assert not left, (kind, left)


def second_model(engine: DockerEngine, compose: Sequence[str]) -> None:
    """A second engine service serves a second name beside the first."""
    files = ("compose.yaml", "compose.second-model.yaml")
    with Project(engine, compose, files) as project:
        project.up()
        project.wait_ready(engine=2, auth=1, toolparser=1)
        base = project.gateway_urls()[0]
        headers = {"Authorization": f"Bearer {project.new_key()}"}
        listed = httpx.get(f"{base}/v1/models", headers=headers).json()["data"]
        assert {model["id"] for model in listed} == {"penstock-demo", "second"}
        for model in ("penstock-demo", "second"):
            body = {
                "model": model, "temperature": 0,
                "messages": [{"role": "user", "content": "What is 12 + 30?"}],
            }  # fmt: skip
            answer = httpx.post(
                f"{base}/v1/chat/completions", json=body, headers=headers, timeout=60.0
            )
            assert "42" in answer.json()["choices"][0]["message"]["content"]
