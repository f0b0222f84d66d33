"""How large the cache's blocks and rings of a model are, and the context, by its settings."""

import logging
from dataclasses import replace
from typing import Final

from engine_worker.compute.backends.base import Backend
from engine_worker.compute.backends.cache_type import INT8, SCALE_BYTES
from engine_worker.compute.backends.kv_layout import StateRings
from engine_worker.compute.backends.kv_memory import (
    CacheShape,
    default_kv_memory_bytes,
    device_memory_stats,
    or_fewer_requests,
    state_rings,
)
from engine_worker.compute.models.spec import DecoderSpec
from engine_worker.compute.runner.buckets import most_step_tokens
from engine_worker.config import ModelSettings
from engine_worker.core.decoding.speculation import MAX_DRAFT_TOKENS, SpeculationMode
from engine_worker.errors import KvMemoryError
from protocol.errors import ConfigurationError

DEFAULT_BLOCK_SIZE: Final = 32
MAX_DEFAULT_BLOCK_SIZE: Final = 256
_MAX_STATE_SHARE: Final = 3
"""States take at most so many times the memory of a block's keys and values, if a larger block
helps: one state lies with each block, however many tokens that has."""
DEFAULT_MAX_NUM_SEQS: Final = 32
_RING_SHARE: Final = 0.5
"""Of the KV memory that running requests' recurrent states may take, where nobody says how many
requests run at once."""
_KV_ITEM_BYTES: Final = 2
"""Where the cache isn't int8; a block size is the same on every backend and machine."""
_log = logging.getLogger("penstock.engine")


def block_size_of(settings: ModelSettings, spec: DecoderSpec) -> int:
    """Tokens of a block: as configured, else by what a block of this decoder holds."""
    if settings.block_size is not None:
        return settings.block_size
    token_bytes = sum(
        2 * layer.attention.num_kv_heads * _head_bytes(layer.attention.head_dim, settings.kv_dtype)
        for layer in spec.layers
        if layer.is_attention and layer.attention.shared_from is None
    )
    block_size = DEFAULT_BLOCK_SIZE
    while (
        block_size < MAX_DEFAULT_BLOCK_SIZE
        and spec.state_bytes > _MAX_STATE_SHARE * block_size * token_bytes
    ):
        block_size *= 2
    return block_size


def _head_bytes(head_dim: int, kv_dtype: str) -> int:
    """Of one token's keys, or values, of one head."""
    if kv_dtype == INT8.name:
        return head_dim + SCALE_BYTES
    return head_dim * _KV_ITEM_BYTES


def cache_shape_of(settings: ModelSettings, backend: Backend) -> CacheShape:
    """What the cache of a backend's decoder is made of."""
    block_size = block_size_of(settings, backend.spec)
    return CacheShape(
        backend,
        block_size=block_size,
        num_step_tokens=most_step_tokens(
            settings.max_num_batched_tokens, block_size, deterministic=settings.deterministic
        ),
        rings=rings_of(settings, backend.spec),
    )


def rings_of(settings: ModelSettings, spec: DecoderSpec) -> StateRings:
    """Where requests in the middle of a block keep recurrent states."""
    drafts = settings.speculation is not SpeculationMode.OFF
    return state_rings(
        spec,
        num_slots=max_num_seqs_of(settings, spec),
        max_draft_tokens=MAX_DRAFT_TOKENS if drafts else 0,
    )


def max_num_seqs_of(settings: ModelSettings, spec: DecoderSpec) -> int:
    """Requests that run at once: as configured, else as many as usual.

    One, the least, of a recurrent decoder for which `with_fitting_requests` hasn't chosen.
    """
    if settings.max_num_seqs is not None:
        return settings.max_num_seqs
    return 1 if spec.state_bytes else DEFAULT_MAX_NUM_SEQS


def with_fitting_requests(settings: ModelSettings, backend: Backend) -> ModelSettings:
    """The settings with a number of requests that run at once.

    Each of them keeps states of recurrent layers beside the blocks of the cache, which may be
    hundreds of MiB. Where nobody says how many run, as many do as leave half of the KV memory to
    blocks; halved from the usual number, so that starts with a little more or less memory free
    have the same programs.

    Args:
        settings: Of the model.
        backend: Computes it; its weights aren't loaded yet.
    """
    spec = backend.spec
    if settings.max_num_seqs is not None:
        return settings
    num_seqs = DEFAULT_MAX_NUM_SEQS
    if spec.state_bytes:
        room = int(_kv_memory_bytes(settings, backend) * _RING_SHARE)
        while (
            num_seqs > 1
            and rings_of(replace(settings, max_num_seqs=num_seqs), spec).num_all * spec.state_bytes
            > room
        ):
            num_seqs //= 2
    if num_seqs < DEFAULT_MAX_NUM_SEQS:
        _log.warning(
            "%d requests run at once instead of %d: each keeps %.0f MiB of recurrent states; raise"
            " PENSTOCK_KV_MEMORY, or set PENSTOCK_MAX_NUM_SEQS",
            num_seqs,
            DEFAULT_MAX_NUM_SEQS,
            rings_of(settings, spec).num_states * spec.state_bytes / 2**20,
        )
    return replace(settings, max_num_seqs=num_seqs)


def _kv_memory_bytes(settings: ModelSettings, backend: Backend) -> int:
    """What the cache gets: as configured, else its share of what the weights will leave."""
    if settings.kv_memory_bytes is not None:
        return settings.kv_memory_bytes
    return default_kv_memory_bytes(backend.packing.size_bytes, device_memory_stats())


def choose_max_model_len(settings: ModelSettings, backend: Backend) -> int:
    """The context: as configured, or the model's own, cut to what the KV memory holds.

    Args:
        settings: Of the model.
        backend: Computes it.

    Raises:
        ConfigurationError: The configured context is longer than the model's own.
        KvMemoryError: Not one block fits.
    """
    longest = backend.spec.max_position_embeddings
    if settings.max_model_len is not None:
        if settings.max_model_len > longest:
            raise ConfigurationError(
                f"PENSTOCK_MAX_MODEL_LEN is {settings.max_model_len}, but this model was made for"
                f" at most {longest} tokens."
            )
        return settings.max_model_len
    kv_memory_bytes = _kv_memory_bytes(settings, backend)
    block_size = block_size_of(settings, backend.spec)
    num_blocks = cache_shape_of(settings, backend).longest_request(kv_memory_bytes, longest)
    fitting = num_blocks * block_size
    if fitting < 1:
        raise KvMemoryError(
            f"The KV cache gets {kv_memory_bytes} bytes, which hold not one block of"
            f" {block_size} tokens; raise PENSTOCK_KV_MEMORY"
            f"{or_fewer_requests(rings_of(settings, backend.spec), backend)}."
        )
    if fitting < longest:
        # A little less than fits now: the weights aren't loaded yet.
        fitting = max(1, num_blocks * 3 // 4) * block_size
        _log.warning(
            "the context is cut from %d to %d tokens, because the KV cache gets %d MiB; raise"
            " PENSTOCK_KV_MEMORY, or set PENSTOCK_MAX_MODEL_LEN",
            longest,
            fitting,
            kv_memory_bytes // 2**20,
        )
    return min(longest, fitting)
