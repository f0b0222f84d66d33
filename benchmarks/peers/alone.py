"""An engine without a server, driven by lines of JSON; runs in the environment of its peer.

    python alone.py transformers FOLDER bfloat16
    python alone.py openvino FOLDER int8

It says `{"ready": true}`, then answers each `{"prompts": [[...]], "num_new_tokens": 128}` with the
seconds from the call to its end. Nothing of a server is in them: no HTTP, no scheduling of requests
that come one by one, no text.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Generate = Callable[[Sequence[Sequence[int]], int], None]


def transformers_engine(folder: str, dtype: str) -> Generate:
    """Transformers' `generate` with torch."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def generate(prompts: Sequence[Sequence[int]], num_new_tokens: int) -> None:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_new_tokens,
                min_new_tokens=num_new_tokens,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )

    return generate


def openvino_engine(folder: str, dtype: str) -> Generate:
    """OpenVINO GenAI's pipeline with continuous batching; `folder` was exported before."""
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1
    scheduler.max_num_seqs = 64
    scheduler.enable_prefix_caching = False
    precision = {"INFERENCE_PRECISION_HINT": "bf16"} if dtype == "bfloat16" else {}
    pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", precision)

    def generate(prompts: Sequence[Sequence[int]], num_new_tokens: int) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = num_new_tokens
        config.ignore_eos, config.do_sample = True, False
        # It puts what the tokenizer has none of, -1, among the tokens to stop at, and refuses that.
        config.set_eos_token_id(0)
        ids = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        outputs = pipeline.generate(ids, [config] * len(ids))
        for output in outputs:
            made = len(output.m_generation_ids[0])
            assert made == num_new_tokens, f"{made} tokens, not {num_new_tokens}"

    return generate


def main() -> None:
    """Answers until its input ends."""
    name, folder, dtype = sys.argv[1:]
    make = {"transformers": transformers_engine, "openvino": openvino_engine}[name]
    # Libraries print what they like to; answers go where nothing else does.
    answers, sys.stdout = sys.stdout, sys.stderr
    generate = make(folder, dtype)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    answer({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        started = time.perf_counter()
        generate(question["prompts"], question["num_new_tokens"])
        answer({"seconds": time.perf_counter() - started})


if __name__ == "__main__":
    main()
