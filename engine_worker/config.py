"""The settings of an engine worker, read once at the start."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.demo import DEMO_MODEL_NAME, demo_model_path
from protocol.errors import ConfigurationError
from protocol.runtime.settings import SettingsReader
from protocol.wire.readiness import READY_FILE_SETTING

DEFAULT_COMPILE_CACHE_DIR = Path("~/.cache/penstock/compile")
DEFAULT_PROFILE_DIR = Path("~/.cache/penstock/profiles")
DTYPES = ("auto", "float32", "bfloat16")
NO_POOLING = "none"
POOLING_CHOICES = ("auto", NO_POOLING, "mean", "cls", "last")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model to load, and how.

    Attributes:
        path: `PENSTOCK_MODEL_PATH` (or `MODEL_PATH`), a folder in Hugging Face's layout; the
            bundled demo model when unset.
        name: `PENSTOCK_MODEL_NAME` (or `MODEL_NAME`), the public name; the folder's when unset.
        tokenizer_path: `PENSTOCK_TOKENIZER_PATH` (or `TOKENIZER_PATH`); `path` when unset.
        max_model_len: `PENSTOCK_MAX_MODEL_LEN`, prompt and output together, tokens; when unset
            what the model was made for and the KV memory holds.
        kv_memory_bytes: `PENSTOCK_KV_MEMORY`, such as 2GiB; a share of what is free when unset.
        block_size: `PENSTOCK_BLOCK_SIZE`, tokens a KV block.
        max_num_seqs: `PENSTOCK_MAX_NUM_SEQS`, requests that run at a time.
        max_num_batched_tokens: `PENSTOCK_MAX_NUM_BATCHED_TOKENS`, tokens of one step.
        prefix_cache: `PENSTOCK_PREFIX_CACHE`, whether computed prompts are kept for the next
            request of the same tenant.
        speculation: `PENSTOCK_SPECULATION`, whether requests guess their next tokens.
        dtype: `PENSTOCK_DTYPE`, of the weights.
        deterministic: `PENSTOCK_DETERMINISTIC`, equal bits whatever runs beside a request.
        compile_cache_dir: `PENSTOCK_COMPILE_CACHE_DIR`, where compiled programs are kept.
        tool_format: `PENSTOCK_TOOL_FORMAT`, instead of what the chat template shows; or none.
        reasoning_format: `PENSTOCK_REASONING_FORMAT`, likewise.
        pooling: `PENSTOCK_POOLING`, how token vectors become an embedding; auto takes what the
            folder says, and a decoder whose folder says nothing makes none.
    """

    path: Path
    name: str
    tokenizer_path: Path | None = None
    max_model_len: int | None = None
    kv_memory_bytes: int | None = None
    block_size: int = 32
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    prefix_cache: bool = True
    speculation: SpeculationMode = SpeculationMode.AUTO
    dtype: str = "auto"
    deterministic: bool = False
    compile_cache_dir: Path | None = None
    tool_format: str | None = None
    reasoning_format: str | None = None
    pooling: str = "auto"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine worker was told.

    Attributes:
        model: The model and the compute side.
        key_dir: `PENSTOCK_KEY_DIR`, the folder with the CURVE keys; None without encryption.
        drain_timeout_s: `PENSTOCK_DRAIN_TIMEOUT_S`, how long running requests may go on at the end.
        log_level: `PENSTOCK_LOG_LEVEL`.
        profile_dir: `PENSTOCK_PROFILE_DIR`, where recordings of the engine's work go.
        ready_file: `PENSTOCK_READY_FILE`, there while a gateway gives this engine work.
    """

    model: ModelSettings
    key_dir: Path | None = None
    drain_timeout_s: float = 30.0
    log_level: str = "info"
    profile_dir: Path = DEFAULT_PROFILE_DIR
    ready_file: Path | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "EngineSettings":
        """The settings in a mapping such as `os.environ`.

        Raises:
            ConfigurationError: A bad value; the message names the setting.
        """
        reader = SettingsReader(environ)
        return cls(
            model=_model_settings(reader),
            key_dir=reader.path("PENSTOCK_KEY_DIR"),
            drain_timeout_s=reader.float("PENSTOCK_DRAIN_TIMEOUT_S", 30.0, minimum=0.0),
            log_level=reader.choice("PENSTOCK_LOG_LEVEL", "info", LOG_LEVELS),
            profile_dir=reader.path("PENSTOCK_PROFILE_DIR", DEFAULT_PROFILE_DIR).expanduser(),
            ready_file=reader.path(READY_FILE_SETTING),
        )


def _model_settings(reader: SettingsReader) -> ModelSettings:
    path = reader.path("PENSTOCK_MODEL_PATH", aliases=("MODEL_PATH",))
    name = reader.str("PENSTOCK_MODEL_NAME", aliases=("MODEL_NAME",))
    if path is None:
        path, name = demo_model_path(), name or DEMO_MODEL_NAME
    path = path.absolute()
    if not path.is_dir():
        raise ConfigurationError(
            f"PENSTOCK_MODEL_PATH: there is no folder {path}. The engine loads local folders only;"
            " `penstock serve` downloads models by their name."
        )
    max_num_seqs = reader.int("PENSTOCK_MAX_NUM_SEQS", 32, minimum=1, maximum=256)
    max_num_batched_tokens = reader.int("PENSTOCK_MAX_NUM_BATCHED_TOKENS", 512, minimum=1)
    if max_num_batched_tokens < max_num_seqs:
        raise ConfigurationError(
            f"PENSTOCK_MAX_NUM_BATCHED_TOKENS ({max_num_batched_tokens}) must be at least"
            f" PENSTOCK_MAX_NUM_SEQS ({max_num_seqs}), one token for each running request."
        )
    cache_dir = reader.path("PENSTOCK_COMPILE_CACHE_DIR", DEFAULT_COMPILE_CACHE_DIR)
    return ModelSettings(
        path=path,
        name=name or path.name,
        tokenizer_path=reader.path("PENSTOCK_TOKENIZER_PATH", aliases=("TOKENIZER_PATH",)),
        max_model_len=reader.int("PENSTOCK_MAX_MODEL_LEN", minimum=2),
        kv_memory_bytes=reader.size_bytes("PENSTOCK_KV_MEMORY", minimum=1),
        block_size=reader.int("PENSTOCK_BLOCK_SIZE", 32, minimum=1, maximum=1024),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        prefix_cache=reader.bool("PENSTOCK_PREFIX_CACHE", True),
        speculation=SpeculationMode(
            reader.choice("PENSTOCK_SPECULATION", "auto", tuple(SpeculationMode))
        ),
        dtype=reader.choice("PENSTOCK_DTYPE", "auto", DTYPES),
        deterministic=reader.bool("PENSTOCK_DETERMINISTIC", False),
        compile_cache_dir=cache_dir.expanduser(),
        tool_format=reader.str("PENSTOCK_TOOL_FORMAT"),
        reasoning_format=reader.str("PENSTOCK_REASONING_FORMAT"),
        pooling=reader.choice("PENSTOCK_POOLING", "auto", POOLING_CHOICES),
    )
