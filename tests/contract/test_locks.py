"""The locks of requirements/ pin what pyproject.toml asks for, with hashes, and agree."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.contract.test_dependency_groups import expand, pyproject
from tools.lock import FOLDER, LOCKS, Lock, pins
from tools.sbom import read_lock

ROOT = Path(__file__).parents[2]


def required(lock: Lock) -> set[str]:
    """What a lock has to satisfy, as pyproject.toml writes it."""
    project = pyproject()
    if not lock.groups:
        extra = project["project"]["optional-dependencies"]["cpu"]
        return {*project["project"]["dependencies"], *extra}
    groups = project["dependency-groups"]
    return set().union(*(expand(groups, name) for name in lock.groups))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_pins_everything_that_is_asked_for(lock: Lock) -> None:
    pinned = pins(FOLDER / f"{lock.name}.txt")
    for line in required(lock):
        asked = Requirement(line)
        version = pinned[canonicalize_name(asked.name)]
        assert asked.specifier.contains(version), f"`make lock`: {version} is not {line}"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pin_of_a_lock_has_hashes_and_no_address(lock: Lock) -> None:
    text = (FOLDER / f"{lock.name}.txt").read_text(encoding="utf-8")
    found = read_lock(text)
    assert {pin.name: pin.version for pin in found} == pins(FOLDER / f"{lock.name}.txt")
    assert all(pin.sha256 for pin in found)
    assert "://" not in text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.match(r"[a-z0-9-]+==|    --hash=sha256:", line)] == []


def test_the_locks_agree_on_the_version_of_a_package() -> None:
    first = pins(FOLDER / f"{LOCKS[0].name}.txt")
    for lock in LOCKS[1:]:
        for name, version in pins(FOLDER / f"{lock.name}.txt").items():
            if name not in lock.alone:
                assert first.get(name, version) == version


def test_flax_knows_the_jax_beside_it() -> None:
    for lock in LOCKS:
        pinned = pins(FOLDER / f"{lock.name}.txt")
        # 0.12.9 is the last that uses a name which jax 0.11.2 has no longer, when it is imported.
        if "jax" in pinned and Version(pinned["jax"]) >= Version("0.11.2"):
            assert Version(pinned["flax"]) >= Version("0.12.10"), lock.name


def test_there_is_no_other_lock() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{lock.name}.txt" for lock in LOCKS}


def test_make_installs_from_locks_alone_but_for_torch_and_tools_of_developers() -> None:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    free = [line.split(" install ")[1] for line in lines if "-m pip install" in line]
    assert free == [
        "--require-hashes",
        "--verbose --no-deps --no-build-isolation --editable .",
        "--group parity",
        "--group mutants",
        "--group lock",
    ]
