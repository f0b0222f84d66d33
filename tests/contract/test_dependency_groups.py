"""`project.dependencies` is the union of what the processes declare in their groups."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

PROCESSES = ("protocol", "gateway", "engine", "auth", "toolparser", "serve")
ROOT = Path(__file__).parents[2]


def expand(groups: dict[str, list[Any]], name: str) -> set[str]:
    """A group's requirements, includes resolved."""
    found: set[str] = set()
    for entry in groups[name]:
        found |= expand(groups, entry["include-group"]) if isinstance(entry, dict) else {entry}
    return found


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_wheel_depends_on_exactly_what_the_processes_need() -> None:
    project = pyproject()
    groups = project["dependency-groups"]
    union = set().union(*(expand(groups, name) for name in PROCESSES))
    assert set(project["project"]["dependencies"]) == union


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_engine_image_has_the_jax_of_the_extra(device: str) -> None:
    project = pyproject()
    groups = project["dependency-groups"]
    extra = set(project["project"]["optional-dependencies"][device])
    assert expand(groups, f"engine-{device}") == expand(groups, "engine") | extra


def test_images_have_what_the_extra_for_traces_installs() -> None:
    project = pyproject()
    extra = set(project["project"]["optional-dependencies"]["otlp"])
    assert expand(project["dependency-groups"], "otlp") == extra


def test_each_image_installs_its_own_lock_and_copies_its_own_package() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    images = {
        "toolparser": ("toolparser", {"protocol", "toolparser_worker"}),
        "auth": ("auth", {"protocol", "auth_worker", "penstock"}),
        "gateway": ("gateway", {"protocol", "gateway"}),
        "setup": ("setup", {"protocol", "penstock"}),
        "engine": ("engine-cpu", {"protocol", "engine_worker"}),
        "engine-gpu": ("engine-cuda", {"protocol", "engine_worker"}),
    }
    assert set(re.findall(r"^FROM runtime AS (\S+)", text, re.MULTILINE)) == set(images)
    for name, (lock, packages) in images.items():
        (stage,) = re.findall(rf"^FROM builder AS {name}-build\n(.*?)^FROM", text, re.M | re.S)
        installed = re.findall(r"install (.*) -r requirements/(\S+)\.txt$", stage, re.MULTILINE)
        assert installed == [("--require-hashes", lock)]
        assert f"\nCOPY requirements/{lock}.txt requirements/\n" in f"\n{stage}"
        unlocked = re.findall(
            r"/python install (?!--require-hashes)(.*?)(?: \\)?$", stage, re.MULTILINE
        )
        assert unlocked == ["--no-deps /wheels/*.whl"]
        assert set(re.findall(r"^COPY (\w+) \1$", stage, re.MULTILINE)) == packages
