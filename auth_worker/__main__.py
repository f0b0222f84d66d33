"""Starts the auth worker: `python -m auth_worker`."""

from protocol.runtime import collector

if __name__ == "__main__":
    collector.start()

import logging
import os
import sys
from collections.abc import Sequence

from auth_worker.clock import SystemClock
from auth_worker.config import AuthSettings
from auth_worker.errors import StoreError
from auth_worker.exit_codes import exit_code_of
from auth_worker.service import run
from protocol.errors import ConfigurationError
from protocol.runtime import logs, tracing
from protocol.runtime.allocator import trim_in_background
from protocol.runtime.large_pages import LargePages
from protocol.runtime.lifetime import exit_with_parent
from protocol.wire import worker_start

_OPTIONS = {
    "data_dir": "PENSTOCK_DATA_DIR",
    "endpoint": "PENSTOCK_AUTH_ENDPOINT",
    "log_level": "PENSTOCK_LOG_LEVEL",
}

_logger = logging.getLogger("penstock.auth")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the auth worker; options win over the environment.

    Returns:
        The exit code: 0 clean, otherwise one of `exit_codes`.
    """
    environ = worker_start.environment(
        "auth_worker", "Auth worker: API keys, limits and usage.", _OPTIONS, arguments
    )
    # What this process writes holds digests and usage: nobody else reads it.
    os.umask(0o077)
    logs.setup("auth")
    try:
        settings = AuthSettings.from_env(environ)
        logs.setup("auth", settings.log_level)
        tracing.setup("auth", environ, build=worker_start.build())
        endpoints, security = worker_start.dialled(environ, "auth", settings.key_dir)
        exit_with_parent(environ)
        trim_in_background(large_pages=LargePages())
        return run(
            settings,
            endpoints=endpoints,
            security=security,
            clock=SystemClock(),
            build=worker_start.build(),
        )
    except (ConfigurationError, StoreError) as error:
        _logger.error("%s", error.message)
        return exit_code_of(error)
    finally:
        tracing.close()


if __name__ == "__main__":
    sys.exit(main())
