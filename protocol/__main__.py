"""Health checks: `ping` asks a gateway for a sign of life, `ready` whether a worker gets work."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from protocol.errors import ConfigurationError
from protocol.wire.endpoints import Endpoint, dial_endpoints, parse_endpoint
from protocol.wire.keys import KEY_DIR_SETTING, ClientSecurity, KeyOwner
from protocol.wire.readiness import READY_FILE_SETTING, why_not_ready

EXIT_OK = 0
EXIT_NO_ANSWER = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one command.

    Returns:
        0 when the gateway answered, or the worker is ready; 1 when not; 2 when the question was
        wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m protocol", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    ping_parser = commands.add_parser("ping", help="check that a gateway's socket answers")
    ping_parser.add_argument(
        "endpoint",
        nargs="?",
        help="ipc:///path/to/socket or tcp://host:port; without it what the role of --as dials, "
        "of which one must answer",
    )
    ping_parser.add_argument("--timeout", type=float, default=5.0, help="seconds (default 5)")
    ping_parser.add_argument(
        "--as",
        dest="owner",
        choices=get_args(KeyOwner),
        default="gateway",
        help=f"whose key of {KEY_DIR_SETTING} to show on a secured socket (default gateway)",
    )
    ready_parser = commands.add_parser("ready", help="ask whether a worker here gets new work")
    ready_parser.add_argument(
        "file", nargs="?", type=Path, help=f"the worker's {READY_FILE_SETTING}, by default ours"
    )
    options = parser.parse_args(arguments)
    return _ping(options, environ) if options.command == "ping" else _ready(options, environ)


def _ping(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from protocol.wire.transport_ping import ping  # loads ZeroMQ, which `ready` does without

    key_dir = environ.get(KEY_DIR_SETTING, "").strip()
    try:
        endpoints = _endpoints(options.endpoint, options.owner, environ, secured=bool(key_dir))
        needs_key = bool(key_dir) and not all(endpoint.is_ipc for endpoint in endpoints)
        security = ClientSecurity.load(Path(key_dir), options.owner) if needs_key else None
    except ConfigurationError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 - a command's answer
        return EXIT_USAGE
    for endpoint in endpoints:
        seconds = ping(endpoint.text, timeout_s=options.timeout / len(endpoints), security=security)
        if seconds is not None:
            print(f"{endpoint.text} answered in {seconds * 1000:.1f} ms")  # noqa: T201
            return EXIT_OK
    asked = ", ".join(endpoint.text for endpoint in endpoints)
    print(f"no answer from {asked} in {options.timeout} s", file=sys.stderr)  # noqa: T201
    return EXIT_NO_ANSWER


def _ready(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    path = options.file or environ.get(READY_FILE_SETTING, "").strip()
    if not path:
        print(f"Name a FILE, or set {READY_FILE_SETTING}.", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    reason = why_not_ready(Path(path))
    if reason is None:
        return EXIT_OK
    print(reason, file=sys.stderr)  # noqa: T201
    return EXIT_NO_ANSWER


def _endpoints(
    given: str | None, owner: KeyOwner, environ: Mapping[str, str], *, secured: bool
) -> tuple[Endpoint, ...]:
    if given is not None:
        return (parse_endpoint(given, setting="ENDPOINT", secured=secured),)
    if owner == "gateway":
        raise ConfigurationError("Name an ENDPOINT, or with --as the role whose gateways to ask.")
    return dial_endpoints(environ, owner, secured=secured)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
