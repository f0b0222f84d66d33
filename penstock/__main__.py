"""Entry point: refuse what can't work, run the command, turn errors into one line and a code."""

import io
import os
import platform
import sys
from collections.abc import Sequence

from protocol.errors import PenstockError


def refusal(system: str) -> str | None:
    """Why Penstock doesn't run on this operating system; None where it does."""
    if system == "Windows":
        return (
            "Penstock runs on Linux (macOS with best effort). On Windows, install WSL "
            "(`wsl --install`) and run it there."
        )
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    reason = refusal(platform.system())
    if reason is not None:
        sys.stderr.write(f"penstock: {reason}\n")
        sys.exit(1)
    # Imported late: the refusal above must not need what may not be installable there.
    from penstock.cli import app
    from penstock.terminal import visible

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal doesn't have is shown escaped; on stderr it is by itself.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(args=None if arguments is None else list(arguments), prog_name="penstock")
    except PenstockError as error:
        # It may hold a server's words, or an argument's.
        sys.stderr.write(f"penstock: {visible(error.message)}\n")
        sys.exit(getattr(error, "exit_code", 1))
    except UnicodeEncodeError as error:
        # An argument's odd bytes are well in a path, but not in what is sent.
        sys.stderr.write(f"penstock: '{visible(error.object[:80])}' is no text in UTF-8.\n")
        sys.exit(2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"penstock: {visible(f'{where}{error.strerror or error}')}\n")
        _drop_output()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _drop_output() -> None:
    """What stdout holds yet can go nowhere; Python would try again, and complain, at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
