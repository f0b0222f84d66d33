"""What each quantised format costs the bundled model: `python -m tests.quality_table`.

Writes the bundled model in every format that is read (GGUF files by `gguf`'s writer, AWQ, GPTQ,
compressed-tensors, bitsandbytes and fp8 by their definitions, all rounded to the nearest) and
compares each with the model's own weights in float32 on XLA, as `penstock quality` does: once
dequantised to float32, which is what the format loses, and once as it is served with `--dtype
auto`, which is what an engine's answers lose. Prints a row of docs/quality.md for each, as soon as
it is there.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import torch
from gguf import GGMLQuantizationType
from safetensors.numpy import load_file
from safetensors.torch import save_file

from engine_worker.compute.runner.compile_cache import prepare_backend
from engine_worker.config import ModelSettings
from engine_worker.demo import demo_model_path
from engine_worker.quality import BUNDLED_TEXT, Job, read_text, run
from tests.fakes.gguf_blocks import BLOCK_SIZES, ENCODERS
from tests.fakes.gguf_files import encoded, write_gguf
from tests.fakes.quantised_experts import quantised
from tests.fakes.quantised_layers import METHODS, quantised_layers
from tests.fakes.tiny_checkpoint import Tensors

GROUP: Final = 64
_FP8_MOST: Final = 448.0
_HALF_AN_OCTET: Final = 4
_GGUF: Final = (
    *("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0"),
    *("IQ4_NL", "IQ4_XS", "MXFP4", "Q3_K", "Q2_K"),
)
_FOLDERS: Final = {
    "W8A8 by row": "w8a8",
    "AWQ": "awq",
    "GPTQ": "gptq",
    "W4A16": "w4a16",
}


def write_file(place: Path, kind: str) -> Path:
    """The bundled model as a GGUF file, all its matrices in one type."""

    def encode(values: Any, quantisation: GGMLQuantizationType) -> Any:
        if values.ndim < 2 or kind not in ENCODERS:
            return encoded(values, quantisation)
        blocks = values.astype(np.float32).reshape(-1, BLOCK_SIZES.get(kind, 256))
        return ENCODERS[kind](blocks).reshape(len(values), -1)

    path = place / f"demo-{kind}.gguf"
    write_gguf(path, demo_model_path(), kind=kind, encode=encode)
    return path


def write_folder(
    place: Path, quantise: Callable[[Tensors], tuple[dict[str, Any], Tensors]]
) -> Path:
    """The bundled model as a folder, its linear layers quantised."""
    original = demo_model_path()
    folder = place / "demo"
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns("*.py", "*.safetensors"))
    tensors = load_file(original / "model.safetensors")
    stated, written = quantise(
        {name: values.astype(np.float32) for name, values in tensors.items()}
    )
    config = json.loads((original / "config.json").read_text(encoding="utf-8"))
    key = "quantization_config" if "quant_method" in stated else "quantization"
    text = json.dumps({**config, key: stated})
    (folder / "config.json").write_text(text, encoding="utf-8")
    save_file(
        {name: _tensor(values) for name, values in written.items()}, folder / "model.safetensors"
    )
    return folder


def _tensor(values: Any) -> torch.Tensor:
    values = np.ascontiguousarray(values)
    if values.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(values.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(values)


def _fp8(size: int, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Linear layers in fp8 with a scale for each `size` x `size` of them; 0 is one for all."""
    found: Tensors = {}
    for name, values in tensors.items():
        if not name.endswith("_proj.weight"):
            found[name] = values
            continue
        rows, columns = values.shape
        height, width = (size, size) if size else values.shape
        blocks = values.reshape(rows // height, height, columns // width, width)
        scales = np.abs(blocks).max((1, 3)) / _FP8_MOST
        numbers = (blocks / scales[:, None, :, None]).astype(ml_dtypes.float8_e4m3fn)
        found[name] = numbers.reshape(rows, columns)
        found[f"{name}_scale_inv"] = scales if size else scales.reshape(1)
    stated: dict[str, Any] = {"quant_method": "fp8"}
    return stated | ({"weight_block_size": [size, size]} if size else {}), found


def _mlx(bits: int, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Linear layers and the embedding in MLX's groups: steps from the least number to the most."""
    found: Tensors = {}
    for name, values in tensors.items():
        if not name.endswith(("_proj.weight", "embed_tokens.weight")):
            found[name] = values
            continue
        groups = values.reshape(len(values), -1, GROUP)
        biases = groups.min(2).astype(np.float16)
        scales = (np.ptp(groups, axis=2) / (2**bits - 1)).astype(np.float16)
        steps = (groups - biases[..., None]) / scales[..., None].astype(np.float32)
        octets = np.rint(steps).clip(0, 2**bits - 1).astype(np.uint8).reshape(values.shape)
        if bits == _HALF_AN_OCTET:
            octets = octets[:, ::2] | octets[:, 1::2] << _HALF_AN_OCTET
        module = name.removesuffix(".weight")
        found[name] = np.ascontiguousarray(octets).view(np.uint32)
        found |= {f"{module}.scales": scales, f"{module}.biases": biases}
    return {"bits": bits, "group_size": GROUP}, found


FORMATS: Final[dict[str, Callable[[Path], Path]]] = {
    **{kind: partial(write_file, kind=kind) for kind in _GGUF},
    **{
        name: partial(write_folder, quantise=partial(quantised, method=method, group=GROUP))
        for name, method in _FOLDERS.items()
    },
    **{
        name: partial(write_folder, quantise=partial(quantised_layers, method=name))
        for name in METHODS
    },
    "fp8, one scale a matrix": partial(write_folder, quantise=partial(_fp8, 0)),
    "fp8, blocks of 128 x 128": partial(write_folder, quantise=partial(_fp8, 128)),
    "MLX, 4 bits": partial(write_folder, quantise=partial(_mlx, 4)),
    "MLX, 8 bits": partial(write_folder, quantise=partial(_mlx, 8)),
}
"""By name what writes the bundled model to a folder."""


def measure(path: Path, dtype: str, backend: str, max_tokens: int) -> dict[str, Any]:
    """What `penstock quality` finds, beside the bundled model in float32 on XLA."""
    settings = ModelSettings(path=path, name="demo", dtype=dtype, backend=backend)
    text = read_text(BUNDLED_TEXT)
    return run(Job(settings, demo_model_path(), "float32", BUNDLED_TEXT, text, max_tokens))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; print a table."""
    parser = argparse.ArgumentParser(prog="tests.quality_table", description=__doc__)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--max-tokens", type=int, default=20_000, help="of the text")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.formats if name not in FORMATS]
    if unknown:
        parser.error(f"there is no format {unknown[0]!r}, but {', '.join(FORMATS)}")
    prepare_backend(None)
    print("| format | KL of the format | KL as served | 99th percentile | top-1 | served as |")
    print("|---|---|---|---|---|---|")
    for name in options.formats or FORMATS:
        with tempfile.TemporaryDirectory() as place:
            path = FORMATS[name](Path(place))
            lost = measure(path, "float32", "xla", options.max_tokens)
            served = measure(path, "auto", "auto", options.max_tokens)
        cells = [f"{lost['kl_divergence']:.2g}", f"{served['kl_divergence']:.2g}"]
        cells += [f"{served['kl_divergence_p99']:.2g}", f"{served['top_1_agreement']:.1%}"]
        print(f"| {name} | {' | '.join(cells)} | {served['weights']} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
