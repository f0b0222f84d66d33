"""Who may import what: the dependency rules between the packages, read from the source."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.source_trees import tree_of

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocol", "gateway", "engine_worker", "auth_worker", "toolparser_worker", "penstock")
PROCESS_ONLY = {
    "engine_worker": {"jax", "jaxlib", "flax", "transformers", "tokenizers", "safetensors"},
    "gateway": {"fastapi", "uvicorn", "starlette", "pydantic", "prometheus_client"},
    "auth_worker": {"alembic", "cryptography", "jwt", "psycopg", "sqlalchemy"},
    "penstock": {"typer", "rich", "huggingface_hub"},
}
EVERY_FILE = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@functools.cache
def imported_modules(path: Path) -> tuple[str, ...]:
    """Dotted names of everything a file imports, at any depth; `from a import b` gives `a.b`."""
    return tuple(_imported_modules(path))


def _imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of(path: Path) -> str:
    """The package that a file belongs to."""
    return path.relative_to(ROOT).parts[0]


def test_there_is_something_to_check() -> None:
    assert {of(path) for path in EVERY_FILE} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_protocol_and_itself(package: str) -> None:
    allowed = {package, "protocol"}
    for path in (path for path in EVERY_FILE if of(path) == package):
        for module in imported_modules(path):
            top = module.split(".")[0]
            assert top not in PACKAGES or top in allowed, f"{path} imports {module}"


@pytest.mark.parametrize("owner", PROCESS_ONLY)
def test_heavy_libraries_stay_in_the_one_process_that_needs_them(owner: str) -> None:
    for path in (path for path in EVERY_FILE if of(path) != owner):
        for module in imported_modules(path):
            top = module.split(".")[0]
            is_hub_of_engine = top == "huggingface_hub" and of(path) == "engine_worker"
            is_store = top == "psycopg" and path == ROOT / "gateway" / "storage" / "postgres.py"
            is_fine = top not in PROCESS_ONLY[owner] or is_hub_of_engine or is_store
            assert is_fine, f"{path} imports {module}"


def test_only_the_transport_knows_zeromq_and_nothing_uses_its_asyncio_layer() -> None:
    users = set()
    for path in EVERY_FILE:
        for module in imported_modules(path):
            if module.split(".")[0] == "zmq":
                users.add(path.relative_to(ROOT).as_posix())
                assert not module.startswith("zmq.asyncio"), path
    assert users
    assert all(user.startswith("protocol/wire/transport") for user in users), users


def test_only_the_codec_knows_messagepack() -> None:
    for path in EVERY_FILE:
        for module in imported_modules(path):
            is_messagepack = module.startswith(("msgpack", "msgspec.msgpack"))
            assert not is_messagepack, f"{path} imports {module}"
        if path != ROOT / "protocol" / "wire" / "codec.py":
            assert "msgspec.msgpack" not in path.read_text(encoding="utf-8"), path


def test_nothing_is_pickled() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    for path in EVERY_FILE:
        for module in imported_modules(path):
            assert module.split(".")[0] not in forbidden, f"{path} imports {module}"


def test_no_module_is_called_utils_or_helpers() -> None:
    assert not [path for path in EVERY_FILE if path.stem in {"utils", "helpers", "misc"}]


def test_only_one_module_knows_the_sdk_of_traces() -> None:
    for path in EVERY_FILE:
        if path != ROOT / "protocol" / "runtime" / "otlp.py":
            assert not any(one.startswith("opentelemetry") for one in imported_modules(path)), path
        at_top = [node.module for node in tree_of(path).body if isinstance(node, ast.ImportFrom)]
        assert "protocol.runtime.otlp" not in at_top, f"{path} imports it where traces are off"
