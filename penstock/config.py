"""The settings of `penstock serve`: command line over environment over file over default."""

import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from penstock.errors import UsageError
from penstock.gguf_source import HUB_PREFIX
from protocol.errors import ConfigurationError
from protocol.runtime import shared_settings as shared
from protocol.runtime.gguf_header import model_name
from protocol.runtime.settings import (
    Setting,
    declared_fields,
    file_path,
    fill_settings,
    setting,
    switch,
    text,
    whole_number,
)
from protocol.wire.endpoints import is_loopback

ValueT = TypeVar("ValueT")

DEMO_MODEL = "penstock-demo"
"""The name of the bundled model, served when no model is named."""

CONFIG = file_path(
    "PENSTOCK_CONFIG",
    None,
    option="--config",
    meaning=(
        "TOML file with these settings; keys are the options' names with underscores (and "
        "`drain_timeout_s`), models are `[[models]]` with `name`, `path`, `engines`, `tokenizer`, "
        "`lora`, `tool_format`, `reasoning_format`"
    ),
)
ENGINES = whole_number(
    "PENSTOCK_ENGINES", 1, minimum=1, option="--engines", meaning="engine processes of a model"
)
GATEWAYS = whole_number(
    "PENSTOCK_GATEWAYS",
    1,
    minimum=1,
    maximum=64,
    option="--gateways",
    meaning="gateway processes, which share the port",
)
PARSERS = whole_number(
    "PENSTOCK_PARSERS", 1, minimum=1, option="--parsers", meaning="parser processes"
)
AUTH = switch(
    "PENSTOCK_AUTH",
    False,
    option="--auth/--no-auth",
    shown_default="by address",
    meaning="whether keys are required; always on addresses that others reach",
)
CACHE_DIR = file_path(
    "PENSTOCK_CACHE_DIR",
    Path("~/.cache/penstock"),
    option="--cache-dir",
    meaning="folder of compiled programs",
)
REVISION = text(
    "PENSTOCK_REVISION",
    None,
    option="--revision",
    shown_default="the hub's default",
    meaning="branch, tag or commit of a hub model",
)
_MAX_PORT: Final = 65535
URL = text(
    "PENSTOCK_URL",
    "http://127.0.0.1:8000",
    option="--url",
    meaning="the running server that a command talks to",
)
API_KEY = text(
    "PENSTOCK_API_KEY", None, meaning="the key of `penstock chat` and `penstock run-batch`"
)


@dataclass(frozen=True)
class ModelChoice:
    """One model to serve.

    Attributes:
        name: The public name; may hold slashes.
        source: A local folder or GGUF file, or a Hugging Face id; None is the bundled demo model.
    """

    name: str
    source: str | None
    num_engines: int = setting(ENGINES)
    tokenizer: Path | None = setting(shared.TOKENIZER_PATH)
    lora: Path | None = setting(shared.LORA)
    tool_format: str | None = setting(shared.TOOL_FORMAT)
    reasoning_format: str | None = setting(shared.REASONING_FORMAT)


@dataclass(frozen=True)
class ServeSettings:
    """Everything `penstock serve` was told, checked.

    Fields of None leave their process its own default.
    """

    models: tuple[ModelChoice, ...]
    host: str = setting(shared.HOST)
    port: int = setting(shared.PORT)
    metrics_port: int = setting(shared.METRICS_PORT)
    uds: Path | None = setting(shared.UDS)
    tls_cert_file: Path | None = setting(shared.TLS_CERT_FILE)
    tls_key_file: Path | None = setting(shared.TLS_KEY_FILE)
    num_gateways: int = setting(GATEWAYS)
    num_parsers: int = setting(PARSERS)
    require_keys: bool = setting(AUTH)
    data_dir: Path = setting(shared.DATA_DIR)
    cache_dir: Path = setting(CACHE_DIR)
    revision: str | None = setting(REVISION)
    dtype: str = setting(shared.DTYPE)
    backend: str = setting(shared.BACKEND)
    kv_dtype: str = setting(shared.KV_DTYPE)
    max_model_len: int | None = setting(shared.MAX_MODEL_LEN)
    max_num_seqs: int | None = setting(shared.MAX_NUM_SEQS, default=None)
    num_threads: int | None = setting(shared.THREADS)
    kv_memory_bytes: int | None = setting(shared.KV_MEMORY)
    block_size: int | None = setting(shared.BLOCK_SIZE)
    deterministic: bool = setting(shared.DETERMINISTIC)
    strict_fields: bool = setting(shared.STRICT_FIELDS)
    tools: bool = setting(shared.TOOLS)
    drain_timeout_s: float = setting(shared.DRAIN_TIMEOUT_S)
    log_level: str = setting(shared.LOG_LEVEL, default="warning")
    child_environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def metrics_ports(self) -> range:
        """The port of each gateway's metrics; empty where there is none."""
        first = self.metrics_port
        return range(first, first + self.num_gateways) if first else range(0)

    def check(self) -> None:
        """What no setting can say alone.

        Raises:
            UsageError: Others would be served without keys, or gateways share what they can't.
        """
        if self.num_gateways > 1 and (self.uds is not None or sys.platform != "linux"):
            raise UsageError(
                "--gateways: several gateways share a port of Linux, no Unix socket and no port of "
                "another system; leave --uds out, or serve with one gateway."
            )
        if self.metrics_ports and self.metrics_ports[-1] > _MAX_PORT:
            raise UsageError(
                f"--metrics-port: {self.num_gateways} gateways take so many ports from "
                f"{self.metrics_port} on, and {_MAX_PORT} is the last one."
            )
        if self.port in self.metrics_ports and self.uds is None:
            raise UsageError(
                f"--metrics-port: the metrics of the gateways would be on {self.metrics_ports[0]} "
                f"to {self.metrics_ports[-1]}, where --port is, too; take another one."
            )
        if not self.require_keys and not is_loopback(self.host):
            raise UsageError(
                f"--no-auth: {self.host} can be reached from other machines, where keys are "
                "required; bind 127.0.0.1 or leave --no-auth out."
            )


_OF_ONE_MODEL: dict[str, Setting[Any]] = {
    "name": shared.MODEL_NAME,
    **{
        name: declared for name, declared in declared_fields(ModelChoice) if declared is not ENGINES
    },
}
"""What an option says of the one model: by the field of `ModelChoice`."""

SERVE_OPTIONS: tuple[Setting[Any], ...] = (
    CONFIG,
    *_OF_ONE_MODEL.values(),
    ENGINES,
    *(declared for _, declared in declared_fields(ServeSettings)),
)
"""What `penstock serve` has an option for, in the order of `--help`."""

_PATH_OF_MODEL = replace(shared.MODEL_PATH, key="path")
_NAME_OF_MODEL = replace(shared.MODEL_NAME, key="name")
"""As a table of `[[models]]` calls them."""

_FILE_KEYS = {declared.key for declared in SERVE_OPTIONS} - {CONFIG.key, shared.MODEL_NAME.key} | {
    "models"
}
_MODEL_FILE_KEYS = {
    _PATH_OF_MODEL.key,
    _NAME_OF_MODEL.key,
    *(declared.key for _, declared in declared_fields(ModelChoice)),
}


@dataclass(frozen=True)
class _Given:
    """Values by the keys of their settings: of options and variables, or of a table in the file.

    Attributes:
        values: None is unset.
        place: The table, for messages; empty where settings go by their options.
    """

    values: Mapping[str, Any]
    place: str = ""

    def find(self, declared: Setting[ValueT]) -> ValueT | None:
        """The checked value of a setting; None when unset.

        Raises:
            UsageError: The value is wrong.
        """
        value = self.values.get(declared.key)
        if value is None:
            return None
        name = f"{self.place}.{declared.key}" if self.place else declared.flag
        try:
            return declared.accept(value, name)
        except ConfigurationError as error:
            raise UsageError(error.message) from None


def expanded(path: str | Path, name: str) -> Path:
    """A path with the home that it begins with.

    Args:
        path: As given.
        name: What says it, for errors.

    Raises:
        UsageError: There is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{name}: {str(path)!r} begins with a home that can't be found.") from None


def parse_model(text: str) -> ModelChoice:
    """`NAME=PATH_OR_ID`, a path, or an id; the name defaults to the id, or the folder's or file's.

    Raises:
        UsageError: Nothing on one side of the equals sign.
    """
    name, equals, source = text.partition("=")
    if not equals:
        source = text
        is_path = text.startswith((".", "/", "~")) or Path(text).is_dir() or Path(text).is_file()
        # A link's own name: what it leads to may be a blob of the hub's cache.
        path = Path(os.path.abspath(expanded(text, "MODEL")))  # noqa: PTH100
        path = path if path.is_file() else path.resolve()
        name = model_name(path) if is_path else text.removeprefix(HUB_PREFIX)
    if not name or not source:
        raise UsageError(
            f"MODEL {text!r}: write NAME=PATH_OR_ID, a folder, a GGUF file or a Hugging Face id."
        )
    if source == DEMO_MODEL and not Path(source).is_dir():
        return ModelChoice(name=name, source=None)
    return ModelChoice(name=name, source=source)


def read_config_file(path: Path) -> dict[str, Any]:
    """The TOML file of `--config`.

    Raises:
        UsageError: It can't be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not TOML: {error}.") from error


def _folder(
    given: _Given, declared: Setting[Path], variable: str, fallback: str, environ: Mapping[str, str]
) -> Path:
    """A folder as given, unless that is empty; else the one of the XDG base directories."""
    found = given.find(declared) if given.values.get(declared.key) else None
    if found is None:
        base = environ.get(variable) or expanded(environ.get("HOME", "~"), declared.flag) / fallback
        found = Path(base) / "penstock"
    return expanded(found, declared.flag).absolute()


def _models_of_file(entries: Any, default_num_engines: int) -> list[ModelChoice]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError("config file: `models` must be a list of tables, written [[models]].")
    models = []
    for number, entry in enumerate(entries):
        unknown = set(entry) - _MODEL_FILE_KEYS
        if unknown:
            known = ", ".join(sorted(_MODEL_FILE_KEYS))
            raise UsageError(
                f"config file: models[{number}] has no setting {sorted(unknown)[0]!r}; "
                f"known are {known}."
            )
        if "path" not in entry and "name" not in entry:
            raise UsageError(f"config file: models[{number}] needs a `path` or a `name`.")
        given = _Given(entry, f"models[{number}]")
        path, name = given.find(_PATH_OF_MODEL), given.find(_NAME_OF_MODEL)
        parsed = parse_model(path or DEMO_MODEL)
        models.append(
            fill_settings(
                ModelChoice,
                given.find,
                name=name or parsed.name,
                source=parsed.source,
                num_engines=given.find(ENGINES) or default_num_engines,
            )
        )
    return models


def _choose_models(
    named: Sequence[str], given: _Given, file: Mapping[str, Any]
) -> list[ModelChoice]:
    """The models of the command line, else of the file, else the demo, each with its options."""
    num_engines = given.find(ENGINES) or ENGINES.default
    if named or "models" not in file:
        chosen = [parse_model(text) for text in named] or [ModelChoice(DEMO_MODEL, None)]
        chosen = [replace(model, num_engines=num_engines) for model in chosen]
    else:
        chosen = _models_of_file(file["models"], num_engines)
    changes = {
        name: value
        for name, declared in _OF_ONE_MODEL.items()
        if (value := given.find(declared)) is not None
    }
    if changes and len(chosen) > 1:
        raise UsageError(
            f"{_OF_ONE_MODEL[next(iter(changes))].flag} fits one model; for several use "
            "[[models]] in a config file."
        )
    chosen = [replace(model, **changes) for model in chosen]
    names = [model.name for model in chosen]
    if len(set(names)) < len(names):
        raise UsageError(f"MODEL: two models are named {max(names, key=names.count)!r}.")
    for name in names:
        if "," in name or not name.isprintable() or name != name.strip():
            raise UsageError(
                f"MODEL: {name!r} is no name for a model, because of a comma, a control character "
                "or blanks around it; write NAME=PATH_OR_ID."
            )
    return chosen


def build_settings(
    arguments: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> ServeSettings:
    """Merge what was given on the command line and in the environment with the config file.

    Args:
        arguments: Key of a setting → value; None where neither option nor variable was given.
        environ: For the home directory and what children inherit.

    Raises:
        UsageError: A setting is wrong; the message names it.
    """
    environ = os.environ if environ is None else environ
    file = read_config_file(Path(arguments["config"])) if arguments.get("config") else {}
    unknown = set(file) - _FILE_KEYS
    if unknown:
        raise UsageError(f"config file: there is no setting {sorted(unknown)[0]!r}.")
    given = _Given(
        {**file, **{key: value for key, value in arguments.items() if value is not None}}
    )

    # Not left to the option's own variable, which would cut a path at its blanks.
    from_environment = shared.MODEL_PATH.find(environ)
    named = arguments.get("models") or (() if from_environment is None else (from_environment,))
    host = given.find(shared.HOST) or shared.HOST.default
    require_keys = given.find(AUTH)
    settings = fill_settings(
        ServeSettings,
        given.find,
        models=tuple(_choose_models(named, given, file)),
        host=host,
        require_keys=not is_loopback(host) if require_keys is None else require_keys,
        data_dir=_folder(given, shared.DATA_DIR, "XDG_DATA_HOME", ".local/share", environ),
        cache_dir=_folder(given, CACHE_DIR, "XDG_CACHE_HOME", ".cache", environ),
        child_environment=dict(environ),
    )
    settings.check()
    return settings
