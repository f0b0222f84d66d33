"""Decides which backend computes a decoder, and says why."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import jax

from engine_worker.compute.backends.base import Backend
from engine_worker.compute.backends.cache_type import AUTO, require_cache_type
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import DecoderGraph
from engine_worker.compute.models.integer_blocks import BlockFormat
from engine_worker.errors import NativeUnavailableError
from protocol.errors import ConfigurationError


class BackendName(StrEnum):
    """What `PENSTOCK_BACKEND` may be."""

    AUTO = "auto"
    XLA = "xla"
    CPU_NATIVE = "cpu_native"


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A backend, and one sentence that says why it was taken."""

    backend: Backend
    reason: str


def choose_backend(
    requested: BackendName,
    graph: DecoderGraph,
    weight_type: str,
    *,
    block_size: int,
    deterministic: bool = False,
    stored: Mapping[str, BlockFormat] | None = None,
    kv_dtype: str = AUTO,
) -> BackendChoice:
    """The backend of a decoder.

    `auto` takes the native kernels on a CPU for every block that they cover. The deterministic mode
    takes XLA unless the kernels are asked for: their bits depend on the processor's instructions,
    and engines of that mode promise each other the same ones.

    Args:
        requested: What was asked for.
        graph: The declared decoder: in the type of its weights, or float32 where these are
            quantised.
        weight_type: float32, bfloat16, int8 or int4.
        block_size: Of the cache.
        deterministic: Equal bits in every batch are asked for.
        stored: Matrices that may stay as the checkpoint keeps them, by path, where the kernels
            multiply them so; XLA's are dequantised.
        kv_dtype: Of keys and values, see `cache_dtype_of`.

    Raises:
        ConfigurationError: The native backend, or a type that only it has, is asked for and isn't
            available, or the decoder has nothing to be kept in the type of keys and values; says
            why.
    """
    require_cache_type(graph.spec, kv_dtype)
    reason = "as asked for"
    if requested is not BackendName.XLA:
        reason = _why_not_native(requested, weight_type, deterministic=deterministic)
        if not reason:
            # Imports ctypes and the library's bindings, which other backends never need.
            from engine_worker.compute.backends.cpu_native.backend import CpuNativeBackend

            native = CpuNativeBackend(graph, weight_type, block_size, stored, kv_dtype)
            missing = [place.reason for place in native.placements.values() if place.reason]
            if any(place.backend == native.name for place in native.placements.values()):
                return BackendChoice(native, "; ".join(dict.fromkeys(missing)) or "covers it whole")
            reason = missing[0]
        if requested is BackendName.CPU_NATIVE:
            raise ConfigurationError(
                f"the native backend can't compute this model here: {reason}. Choose backend auto"
                " or xla.",
                param="backend",
            )
    if weight_type == "int4":
        raise ConfigurationError(
            f"dtype int4 needs the native backend ({reason}); choose int8, bfloat16 or float32",
            param="dtype",
        )
    return BackendChoice(XlaBackend(graph, weight_type, kv_dtype), reason)


def describe(backend: Backend) -> str:
    """Which blocks run where, for the log: `cpu_native (head: xla, because …)`."""
    elsewhere = [
        f"{kind}: {place.backend}" + (f", because {place.reason}" if place.reason else "")
        for kind, place in backend.placements.items()
        if place.backend != backend.name or place.reason
    ]
    return f"{backend.name} ({'; '.join(elsewhere)})" if elsewhere else backend.name


def backend_label(backend: Backend) -> str:
    """The name of a backend, with the instructions that its kernels use: `cpu_native avx2`."""
    if backend.name != BackendName.CPU_NATIVE:
        return backend.name
    from engine_worker.compute.backends.cpu_native.library import load

    return f"{backend.name} {load().level}"


def stored_label(backend: Backend) -> str:
    """What of a backend's matrices stays as the checkpoint keeps it; empty where nothing does.

    All experts of a layer count as one, as they are one weight.

    `int4 in groups of 32 and int8 in groups of 16 (29 of 30 matrices)`
    """
    formats = backend.stored_formats
    if not formats:
        return ""
    names = sorted({form.name for form in formats.values()})
    total = sum(
        len(parameter.shape) > 1 and not parameter.path.endswith(".bias")
        for parameter in backend.graph.parameters
    )
    return f"{' and '.join(names)} ({len(formats)} of {total} matrices)"


def kv_label(backend: Backend) -> str:
    """The type of keys and values, and what of the cache isn't in it.

    `int8, one scale a token and key head; states of recurrent layers in float32`
    """
    label = str(backend.cache_dtype)
    if label != "int8":
        return label
    states = "; states of recurrent layers in float32" if backend.spec.state_bytes else ""
    return f"{label}, one scale a token and key head{states}"


def identity_of(backend: Backend, *, deterministic: bool) -> str:
    """Which numbers a backend computes: engines that continue each other's streams agree in it.

    Args:
        backend: Of the engine.
        deterministic: Engines promise each other the same bits, so instructions count too.
    """
    identity = ", ".join(
        f"{kind} {place.backend}" + (" beside native products" * place.has_native_products)
        for kind, place in backend.placements.items()
    )
    if backend.stored_formats:
        # Activations are rounded for these, so that other numbers come out.
        keys = {f"{path} {form.key}" for path, form in backend.stored_formats.items()}
        identity = f"{identity}, stored {'; '.join(sorted(keys))}"
    return f"{identity}, {backend_label(backend)}" if deterministic else identity


def _why_not_native(requested: BackendName, weight_type: str, *, deterministic: bool) -> str:
    """Empty when the library is there and may be used."""
    platform = jax.default_backend()
    if platform != "cpu":
        return f"jax computes on {platform}"
    if deterministic and requested is BackendName.AUTO:
        return "the deterministic mode computes with xla unless cpu_native is asked for"
    if deterministic and weight_type != "float32":
        return "the deterministic mode computes in float32"
    try:
        from engine_worker.compute.backends.cpu_native.library import load

        load()
    except NativeUnavailableError as error:
        return str(error)
    return ""
