"""The settings of `penstock serve`: command line over environment over file over default."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from penstock.errors import UsageError
from protocol.errors import ConfigurationError
from protocol.runtime.settings import SettingsReader
from protocol.wire.endpoints import is_loopback

DEMO_MODEL = "penstock-demo"
"""The name of the bundled model, served when no model is named."""

_MODEL_TEXT_KEYS = ("name", "path", "tokenizer", "tool_format", "reasoning_format")
_DTYPES = ("auto", "float32", "bfloat16")
_LOG_LEVELS = ("debug", "info", "warning", "error")
_MODEL_FILE_KEYS = {"name", "path", "tokenizer", "engines", "tool_format", "reasoning_format"}


@dataclass(frozen=True)
class ModelChoice:
    """One model to serve.

    Attributes:
        name: The public name; may hold slashes.
        source: A local folder or a Hugging Face id; None is the bundled demo model.
        num_engines: Engine processes for it.
    """

    name: str
    source: str | None
    num_engines: int = 1
    tokenizer: str | None = None
    tool_format: str | None = None
    reasoning_format: str | None = None


@dataclass(frozen=True)
class ServeSettings:
    """Everything `penstock serve` was told, checked."""

    models: tuple[ModelChoice, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    num_parsers: int = 1
    require_keys: bool = False
    data_dir: Path = Path()
    cache_dir: Path = Path()
    revision: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    kv_memory_bytes: int | None = None
    block_size: int | None = None
    deterministic: bool = False
    strict_fields: bool = False
    tools: bool = True
    drain_timeout_s: float = 30.0
    log_level: str = "warning"
    child_environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def parse_bytes(text: str, setting: str) -> int:
    """`"2GiB"`, `"500MB"` or `"1073741824"` in bytes.

    Raises:
        UsageError: Not a size; names the setting.
    """
    try:
        return SettingsReader({setting: text}).size_bytes(setting, 0)
    except ConfigurationError as error:
        raise UsageError(error.message) from None


def parse_model(text: str) -> ModelChoice:
    """`NAME=PATH_OR_ID`, a path, or an id; the name defaults to the id or the folder's name.

    Raises:
        UsageError: Nothing on one side of the equals sign.
    """
    name, equals, source = text.partition("=")
    if not equals:
        source = text
        is_path = text.startswith((".", "/", "~")) or Path(text).is_dir()
        name = Path(text).expanduser().resolve().name if is_path else text
    if not name or not source:
        raise UsageError(f"MODEL {text!r}: write NAME=PATH_OR_ID, a folder or a Hugging Face id.")
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


def _default_dir(variable: str, fallback: str, environ: Mapping[str, str]) -> Path:
    base = environ.get(variable) or str(Path(environ.get("HOME", "~")).expanduser() / fallback)
    return Path(base) / "penstock"


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
        texts = {key: _text(entry.get(key), f"models[{number}].{key}") for key in _MODEL_TEXT_KEYS}
        parsed = parse_model(texts["path"] or DEMO_MODEL)
        models.append(
            ModelChoice(
                name=texts["name"] or parsed.name,
                source=parsed.source,
                num_engines=_positive(
                    entry.get("engines", default_num_engines), f"models[{number}].engines"
                ),
                tokenizer=texts["tokenizer"],
                tool_format=texts["tool_format"],
                reasoning_format=texts["reasoning_format"],
            )
        )
    return models


def _text(value: Any, setting: str) -> str | None:
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise UsageError(f"{setting}: {value!r} must be a text that is not empty.")
    return value


def _switch(value: Any, setting: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{setting}: {value!r} must be true or false.")
    return value


def _one_of(value: Any, choices: tuple[str, ...], setting: str) -> str:
    word = str(value).strip().lower()
    if word not in choices:
        raise UsageError(f"{setting}: {value!r} must be one of {', '.join(choices)}.")
    return word


def _positive(value: Any, setting: str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise UsageError(f"{setting}: {value!r} is no whole number.") from None
    if number < 1:
        raise UsageError(f"{setting}: {number} is below 1.")
    return number


def _number(value: Any, setting: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{setting}: {value!r} is no number.") from None
    if not 0 <= number < float("inf"):
        raise UsageError(f"{setting}: {value!r} must be 0 or more.")
    return number


def _port(value: Any) -> int:
    try:
        port = int(value)
    except (TypeError, ValueError):
        raise UsageError(f"--port: {value!r} is no whole number.") from None
    if not 0 <= port <= 65535:
        raise UsageError(f"--port: {port} is not between 0 and 65535.")
    return port


_FILE_KEYS = {
    "host", "port", "engines", "parsers", "auth", "data_dir", "cache_dir", "revision", "dtype",
    "max_model_len", "max_num_seqs", "kv_memory", "block_size", "deterministic", "strict_fields", "tools",
    "drain_timeout_s", "log_level", "tokenizer", "tool_format", "reasoning_format", "models",
}  # fmt: skip


def _choose_models(
    named: Sequence[str], given: Mapping[str, Any], file: Mapping[str, Any]
) -> list[ModelChoice]:
    """The models of the command line, else of the file, else the demo, each with its options."""
    num_engines = _positive(given.get("engines", 1), "--engines")
    if named or "models" not in file:
        chosen = [parse_model(text) for text in named] or [ModelChoice(DEMO_MODEL, None)]
        chosen = [replace(model, num_engines=num_engines) for model in chosen]
    else:
        chosen = _models_of_file(file["models"], num_engines)
    fields = {"model_name": "name", **{key: key for key in _MODEL_TEXT_KEYS[2:]}}
    of_one_model = {
        key: value for key in fields if (value := _text(given.get(key), _flag(key))) is not None
    }
    if of_one_model and len(chosen) > 1:
        raise UsageError(
            f"{_flag(next(iter(of_one_model)))} fits one model; for several use [[models]] in a "
            "config file."
        )
    if of_one_model:
        changes: dict[str, Any] = {fields[key]: value for key, value in of_one_model.items()}
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


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def build_settings(
    arguments: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> ServeSettings:
    """Merge what was given on the command line and in the environment with the config file.

    Args:
        arguments: Option name → value; None where neither option nor variable was given.
        environ: For the home directory and what children inherit.

    Raises:
        UsageError: A setting is wrong; the message names it.
    """
    environ = os.environ if environ is None else environ
    file = read_config_file(Path(arguments["config"])) if arguments.get("config") else {}
    unknown = set(file) - _FILE_KEYS
    if unknown:
        raise UsageError(f"config file: there is no setting {sorted(unknown)[0]!r}.")
    given = {**file, **{key: value for key, value in arguments.items() if value is not None}}

    # Not left to the option's own variable, which would cut a path at its blanks.
    from_environment = SettingsReader(environ).str("PENSTOCK_MODEL_PATH", aliases=("MODEL_PATH",))
    named = arguments.get("models") or (() if from_environment is None else (from_environment,))
    chosen = _choose_models(named, given, file)

    host = _text(given.get("host"), "--host") or "127.0.0.1"
    loopback = is_loopback(host)
    require_keys = _switch(given.get("auth", not loopback), "--auth")
    if not require_keys and not loopback:
        raise UsageError(
            f"--no-auth: {host} can be reached from other machines, where keys are required; "
            "bind 127.0.0.1 or leave --no-auth out."
        )
    kv_memory = given.get("kv_memory")
    data_dir = given.get("data_dir") or _default_dir("XDG_DATA_HOME", ".local/share", environ)
    cache_dir = given.get("cache_dir") or _default_dir("XDG_CACHE_HOME", ".cache", environ)
    optional = {
        key: None if given.get(key) is None else _positive(given[key], _flag(key))
        for key in ("max_model_len", "max_num_seqs", "block_size")
    }
    return ServeSettings(
        models=tuple(chosen),
        host=host,
        port=_port(given.get("port", 8000)),
        num_parsers=_positive(given.get("parsers", 1), "--parsers"),
        require_keys=require_keys,
        data_dir=Path(data_dir).expanduser().absolute(),
        cache_dir=Path(cache_dir).expanduser().absolute(),
        revision=_text(given.get("revision"), "--revision"),
        dtype=_one_of(given.get("dtype", "auto"), _DTYPES, "--dtype"),
        kv_memory_bytes=None if kv_memory is None else parse_bytes(str(kv_memory), "--kv-memory"),
        deterministic=_switch(given.get("deterministic", False), "--deterministic"),
        strict_fields=_switch(given.get("strict_fields", False), "--strict-fields"),
        tools=_switch(given.get("tools", True), "--tools"),
        drain_timeout_s=_number(given.get("drain_timeout_s", 30.0), "--drain-timeout"),
        log_level=_one_of(given.get("log_level", "warning"), _LOG_LEVELS, "--log-level"),
        child_environment=dict(environ),
        **optional,
    )
