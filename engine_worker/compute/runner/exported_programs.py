"""Keeps traced programs in files: tracing one again takes longer than loading what it compiles to.

A step program is some thousand operations of jax, which take half a second of Python to trace and
to lower, at every start. What comes of it (StableHLO, in the form that `jax.export` documents) goes
into a file, and later starts lower a single call of it. XLA compiles that call, so jax's persistent
cache holds the executable as before: these files have no machine code, and nothing in them is
unpickled.

A file is found by all that a trace depends on: the arguments, what the caller says of its program,
our code and that of `protocol`, the native library, and the versions and settings of jax. Whatever
is unknown about it is traced. Files that nobody used for longest are removed, see
`program_folder.py`.
"""

import contextlib
import dataclasses
import enum
import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from jax import export

from engine_worker.compute.runner.program_folder import SUFFIX, UNFINISHED, mark_used, tidy

_MAGIC: Final = b"penstock program 1\n"
_LENGTH_BYTES: Final = 8
_DIGEST_BYTES: Final = 32
_STAND_IN: Final = "penstock_stand_in"
"""A target that nobody registers: a program in which it were left could not be run."""
_PACKAGES: Final = ("jax", "jaxlib", "numpy", "ml_dtypes", "flax")
_CODE: Final = ("*.py", "*.so")
_log = logging.getLogger("penstock.runner")

Specs = tuple[jax.ShapeDtypeStruct, ...]


class UnknownPartError(Exception):
    """Something of which it can't be said in words what it is."""


@dataclass(frozen=True, slots=True)
class _Traced:
    """What a file holds.

    Attributes:
        kept: Indices of the flat arguments that the module takes; it doesn't need the others.
        outputs: Of the module.
        module: StableHLO, as `jax.export` serializes it.
    """

    kept: tuple[int, ...]
    outputs: Specs
    module: bytes


class ExportedPrograms:
    """Lowers programs, from a file where an earlier process has left one.

    Args:
        folder: Where the files are, made if missing; None traces everything.
        parts: All that the programs are made of, see `describe_parts`.
        targets: Custom calls that programs may hold beside jax's own.
    """

    def __init__(self, folder: Path | None, parts: Sequence[Any], targets: Iterable[str]) -> None:
        self._folder = folder
        self._targets = tuple(targets)
        if folder is not None:
            try:
                self._identity = f"{_surroundings()}\n{describe_parts(parts)}"
            except (UnknownPartError, OSError, ImportError, AttributeError) as error:
                _log.info("programs are traced at every start: %s", error)
                self._folder = None

    def lower(
        self,
        name: str,
        program: Callable[..., Any],
        args: tuple[Any, ...],
        outputs: Any,
        *,
        donated: tuple[int, ...],
    ) -> jax.stages.Lowered:
        """The program for such arguments, ready to be compiled.

        Args:
            name: Different for all programs of the same parts.
            program: Pure; called with `args` where it has to be traced.
            args: Arrays, or shapes and types, in trees.
            outputs: A tree like that of its result, whatever the leaves are.
            donated: Which arguments are donated.
        """
        if self._folder is not None:
            out_tree = jax.tree.structure(outputs)
            path = self._folder / f"{name}-{self._key(name, args, out_tree, donated)}{SUFFIX}"
            try:
                traced = _read(path) or self._trace(path, name, program, args, out_tree, donated)
                return _lower_traced(name, traced, args, out_tree, donated)
            except Exception as error:  # noqa: BLE001 - the usual way never needs any of it
                _log.warning("%s is traced, %s is of no use: %s", name, path, error)
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        return jax.jit(program, donate_argnums=donated).lower(*args)

    def _key(
        self, name: str, args: tuple[Any, ...], out_tree: Any, donated: tuple[int, ...]
    ) -> str:
        leaves, tree = jax.tree.flatten(args)
        shapes = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves]
        said = json.dumps([self._identity, name, str(tree), shapes, str(out_tree), donated])
        return hashlib.sha256(said.encode()).hexdigest()[:32]

    def _trace(
        self,
        path: Path,
        name: str,
        program: Callable[..., Any],
        args: tuple[Any, ...],
        out_tree: Any,
        donated: tuple[int, ...],
    ) -> _Traced:
        leaves, tree = jax.tree.flatten(args)

        def flat(*arrays: jax.Array) -> list[jax.Array]:
            found, found_tree = jax.tree.flatten(program(*jax.tree.unflatten(tree, arrays)))
            if found_tree != out_tree:
                raise ValueError(f"its result is {found_tree}, not {out_tree}")
            return found

        flat.__name__ = name
        exported = _exported(flat, _specs(leaves), self._targets)
        if exported.ordered_effects or exported.unordered_effects or exported.nr_devices != 1:
            raise ValueError("it has effects, or is for several devices")
        outputs = _specs(exported.out_avals)
        traced = _Traced(exported.module_kept_var_idx, outputs, exported.mlir_module_serialized)
        _write(path, traced)
        return traced


def _lower_traced(
    name: str, traced: _Traced, args: tuple[Any, ...], out_tree: Any, donated: tuple[int, ...]
) -> jax.stages.Lowered:
    leaves = jax.tree.leaves(args)

    def stand_in(*arrays: jax.Array) -> Sequence[jax.Array]:
        return jax.ffi.ffi_call(_STAND_IN, traced.outputs)(*arrays)

    # All of an export but its module follows from the types of what goes in and out.
    inputs = _specs([leaves[index] for index in traced.kept])
    shell = _exported(stand_in, inputs, (_STAND_IN,))
    exported = dataclasses.replace(shell, fun_name=name, mlir_module_serialized=traced.module)

    def call(*args: Any) -> Any:
        arrays = jax.tree.leaves(args)
        found = exported.call(  # type: ignore[no-untyped-call]
            *(arrays[index] for index in traced.kept)
        )
        return jax.tree.unflatten(out_tree, found)

    call.__name__ = name
    return jax.jit(call, donate_argnums=donated).lower(*args)


def _exported(
    function: Callable[..., Any], inputs: Specs, targets: Iterable[str]
) -> export.Exported:
    checks = [export.DisabledSafetyCheck.custom_call(target) for target in targets]
    return export.export(jax.jit(function), disabled_checks=checks)(*inputs)


def _specs(leaves: Iterable[Any]) -> Specs:
    return tuple(_spec(leaf.shape, leaf.dtype) for leaf in leaves)


def _spec(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _read(path: Path) -> _Traced | None:
    """What a file holds; None where there is none.

    Raises:
        ValueError: It was cut short, or is of another version.
        OSError: It can't be read.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    whole, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if not whole.startswith(_MAGIC) or hashlib.sha256(whole).digest() != digest:
        raise ValueError("it is broken")
    start = len(_MAGIC) + _LENGTH_BYTES
    end = start + int.from_bytes(whole[len(_MAGIC) : start], "little")
    header = json.loads(whole[start:end])
    outputs = (_spec(tuple(shape), np.dtype(dtype)) for shape, dtype in header["outputs"])
    mark_used(path)
    return _Traced(tuple(header["kept"]), tuple(outputs), whole[end:])


def _write(path: Path, traced: _Traced) -> None:
    """A folder that can't be written to is logged; the program is there nevertheless."""
    outputs = [(spec.shape, str(spec.dtype)) for spec in traced.outputs]
    header = json.dumps({"kept": traced.kept, "outputs": outputs}).encode()
    length = len(header).to_bytes(_LENGTH_BYTES, "little")
    whole = b"".join((_MAGIC, length, header, traced.module))
    unfinished = path.with_suffix(f".{secrets.token_hex(8)}{UNFINISHED}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(whole + hashlib.sha256(whole).digest())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s can't be kept: %s", path, error.strerror)
    else:
        tidy(path)


@cache
def _code_digest() -> str:
    """Of the code of our packages, which a process reads once."""
    digest = hashlib.sha256()
    own = Path(__file__).parents[2]
    beside = find_spec("protocol")
    if beside is None or beside.origin is None:
        raise OSError("the code of `protocol` is not in files")
    for package in (own, Path(beside.origin).parent):
        files = sorted(path for pattern in _CODE for path in package.rglob(pattern))
        if not files:
            raise OSError("this package's code is not in files")
        for path in files:
            content = path.read_bytes()
            name = path.relative_to(package.parent)
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _surroundings() -> str:
    """What every trace depends on, as this process is set up now."""
    versions = {package: version(package) for package in _PACKAGES}
    # Where caches lie decides nothing, and messages about them neither.
    settings = {
        name: str(value) for name, value in jax.config.values.items() if "cache" not in name
    }
    said = {"code": _code_digest(), "versions": versions, "settings": settings}
    return json.dumps(said | {"platform": jax.default_backend()}, sort_keys=True)


def describe_parts(part: Any) -> str:
    """The same words for the same thing in every process.

    Args:
        part: Numbers, texts, types, enums, and dataclasses and collections of such.

    Raises:
        UnknownPartError: It is, or holds, something else.
    """
    if part is None or isinstance(part, bool | int | float | str | bytes):
        return repr(part)
    if isinstance(part, enum.Enum):
        return f"{type(part).__name__}.{part.name}"
    if isinstance(part, np.dtype):
        return str(part)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = ((f.name, getattr(part, f.name)) for f in dataclasses.fields(part))
        said = ", ".join(f"{name}={describe_parts(value)}" for name, value in fields)
        return f"{type(part).__name__}({said})"
    if isinstance(part, Mapping):
        pairs = sorted((describe_parts(key), describe_parts(value)) for key, value in part.items())
        return "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
    if isinstance(part, tuple | list):
        return "[" + ", ".join(map(describe_parts, part)) + "]"
    raise UnknownPartError(f"a {type(part).__name__} is part of them")
