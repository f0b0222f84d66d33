"""What an engine's fingerprint is made of: all that decides what follows a prompt and an output.

Engines of one fingerprint go on with each other's streams, so whatever changes how text becomes
tokens, how tokens become text, or which numbers are computed belongs in here. How fast an engine is
and how much it holds does not.
"""

import json
import os
from collections.abc import Mapping

import jax
import jaxlib.version

from engine_worker.compute.weights.fingerprint import fingerprint
from engine_worker.config import ModelSettings
from engine_worker.text.tokenizer import Tokenizer


def model_fingerprint(
    settings: ModelSettings,
    tokenizer: Tokenizer,
    types: Mapping[str, str],
    environment: Mapping[str, str] = os.environ,
) -> str:
    """A name for the model as this engine serves it.

    The tokenizer counts as it was loaded, wherever its files lie, and so do its chat templates. In
    deterministic mode, where engines promise the same bits, what compiles the programs counts too;
    without it streams go on at engines of other devices, as near as two runs are to each other.

    Args:
        settings: Name the folder and the mode.
        tokenizer: As loaded.
        types: Of weights, cache and whatever else has one, by name.
        environment: Whose `XLA_FLAGS` count in deterministic mode.

    Raises:
        ModelLoadError: The checkpoint can't be opened.
    """
    parts = {
        **{f"type of {name}": value for name, value in types.items()},
        "tokenizer": tokenizer.serialized(),
        "eos_token_ids": json.dumps(sorted(tokenizer.eos_token_ids)),
        "special_tokens": json.dumps(tokenizer.special_tokens_map(), sort_keys=True, default=str),
        "chat_template": tokenizer.chat_template_source(has_tools=False) or "",
        "chat_template_with_tools": tokenizer.chat_template_source(has_tools=True) or "",
        "deterministic": str(settings.deterministic),
    }
    if settings.deterministic:
        device = jax.devices()[0]
        parts["compiler"] = f"jax {jax.__version__}, jaxlib {jaxlib.version.__version__}"
        parts["device"] = f"{device.platform} {device.device_kind}"
        parts["XLA_FLAGS"] = environment.get("XLA_FLAGS", "")
    return fingerprint(settings.path, parts, settings.lora, cache_dir=settings.weights_cache_dir)
