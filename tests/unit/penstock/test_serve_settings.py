"""Settings of `penstock serve`: precedence, checks, and messages that name the setting."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from penstock.cli import app
from penstock.config import DEMO_MODEL, ServeSettings, build_settings, parse_model
from penstock.errors import UsageError

HOME = {"HOME": "/home/someone"}


def test_without_arguments_the_demo_model_is_served_on_loopback_without_keys() -> None:
    settings = build_settings({}, HOME)
    assert [(model.name, model.source) for model in settings.models] == [(DEMO_MODEL, None)]
    assert (settings.host, settings.port, settings.require_keys) == ("127.0.0.1", 8000, False)
    assert settings.data_dir == Path("/home/someone/.local/share/penstock")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"data_dir": "~nobody-here/x"}, "--data-dir"),
        ({"config": None, "models": ["~nobody-here/model"]}, "MODEL"),
        ({"tls_cert_file": "~nobody-here/cert"}, "--tls-cert-file"),
    ],
)
def test_a_home_that_is_not_there_is_a_usage_error(given: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name}: '~nobody-here/.*' begins with a home"):
        build_settings(given, HOME)


def test_a_home_that_nobody_has_is_missed_only_where_it_is_needed() -> None:
    nowhere = {"HOME": "~nobody-here"}
    with pytest.raises(UsageError, match="--data-dir: '~nobody-here' begins with a home"):
        build_settings({}, nowhere)
    folders = {"XDG_DATA_HOME": "/data", "XDG_CACHE_HOME": "/cache"}
    assert build_settings({}, nowhere | folders).data_dir == Path("/data/penstock")


def test_a_public_address_requires_keys() -> None:
    assert build_settings({"host": "0.0.0.0"}, HOME).require_keys


def test_a_public_address_refuses_no_auth() -> None:
    with pytest.raises(UsageError, match=r"--no-auth: 192\.168\.0\.9 can be reached"):
        build_settings({"host": "192.168.0.9", "auth": False}, HOME)


def test_arguments_win_over_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text('port = 9000\nhost = "::1"\n', encoding="utf-8")
    settings = build_settings({"config": str(file), "port": 9001}, HOME)
    assert (settings.port, settings.host) == (9001, "::1")


def test_the_config_file_names_several_models(tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text(
        '[[models]]\nname = "small"\npath = "./small"\nengines = 2\n'
        '[[models]]\nname = "penstock-demo"\n',
        encoding="utf-8",
    )
    models = build_settings({"config": str(file)}, HOME).models
    assert [(m.name, m.source, m.num_engines) for m in models] == [
        ("small", "./small", 2),
        ("penstock-demo", None, 1),
    ]


def test_options_beside_the_models_of_a_file_are_not_ignored(tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text("engines = 3\n[[models]]\nname = 'm'\npath = './m'\n", encoding="utf-8")
    (model,) = build_settings({"config": str(file), "tool_format": "hermes"}, HOME).models
    assert (model.name, model.num_engines, model.tool_format) == ("m", 3, "hermes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1\n", "no setting 'prot'"),
        ("[[models]]\npaht = 'x'\n", r"models\[0\] has no setting 'paht'"),
        ("[[models]]\nengines = 1\n", r"models\[0\] needs a `path`"),
        ("port = \n", "not TOML"),
        ("models = ['x']\n", r"written \[\[models\]\]"),
        (
            "[[models]]\npath = 'x'\ntokenizer = 5\n",
            r"models\[0\]\.tokenizer: 5 must be a non-empty string",
        ),
        ("data_dir = 5\n", "--data-dir: 5 must be a non-empty string"),
        ("engines = true\n", "--engines: 'True' is no whole number"),
        ("port = 80.5\n", "--port: '80.5' is no whole number"),
        ("[[models]]\npath = 'x'\nengines = 0\n", r"models\[0\]\.engines: 0 is below 1"),
        ("auth = 'no'\n", "--auth: 'no' must be true or false"),
        ("tokenizer = 't'\n[[models]]\npath='a'\n[[models]]\npath='b'\n", "--tokenizer fits one"),
    ],
)
def test_a_wrong_config_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        build_settings({"config": str(file)}, HOME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": 70000}, "--port: 70000"),
        ({"engines": 0}, "--engines: 0 is below 1"),
        ({"kv_memory": "lots"}, "--kv-memory must be a size such as"),
        ({"max_model_len": -1}, "--max-model-len: -1 is below 2"),
        ({"models": ["a=x", "a=y"]}, "two models are named 'a'"),
        ({"models": ["a=x", "b=y"], "tokenizer": "t"}, "--tokenizer fits one model"),
        ({"models": ["=x"]}, "write NAME=PATH_OR_ID"),
        ({"max_num_seqs": 300}, "--max-num-seqs: 300 is above 256"),
        ({"block_size": 2048}, "--block-size: 2048 is above 1024"),
        ({"kv_memory": "0"}, "--kv-memory: 0 is below 1"),
        ({"drain_timeout_s": float("nan")}, "--drain-timeout"),
        ({"log_level": "loud"}, "--log-level: 'loud' must be one of debug, info"),
        ({"dtype": "float8"}, "--dtype: 'float8' must be one of auto"),
        ({"models": ["a=x", "b=y"], "model_name": "c"}, "--model-name fits one model"),
        ({"models": ["a,b=x"]}, "'a,b' is no name for a model"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_settings(arguments, HOME)


def test_a_hub_id_keeps_its_slash_and_a_folder_gives_its_name(tmp_path: Path) -> None:
    assert parse_model("org/model").name == "org/model"
    (tmp_path / "local").mkdir()
    assert parse_model(str(tmp_path / "local")).name == "local"
    assert parse_model("mine=org/model").source == "org/model"


@pytest.mark.parametrize(
    ("given", "num_bytes"), [("2GiB", 2 * 2**30), ("500 MB", 500 * 10**6), (1024, 1024)]
)
def test_sizes_are_read_in_binary_and_decimal_units(given: object, num_bytes: int) -> None:
    assert build_settings({"kv_memory": given}, HOME).kv_memory_bytes == num_bytes


def test_a_model_of_the_environment_may_hold_blanks_and_yields_to_an_argument() -> None:
    environ = {**HOME, "MODEL_PATH": "/models/my model"}
    assert build_settings({}, environ).models[0].source == "/models/my model"
    assert build_settings({"models": ["a=b"]}, environ).models[0].source == "b"


def test_an_option_wins_over_its_variable_and_this_over_the_file_and_this_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text("port = 1\nparsers = 1\nmax_num_seqs = 1\n", encoding="utf-8")
    given: list[ServeSettings] = []

    def serve(settings: ServeSettings, console: object) -> int:
        given.append(settings)
        return 0

    monkeypatch.setattr("penstock.serve.serve", serve)
    monkeypatch.setenv("PENSTOCK_PORT", "2")
    monkeypatch.setenv("PENSTOCK_PARSERS", "2")
    monkeypatch.setenv("PENSTOCK_TOKENIZER_PATH", "")
    monkeypatch.setenv("TOKENIZER_PATH", "/tokenizer of mine")
    arguments = ["serve", "--config", str(file), "--port", "3", "--no-tools"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (settings,) = given
    assert (settings.port, settings.num_parsers, settings.max_num_seqs) == (3, 2, 1)
    assert (settings.tools, settings.block_size, settings.log_level) == (False, None, "warning")
    assert settings.models[0].tokenizer == Path("/tokenizer of mine")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("serve", ["default: (auto)", "default: (32;", "[[models]]", "float32"]),
        ("chat", ["[the first served]"]),
        ("fake-engine", ["[[crash@5]]"]),
    ],
)
def test_help_shows_what_stands_in_brackets(
    command: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app, [command, "--help"]).output
    for word in words:
        assert word in shown
