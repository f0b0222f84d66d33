"""A command that is a process of a `fork_server`; it needs little of Python and starts at once.

`fork_client.py SOCKET MODULE ARGUMENT…`
"""

import array
import json
import os
import socket
import struct
import sys

CODE = struct.Struct("!i")


def ask(
    connection: socket.socket,
    arguments: list[str],
    environ: dict[str, str],
    folder: str,
    fds: "tuple[int, int, int]",
    max_file_bytes: int = -1,
) -> int:
    """Send what is wanted; the id of the process that begins.

    Args:
        connection: To the server.
        arguments: The module and its own.
        environ: All of its environment.
        folder: Where it works.
        fds: Its standard streams.
        max_file_bytes: Its files can't grow beyond this size, as on a disk without room; -1 for any
            size.
    """
    wanted = {
        "arguments": arguments,
        "environ": environ,
        "folder": folder,
        "max_file_bytes": max_file_bytes,
    }
    text = json.dumps(wanted).encode()
    data = struct.pack("!I", len(text)) + text
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    sent = connection.sendmsg([data], [rights])
    connection.sendall(data[sent:])
    (pid,) = CODE.unpack(connection.recv(CODE.size, socket.MSG_WAITALL))
    return int(pid)


def main() -> int:
    """The exit code of the process."""
    _, path, *arguments = sys.argv
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        ask(connection, arguments, dict(os.environ), os.getcwd(), (0, 1, 2))  # noqa: PTH109
        (code,) = CODE.unpack(connection.recv(CODE.size, socket.MSG_WAITALL))
    return int(code) if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
