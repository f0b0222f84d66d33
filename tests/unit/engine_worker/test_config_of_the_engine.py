from pathlib import Path

import pytest

from engine_worker.config import EngineSettings
from engine_worker.demo import demo_model_path
from protocol.errors import ConfigurationError


def test_without_settings_the_bundled_model_is_served() -> None:
    settings = EngineSettings.from_env({})
    assert settings.model.path == demo_model_path()
    assert settings.model.name == "penstock-demo"
    assert settings.model.dtype == "auto"


def test_a_folder_gives_its_name_unless_another_is_set(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert EngineSettings.from_env({"MODEL_PATH": str(folder)}).model.name == "my-model"
    environ = {"PENSTOCK_MODEL_PATH": str(folder), "PENSTOCK_MODEL_NAME": "org/x"}
    assert EngineSettings.from_env(environ).model.name == "org/x"


def test_all_settings_are_read() -> None:
    settings = EngineSettings.from_env(
        {
            "PENSTOCK_MAX_MODEL_LEN": "1024",
            "PENSTOCK_KV_MEMORY": "64MiB",
            "PENSTOCK_BLOCK_SIZE": "16",
            "PENSTOCK_MAX_NUM_SEQS": "8",
            "PENSTOCK_MAX_NUM_BATCHED_TOKENS": "128",
            "PENSTOCK_DTYPE": "float32",
            "PENSTOCK_KV_DTYPE": "int8",
            "PENSTOCK_DETERMINISTIC": "true",
            "PENSTOCK_SPECULATION": "off",
            "PENSTOCK_COMPILE_CACHE_DIR": "/cache",
            "PENSTOCK_TOOL_FORMAT": "hermes",
            "PENSTOCK_REASONING_FORMAT": "none",
            "PENSTOCK_TOKENIZER_PATH": "/tokenizer",
            "PENSTOCK_LOG_LEVEL": "debug",
            "PENSTOCK_DRAIN_TIMEOUT_S": "3",
            "PENSTOCK_KEY_DIR": "/keys",
        }
    )
    model = settings.model
    assert (model.max_model_len, model.kv_memory_bytes, model.block_size) == (1024, 2**26, 16)
    assert (model.max_num_seqs, model.max_num_batched_tokens) == (8, 128)
    assert (model.dtype, model.kv_dtype, model.deterministic) == ("float32", "int8", True)
    assert model.speculation == "off"
    assert model.compile_cache_dir == Path("/cache")
    assert (model.tool_format, model.reasoning_format) == ("hermes", "none")
    assert model.tokenizer_path == Path("/tokenizer")
    assert (settings.log_level, settings.drain_timeout_s) == ("debug", 3.0)
    assert settings.key_dir == Path("/keys")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PENSTOCK_MODEL_PATH", "/no/such/folder"),
        ("PENSTOCK_MAX_MODEL_LEN", "many"),
        ("PENSTOCK_KV_MEMORY", "much"),
        ("PENSTOCK_BLOCK_SIZE", "0"),
        ("PENSTOCK_MAX_NUM_SEQS", "0"),
        ("PENSTOCK_MAX_NUM_BATCHED_TOKENS", "0"),
        ("PENSTOCK_DTYPE", "int3"),
        ("PENSTOCK_KV_DTYPE", "int4"),
        ("PENSTOCK_DETERMINISTIC", "perhaps"),
        ("PENSTOCK_SPECULATION", "sometimes"),
        ("PENSTOCK_LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_value_stops_the_start_with_its_name(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        EngineSettings.from_env({name: value})
