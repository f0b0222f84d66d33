"""Starts an engine worker: `python -m engine_worker`."""

from protocol.runtime import collector

if __name__ == "__main__":
    collector.start()

import logging
import os
from collections.abc import Sequence

from engine_worker.config import EngineSettings
from engine_worker.serving.service import EXIT_FAILED, run
from protocol.errors import ConfigurationError
from protocol.runtime import logs, tracing
from protocol.runtime.allocator import trim_in_background
from protocol.runtime.lifetime import exit_with_parent
from protocol.wire import worker_start

_OPTIONS = {
    "endpoint": "PENSTOCK_ENGINE_ENDPOINT",
    "model_path": "PENSTOCK_MODEL_PATH",
    "model_name": "PENSTOCK_MODEL_NAME",
    "log_level": "PENSTOCK_LOG_LEVEL",
}
_logger = logging.getLogger("penstock.engine")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an engine worker; options win over the environment.

    Returns:
        The exit code: 0 clean, 1 when something stops the start or the engine broke.
    """
    environ = worker_start.environment(
        "engine_worker", "Generates text with one model.", _OPTIONS, arguments
    )
    logs.setup("engine")
    try:
        settings = EngineSettings.from_env(environ)
        logs.setup("engine", settings.log_level)
        tracing.setup("engine", environ, build=worker_start.build())
        endpoints, security = worker_start.dialled(environ, "engine", settings.key_dir)
        exit_with_parent(environ)
        trim_in_background()
        # Tokenising runs in threads of ours; the tokenizer's own would only fight for the cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # transformers runs without torch here on purpose; its advice to install it is noise.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        # The engine gets a folder; nothing in it may reach for the network.
        os.environ["HF_HUB_OFFLINE"] = "1"
        return run(settings, endpoints=endpoints, security=security, build=worker_start.build())
    except ConfigurationError as error:
        _logger.error("%s", error.message)
        return EXIT_FAILED
    finally:
        tracing.close()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # The engine's thread may still sit in the compiler or in a step, where interpreter shutdown
    # would wait for it or crash in it; everything that must be kept has been sent.
    os._exit(code)
