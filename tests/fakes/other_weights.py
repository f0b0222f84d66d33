"""Another model of the bundled one's kind: as sane as that, with other answers."""

# Imports stand in the function, whose source also runs alone in a container.


def make_other_weights(folder: str) -> None:
    """Copy the bundled model to a folder, with each vector of a norm's weights backwards."""
    import json
    import pathlib
    import shutil

    from engine_worker.demo import demo_model_path

    place = pathlib.Path(folder)
    shutil.copytree(demo_model_path(), place)
    (file,) = place.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    header_bytes = int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8 : 8 + header_bytes])
    width = {"F32": 4, "BF16": 2, "F16": 2}
    for name, tensor in tensors.items():
        if name != "__metadata__" and len(tensor["shape"]) == 1:
            start, end = (8 + header_bytes + offset for offset in tensor["data_offsets"])
            size = width[tensor["dtype"]]
            values = [data[at : at + size] for at in range(start, end, size)]
            data[start:end] = b"".join(reversed(values))
    file.write_bytes(data)
