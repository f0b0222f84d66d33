"""The rooms of each package, from the ground up: a room imports only rooms named before it.

docs/architecture.md draws them; each folder's `__init__` says what lives there.
"""

import ast
import typing

import pytest

from protocol.wire import messages
from tests.contract.test_imports import EVERY_FILE, ROOT, imported_modules

ROOMS: dict[str, tuple[str, ...]] = {
    "protocol": (
        "protocol.errors",
        "protocol.version",
        "protocol.wire.messages",
        "protocol.wire",
        "protocol.runtime",
        "protocol",
    ),
    "gateway": (
        "gateway.errors",
        "gateway.json_numbers",
        "gateway.edge_settings",
        "gateway.config",
        "gateway.bridge",
        "gateway.housekeeping",
        "gateway.telemetry",
        "gateway.tools",
        "gateway.hooks",
        "gateway.ledger",
        "gateway.storage",
        "gateway.dispatch",
        "gateway.workers",
        "gateway.request",
        "gateway.batches",
        "gateway.http.error_table",
        "gateway.http.schemas",
        "gateway.http.render",
        "gateway.http.convert",
        "gateway.http.anthropic",
        "gateway.http.openresponses",
        "gateway.http.organization",
        "gateway.http.scoring",
        "gateway.http.mcp",
        "gateway.http",
        "gateway.http.routes",
        "gateway.http.dispatcher",
        "gateway.http.app",
        "gateway.http.server",
        "gateway",
    ),
    "auth_worker": (
        "auth_worker.errors",
        "auth_worker.exit_codes",
        "auth_worker.clock",
        "auth_worker.principals",
        "auth_worker.outbound",
        "auth_worker.tokens",
        "auth_worker.records",
        "auth_worker.decisions",
        "auth_worker.storage.migration.versions",
        "auth_worker.storage.migration",
        "auth_worker.storage",
        "auth_worker.config",
        "auth_worker.auditing",
        "auth_worker.administration",
        "auth_worker.serving",
        "auth_worker",
    ),
    "engine_worker": (
        "engine_worker.errors",
        "engine_worker.demo",
        "engine_worker.core.choice",
        "engine_worker.core.scheduling",
        "engine_worker.text",
        "engine_worker.grammar.json_schema",
        "engine_worker.grammar",
        "engine_worker.core.decoding",
        "engine_worker.core",
        "engine_worker.compute.sampling",
        "engine_worker.compute.models.config_fields",
        "engine_worker.compute.models.recurrent.specs",
        "engine_worker.compute.models.spec",
        "engine_worker.compute.models.hf_rope",
        "engine_worker.compute.models.tensors",
        "engine_worker.compute.models.families",
        "engine_worker.compute.models",
        "engine_worker.compute.weights.tensor_info",
        "engine_worker.compute.weights.gguf",
        "engine_worker.compute.weights.safetensors_files",
        "engine_worker.compute.weights.quantized",
        "engine_worker.compute.weights.lora",
        "engine_worker.compute.weights",
        "engine_worker.conversion",
        "engine_worker.compute.backends.host_memory",
        "engine_worker.compute.backends.layer_groups",
        "engine_worker.compute.backends.kv_layout",
        "engine_worker.compute.backends.packing_plan",
        "engine_worker.compute.backends.base",
        "engine_worker.compute.backends.kv_memory",
        "engine_worker.compute.backends.packed_file",
        "engine_worker.compute.backends.xla",
        "engine_worker.compute.backends.cpu_native",
        "engine_worker.compute.backends",
        "engine_worker.compute.runner",
        "engine_worker.embedding.encoder_spec",
        "engine_worker.embedding.labels",
        "engine_worker.embedding.families",
        "engine_worker.embedding",
        "engine_worker.config",
        "engine_worker.loading",
        "engine_worker.serving",
        "engine_worker.python_api",
        "engine_worker",
    ),
}
"""Folders, and single files where a folder has more than one floor; the last entry starts it
all."""

FILES = {
    path: path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in EVERY_FILE
}
NO_JAX = ("engine_worker.core", "engine_worker.text", "engine_worker.grammar")
JAX = {"jax", "jaxlib", "flax"}


def room_of(module: str) -> str:
    """The innermost room that a dotted name lies in."""
    rooms = ROOMS[module.split(".", maxsplit=1)[0]]
    return max((room for room in rooms if is_within(module, room)), key=len)


def is_within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_rooms_below_it(package: str) -> None:
    order = ROOMS[package]
    for path, module in FILES.items():
        if not is_within(module, package) or module == package:
            continue  # the package itself hands out its public names
        floor = order.index(room_of(module))
        for imported in imported_modules(path):
            if is_within(imported, package):
                room = room_of(imported)
                assert order.index(room) <= floor, f"{module} imports {imported} of {room}"


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_is_there_and_every_folder_is_a_room(package: str) -> None:
    for room in ROOMS[package]:
        place = ROOT / room.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), room
    for path in (ROOT / package).rglob("__init__.py"):
        folder = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        is_named = any(is_within(room, folder) for room in ROOMS[package])
        assert is_named, f"{folder} is no room: name it in ROOMS"


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_says_what_lives_there_and_what_it_may_import(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        if path.parent != ROOT / package:
            lines = path.read_text(encoding="utf-8").split('"""')[1].splitlines()
            assert 3 <= len(lines) <= 12, f"{path}: a docstring of about five lines"
            assert any("import" in line.lower() for line in lines), path


def test_the_side_of_the_engine_that_decides_never_sees_jax() -> None:
    for path, module in FILES.items():
        if any(is_within(module, room) for room in NO_JAX):
            seen = {imported.split(".")[0] for imported in imported_modules(path)} & JAX
            assert not seen, f"{module} imports {seen}"


def test_keys_are_read_below_the_transport_and_made_above_it() -> None:
    by_module = {module: path for path, module in FILES.items()}
    keys = imported_modules(by_module["protocol.wire.keys"])
    curve = imported_modules(by_module["protocol.wire.transport_curve"])
    assert not [name for name in keys if "transport" in name or "keygen" in name]
    assert not [name for name in curve if "keygen" in name]


def test_every_message_of_the_gateway_is_built_in_one_bridge() -> None:
    kinds = {cls.__name__ for cls in typing.get_args(messages.AnyMessage)}
    for path, module in FILES.items():
        if not is_within(module, "gateway") or is_within(module, "gateway.bridge"):
            continue
        imported = {
            name.rsplit(".", 1)[1]
            for name in imported_modules(path)
            if name.startswith("protocol.wire.messages.")
        } & kinds
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            built = (
                node.func.id
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                else ""
            )
            assert built not in imported, f"{module} builds a {built}; gateway.bridge does that"
