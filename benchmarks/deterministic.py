"""What `--deterministic` costs and shares: tokens per second of the demo model, 1 and 8 streams.

python -m benchmarks.deterministic
"""

import statistics
import time

from engine_worker.python_api.llm import LLM
from protocol.wire.messages import SamplingParams

NUM_TOKENS = 64
NUM_PROMPT_TOKENS = 32
NUM_REPEATS = 3


def tokens_per_s(llm: LLM, num_streams: int) -> float:
    """Output tokens per second of all streams together, prefill included; median of repeats."""
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    prompts = [[5 + stream] * NUM_PROMPT_TOKENS for stream in range(num_streams)]
    rates = []
    for _ in range(NUM_REPEATS):
        started = time.perf_counter()
        outputs = llm.generate_token_ids(prompts, sampling)
        rates.append(sum(map(len, outputs)) / (time.perf_counter() - started))
    return statistics.median(rates)


def main() -> None:
    """Print the table."""
    print("| mode | 1 stream, tokens/s | 8 streams, tokens/s | ratio |\n|---|---|---|---|")
    for deterministic in (False, True):
        llm = LLM(deterministic=deterministic, compile_cache_dir=None)
        one, eight = tokens_per_s(llm, 1), tokens_per_s(llm, 8)
        name = "--deterministic" if deterministic else "default"
        print(f"| {name} | {one:.0f} | {eight:.0f} | {eight / one:.1f} |", flush=True)


if __name__ == "__main__":
    main()
