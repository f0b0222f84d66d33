"""PyTorch files become safetensors, and nothing in them is run."""

import collections
import io
import json
import os
import pickle
import struct
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_worker.conversion.converter import convert
from engine_worker.conversion.name_map import NO_MAP, read_map
from engine_worker.conversion.restricted_pickle import read_pickle
from engine_worker.conversion.torch_archive import open_torch_file
from engine_worker.convert import main
from engine_worker.errors import (
    CheckpointError,
    ModelConfigError,
    ModelLoadError,
    UnsafePickleError,
    UnsupportedFormatError,
)
from tests.fakes.late import safetensors_torch, torch
from tests.fakes.tiny_checkpoint import TINY_LLAMA, random_tensors


@cache
def generator() -> Any:
    return torch.Generator().manual_seed(1)


def noise(*shape: int) -> Any:
    return torch.randn(shape, generator=generator())


def converted(source: Path, folder: Path, mapping: dict[str, Any] | None = None) -> dict[str, Any]:
    names = NO_MAP
    if mapping is not None:
        path = folder.with_suffix(".map.json")
        path.write_text(json.dumps(mapping))
        names = read_map(path)
    found: dict[str, Any] = safetensors_torch.load_file(convert(source, folder, names).file)
    return found


def test_every_type_and_view_of_tensors_is_written_as_it_is(tmp_path: Path) -> None:
    base = noise(6, 8)
    state = collections.OrderedDict(
        plain=noise(3, 4),
        half=noise(5).half(),
        brain=noise(2, 2).bfloat16(),
        eighth=noise(4).to(torch.float8_e4m3fn),
        whole=torch.arange(6).reshape(2, 3),
        flags=torch.tensor([True, False]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        transposed=base.T,
        rows=base[2:4],
        parameter=torch.nn.Parameter(noise(2)),
        tied=base,
    )
    torch.save(state, tmp_path / "m.pt")
    found = converted(tmp_path / "m.pt", tmp_path / "out")
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].float(), tensor.detach().float()), name


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("root", [None, "state_dict", "model", "training.best"])
def test_the_dictionary_of_tensors_is_found_among_what_training_kept(
    tmp_path: Path, root: str | None, protocol: int
) -> None:
    state: Any = torch.nn.Linear(3, 2).state_dict()
    kept = state
    for key in reversed(root.split(".") if root else []):
        kept = {"epoch": 3, "loss": 0.5, "name": "run", key: kept, "steps": [1, 2**40, None, True]}
    torch.save(kept, tmp_path / "m.pt", pickle_protocol=protocol)
    mapping = {"root": root} if root == "training.best" else None
    found = converted(tmp_path / "m.pt", tmp_path / "out", mapping)
    assert set(found) == {"weight", "bias"}
    assert torch.equal(found["weight"], state["weight"])


def test_doubles_become_floats(tmp_path: Path) -> None:
    torch.save({"w": noise(3).double()}, tmp_path / "m.pt")
    assert converted(tmp_path / "m.pt", tmp_path / "out")["w"].dtype == torch.float32


def test_shards_with_their_index_and_all_that_stands_beside_them(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    shards = {f"pytorch_model-0000{n}-of-00002.bin": {f"w{n}": noise(2, n)} for n in (1, 2)}
    for name, tensors in shards.items():
        torch.save(tensors, source / name)
    weight_map = {key: name for name, tensors in shards.items() for key in tensors}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    # What is nobody's part of a model stays where it is.
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "passwords.json", "a.txt"):
        (source / name).write_text('{"a": 1}')
    assert set(converted(source, tmp_path / "out")) == {"w1", "w2"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"}


def custom_model(folder: Path) -> dict[str, Any]:
    """A Llama whose tensors have names of its own, q|k|v fused and one matrix transposed."""
    tensors = {name: torch.from_numpy(value) for name, value in random_tensors(TINY_LLAMA).items()}
    block = "model.layers.{}.self_attn.{}_proj.weight"
    state: dict[str, Any] = {}
    for index in range(2):
        parts = [tensors.pop(block.format(index, part)) for part in "qkv"]
        state[f"blocks.{index}.attn.qkv.weight"] = torch.cat(parts)
        down = tensors.pop(f"model.layers.{index}.mlp.down_proj.weight")
        state[f"blocks.{index}.mlp.out.weight"] = down.T.contiguous()
        state[f"blocks.{index}.attn.mask"] = torch.ones(2)
    torch.save({"model": state | tensors, "config": {"width": 16}}, folder / "custom.pt")
    return {
        "config": TINY_LLAMA,
        "tensors": {
            "blocks.{n}.attn.qkv.weight": {
                "to": [block.format("{n}", part) for part in "qkv"],
                "rows": [16, 8, 8],
            },
            "blocks.{n}.mlp.out.weight": {
                "to": "model.layers.{n}.mlp.down_proj.weight",
                "transpose": True,
            },
            "blocks.{n}.attn.mask": None,
        },
    }


def test_a_custom_model_is_served_by_the_architecture_that_its_mapping_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mapping = custom_model(tmp_path)
    (tmp_path / "map.json").write_text(json.dumps(mapping))
    source, folder = str(tmp_path / "custom.pt"), str(tmp_path / "out")
    assert main([source, folder, "--map", str(tmp_path / "map.json")]) == 0
    told = capsys.readouterr().out
    assert "LlamaForCausalLM: every weight is there" in told
    assert "left out by the mapping: 2 (blocks.0.attn.mask" in told
    expected = random_tensors(TINY_LLAMA)
    found = safetensors_torch.load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), value)


def test_what_cannot_be_served_yet_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    custom_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY_LLAMA))
    assert main([str(tmp_path / "custom.pt"), str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "can't be served yet" in told
    assert "self_attn.q_proj.weight" in told
    assert main([str(tmp_path / "custom.pt"), str(tmp_path / "out")]) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "mapping",
    [
        [],
        {"tensor": {}},
        {"root": 1},
        {"tensors": {"a.{n}": "b.{m}"}},
        {"tensors": {"a.{n}.{n}": "b"}},
        {"tensors": {"a": ["b", "c"]}},
        {"tensors": {"a": {"to": ["b", "c"], "rows": [1]}}},
        {"tensors": {"a": {"to": "b", "rows": [-1]}}},
        {"tensors": {"a": {"to": "b", "reverse": True}}},
    ],
)
def test_a_mapping_without_a_meaning_is_refused(tmp_path: Path, mapping: Any) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(mapping))
    with pytest.raises(ModelConfigError, match="map.json"):
        read_map(path)


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({"a": "b"}, "both become 'b'"),
        ({"a": {"to": "c", "rows": [9]}}, "has 3 rows, the mapping asks for 9"),
        ({"v": {"to": "c", "transpose": True}}, "can't be transposed"),
        ({"a": None, "b": None, "v": None}, "leaves nothing"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(
    tmp_path: Path, rules: dict[str, Any], named: str
) -> None:
    torch.save({"a": noise(3, 2), "b": noise(3, 2), "v": noise(4)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=named):
        converted(tmp_path / "m.pt", tmp_path / "out", {"tensors": rules})
    assert not (tmp_path / "out").exists()


class _Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_run_something_is_refused_by_name_and_runs_nothing(
    tmp_path: Path, protocol: int
) -> None:
    place = tmp_path / "was_run"
    state = {"w": noise(2), "x": _Evil(place)}
    torch.save(state, tmp_path / "m.pt", pickle_protocol=protocol)
    with pytest.raises(UnsafePickleError, match=r"m\.pt: .*'posix\.system'"):
        open_torch_file(tmp_path / "m.pt")
    assert not place.exists()


class _Strange:
    pass


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.", "builtins.eval"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"ctorch\nload\n.", "torch.load"),
        (b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n.", "from_numpy"),
        (b"(iposix\nsystem\n.", r"opcode b'i'"),
        (b"(X\x01\x00\x00\x00ao.", r"opcode b'o'"),
        (b"}\x81.", r"opcode b'\\x81'"),
        (b"P0\n.", r"opcode b'P'"),
        (b"\x82\x01.", r"opcode b'\\x82'"),
        (b"}}R.", "calls a dict"),
        (b"ctorch\nfloat32\n)R.", "calls torch.float32"),
        (b"}N.", None),
        (b"N", "broken"),
        (b"(.", "broken"),
        (b"h\x07.", "broken"),
        (b"ccollections\nOrderedDict\n]\x85R.", "broken"),
        (b"]}s.", "broken"),
        (b"X\xff\xff\xff\xffab.", "broken"),
        (b"cnewline", "broken"),
        (b"(X\x07\x00\x00\x00storageNNNNtQ.", "broken"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "broken"),
        (b"ctorch._utils\n_rebuild_parameter\nN\x85R.", "broken"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.", "broken"),
        # Numbers of one hash, each of which is compared with all before.
        (b"}(\x8a\x09" + (2**64).to_bytes(9, "little") + b"Nu.", "broken"),
    ],
)
def test_what_is_no_tensor_is_refused_naming_it(data: bytes, named: str | None) -> None:
    if named is None:
        assert read_pickle(data) is None
        return
    with pytest.raises(UnsafePickleError, match=named):
        read_pickle(data)


def test_objects_of_classes_are_refused_by_the_class(tmp_path: Path) -> None:
    torch.save({"w": noise(2), "args": _Strange()}, tmp_path / "m.pt")
    with pytest.raises(UnsafePickleError, match="_Strange"):
        open_torch_file(tmp_path / "m.pt")


def test_a_key_that_would_be_hashed_for_ever_is_refused() -> None:
    # A tuple of two tuples of two tuples …: 2**60 of them, in 200 bytes.
    doubling = b"q\x00h\x00\x86" * 60
    with pytest.raises(UnsafePickleError, match="broken"):
        read_pickle(b"})" + doubling + b"Ns.")
    with pytest.raises(UnsafePickleError, match="calls a tuple"):
        read_pickle(b")" + doubling + b")R.")


@pytest.mark.parametrize("step", [b"]", b"}", b"N\x94", b"\x94"])
def test_a_pickle_of_many_small_things_is_refused(
    monkeypatch: pytest.MonkeyPatch, step: bytes
) -> None:
    monkeypatch.setattr("engine_worker.conversion.restricted_pickle._MAX_STEPS", 1000)
    with pytest.raises(UnsafePickleError, match="more than 1000 operations"):
        read_pickle(b"N" + step * 1000 + b".")


@pytest.mark.parametrize(("flags", "place"), [(0x800, 0xFF), (1, ord("a"))])
def test_names_and_flags_of_archives_that_zipfile_chokes_on_are_refused(
    tmp_path: Path, flags: int, place: int
) -> None:
    path = archive(tmp_path / "m.pt", tensor_pickle(6, 0, (2, 3), (3, 1)), floats(6))
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\x01\x02")
    content[entry + 8 : entry + 10] = struct.pack("<H", flags)
    content[content.find(b"archive/", entry)] = place
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.pt: "):
        converted(path, tmp_path / "out")


def archive(
    path: Path, data: bytes, storage: bytes | None = None, *, compressed: bool = False
) -> Path:
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", data)
        if storage is not None:
            file.writestr("archive/data/0", storage)
    return path


def tensor_pickle(count: int, offset: int, shape: Any, strides: Any) -> bytes:
    """{'w': a float tensor of storage '0'}, written by hand with the standard library."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.value if isinstance(obj, _Reference) else None

    buffer = io.BytesIO()
    storage = _Reference(("storage", torch.FloatStorage, "0", "cpu", count))
    Pickler(buffer, protocol=2).dump({"w": _Call((storage, offset, shape, strides, False, {}))})
    return buffer.getvalue()


class _Reference:
    def __init__(self, value: Any) -> None:
        self.value = value


class _Call:
    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


def floats(count: int) -> bytes:
    return struct.pack(f"<{count}f", *range(count))


@pytest.mark.parametrize(
    ("data", "storage", "named"),
    [
        (tensor_pickle(6, 0, (2, 3), (3, 1)), floats(6), None),
        (tensor_pickle(6, 1, (2, 3), (3, 1)), floats(6), "beyond its storage"),
        (tensor_pickle(6, 0, (2, 4), (3, 1)), floats(6), "beyond its storage"),
        (tensor_pickle(6, 0, (10**9, 10**9), (0, 0)), floats(6), "beyond its storage"),
        (tensor_pickle(6, 0, (2, 3), (3, -1)), floats(6), "broken"),
        (tensor_pickle(6, 0, (2, 3), (3,)), floats(6), "broken"),
        (tensor_pickle(6, -1, (2, 3), (3, 1)), floats(6), "broken"),
        (tensor_pickle(6, 0, (1,) * 100, (1,) * 100), floats(6), "broken"),
        (tensor_pickle(6, 0, (2, 3), (3, 1)), floats(5), "20 bytes, not 24"),
        (tensor_pickle(2**40, 0, (2, 3), (3, 1)), floats(6), "24 bytes, not"),
        (tensor_pickle(6, 0, (2, 3), (3, 1)), None, "'0' is missing"),
    ],
)
def test_a_tensor_that_is_not_within_its_storage_is_refused(
    tmp_path: Path, data: bytes, storage: bytes | None, named: str | None
) -> None:
    path = archive(tmp_path / "m.pt", data, storage)
    if named is None:
        found = converted(path, tmp_path / "out")["w"]
        assert found.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
        return
    with pytest.raises(ModelLoadError, match=named) as caught:
        open_torch_file(path)
    assert "m.pt" in str(caught.value)


def test_archives_that_are_larger_inside_are_refused(tmp_path: Path) -> None:
    data = tensor_pickle(2**22, 0, (2,), (1,))
    path = archive(tmp_path / "bomb.pt", data, bytes(2**24), compressed=True)
    with pytest.raises(CheckpointError, match="compressed, which PyTorch never does"):
        open_torch_file(path)


def test_many_views_of_one_storage_do_not_make_a_large_file(tmp_path: Path) -> None:
    storage = noise(50_000)
    torch.save({f"w{index}": storage.view(-1) for index in range(50)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="far more than the file has"):
        open_torch_file(tmp_path / "m.pt")


def test_a_cut_or_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": noise(64, 64)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UnsupportedFormatError, match="cut short"):
        open_torch_file(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(CheckpointError, match="tensor 'w' can't be read"):
        converted(path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors*"))


def test_files_of_another_kind_are_refused_with_a_way_out(tmp_path: Path) -> None:
    torch.save({"w": noise(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedFormatError, match="save its state_dict again"):
        open_torch_file(tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as file:
        file.writestr("a/b.txt", "x")
    with pytest.raises(UnsupportedFormatError, match="without data.pkl"):
        open_torch_file(tmp_path / "other.pt")
    torch.save({"epoch": 1}, tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"no dictionary of tensors; it holds \['epoch'\]"):
        open_torch_file(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="which file holds the weights"):
        convert(tmp_path, tmp_path / "out", NO_MAP)


def test_an_adapter_becomes_one_that_can_be_merged(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    torch.save({"base_model.model.x.lora_A.weight": noise(2, 3)}, source / "adapter_model.bin")
    (source / "adapter_config.json").write_text("{}")
    convert(source, tmp_path / "out", NO_MAP)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json"}


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_link_that_leaves_the_model_is_refused_and_not_copied(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("private")
    source, folder = tmp_path / "model", tmp_path / "out"
    source.mkdir()
    torch.save({"w": noise(2)}, source / "pytorch_model.bin")
    (source / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=f"{name} is a link to .*secret, which is no file of"):
        convert(source, folder, NO_MAP)
    assert not (folder / name).exists()


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    torch.save({"w": noise(2)}, blobs / "a1")
    (blobs / "b2").write_text("{}")
    (snapshot / "pytorch_model.bin").symlink_to("../../blobs/a1")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/b2")
    convert(snapshot, tmp_path / "out", NO_MAP)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
