"""What the recurrent layers of a model keep of a request, told from its config alone.

However long a text is, such a layer keeps one state of it. The engine's cache holds a state beside
each block of tokens, so that requests may begin with what others began with, and a few for each
request that runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

STATE_VALUES: Final = "state_values"
"""In what stands for a `config.json`: numbers of one state of all recurrent layers."""
CONVOLUTION, LINEAR, MAMBA = "conv", "linear_attention", "mamba"
_RECURRENT: Final = (CONVOLUTION, LINEAR, MAMBA)
_ITEM_BYTES: Final = 4
"""States are float32, whatever keys and values are."""
_DEFAULT_BLOCK_SIZE, _MAX_BLOCK_SIZE = 32, 256
_MAX_STATE_SHARE: Final = 3
"""How many times the memory of a block's keys and values a state may take, before blocks grow."""
_MAX_DRAFT_TOKENS: Final = 15
_DRAFTS_BYTES: Final = 32 * 2**20
"""What the states for draft tokens may take of a request, where there are several."""
_SIDE_BY_SIDE: Final = ("falcon_h1",)
"""Model types whose every layer has both attention and a state, whatever it is called."""
_DELTA_NETS: Final = ("qwen3_next", "qwen3_5", "olmo_hybrid")
"""What their model types begin with."""
OLMO_HYBRID: Final = "olmo_hybrid"
_DEFAULT_INNER: Final = {"falcon_h1": 1024}
"""Width of the values by model type, where nothing is said of it."""


@dataclass(frozen=True, slots=True)
class CacheChoice:
    """What the engine is told of its cache.

    Attributes:
        block_size: Tokens of a block; None leaves it to the engine.
        num_requests: That run at once.
    """

    block_size: int | None = None
    num_requests: int = 1


UNTOLD: Final = CacheChoice()
"""The least that serves."""


def states_bytes(
    config: Mapping[str, Any],
    kinds: Sequence[str],
    num_tokens: int,
    token_bytes: int,
    choice: CacheChoice,
) -> int:
    """What all states take beside the keys and values of one request.

    Args:
        config: Of the text model.
        kinds: What each layer is.
        num_tokens: Of the request.
        token_bytes: Of the keys and values of one token in all layers.
        choice: What the engine is told.
    """
    state_bytes = state_values(config, kinds) * _ITEM_BYTES
    if state_bytes <= 0:
        return 0
    block_size = choice.block_size or _block_size(state_bytes, token_bytes)
    # One more is for padding, of blocks as well as of requests.
    num_blocks = -(-num_tokens // block_size) + 1
    drafts = min(_MAX_DRAFT_TOKENS, max(1, _DRAFTS_BYTES // state_bytes))
    return (num_blocks + (choice.num_requests + 1) * (2 + drafts)) * state_bytes


def _block_size(state_bytes: int, token_bytes: int) -> int:
    block_size = _DEFAULT_BLOCK_SIZE
    while (
        block_size < _MAX_BLOCK_SIZE and state_bytes > _MAX_STATE_SHARE * block_size * token_bytes
    ):
        block_size *= 2
    return block_size


def state_values(config: Mapping[str, Any], kinds: Sequence[str]) -> int:
    """Numbers of one state of all recurrent layers; 0 where there are none."""
    if STATE_VALUES in config:
        return int(config[STATE_VALUES])
    if config.get("model_type") in _SIDE_BY_SIDE:
        return len(kinds) * _mamba_values(config)
    found = [kind for kind in kinds if kind in _RECURRENT]
    return len(found) * _values_of_layer(config, found[0]) if found else 0


def _values_of_layer(config: Mapping[str, Any], kind: str) -> int:
    if kind == CONVOLUTION:
        return (_size(config, "conv_L_cache", 3) - 1) * _size(config, "hidden_size", 0)
    if has_delta_nets(config):
        return _delta_net_values(config, is_olmo=config.get("model_type") == OLMO_HYBRID)
    return _mamba_values(config)


def has_delta_nets(config: Mapping[str, Any]) -> bool:
    """Whether the layers that don't attend are gated delta nets."""
    is_such = str(config.get("model_type")).startswith(_DELTA_NETS)
    return is_such or bool(config.get("linear_num_key_heads"))


def recurrent_values(kernel_size: int, inner: int, shared: int, state_size: int) -> int:
    """Numbers of one state of a delta net or of Mamba-2: a convolution's inputs, and matrices.

    Args:
        kernel_size: Tokens that the convolution sees, the newest one included.
        inner: Width of all values.
        shared: Width of queries or keys, or of what writes to states or reads them.
        state_size: Numbers for each value.
    """
    return (kernel_size - 1) * (inner + 2 * shared) + inner * state_size


def _delta_net_values(config: Mapping[str, Any], *, is_olmo: bool) -> int:
    num_keys, num_values, key_dim, value_dim = 16, 32, 128, 128
    if is_olmo:
        num_keys = num_values = _size(config, "num_attention_heads", 1)
    num_keys = _size(config, "linear_num_key_heads", num_keys)
    if is_olmo:
        key_dim = 3 * _size(config, "hidden_size", 0) // (4 * num_keys)
    key_dim = _size(config, "linear_key_head_dim", key_dim)
    if is_olmo:
        value_dim = 2 * key_dim
    values = _size(config, "linear_num_value_heads", num_values) * _size(
        config, "linear_value_head_dim", value_dim
    )
    kernel_size = _size(config, "linear_conv_kernel_dim", 4)
    return recurrent_values(kernel_size, values, num_keys * key_dim, key_dim)


def _mamba_values(config: Mapping[str, Any]) -> int:
    if "mamba_num_heads" in config or "ssm_state_size" in config:
        # As Nemotron's configs spell it.
        state_size = _size(config, "ssm_state_size", 128)
        inner = _size(config, "mamba_num_heads", 128) * _size(config, "mamba_head_dim", 64)
        num_groups = _size(config, "mamba_n_groups", _size(config, "n_groups", 8))
        kernel_size = _size(config, "mamba_d_conv", _size(config, "conv_kernel", 4))
    else:
        state_size = _size(config, "mamba_d_state", 256)
        default = _size(config, "mamba_expand", 2) * _size(config, "hidden_size", 0)
        if "mamba_d_ssm" not in config:
            default = _DEFAULT_INNER.get(str(config.get("model_type")), default)
        inner = _size(config, "mamba_d_ssm", default)
        num_groups = _size(config, "mamba_n_groups", 1)
        kernel_size = _size(config, "mamba_d_conv", 4)
    return recurrent_values(kernel_size, inner, num_groups * state_size, state_size)


def _size(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name)
    return max(1, int(value)) if value is not None else default
