"""The wheel holds the packages and the bundled model, and nothing of tests or tools."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = """#!/bin/sh
case " $* " in
*" -c "*) for last; do test "$before" = -o && object=$last; before=$last; done
    exec c++ -x c++ -fPIC -c /dev/null -o "$object" ;;
*) exec c++ "$@" ;;
esac
"""
"""Compiles nothing into every object: here the question is only what lies where."""


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files of a wheel built from a copy of what git would ship."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    target = tmp_path_factory.mktemp("wheel")
    # As pip builds it; `make wheel-check` has pip do it, and computes with what comes of that.
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    compiler = target / "c++"
    compiler.write_text(COMPILER, encoding="ascii")
    compiler.chmod(0o755)
    environment = os.environ | {"PENSTOCK_KERNEL_LEVELS": "generic"}
    environment |= {"CC": str(compiler), "CXX": str(compiler)}
    subprocess.run(
        [sys.executable, "-c", build, str(target)],
        cwd=source,
        check=True,
        capture_output=True,
        env=environment,
    )
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_every_package_and_the_model_are_inside(wheel_names: list[str]) -> None:
    for name in (
        "gateway/__main__.py",
        "engine_worker/__main__.py",
        "auth_worker/__main__.py",
        "toolparser_worker/__main__.py",
        "toolparser_worker/formats/hermes.py",
        "protocol/wire/messages/generation.py",
        "penstock/__main__.py",
        "engine_worker/demo/model.safetensors",
        "engine_worker/demo/tokenizer.json",
        "engine_worker/demo/chat_template.jinja",
        "protocol/py.typed",
    ):
        assert name in wheel_names


def test_the_native_kernels_are_inside_built(wheel_names: list[str]) -> None:
    if shutil.which("c++") is None:
        pytest.skip("without a C++ compiler the wheel has no native kernels")
    assert "engine_worker/compute/backends/cpu_native/libpenstock_kernels.so" in wheel_names


def test_nothing_else_is_inside(wheel_names: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "protocol",
        "gateway",
        "engine_worker",
        "auth_worker",
        "toolparser_worker",
        "penstock",
    }
