"""What a model will take of memory, told before anything of it is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from engine_worker.compute.backends.base import Backend
from engine_worker.compute.backends.choice import stored_label
from engine_worker.compute.backends.packing_plan import PackedWeight
from engine_worker.compute.models.decoder import Parameter
from engine_worker.compute.models.tensors import Source
from engine_worker.compute.weights.checkpoint import Checkpoint, open_checkpoint
from engine_worker.compute.weights.sources import weight_sources
from engine_worker.compute.weights.tensor_info import DTYPE_SIZES
from engine_worker.config import ModelSettings
from engine_worker.errors import ModelMemoryError
from engine_worker.loading.cache_shape import cache_shape_of, max_num_seqs_of
from engine_worker.loading.row_pieces import rows_at_a_time
from protocol.runtime.container_limits import free_memory_bytes

OVERHEAD_BYTES: Final = 400 * 2**20
"""Of compiling and running programs, beside weights and cache. Private memory of an engine with the
bundled model grew by 442 MiB (cpu_native) and 475 MiB (xla) to its peak, of which 40 were cache."""
_READ_BYTES: Final = 4
"""Of a number that is being read, unless it is known to be narrower: quantised ones, and others
that are computed, become float32 before they get their own type."""
_MIB: Final = 2**20
_BLOCK_READ_BYTES: Final = 4
"""Of a number of a matrix that stays as it is stored: one in order, and what it is put in order
from."""
_BITS_BY_DTYPE: Final = {"float32": 32.0, "bfloat16": 16.0, "int8": 8.0, "int4": 4.25}
"""Scales of groups of 64 included."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What a model will take, bytes.

    Attributes:
        weights_bytes: Of all weights as they are computed with.
        loading_bytes: Of the largest weight while it is read and packed, on the host.
        kv_bytes: Of the KV cache: as asked for, else the least that can serve.
        overhead_bytes: Of programs.
        request_bytes: Of the least KV cache, what each request less that runs at once would save.
        spare_kv_bytes: Of a KV cache as asked for, what it is more than the least that can serve.
        max_num_seqs: Requests that run at once.
    """

    weights_bytes: int
    loading_bytes: int
    kv_bytes: int
    overhead_bytes: int = OVERHEAD_BYTES
    request_bytes: int = 0
    max_num_seqs: int = 1
    spare_kv_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.loading_bytes + self.kv_bytes + self.overhead_bytes


def estimate_memory(
    backend: Backend,
    settings: ModelSettings,
    *,
    kv_memory_bytes: int | None,
    checkpoint: Checkpoint | None = None,
) -> MemoryEstimate:
    """What a decoder will take.

    Args:
        backend: Chosen for it; nothing is loaded.
        settings: Of the model.
        kv_memory_bytes: As asked for; None is what memory leaves, at least one block and the one
            for padding. Never more than all rows together could fill.
        checkpoint: Its weights, whose types say what reading takes; None is float32.
    """
    parameters = backend.graph.parameters
    sources: Sequence[tuple[Source, ...]] = [()] * len(parameters)
    if checkpoint is not None:
        sources = weight_sources(backend.graph, checkpoint.tensors)
    loading = max(
        _loading_bytes(weight, parameters, sources, checkpoint)
        for weight in backend.packing.weights
    )
    shape = cache_shape_of(settings, backend)
    length = settings.max_model_len or backend.spec.max_position_embeddings
    max_num_seqs = max_num_seqs_of(settings, backend.spec)
    most = shape.layout(shape.most_blocks(max_num_seqs, length)).size_bytes
    # A context that nobody asked for is cut to what fits.
    least_tokens = 1 if kv_memory_bytes is None else settings.max_model_len or 1
    least = shape.layout(shape.blocks_of_request(least_tokens)).size_bytes
    kv_bytes = least if kv_memory_bytes is None else min(kv_memory_bytes, most)
    request_bytes = shape.rings.num_states * backend.spec.state_bytes
    return MemoryEstimate(
        backend.packing.size_bytes,
        loading,
        kv_bytes,
        # What is asked for and too little anyway is no less with fewer requests.
        request_bytes=request_bytes if kv_bytes >= least else 0,
        max_num_seqs=max_num_seqs,
        spare_kv_bytes=max(0, kv_bytes - least),
    )


def _loading_bytes(
    weight: PackedWeight,
    parameters: Sequence[Parameter],
    sources: Sequence[tuple[Source, ...]],
    checkpoint: Checkpoint | None,
) -> int:
    """Of a weight while it is read and packed, beside what it becomes."""
    tensors = {} if checkpoint is None else checkpoint.tensors
    num_rows = rows_at_a_time(weight, parameters, sources, tensors)
    if num_rows:
        (index,) = weight.sources
        parameter, tensor = parameters[index], sources[index][0].name
        numbers = parameter.num_elements // parameter.shape[0]
        numbers *= min(num_rows, parameter.shape[0])
        width = parameter.dtype.itemsize + DTYPE_SIZES.get(tensors[tensor].dtype, _READ_BYTES)
        if weight.stored is not None:
            width = _BLOCK_READ_BYTES
        return weight.size_bytes + numbers * width
    if weight.stored is not None:
        return _stored_bytes(weight, parameters)
    return sum(
        parameters[index].size_bytes
        + parameters[index].num_elements * _read_bytes(sources[index], checkpoint)
        for index in weight.sources
    )


def _stored_bytes(weight: PackedWeight, parameters: Sequence[Parameter]) -> int:
    """Of a weight that stays as it is stored, while it is packed: experts are read one by one."""
    matrices = (parameters[index].shape[-2:] for index in weight.sources)
    numbers = sum(outputs * inputs for outputs, inputs in matrices)
    return weight.size_bytes + numbers * _BLOCK_READ_BYTES


def _read_bytes(parts: Sequence[Source], checkpoint: Checkpoint | None) -> int:
    """Of a number of a weight while it is read."""
    widths = set()
    for part in parts:
        tensor = None if checkpoint is None else checkpoint.tensors.get(part.name)
        # One whose numbers are reordered is there twice.
        is_reordered = part.has_halves_in_turn or part.is_transposed or part.pairs > 0
        if tensor is None or tensor.made_of or is_reordered:
            widths.add(_READ_BYTES)
        else:
            widths.add(DTYPE_SIZES.get(tensor.dtype, _READ_BYTES))
    return max(widths, default=_READ_BYTES)


def require_text_memory(
    name: str,
    dtype: str,
    parameters: Sequence[Parameter],
    device_stats: Mapping[str, int] | None = None,
    *,
    free_bytes: Callable[[], int] | None = None,
) -> None:
    """Refuses an encoder, or another model without a cache, that can't fit, before it is read.

    Args:
        name: The model's.
        dtype: Of its weights, float32 or bfloat16.
        parameters: Its weights.
        device_stats: As in `require_memory`.
        free_bytes: As in `require_memory`.

    Raises:
        ModelMemoryError: With what it needs, what there is, and ways out.
    """
    weights = sum(one.size_bytes for one in parameters)
    loading = max(one.size_bytes + one.num_elements * _READ_BYTES for one in parameters)
    free, needed, where = _free_and_needed(
        MemoryEstimate(weights, loading, 0), device_stats, free_bytes
    )
    if needed <= free:
        return
    way_out = "give it more memory (of a container: raise its limit), or serve a smaller model"
    if dtype == "float32" and needed - weights // 2 <= free:
        way_out = "set PENSTOCK_DTYPE=bfloat16, which fits, or give it more memory"
    raise ModelMemoryError(
        f"{name} needs about {_gibibytes(needed)} of memory ({_gibibytes(weights)} weights in"
        f" {dtype}, {_gibibytes(needed - weights)} while it is loaded and compiled), and"
        f" {_gibibytes(free)} are free {where}: {way_out}"
    )


def _free_and_needed(
    estimate: MemoryEstimate,
    device_stats: Mapping[str, int] | None,
    free_bytes: Callable[[], int] | None,
) -> tuple[int, int, str]:
    if device_stats is not None:
        free = device_stats["bytes_limit"] - device_stats.get("bytes_in_use", 0)
        return free, estimate.weights_bytes + estimate.kv_bytes, "on the device"
    return (free_bytes or _free_bytes)(), estimate.total_bytes, "here"


def require_memory(
    name: str,
    estimate: MemoryEstimate,
    backend: Backend,
    device_stats: Mapping[str, int] | None = None,
    *,
    free_bytes: Callable[[], int] | None = None,
) -> None:
    """Refuses a model that can't fit, before it is read.

    Args:
        name: The model's.
        estimate: Of it.
        backend: Chosen for it.
        device_stats: Of a device with memory of its own, which then holds weights and cache.
        free_bytes: What this process may still take, of a container what the container may; asks
            the system when None.

    Raises:
        ModelMemoryError: With what it needs, what there is, and ways out.
    """
    free, needed, where = _free_and_needed(estimate, device_stats, free_bytes)
    if needed <= free:
        return
    raise ModelMemoryError(
        f"{name} needs about {_gibibytes(needed)} of memory ({_gibibytes(estimate.weights_bytes)} "
        f"weights in {_types_of(backend)}, {_gibibytes(estimate.kv_bytes)} KV cache, "
        f"{_gibibytes(needed - estimate.weights_bytes - estimate.kv_bytes)} while it is loaded and "
        f"compiled), and {_gibibytes(free)} are free {where}: "
        + _way_out(estimate, backend, needed - free)
    )


def require_memory_of_both(
    settings: ModelSettings,
    backend: Backend,
    other: ModelSettings,
    other_backend: Backend,
    device_stats: Mapping[str, int] | None = None,
) -> None:
    """Refuses two models that are in memory at once, before either is read.

    Args:
        settings: Of the first.
        backend: Chosen for it.
        other: Of the one that it is compared with.
        other_backend: Chosen for that one.
        device_stats: As in `require_memory`.

    Raises:
        ModelMemoryError: As `require_memory`.
    """
    taken = _require_beside(0, settings.name, settings, backend, device_stats)
    name = f"beside {settings.name} the model to compare it with"
    _require_beside(taken, name, other, other_backend, device_stats)


def _require_beside(
    taken_bytes: int,
    name: str,
    settings: ModelSettings,
    backend: Backend,
    device_stats: Mapping[str, int] | None,
) -> int:
    """As `require_memory`, where something else will have taken its part; the model's weights."""
    estimate = estimate_memory(
        backend,
        settings,
        kv_memory_bytes=None,
        checkpoint=open_checkpoint(settings.path, settings.lora),
    )
    left = None
    if device_stats is not None:
        used = device_stats.get("bytes_in_use", 0) + taken_bytes
        left = {**device_stats, "bytes_in_use": used}
    require_memory(
        name, estimate, backend, left, free_bytes=lambda: max(0, _free_bytes() - taken_bytes)
    )
    return estimate.weights_bytes


def _way_out(estimate: MemoryEstimate, backend: Backend, missing_bytes: int) -> str:
    """What would make it fit: a smaller cache or a narrower type, else more memory."""
    smaller = _smaller_cache(estimate, missing_bytes)
    if smaller is not None:
        return f"set {smaller}, which fits, or give it more memory"
    bits = _BITS_BY_DTYPE[backend.weight_type]
    if backend.stored_formats:
        bits = estimate.weights_bytes * 8 / backend.graph.num_parameters
    for name, narrower in _BITS_BY_DTYPE.items():
        if name == "int4" and backend.name != "cpu_native":
            continue
        saved = int(estimate.weights_bytes * (1 - narrower / bits))
        if saved >= missing_bytes:
            return f"set PENSTOCK_DTYPE={name}, which fits, or give it more memory"
    return "give it more memory (of a container: raise its limit), or serve a smaller model"


def _smaller_cache(estimate: MemoryEstimate, missing_bytes: int) -> str | None:
    """Settings with which the cache takes that much less; None where none are.

    Fewer requests alone don't make a cache smaller whose memory is asked for: blocks get what their
    states would have taken.
    """
    kv_bytes, settings = estimate.kv_bytes - missing_bytes, []
    if estimate.spare_kv_bytes:
        kv_bytes = kv_bytes // _MIB * _MIB
        settings.append(f"PENSTOCK_KV_MEMORY={kv_bytes // _MIB}MiB")
    lacking = estimate.kv_bytes - estimate.spare_kv_bytes - kv_bytes
    if lacking > (estimate.max_num_seqs - 1) * estimate.request_bytes:
        return None
    if lacking > 0:
        fewer = estimate.max_num_seqs - -(-lacking // estimate.request_bytes)
        settings.append(f"PENSTOCK_MAX_NUM_SEQS={fewer}")
    return " and ".join(settings)


def _types_of(backend: Backend) -> str:
    stored = stored_label(backend)
    return f"{backend.weight_type} and {stored} as stored" if stored else backend.weight_type


def _free_bytes() -> int:
    return free_memory_bytes(psutil.virtual_memory().available, Path("/"))


def _gibibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
