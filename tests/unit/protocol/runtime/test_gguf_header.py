"""What a GGUF file says it holds, and every way in which it can lie about it."""

import array
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.runtime.gguf_header import (
    BLOCK_TYPES,
    MAX_STRINGS,
    GgufError,
    model_name,
    models_in,
    read_gguf,
    read_gguf_shards,
)
from tests.fakes.gguf_bytes import (
    ARRAY,
    F32,
    STRING,
    U32,
    array_of,
    entry,
    gguf_bytes,
    number,
    pair,
    text,
)

_TWO = 2**40


def written(tmp_path: Path, content: bytes, name: str = "m.gguf") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def a_model(path: Path, **options: int) -> Path:
    """With every type of metadata, two matrices and a vector."""
    writer = GGUFWriter(path, "llama", **options)
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_string("general.name", "näme")
    writer.add_token_list(["a", "b", "ü"])
    writer.add_token_scores([0.5, -1.0, 2.0])
    writer.add_token_types([1, 3, 6])
    writer.add_uint64("big", 2**40)
    writer.add_int16("small", -3)
    writer.add_float64("double", 0.1)
    writer.add_tensor("norm", np.arange(8, dtype=np.float32))
    writer.add_tensor("a", np.arange(64, dtype=np.float32).reshape(2, 32))
    blocks = np.arange(34 * 6, dtype=np.uint8).reshape(3, 68)
    writer.add_tensor("b", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_table_of_types_is_that_of_ggufs_own_package() -> None:
    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert theirs == BLOCK_TYPES


def test_a_file_of_ggufs_writer_is_read_as_by_its_reader(tmp_path: Path) -> None:
    path = a_model(tmp_path / "m.gguf")
    found, theirs = read_gguf(path), GGUFReader(path)
    assert found.version == 3
    assert set(found.metadata) == {key for key in theirs.fields if not key.startswith("GGUF.")}
    for key, value in found.metadata.items():
        plain = list(value) if isinstance(value, array.array) else value
        assert plain == theirs.fields[key].contents(), key
    assert list(found.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        ours = found.tensors[tensor.name]
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
        assert (ours.start, ours.end - ours.start) == (tensor.data_offset, tensor.n_bytes)
        assert ours.type_name == tensor.tensor_type.name
    assert found.tensors["b"].shape == (3, 64)


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_read(tmp_path: Path, version: int) -> None:
    content = gguf_bytes(
        [number("general.alignment", 8)],
        [entry("a", [3, 2])],
        bytes(24),
        version=version,
        alignment=8,
    )
    tensor = read_gguf(written(tmp_path, content)).tensors["a"]
    assert tensor.shape == (2, 3)
    assert tensor.end == len(content)


_BROKEN = {
    "an empty file": (b"", "is no GGUF file"),
    "another format": (b"PK\x03\x04" + bytes(100), "no GGUF file"),
    "a pointer of git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "no GGUF file"),
    "nothing behind the magic": (b"GGUF", "cut off"),
    "the first version": (gguf_bytes(version=1), "version 1"),
    "a version to come": (gguf_bytes(version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "more tensors than bytes": (gguf_bytes(num_tensors=_TWO), "says that it has"),
    "more keys than bytes": (gguf_bytes(num_keys=_TWO), "says that it has"),
    "one key more": (
        gguf_bytes([number("a", 1)], data=bytes(40), num_keys=2),
        "name of a key is empty",
    ),
    "a key longer than the file": (
        gguf_bytes([struct.pack("<Q", _TWO)], data=bytes(64)),
        "name of a key has .* bytes",
    ),
    "a text longer than the file": (
        gguf_bytes([pair("k", STRING, struct.pack("<Q", 4000))]),
        "cut off.*'k'",
    ),
    "a text longer than any": (gguf_bytes([pair("k", STRING, struct.pack("<Q", _TWO))]), "'k' has"),
    "a text that is none": (gguf_bytes([pair("k", STRING, text(b"\xff\xfe"))]), "'k'.*no UTF-8"),
    "a name that is none": (gguf_bytes([pair(b"\xff", U32, bytes(4))]), "no UTF-8"),
    "numbers beyond the file": (
        gguf_bytes([pair("k", ARRAY, array_of(F32, _TWO, b""))]),
        "cut off.*'k'",
    ),
    "texts beyond the file": (
        gguf_bytes([pair("k", ARRAY, array_of(STRING, _TWO, b""))]),
        "'k' is cut off, or holds too much",
    ),
    "an array of arrays": (
        gguf_bytes([pair("k", ARRAY, array_of(ARRAY, 1, array_of(U32, 0, b"")))]),
        "array of arrays",
    ),
    "an unknown type": (gguf_bytes([pair("k", 77, bytes(8))]), "'k' is of type 77"),
    "an array of an unknown type": (
        gguf_bytes([pair("k", ARRAY, array_of(77, 1, bytes(8)))]),
        "array of type 77",
    ),
    "a key twice": (gguf_bytes([number("k", 1), number("k", 2)]), "'k' is there twice"),
    "a tensor twice": (
        gguf_bytes(tensors=[entry("t", [8]), entry("t", [8], 0, 32)], data=bytes(64)),
        "'t' is there twice",
    ),
    "tensors that overlap": (
        gguf_bytes(tensors=[entry("t", [16]), entry("u", [8], 0, 32)], data=bytes(64)),
        "'t' and 'u' overlap",
    ),
    "alignment 0": (gguf_bytes([number("general.alignment", 0)]), "general.alignment is 0"),
    "alignment 24": (gguf_bytes([number("general.alignment", 24)]), "general.alignment is 24"),
    "alignment beyond": (gguf_bytes([number("general.alignment", 2**31)]), "no power of two up"),
    "an alignment of text": (
        gguf_bytes([pair("general.alignment", STRING, text("32"))]),
        "general.alignment is '32'",
    ),
    "no axes": (gguf_bytes(tensors=[entry("t", [])]), "'t' has 0 axes"),
    "too many axes": (gguf_bytes(tensors=[entry("t", [1] * 5)]), "'t' has 5 axes"),
    "an axis of 0": (gguf_bytes(tensors=[entry("t", [32, 0])]), "'t' has the shape"),
    "a product that overflows": (
        gguf_bytes(tensors=[entry("t", [2**32, 2**32])], data=bytes(64)),
        "'t' has the shape",
    ),
    "an unknown tensor type": (gguf_bytes(tensors=[entry("t", [32], 99)]), "'t' is of type 99"),
    "a type that was taken away": (gguf_bytes(tensors=[entry("t", [32], 4)]), "'t' is of type 4"),
    "rows of no whole blocks": (gguf_bytes(tensors=[entry("t", [33, 2], 8)]), "no blocks of Q8_0"),
    "an offset off the alignment": (
        gguf_bytes(tensors=[entry("t", [8], 0, 4)], data=bytes(64)),
        "begins at 4",
    ),
    "an offset beyond the file": (
        gguf_bytes(tensors=[entry("t", [8], 0, _TWO)], data=bytes(64)),
        "tensor 't' needs .* download it again",
    ),
    "an offset that wraps": (
        gguf_bytes(tensors=[entry("t", [8], 0, 2**64 - 32)], data=bytes(64)),
        "tensor 't' needs",
    ),
    "data cut off": (gguf_bytes(tensors=[entry("t", [8])], data=bytes(31)), "'t' needs"),
}


@pytest.mark.parametrize(("content", "named"), _BROKEN.values(), ids=_BROKEN.keys())
def test_a_broken_file_is_refused_naming_file_and_place(
    tmp_path: Path, content: bytes, named: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(GgufError, match=named) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)


def test_arrays_of_many_texts_are_bounded_together(tmp_path: Path) -> None:
    half = MAX_STRINGS // 2 + 1
    keys = [pair(name, ARRAY, array_of(STRING, half, bytes(8 * half))) for name in "ab"]
    assert len(read_gguf(written(tmp_path, gguf_bytes(keys[:1]))).metadata["a"]) == half
    with pytest.raises(GgufError, match="'b' is cut off, or holds too much"):
        read_gguf(written(tmp_path, gguf_bytes(keys)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_header_with_wrong_bytes_is_read_or_refused_in_little_memory(
    tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "whole.gguf"
    if not path.exists():
        a_model(path)
    content = bytearray(path.read_bytes())
    random = Random(seed)
    header = read_gguf(path).header_bytes
    for _ in range(random.randint(1, 4)):
        place = random.randrange(header)
        width = random.choice((1, 4, 8))
        value = random.choice(
            (0, 1, 7, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1, random.getrandbits(64))
        )
        content[place : place + width] = value.to_bytes(8, "little")[:width]
    if random.random() < 0.3:
        del content[random.randrange(len(content)) :]
    changed = written(tmp_path, bytes(content), "changed.gguf")
    tracemalloc.start()
    try:
        with suppress(GgufError):
            found = read_gguf(changed)
            for tensor in found.tensors.values():
                assert 0 <= tensor.start < tensor.end <= len(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * len(content) + 2**18


def test_files_of_one_model_are_read_together(tmp_path: Path) -> None:
    a_model(tmp_path / "m.gguf", split_max_tensors=1)
    paths = sorted(tmp_path.glob("*.gguf"))
    assert [path.name for path in paths] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for path in paths:
        files = read_gguf_shards(path)
        assert [file.path for file in files] == paths
        assert [name for file in files for name in file.tensors] == ["norm", "a", "b"]
        assert files[0].metadata["llama.block_count"] == 2
    assert models_in(tmp_path) == (paths[0],)
    assert model_name(paths[1]) == "m"


def test_files_that_dont_belong_together_are_refused(tmp_path: Path) -> None:
    a_model(tmp_path / "m.gguf", split_max_tensors=1)
    first, second, third = sorted(tmp_path.glob("*.gguf"))
    content = second.read_bytes()
    second.write_bytes(third.read_bytes())
    with pytest.raises(GgufError, match=f"{second.name}: says that it is part 2 .*of 3"):
        read_gguf_shards(first)
    second.write_bytes(first.read_bytes())
    with pytest.raises(GgufError, match="says that it is part 0"):
        read_gguf_shards(first)
    second.write_bytes(content)
    third.unlink()
    with pytest.raises(GgufError, match=f"{third.name} is missing"):
        read_gguf_shards(first)
    lonely = second.rename(tmp_path / "n-00001-of-00001.gguf")
    with pytest.raises(GgufError, match="download the model's files again"):
        read_gguf_shards(lonely)


def test_vision_towers_are_no_models(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf", "mmproj-a.gguf", "imatrix.gguf", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in models_in(tmp_path)] == ["a.gguf", "b.gguf"]
