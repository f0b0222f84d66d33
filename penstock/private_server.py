"""What a server that a command starts for itself alone takes over from the shell's settings."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from penstock.config import ServeSettings
from protocol.runtime.child_environment import without_settings

KEPT: Final = frozenset(
    f"PENSTOCK_{name}"
    for name in (
        # How the model computes and where engines keep what they made.
        *("DTYPE", "BACKEND", "DETERMINISTIC", "KV_DTYPE", "KV_MEMORY", "BLOCK_SIZE"),
        *("MAX_MODEL_LEN", "MAX_NUM_SEQS", "MAX_NUM_BATCHED_TOKENS", "PREFIX_CACHE"),
        *("SPECULATION", "LORA"),
        *("COMPILE_CACHE_DIR", "WEIGHTS_CACHE_DIR", "POOLING", "RERANK_WORDING", "THREADS"),
        *("TOOL_FORMAT", "REASONING_FORMAT", "TOKENIZER_PATH", "SPECIAL_TOKENS_IN_TEXT"),
        # What a request may say, and what it means.
        *("MODEL_ALIASES", "MODEL_FALLBACKS", "THINKING_BUDGETS", "REQUEST_CHAT_TEMPLATES"),
        *("STRICT_FIELDS", "MAX_BODY_BYTES", "MAX_ANSWER_BYTES", "REQUEST_TIMEOUT_S"),
        # When a process counts as hung, and what is logged.
        *("STALL_TIMEOUT_S", "WORKER_DEAD_S", "DRAIN_TIMEOUT_S", "LOG_LEVEL", "LOG_FORMAT"),
    )
)
"""Everything else is of a deployment: its database, its keys, its address, who may call."""


def private_settings(
    settings: ServeSettings, data_dir: Path, given: Mapping[str, str]
) -> ServeSettings:
    """Settings of a server that only this command calls, and that ends with it.

    Every user of the machine reaches its port. So it asks for a key, the first admin key, which its
    auth worker writes into `data_dir`.

    Args:
        settings: Of the command.
        data_dir: Where it keeps what it has to; nobody else may look into it.
        given: Further settings of its processes.
    """
    return replace(
        settings,
        host="127.0.0.1",
        port=0,
        metrics_port=0,
        num_gateways=1,
        uds=None,
        tls_cert_file=None,
        tls_key_file=None,
        require_keys=True,
        data_dir=data_dir,
        child_environment={**without_settings(settings.child_environment, kept=KEPT), **given},
    )
