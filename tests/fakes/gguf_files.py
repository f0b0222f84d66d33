"""Writes GGUF files with `gguf`'s own writer, as llama.cpp's converter does, of model folders.

Names come from `gguf`'s table and changes from llama.cpp's converter; nothing of the reader that is
tested is used.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from gguf.constants import MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map
from safetensors.numpy import load_file
from tokenizers import Tokenizer as Backend

Tensor = npt.NDArray[Any]
Keys = Mapping[str, Any]
_ARCHITECTURES = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
_CONFIG_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "head_dim": "attention.key_length",
}
_CONFIG_KEYS |= {
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}
_CONFIG_KEYS |= {
    "sliding_window": "attention.sliding_window",
    "n_inner": "feed_forward_length",
    "n_embd": "embedding_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_positions": "context_length",
}
_CONFIG_NUMBERS = {
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "logit_scale": "logit_scale",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}


def reordered(values: Tensor, num_heads: int) -> Tensor:
    """Rows of queries or keys as llama.cpp's converter orders them (its `permute`)."""
    halves = values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def llama_tensors(tensors: Mapping[str, Tensor], config: Keys) -> Iterable[tuple[str, Tensor]]:
    """What the converter makes of Llama's tensors, still under Hugging Face's names."""
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for name, values in tensors.items():
        kind = name.split(".")[-2].removesuffix("_proj")
        yield name, reordered(values, heads[kind]) if kind in heads else values


def with_stacked_experts(
    tensors: Iterable[tuple[str, Tensor]],
) -> Iterable[tuple[str, Tensor]]:
    """Each kind of an expert's tensors of a layer in one, as the converter joins them."""
    stacks: dict[str, list[Tensor]] = {}
    for name, values in tensors:
        before, found, after = name.partition(".experts.")
        if not found:
            yield name, values
            continue
        stacks.setdefault(f"{before}.experts.{after.partition('.')[2]}", []).append(values)
    for name, parts in stacks.items():
        # As Mixtral's converter calls them; the others keep their names.
        yield (
            name.replace("model.layers", "layers").replace("block_sparse_moe", "feed_forward")
            if "block_sparse" in name
            else name,
            np.stack(parts),
        )


def mixtral_tensors(tensors: Mapping[str, Tensor], config: Keys) -> Iterable[tuple[str, Tensor]]:
    yield from with_stacked_experts(llama_tensors(tensors, config))


def moe_tensors(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    for name, values in with_stacked_experts(tensors.items()):
        yield name, values.reshape(-1) if "shared_expert_gate" in name else values


def deepseek_tensors(tensors: Mapping[str, Tensor], config: Keys) -> Iterable[tuple[str, Tensor]]:
    """Experts in stacks, and the latent's projection to keys and values as two for each head."""
    nope = config["qk_nope_head_dim"]
    for name, values in with_stacked_experts(renamed_corrections(tensors)):
        if not name.endswith("kv_b_proj.weight"):
            yield name, values
            continue
        heads = values.reshape(config["num_attention_heads"], -1, values.shape[-1])
        keys = np.ascontiguousarray(heads[:, :nope].swapaxes(1, 2))
        yield name.replace("kv_b_proj", "k_b_proj"), keys
        yield name.replace("kv_b_proj", "v_b_proj"), np.ascontiguousarray(heads[:, nope:])


def renamed_corrections(tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    for name, values in tensors.items():
        yield (
            name.replace("correction_bias", "correction.bias"),
            values.squeeze() if "correction_bias" in name else values,
        )


def grouped_moe_tensors(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    yield from with_stacked_experts(renamed_corrections(tensors))


def granite_moe_tensors(
    tensors: Mapping[str, Tensor], config: Keys
) -> Iterable[tuple[str, Tensor]]:
    for name, values in llama_tensors(tensors, config):
        if not name.endswith("input_linear.weight"):
            yield name, values
            continue
        for part, half in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
            stem = name.replace("block_sparse_moe.input_linear", f"mlp.experts.{part}_proj")
            yield stem, np.ascontiguousarray(half)


def lfm2_moe_tensors(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    for name, values in with_stacked_experts(lfm2_tensors(tensors, {})):
        if name.endswith("expert_bias"):
            yield f"{name}.bias", values
        else:
            yield (name.removeprefix("model.") if ".experts." in name else name), values


def lfm2_tensors(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    for name, values in tensors.items():
        yield name, values[:, 0] if name.endswith("conv.conv.weight") else values


def gemma_tensors(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    for name, values in tensors.items():
        yield name, values + 1 if name.endswith("norm.weight") else values


def gpt2_tensors(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    for name, values in tensors.items():
        is_conv = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        yield name, np.ascontiguousarray(values.T) if is_conv else values


def gpt_oss_tensors(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    for name, values in tensors.items():
        if name.endswith("sinks"):
            yield f"{name}.weight", values
        elif "experts" in name:
            kind = "bias" if name.endswith("_bias") else "weight"
            stem = name.removesuffix("_bias")
            turned = values if kind == "bias" else np.ascontiguousarray(values.swapaxes(-1, -2))
            if "gate_up" not in name:
                yield f"{stem}.{kind}", turned
                continue
            for part, first in (("gate_proj", 0), ("up_proj", 1)):
                half = turned[:, first::2]
                yield f"{stem.replace('gate_up_proj', part)}.{kind}", np.ascontiguousarray(half)
        else:
            yield name, values


def plain_tensors(tensors: Mapping[str, Tensor], _: Keys) -> Iterable[tuple[str, Tensor]]:
    yield from tensors.items()


def encoded(values: Tensor, kind: GGMLQuantizationType) -> Tensor:
    """Numbers in a type that `gguf` itself can write; vectors stay float32, as in llama.cpp."""
    values = values.astype(np.float32)
    if values.ndim < 2 or kind is GGMLQuantizationType.F32:
        return values
    written: Tensor = quants.quantize(values, kind)
    return written


def write_tensor(writer: GGUFWriter, name: str, raw: Tensor, kind: GGMLQuantizationType) -> None:
    plain = raw.dtype in (np.float32, np.float16)
    writer.add_tensor(name, raw, raw_dtype=None if plain else kind)


def hyperparameters(writer: GGUFWriter, arch: str, config: Keys) -> None:
    for name, key in _CONFIG_KEYS.items():
        if isinstance(config.get(name), int) and f"{arch}.{key}" not in writer.kv_data[0]:
            writer.add_uint32(f"{arch}.{key}", config[name])
    for name, key in _CONFIG_NUMBERS.items():
        if config.get(name) is not None and f"{arch}.{key}" not in writer.kv_data[0]:
            writer.add_float32(f"{arch}.{key}", config[name])


def write_gguf(
    path: Path,
    folder: Path,
    *,
    arch: str = "llama",
    kind: str = "F32",
    kinds: Mapping[str, str] | None = None,
    encode: Callable[[Tensor, GGMLQuantizationType], Tensor] = encoded,
    convert: Callable[[Mapping[str, Tensor], Keys], Iterable[tuple[str, Tensor]]] = llama_tensors,
    more: Callable[[GGUFWriter], None] = lambda _: None,
    max_tensors: int = 0,
) -> None:
    """Writes a model folder (config, one safetensors file, its tokenizer if any) as GGUF.

    Args:
        path: Of the file; with `max_tensors` the stem of several.
        folder: Holds the model.
        arch: llama.cpp's name of the architecture.
        kind: Type of the matrices.
        kinds: Of those with a part in their names, in place of `kind`.
        encode: Makes a tensor's blocks.
        convert: What the converter does to tensors.
        more: Adds keys and tensors.
        max_tensors: Of one file.
    """
    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(path, arch, split_max_tensors=max_tensors)
    # Those that a family writes in another way go before the usual ones.
    more(writer)
    hyperparameters(writer, arch, config)
    add_tokenizer(writer, folder)
    num_layers = writer.kv_data[0][f"{arch}.block_count"].value
    names = get_tensor_name_map(_ARCHITECTURES[arch], num_layers)
    for hf_name, values in convert(_widened(folder), config):
        is_named = hf_name.startswith("blk.")
        name = hf_name if is_named else names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        assert name is not None, hf_name
        own = (other for part, other in (kinds or {}).items() if part in name)
        quantisation = GGMLQuantizationType[next(own, kind)]
        write_tensor(writer, name, encode(values, quantisation), quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _widened(folder: Path) -> dict[str, Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return {
        name: values.astype(np.float32) if values.dtype == ml_dtypes.bfloat16 else values
        for name, values in tensors.items()
    }


def add_tokenizer(writer: GGUFWriter, folder: Path) -> None:
    """The whole `tokenizer.json`, and the lists of tokens and types."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    config = json.loads((folder / "tokenizer_config.json").read_text())
    backend = Backend.from_file(str(path))
    writer.add_string("tokenizer.huggingface.json", path.read_text(encoding="utf-8"))
    writer.add_tokenizer_model("gpt2")
    add_vocabulary(writer, backend)
    for role in ("bos", "eos", "pad"):
        text = config.get(f"{role}_token")
        if text is not None:
            writer.add_uint32(f"tokenizer.ggml.{role}_token_id", backend.token_to_id(text))
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def add_vocabulary(writer: GGUFWriter, backend: Backend) -> None:
    """Tokens, their types, and merges, as the converter lists those of a `tokenizer.json`."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
    by_id = {index: text for text, index in vocabulary.items()}
    tokens, types = [], []
    for index in range(max(by_id) + 1):
        if index not in by_id:
            tokens.append(f"[PAD{index}]")
            types.append(TokenType.UNUSED)
        elif index in added:
            tokens.append(by_id[index])
            types.append(TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED)
        else:
            tokens.append(by_id[index])
            types.append(TokenType.NORMAL)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    state = json.loads(backend.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["merges"]]
    writer.add_token_merges(merges)


def add_word_pieces(writer: GGUFWriter, backend: Backend, *, is_old: bool = False) -> None:
    """BERT's vocabulary as the converter lists it: words begin with a visible space.

    Args:
        writer: Of the file.
        backend: Its model is WordPiece.
        is_old: As older files have it, which say of no token that it is a control token.
    """
    added = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    tokens, types = [], []
    for text, index in sorted(vocabulary.items(), key=lambda item: item[1]):
        is_control = index in added and added[index].special
        is_whole = (text[:1] + text[-1:] == "[]") if is_old else is_control
        spelt = text[2:] if text.startswith("##") else f"\N{LOWER ONE EIGHTH BLOCK}{text}"
        tokens.append(text if is_whole else spelt)
        if is_old or index not in added:
            types.append(TokenType.NORMAL)
        else:
            types.append(TokenType.CONTROL if is_control else TokenType.USER_DEFINED)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for key, text in (("cls", "[CLS]"), ("seperator", "[SEP]"), ("unknown", "[UNK]")):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", vocabulary[text])
