"""GGUF headers byte by byte, right and wrong ones."""

import struct
from collections.abc import Iterable
from typing import Any

U32, F32, STRING, ARRAY, U64 = 4, 6, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def number(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def array_of(kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + value


def entry(name: str, dims: Iterable[int], kind: int = 0, offset: int = 0) -> bytes:
    dims = list(dims)
    axes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


def gguf_bytes(
    keys: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
    **counts: Any,
) -> bytes:
    """A file; `num_keys` and `num_tensors` say something else than what is there."""
    keys, tensors = list(keys), list(tensors)
    num_tensors = counts.get("num_tensors", len(tensors))
    num_keys = counts.get("num_keys", len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys)
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data
