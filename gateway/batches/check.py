"""`python -m gateway.batches.check URL`: what is wrong with a batch's lines, without a server.

The lines come from standard input; the errors go to standard output, as JSON.
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

import orjson

from gateway.batches import lines
from gateway.batches.records import ENDPOINTS, LineError
from gateway.config import MAX_BODY_BYTES
from protocol.errors import ConfigurationError

_INPUT: Final = Path("/dev/stdin")


def errors_of(path: Path, url: str, max_line_bytes: int) -> list[LineError]:
    """What a batch of a file would fail with."""
    if url not in ENDPOINTS:
        message = f"`url` must be one of {', '.join(ENDPOINTS)}."
        return [LineError("mismatched_url", message, 1, "url")]
    return lines.check(path, url, max_line_bytes)[1]


def main() -> int:
    """Check standard input; the exit code is 2 where a setting is wrong."""
    try:
        max_line_bytes = MAX_BODY_BYTES.read(os.environ)
    except ConfigurationError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    errors = errors_of(_INPUT, sys.argv[1], max_line_bytes)
    sys.stdout.buffer.write(orjson.dumps([asdict(error) for error in errors]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
