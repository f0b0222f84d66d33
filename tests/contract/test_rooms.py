"""The rooms of each package, from the ground up: a room imports only rooms named before it.

docs/architecture.md draws them; each folder's `__init__` says what lives there.
"""

import ast
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from protocol.wire import messages
from tests.contract.test_imports import EVERY_FILE, PACKAGES, ROOT, imported_modules
from tests.fakes.source_trees import tree_of

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
        "gateway.turns",
        "gateway.telemetry",
        "gateway.tools",
        "gateway.hooks",
        "gateway.ledger",
        "gateway.storage",
        "gateway.dispatch",
        "gateway.workers",
        "gateway.request.callers",
        "gateway.request.preparation",
        "gateway.request.jobs",
        "gateway.request.leases",
        "gateway.request.delivery",
        "gateway.request.parsers",
        "gateway.request.lifecycle",
        "gateway.request.choices",
        "gateway.request.kinds",
        "gateway.request.idempotency",
        "gateway.request",
        "gateway.batches",
        "gateway.http.errors.error_table",
        "gateway.http.schemas.base",
        "gateway.http.schemas.tools",
        "gateway.http.schemas.inference",
        "gateway.http.schemas.administration",
        "gateway.http.schemas",
        "gateway.http.render",
        "gateway.http.bodies.convert",
        "gateway.http.anthropic",
        "gateway.http.openresponses",
        "gateway.http.organization",
        "gateway.http.scoring",
        "gateway.http.mcp",
        "gateway.http.errors",
        "gateway.http.connections",
        "gateway.http.answers.responses",
        "gateway.http.entry",
        "gateway.http.bodies",
        "gateway.http.response_turns",
        "gateway.http.background",
        "gateway.http",
        "gateway.http.access",
        "gateway.http.answers",
        "gateway.http.openapi",
        "gateway.http.routes.server",
        "gateway.http.routes.inference",
        "gateway.http.routes.stored",
        "gateway.http.routes.administration",
        "gateway.http.routes.organization",
        "gateway.http.routes.anthropic_organization",
        "gateway.http.routes",
        "gateway.http.app",
        "gateway.http.server",
        "gateway",
    ),
    "toolparser_worker": (
        "toolparser_worker.errors",
        "toolparser_worker.machine",
        "toolparser_worker.formats",
        "toolparser_worker.grammar",
        "toolparser_worker",
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
        "engine_worker.compute.memory",
        "engine_worker.compute.sampling",
        "engine_worker.compute.models.config_fields",
        "engine_worker.compute.models.recurrent.specs",
        "engine_worker.compute.models.spec",
        "engine_worker.compute.models.hf_rope",
        "engine_worker.compute.models.tensors",
        "engine_worker.compute.models.families",
        "engine_worker.compute.models",
        "engine_worker.compute.weights.stored_file",
        "engine_worker.compute.weights.tensor_info",
        "engine_worker.compute.weights.gguf",
        "engine_worker.compute.weights.safetensors_files",
        "engine_worker.compute.weights.quantized",
        "engine_worker.compute.weights.lora",
        "engine_worker.compute.weights",
        "engine_worker.conversion",
        "engine_worker.compute.backends.layer_groups",
        "engine_worker.compute.backends.cache_type",
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


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_says_what_lives_there_what_others_use_and_what_it_may_import(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        words = docstring_of(path)
        assert 4 <= len(words.splitlines()) <= 12, f"{path}: a docstring of about five lines"
        assert re.search(r"^Others (have|import|leave|make|may|run|start|use) ", words, re.M), path
        assert re.search(r"^May import ", words, re.M), path


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_imports_only_what_it_says(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        room = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        allowed = docstring_of(path).split("\nMay import ")[1]
        names = set(re.findall(rf"`({package}[\w.]+)`", allowed))
        missing = {name for name in names if not is_place(name)}
        assert not missing, f"{room} may import {missing}, which isn't there"
        if "every" in allowed.split("\n")[0].split("`")[0]:
            continue  # the order of rooms says which
        for file in path.parent.glob("*.py"):
            for imported in imported_modules(file):
                assert is_said(imported, room, names), f"{file} imports {imported} unsaid"


def is_said(imported: str, room: str, names: set[str]) -> bool:
    """Whether a room that names some rooms may import something."""
    package = room.split(".")[0]
    if is_within(imported, room) or not is_within(imported, package):
        return True
    # Files at the root of a package are what all its rooms share.
    is_shared = (ROOT / package / imported.split(".")[1]).with_suffix(".py").is_file()
    return is_shared or any(is_within(imported, name) for name in names)


def test_an_import_that_a_room_does_not_say_is_found() -> None:
    names = {"gateway.workers"}
    for imported in ("ast", "gateway.errors.GatewayError", "gateway.ledger.outbox.Outbox"):
        assert is_said(imported, "gateway.ledger", names)
    assert is_said("gateway.workers.auth.AuthLink", "gateway.ledger", names)
    assert not is_said("gateway.request.jobs.job.GenerationJob", "gateway.ledger", names)
    assert not is_said("gateway.ledgers.outbox", "gateway.ledger", names)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_others_use_of_a_room_is_there(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        said = docstring_of(path).split("\nOthers ")[1].split("\nMay import")[0]
        text = "\n".join(file.read_text(encoding="utf-8") for file in path.parent.rglob("*.py"))
        for name in re.findall(r"`(\w+)`", said):
            is_folder = (path.parent / name).is_dir() or (ROOT / name).is_dir()
            defined = re.search(rf"^(class|def|async def) {name}\b|^{name}\b.* = ", text, re.M)
            assert is_folder or defined, f"{path}: {name}"
        for name in re.findall(r"`(\w+\.py)`", said):
            assert any((ROOT / package).rglob(name)), f"{path}: {name}"


def docstring_of(path: Path) -> str:
    """The docstring of a room's `__init__`."""
    return ast.get_docstring(tree_of(path)) or ""


def is_place(name: str) -> bool:
    """Whether a dotted name is a folder or a module."""
    place = ROOT / name.replace(".", "/")
    return place.is_dir() or place.with_suffix(".py").is_file()


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


KINDS = {cls.__name__ for cls in typing.get_args(messages.AnyMessage)}
"""Every message of the wire, by the name of its class."""
WIRE = "protocol.wire.messages"
REPLACE = "msgspec.structs.replace"


def built_messages(source: str) -> Iterator[str]:
    """The messages that some code builds, and `replace` where it makes one of another.

    What `replace` is given is not known from the source, so no use of it is allowed; under which
    name a class, its module or `replace` was imported makes no difference.
    """
    tree = tree_of(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.asname: one.name for one in node.names if one.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            place, _, name = _full_name(node, names).rpartition(".")
            if f"{place}.{name}" == REPLACE:
                yield "replace"
        if isinstance(node, ast.Call):
            place, _, name = _full_name(node.func, names).rpartition(".")
            if name in KINDS and is_within(place, WIRE):
                yield name


def _full_name(node: ast.expr, names: Mapping[str, str]) -> str:
    """The dotted name of an expression, through what was imported; empty if it is none."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    return ""


def test_every_message_of_the_gateway_is_built_in_one_bridge() -> None:
    for path, module in FILES.items():
        if is_within(module, "gateway") and not is_within(module, "gateway.bridge"):
            built = set(built_messages(path.read_text(encoding="utf-8")))
            assert not built, f"{module} builds {built}; gateway.bridge does that"


@pytest.mark.parametrize(
    "source",
    [
        "from protocol.wire.messages import Settle\nSettle(lease_id='')",
        "from protocol.wire.messages.access import Settle as Ended\nEnded(lease_id='')",
        "from protocol.wire import messages\nmessages.Settle(lease_id='')",
        "import protocol.wire.messages.access as access\naccess.Settle(lease_id='')",
        "import protocol.wire.messages\nprotocol.wire.messages.Settle(lease_id='')",
        "from msgspec import structs\nstructs.replace(settle, is_unused=True)",
        "from msgspec.structs import replace as other\nother(settle, is_unused=True)",
        "import msgspec\nmsgspec.structs.replace(settle, is_unused=True)",
        "from msgspec import structs\nmap(structs.replace, settlements)",
    ],
)
def test_a_message_that_is_built_elsewhere_is_found(source: str) -> None:
    assert set(built_messages(source)) <= {"Settle", "replace"}
    assert list(built_messages(source))


def test_what_builds_no_message_is_left_alone() -> None:
    source = """
from dataclasses import replace
from protocol.wire.messages import Settle, Usage
def put(settle: Settle) -> None: replace(job, usage=Usage()); text.replace("a", "b"); Drain()
"""
    assert not list(built_messages(source))
