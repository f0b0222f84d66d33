"""Writes `golden/`: adapters of a small Llama by PEFT, and the weights that PEFT merges them into.

Not part of the tests, which need only the files. In an environment with torch for CPUs:

    pip install peft==0.21.2
    python -m tests.unit.engine_worker.compute.weights.lora.write_golden
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model  # type: ignore[import-not-found, unused-ignore]
from safetensors.torch import save_file

GOLDEN = Path(__file__).parent / "golden"
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"]},
    "rank_stabilised_with_patterns": {
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": True,
        "target_modules": "all-linear",
        "rank_pattern": {"down_proj": 5},
        "alpha_pattern": {"down_proj": 7, "layers.1.mlp.up_proj": 9},
    },
    "dora": {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["v_proj", "o_proj"]},
    "embedding_and_head": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["embed_tokens", "k_proj"],
        "modules_to_save": ["lm_head"],
    },
}


def main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for name, adapter in ADAPTERS.items():
        torch.manual_seed(5)
        config = transformers.LlamaConfig(tie_word_embeddings=False, **SIZES)
        model = transformers.LlamaForCausalLM(config).eval()
        model.save_pretrained(GOLDEN / "base")
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **adapter))
        with torch.no_grad():
            for parameter_name, parameter in adapted.named_parameters():
                if "lora_" in parameter_name or "modules_to_save" in parameter_name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        adapted.save_pretrained(GOLDEN / name)
        merged = adapted.merge_and_unload().state_dict()
        save_file(
            {n: v.contiguous() for n, v in merged.items()}, GOLDEN / name / "merged.safetensors"
        )
        (GOLDEN / name / "README.md").unlink(missing_ok=True)
    config_file = GOLDEN / "base" / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()), indent=1) + "\n")


if __name__ == "__main__":
    main()
