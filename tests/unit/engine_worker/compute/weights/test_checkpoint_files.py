"""Finding a model's weights, and every way in which the files can be broken."""

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from engine_worker.compute.weights.checkpoint import open_checkpoint
from engine_worker.compute.weights.safetensors_files import read_header
from engine_worker.errors import CheckpointError, UnsupportedFormatError
from tests.fakes.tiny_checkpoint import write_checkpoint

INDEX = "model.safetensors.index.json"


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def test_a_header_tells_name_type_shape_and_place(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    content = safetensors_bytes({"__metadata__": {"format": "pt"}, "a": entry}, bytes(24))
    file.write_bytes(content)
    (tensor,) = open_checkpoint(tmp_path).tensors.values()
    assert (tensor.name, tensor.file, tensor.dtype, tensor.shape) == ("a", file, "F32", (2, 3))
    assert (tensor.start, tensor.end) == (len(content) - 24, len(content))


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("pytorch_model.bin", "pickle"),
        ("pytorch_model-00001-of-00002.bin", "pickle"),
    ],
)
def test_weights_in_another_format_are_refused_naming_it(
    tmp_path: Path, name: str, named: str
) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(UnsupportedFormatError, match=named) as caught:
        open_checkpoint(tmp_path)
    assert name in str(caught.value)


def test_a_pickle_beside_safetensors_is_not_looked_at(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    assert len(open_checkpoint(tmp_path).tensors) > 0


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        open_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 50) + b"{}",
        safetensors_bytes([]),
        struct.pack("<Q", 4) + b"{{{{",
        struct.pack("<Q", 2) + b"\xff\xfe",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 123456\n",
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused_naming_it(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*safetensors file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (5, "broken header entry"),
        ({"dtype": "F32", "shape": [1]}, "broken header entry"),
        ({"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}, "broken header entry"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}, "broken header entry"),
        ({"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}, "broken header entry"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, "broken header entry"),
        ({"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 4]}, "broken header entry"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, float("inf")]}, "broken header entry"),
        ({"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}, "broken header entry"),
        ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "broken header entry"),
        ({"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}, "broken header entry"),
        ({"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}, "broken header entry"),
        ({"dtype": "F32", "shape": [10**4000], "data_offsets": [0, 4]}, "broken header entry"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "truncated"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "needs 8 bytes"),
        ({"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}, "bytes, its entry"),
    ],
)
def test_a_broken_header_entry_is_refused_naming_its_tensor(
    tmp_path: Path, entry: object, named: str
) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({"norm": entry}, bytes(4)))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{named}") as caught:
        open_checkpoint(tmp_path)
    assert "'norm'" in str(caught.value)


@given(content=st.binary(max_size=200))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_bytes_make_the_header_reader_fail_otherwise_than_by_its_own_error(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "model.safetensors"
    for prefix in (b"", struct.pack("<Q", max(len(content), 2))):
        file.write_bytes(prefix + content)
        with contextlib.suppress(CheckpointError):
            read_header(file)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": "../model.safetensors"}}'],
)
def test_a_broken_index_is_refused_naming_it(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


def test_an_index_or_header_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / INDEX).open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(CheckpointError, match=f"{INDEX}.*it has {2**34} bytes, and at most"):
        open_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**25))
    with path.open("ab") as file:
        file.truncate(2**26)
    with pytest.raises(CheckpointError, match="header of more than 16777216 bytes; download it"):
        read_header(path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, num_shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors: the file is missing"):
        open_checkpoint(tmp_path)


def test_an_index_left_from_shards_says_nothing_of_a_whole_file(tmp_path: Path) -> None:
    """As quantisers and merges leave it behind: transformers reads the file, too."""
    write_checkpoint(tmp_path, num_shards=2)
    index = (tmp_path / INDEX).read_text()
    for shard in tmp_path.glob("*.safetensors"):
        shard.unlink()
    tensors = write_checkpoint(tmp_path)
    (tmp_path / INDEX).write_text(index)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.listing == tmp_path / "model.safetensors"
    assert set(checkpoint.tensors) == set(tensors)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, num_shards=2)
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.safetensors: tensor 'ghost'"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", [None, 5, "", ".", "..", "/etc/passwd", "../a", "a\0b", "a\nb", "a" * 5000, "\ud800.s"]
)
def test_a_shard_whose_name_is_none_is_refused_naming_the_tensor(
    tmp_path: Path, name: object
) -> None:
    write_checkpoint(tmp_path, num_shards=2)
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    index["weight_map"]["ghost"] = name
    (tmp_path / INDEX).write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{INDEX}: tensor 'ghost' is placed in ") as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_tensor_that_several_shards_hold_is_read_from_the_one_that_is_indexed(
    tmp_path: Path,
) -> None:
    tensors = write_checkpoint(tmp_path, num_shards=2)
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))["weight_map"]
    name = "model.norm.weight"
    (other,) = {*index.values()} - {index[name]}
    held = {one: tensors[one] for one, file in index.items() if file == other}
    save_file({**held, name: np.full_like(tensors[name], 7)}, tmp_path / other)
    checkpoint = open_checkpoint(tmp_path)
    with checkpoint.reading() as read:
        np.testing.assert_array_equal(read(name), tensors[name])


F32 = {"dtype": "F32", "shape": [1]}


@pytest.mark.parametrize(
    ("entries", "num_bytes", "named"),
    [
        ({"a": [0, 4], "b": [0, 4]}, 4, "'b' overlaps tensor 'a'"),
        ({"a": [0, 4], "b": [2, 6]}, 6, "'b' overlaps tensor 'a'"),
        ({"a" * 5000: [0, 4]}, 4, "has a name of 5000 characters"),
    ],
)
def test_tensors_that_overlap_are_refused_and_so_are_names_beyond_measure(
    tmp_path: Path, entries: dict[str, list[int]], num_bytes: int, named: str
) -> None:
    """Two weights of the same bytes would load, and compute something else."""
    header = {name: {**F32, "data_offsets": place} for name, place in entries.items()}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, bytes(num_bytes)))
    with pytest.raises(CheckpointError, match=named) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).endswith("download it again")
    assert len(str(caught.value)) < 500


def test_bytes_between_and_behind_tensors_are_left_alone(tmp_path: Path) -> None:
    header = {name: {**F32, "data_offsets": [at, at + 4]} for name, at in (("b", 9), ("a", 1))}
    data = bytes(1) + np.float32(1).tobytes() + bytes(4) + np.float32(2).tobytes() + bytes(3)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, data))
    with open_checkpoint(tmp_path).reading() as read:
        assert (read("a").item(), read("b").item()) == (1, 2)


def test_an_empty_tensor_takes_no_place(tmp_path: Path) -> None:
    header = {
        "a": {**F32, "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]},
        "c": {**F32, "data_offsets": [4, 8]},
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, bytes(8)))
    with open_checkpoint(tmp_path).reading() as read:
        assert [read(name).shape for name in header] == [(1,), (0,), (1,)]


def test_a_tensor_of_a_type_that_no_reader_knows_is_refused_when_it_is_read(
    tmp_path: Path,
) -> None:
    header = {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, bytes(1)))
    with (
        open_checkpoint(tmp_path).reading() as read,
        pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'a' is F4; F64, F32"),
    ):
        read("a")
