"""Tokens per second of streams that come the moment an engine is ready, nothing compiled before.

    python -m benchmarks.after_start --streams 8 --seconds 25

Each stream that ends is followed by another one. The bundled model, without a compile cache: what
is compiled behind the start competes with the streams.
"""

import argparse
import dataclasses
import time

from engine_worker.config import ModelSettings
from engine_worker.core.engine import Engine
from engine_worker.loading.decoder import load_model
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import Generate, SamplingParams

_WINDOW_S = 5
_MAX_TOKENS = 100


class Streams:
    """Keeps so many streams under way and counts their tokens."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, num_streams: int) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._num_begun = 0
        for _ in range(num_streams):
            self._begin()

    def step(self) -> int:
        """One step; how many tokens came of it."""
        told = self._engine.step().get("g")
        if told is None:
            return 0
        for _ in told.ends:
            self._begin()
        return sum(len(delta.token_ids) for delta in told.deltas)

    def _begin(self) -> None:
        self._num_begun += 1
        text = f"Tell me story {self._num_begun} about a river and a stone."
        self._engine.add(
            "g",
            Generate(
                request_id=str(self._num_begun),
                choice=0,
                attempt=0,
                prompt_token_ids=tuple(self._tokenizer.encode(text, add_special_tokens=False)),
                sampling=SamplingParams(
                    temperature=0.8, seed=self._num_begun, max_tokens=_MAX_TOKENS, ignore_eos=True
                ),
                lease_tokens=_MAX_TOKENS,
                deadline_s=1e6,
                want_token_ids=True,
            ),
        )


def main() -> None:
    """Print tokens per second in windows of five seconds, and their mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=25)
    options = parser.parse_args()
    settings = dataclasses.replace(
        ModelSettings.from_env({"PENSTOCK_KV_MEMORY": "256MiB"}), compile_cache_dir=None
    )
    served = load_model(settings, lambda phase, fraction, detail: None, compiler_yields=True)
    streams = Streams(served.engine, served.tokenizer, options.streams)
    counts = [0] * -(-options.seconds // _WINDOW_S)
    started = time.monotonic()
    while True:
        num_tokens = streams.step()
        elapsed_s = time.monotonic() - started
        if elapsed_s >= options.seconds:
            break
        counts[int(elapsed_s / _WINDOW_S)] += num_tokens
    print(f"{options.streams} streams, tokens/s by {_WINDOW_S} s:", end=" ")
    print(*(round(count / _WINDOW_S) for count in counts), end="")
    print(f"; mean {sum(counts) / options.seconds:.0f}")
    served.engine.close()


if __name__ == "__main__":
    main()
