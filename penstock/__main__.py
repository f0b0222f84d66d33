"""Entry point: refuse what can't work, run the command, turn errors into one line and a code."""

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

    try:
        app(args=None if arguments is None else list(arguments), prog_name="penstock")
    except PenstockError as error:
        # It may hold a server's words, or an argument's.
        sys.stderr.write(f"penstock: {visible(error.message)}\n")
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
