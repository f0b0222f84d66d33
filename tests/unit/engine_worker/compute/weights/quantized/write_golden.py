"""Writes `golden/`: small checkpoints by the quantisers' own libraries, and what these read back.

Not part of the tests, which need only the files. In an environment with torch for CPUs:

    pip install compressed-tensors==0.20.1 bitsandbytes==0.50.2 gptqmodel==7.7.0
    python -m tests.unit.engine_worker.compute.weights.quantized.write_golden
"""

import json
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb  # type: ignore[import-not-found, import-untyped, unused-ignore]
import torch
from compressed_tensors.compressors import (  # type: ignore[import-not-found, unused-ignore]
    BaseCompressor,
)
from compressed_tensors.quantization import (  # type: ignore[import-not-found, unused-ignore]
    QuantizationArgs,
    QuantizationScheme,
)
from compressed_tensors.quantization.utils import (  # type: ignore[import-not-found, unused-ignore]
    calculate_qparams,
)
from gptqmodel.nn_modules.qlinear.torch import (  # type: ignore[import-not-found, unused-ignore]
    TorchLinear,
)
from gptqmodel.nn_modules.qlinear.torch_awq import (  # type: ignore[import-not-found, unused-ignore]
    AwqTorchLinear,
)
from gptqmodel.quantization.config import (  # type: ignore[import-not-found, unused-ignore]
    QuantizeConfig,
)
from gptqmodel.utils.model import (  # type: ignore[import-not-found, unused-ignore]
    convert_gptq_v2_to_v1_format_module,
)
from safetensors.torch import save_file

GOLDEN = Path(__file__).parent / "golden"
NAME = "model.layers.0.mlp.down_proj"
SHAPE = (64, 128)
# Of whole blocks: on a CPU, bitsandbytes 0.50 reads others back wrong.


def weight() -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    values = torch.randn(SHAPE, generator=generator) * torch.linspace(0.1, 2.0, SHAPE[0])[:, None]
    return values + 0.2


def write(
    name: str, config: dict[str, Any], tensors: dict[str, torch.Tensor], read_back: torch.Tensor
) -> None:
    folder = GOLDEN / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    stored = {f"{NAME}.{part}": values.contiguous() for part, values in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    save_file({"weight": read_back.float().contiguous()}, folder / "read_back.safetensors")


def compressed(name: str, form: str, **arguments: Any) -> None:
    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    values = weight()
    outputs, inputs = SHAPE
    overall = None
    if args.strategy == "block":
        rows, columns = args.block_structure
        parts = values.reshape(outputs // rows, rows, inputs // columns, columns)
        lowest, highest = parts.amin((1, 3)), parts.amax((1, 3))
    elif args.strategy == "tensor":
        lowest, highest = values.min().reshape(1), values.max().reshape(1)
    else:
        size = args.group_size if args.group_size and args.group_size > 0 else inputs
        parts = values.reshape(outputs, inputs // size, size)
        lowest, highest = parts.amin(-1), parts.amax(-1)
    if args.strategy == "tensor_group":
        overall = (448.0 * 6.0 / values.abs().max()).reshape(1)
    scale, zero_point = calculate_qparams(lowest, highest, args, global_scale=overall)
    state = {"weight": values, "weight_scale": scale, "weight_zero_point": zero_point}
    if overall is not None:
        state["weight_global_scale"] = overall
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
    }
    write(name, config, stored, compressor.decompress(stored, scheme)["weight"])


def bits_and_bytes(kind: str, *, nested: bool) -> None:
    values = weight()
    packed, state = bnb.quantize_4bit(
        values, blocksize=64, compress_statistics=nested, quant_type=kind
    )
    parts = {f"weight.{part}": value for part, value in state.as_dict(packed=True).items()}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    write(
        f"bitsandbytes_{kind}{'_nested' if nested else ''}",
        config,
        {"weight": packed} | parts,
        bnb.dequantize_4bit(packed, state),
    )


def gptq(name: str, *, bits: int, symmetric: bool, act_order: bool) -> None:
    """By GPTQModel's own packing, in the form that it saves: zeros less one."""
    values, group_size = weight(), 32
    outputs, inputs = SHAPE
    groups = torch.arange(inputs) // group_size
    if act_order:
        groups = groups[torch.randperm(inputs, generator=torch.Generator().manual_seed(3))]
    largest = 2**bits - 1
    columns = [values[:, groups == group] for group in range(inputs // group_size)]
    lowest = torch.stack([part.amin(1).clamp(max=0) for part in columns], 1)
    highest = torch.stack([part.amax(1).clamp(min=0) for part in columns], 1)
    if symmetric:
        highest = torch.maximum(highest, -lowest)
        lowest = -highest
    scales = ((highest - lowest) / largest).half().float()
    zeros = torch.round(-lowest / scales)
    if symmetric:
        zeros = torch.full_like(zeros, (largest + 1) // 2)
    linear = torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.float32)
    linear.weight.data = values
    module = TorchLinear(
        bits=bits,
        group_size=group_size,
        sym=symmetric,
        desc_act=act_order,
        in_features=inputs,
        out_features=outputs,
        bias=False,
        pack_dtype=torch.int32,
        register_buffers=True,
    )
    module.pack_original(linear, scales, zeros, groups.to(torch.int32))
    module.post_init()
    module.dequant_dtype = torch.int16
    read_back = module.dequantize_weight().T
    convert_gptq_v2_to_v1_format_module(
        module, QuantizeConfig(bits=bits, group_size=group_size, sym=symmetric)
    )
    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": symmetric}
    config |= {"desc_act": act_order, "checkpoint_format": "gptq"}
    parts = ("qweight", "qzeros", "scales", "g_idx")
    stored = {part: getattr(module, part).detach() for part in parts}
    write(name, config, stored, read_back)


def awq(name: str, group_size: int) -> None:
    """By GPTQModel's own packing, as AutoAWQ's GEMM has it."""
    values = weight()
    outputs, inputs = SHAPE
    groups = values.reshape(outputs, inputs // group_size, group_size)
    lowest, highest = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((highest - lowest) / 15).half().float()
    zeros = torch.round(-lowest / scales).clamp(0, 15)
    # Packing rounds and doesn't clamp: numbers beyond a group's ends are moved to them.
    steps = torch.round(groups / scales[..., None]) + zeros[..., None]
    rounded = (steps.clamp(0, 15) - zeros[..., None]) * scales[..., None]
    linear = torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.float32)
    linear.weight.data = rounded.reshape(SHAPE)
    module = AwqTorchLinear(
        bits=4,
        group_size=group_size,
        sym=False,
        desc_act=False,
        in_features=inputs,
        out_features=outputs,
        register_buffers=True,
    )
    module.pack(linear, scales.half(), zeros)
    read_back = module._dequantize_weight_for_inference(torch.zeros(1), dtype=torch.float16).T
    config = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True}
    config |= {"version": "gemm"}
    stored = {part: getattr(module, part).detach() for part in ("qweight", "qzeros", "scales")}
    write(name, config, stored, read_back)


def main() -> None:
    awq("awq_4_bits", 32)
    awq("awq_4_bits_groups_of_64", 64)
    gptq("gptq_4_bits", bits=4, symmetric=True, act_order=False)
    gptq("gptq_4_bits_act_order", bits=4, symmetric=False, act_order=True)
    gptq("gptq_8_bits", bits=8, symmetric=True, act_order=False)
    gptq("gptq_3_bits", bits=3, symmetric=False, act_order=False)
    gptq("gptq_2_bits_act_order", bits=2, symmetric=False, act_order=True)
    group = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    compressed("pack_4_bits", "pack-quantized", symmetric=True, **group)
    compressed("pack_4_bits_zero_points", "pack-quantized", symmetric=False, **group)
    channel = {"type": "int", "strategy": "channel"}
    compressed("pack_8_bits", "pack-quantized", symmetric=False, num_bits=8, **channel)
    compressed("pack_2_bits", "pack-quantized", symmetric=True, num_bits=2, **channel)
    compressed("int8_by_row", "int-quantized", symmetric=True, num_bits=8, **channel)
    compressed("int8_zero_points", "naive-quantized", symmetric=False, num_bits=8, **channel)
    eight = {"num_bits": 8, "type": "float", "symmetric": True}
    compressed("fp8_by_row", "float-quantized", strategy="channel", **eight)
    compressed("fp8_whole", "float-quantized", strategy="tensor", **eight)
    block = {"strategy": "block", "block_structure": [16, 32]}
    compressed("fp8_blocks", "naive-quantized", **block, **eight)
    four = {"num_bits": 4, "type": "float", "symmetric": True}
    nvfp4 = {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}
    compressed("nvfp4", "nvfp4-pack-quantized", **nvfp4, **four)
    mxfp4 = {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    compressed("mxfp4", "mxfp4-pack-quantized", **mxfp4, **four)
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            bits_and_bytes(kind, nested=nested)
    values, scales, _ = bnb.int8_vectorwise_quant(weight().half())
    write(
        "bitsandbytes_int8",
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"weight": values, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)},
        bnb.int8_vectorwise_dequant(values, scales),
    )


if __name__ == "__main__":
    main()
