"""Starts the auth worker: `python -m auth_worker`."""

import argparse
import logging
import os
import sys
from collections import ChainMap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from auth_worker.clock import SystemClock
from auth_worker.config import AuthSettings
from auth_worker.errors import StoreError
from auth_worker.exit_codes import exit_code_of
from auth_worker.service import run
from protocol.errors import ConfigurationError
from protocol.runtime import logs
from protocol.runtime.lifetime import exit_with_parent
from protocol.wire.endpoints import dial_endpoints
from protocol.wire.keys import ClientSecurity

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
    parser = argparse.ArgumentParser(
        prog="python -m auth_worker", description="The owner of keys, limits and usage."
    )
    for option, setting in _OPTIONS.items():
        parser.add_argument(f"--{option.replace('_', '-')}", help=f"instead of {setting}")
    options = vars(parser.parse_args(arguments))
    given = {setting: options[option] for option, setting in _OPTIONS.items() if options[option]}
    environ = ChainMap(given, dict(os.environ))
    # What this process writes holds digests and usage: nobody else reads it.
    os.umask(0o077)
    logs.setup("auth")
    try:
        settings = AuthSettings.from_env(environ)
        logs.setup("auth", settings.log_level)
        security = (
            None if settings.key_dir is None else ClientSecurity.load(settings.key_dir, "auth")
        )
        endpoints = dial_endpoints(environ, "auth", secured=security is not None)
        exit_with_parent(environ)
        return run(
            settings, endpoints=endpoints, security=security, clock=SystemClock(), build=_build()
        )
    except (ConfigurationError, StoreError) as error:
        _logger.error("%s", error.message)
        return exit_code_of(error)


def _build() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "source"


if __name__ == "__main__":
    sys.exit(main())
