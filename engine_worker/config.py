"""The settings of an engine worker, read once at the start."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.demo import DEMO_MODEL_NAME, demo_model_path
from protocol.errors import ConfigurationError
from protocol.runtime import shared_settings as shared
from protocol.runtime.gguf_header import SUFFIX as GGUF_SUFFIX
from protocol.runtime.gguf_header import model_name
from protocol.runtime.settings import (
    choice,
    file_path,
    in_home,
    read_settings,
    setting,
    switch,
    whole_number,
)

DEFAULT_COMPILE_CACHE_DIR = Path("~/.cache/penstock/compile")
DEFAULT_WEIGHTS_CACHE_DIR = Path("~/.cache/penstock/weights")
DTYPES = shared.DTYPES
NO_POOLING = "none"
QWEN3_RERANKER = "qwen3-reranker"
_COMPILE_CACHE_DIR = file_path(
    "PENSTOCK_COMPILE_CACHE_DIR", DEFAULT_COMPILE_CACHE_DIR, meaning="folder of compiled programs"
)
_WEIGHTS_CACHE_DIR = file_path(
    "PENSTOCK_WEIGHTS_CACHE_DIR",
    DEFAULT_WEIGHTS_CACHE_DIR,
    meaning=(
        "folder of packed weights, as large as the model in its type; one file for each model and "
        "type"
    ),
)
_MAX_NUM_BATCHED_TOKENS = whole_number(
    "PENSTOCK_MAX_NUM_BATCHED_TOKENS",
    512,
    minimum=1,
    meaning=(
        "tokens of prompts in one step; each running answer has its next token beside them. Fewer "
        "make shorter pauses for those who read an answer while a long prompt is computed"
    ),
)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model to load, and how; `meaning` says what each field with a setting is.

    Attributes:
        path: `PENSTOCK_MODEL_PATH`, a folder in Hugging Face's layout or a GGUF file; the bundled
            demo model when unset.
        name: `PENSTOCK_MODEL_NAME`, the public name; the folder's or the file's when unset.
        compile_cache_dir: `PENSTOCK_COMPILE_CACHE_DIR`; None keeps no compiled programs.
        weights_cache_dir: `PENSTOCK_WEIGHTS_CACHE_DIR`; None keeps no packed weights.
    """

    path: Path
    name: str
    tokenizer_path: Path | None = setting(shared.TOKENIZER_PATH)
    lora: Path | None = setting(shared.LORA)
    max_model_len: int | None = setting(shared.MAX_MODEL_LEN)
    kv_memory_bytes: int | None = setting(shared.KV_MEMORY)
    block_size: int | None = setting(shared.BLOCK_SIZE)
    max_num_seqs: int | None = setting(shared.MAX_NUM_SEQS)
    max_num_batched_tokens: int = setting(_MAX_NUM_BATCHED_TOKENS)
    prefix_cache: bool = setting(
        switch(
            "PENSTOCK_PREFIX_CACHE",
            True,
            meaning=(
                "computed prompts and answers stay in free KV blocks for later requests of the "
                "same tenant with the same beginning; false shares a prompt only among the choices "
                "(`n`) of one request"
            ),
        )
    )
    speculation: SpeculationMode = setting(
        choice(
            "PENSTOCK_SPECULATION",
            SpeculationMode.AUTO,
            tuple(SpeculationMode),
            meaning=(
                "whether answers whose text repeats draft their next tokens from it (prompt "
                "lookup): `auto` where that makes more tokens a second, `always` is for tests. "
                "The tokens are the same as without"
            ),
        )
    )
    num_threads: int | None = setting(shared.THREADS)
    dtype: str = setting(shared.DTYPE)
    backend: str = setting(shared.BACKEND)
    kv_dtype: str = setting(shared.KV_DTYPE)
    deterministic: bool = setting(shared.DETERMINISTIC)
    compile_cache_dir: Path | None = setting(_COMPILE_CACHE_DIR, default=None)
    weights_cache_dir: Path | None = setting(_WEIGHTS_CACHE_DIR, default=None)
    tool_format: str | None = setting(shared.TOOL_FORMAT)
    reasoning_format: str | None = setting(shared.REASONING_FORMAT)
    special_tokens_in_text: bool = setting(
        switch(
            "PENSTOCK_SPECIAL_TOKENS_IN_TEXT",
            False,
            meaning=(
                "text in messages, tools and tool results of chats that spells a special token "
                "(`</s>`) becomes that token; false leaves it text, which can't forge the end of "
                "a message. Raw prompts may hold them"
            ),
        )
    )
    pooling: str = setting(
        choice(
            "PENSTOCK_POOLING",
            "auto",
            ("auto", NO_POOLING, "mean", "cls", "last", "max", "weightedmean", "mean_sqrt_len"),
            meaning=(
                "how token vectors become an embedding (`cls` is the first one); auto takes what "
                "the model folder says; of decoders whose folder says nothing the bundled model "
                "pools by `mean`, others make none"
            ),
        )
    )

    rerank_wording: str = setting(
        choice(
            "PENSTOCK_RERANK_WORDING",
            "auto",
            ("auto", "plain", QWEN3_RERANKER),
            meaning=(
                "the words in which a chat model is asked whether a document answers a query: "
                "the server's (`plain`) or those of Qwen3's rerankers; auto takes the latter for "
                "a Qwen3 model whose name or folder says `reranker`"
            ),
        )
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "ModelSettings":
        """The settings in a mapping such as `os.environ`.

        Raises:
            ConfigurationError: A bad value; the message names the setting.
        """
        place, name = shared.MODEL_PATH.read(environ), shared.MODEL_NAME.read(environ)
        if place is None:
            path, name = demo_model_path(), name or DEMO_MODEL_NAME
        else:
            path = in_home(Path(place), shared.MODEL_PATH.name).absolute()
        if not path.is_dir() and not (path.suffix == GGUF_SUFFIX and path.is_file()):
            raise ConfigurationError(
                f"PENSTOCK_MODEL_PATH: there is no folder (or {GGUF_SUFFIX} file) {path}. The"
                " engine loads local ones only; `penstock serve` downloads models by their name."
            )
        return read_settings(
            cls,
            environ,
            path=path,
            name=name or model_name(path),
            compile_cache_dir=_COMPILE_CACHE_DIR.read(environ),
            weights_cache_dir=_WEIGHTS_CACHE_DIR.read(environ),
        )


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine worker was told: the model and the compute side, and the process around."""

    model: ModelSettings
    key_dir: Path | None = setting(shared.KEY_DIR)
    drain_timeout_s: float = setting(shared.DRAIN_TIMEOUT_S)
    ready_file: Path | None = setting(shared.READY_FILE)
    log_level: str = setting(shared.LOG_LEVEL)
    profile_dir: Path = setting(
        file_path(
            "PENSTOCK_PROFILE_DIR",
            Path("~/.cache/penstock/profiles"),
            meaning=("where `penstock profile` has recordings written, on the engine's machine"),
        )
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "EngineSettings":
        """The settings in a mapping such as `os.environ`.

        Raises:
            ConfigurationError: A bad value; the message names the setting.
        """
        return read_settings(cls, environ, model=ModelSettings.from_env(environ))
