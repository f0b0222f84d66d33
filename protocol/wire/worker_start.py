"""How a worker process begins: its command line, whom it dials and how, and its build."""

import argparse
import os
from collections import ChainMap
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from protocol.wire.endpoints import Endpoint, dial_endpoints
from protocol.wire.keys import ClientSecurity
from protocol.wire.messages.control import Role


def environment(
    package: str,
    description: str,
    options: Mapping[str, str],
    arguments: Sequence[str] | None = None,
) -> ChainMap[str, str]:
    """The environment, over which the command line's options win; exits on `--help` or a wrong one.

    Args:
        package: Run as `python -m` this.
        description: One sentence for `--help`.
        options: The name of each option's setting, by option with underscores.
        arguments: Of the command line; the process's own when None.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=description)
    for option, setting in options.items():
        parser.add_argument(f"--{option.replace('_', '-')}", help=f"instead of {setting}")
    found = vars(parser.parse_args(arguments))
    given = {setting: found[option] for option, setting in options.items() if found[option]}
    return ChainMap(given, dict(os.environ))


def dialled(
    environ: Mapping[str, str], role: Role, key_dir: Path | None
) -> tuple[tuple[Endpoint, ...], ClientSecurity | None]:
    """The gateways that a worker of a role dials, and the keys for it; None is plaintext.

    Raises:
        ConfigurationError: An endpoint or a key is missing or wrong.
    """
    security = None if key_dir is None else ClientSecurity.load(key_dir, role)
    return dial_endpoints(environ, role, secured=security is not None), security


def build() -> str:
    """The installed version of the code, as workers announce it."""
    try:
        return version("penstock")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "source"
