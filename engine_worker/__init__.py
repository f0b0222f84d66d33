"""The engine worker: scheduler, paged KV cache, models, sampling and tokenizer of one model.

From the ground up: `core`, `text` and `grammar` decide without jax, `compute` and `embedding`
compute, `loading` puts a model together, `serving` talks to gateways.
Others start it with `python -m engine_worker`; scripts use `LLM` (`python_api/llm.py`).
May import `protocol`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine_worker.python_api.llm import LLM
    from protocol.wire.messages import Grammar, SamplingParams

__all__ = ["LLM", "Grammar", "SamplingParams"]


def __getattr__(name: str) -> Any:
    # Imported when asked for (PEP 562): the worker process has heartbeats to send first.
    if name == "LLM":
        from engine_worker.python_api.llm import LLM

        return LLM
    if name in ("Grammar", "SamplingParams"):
        from protocol.wire import messages

        return getattr(messages, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
