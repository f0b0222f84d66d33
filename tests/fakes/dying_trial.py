"""Stands in for the process that tries grammars, and dies as often as a grammar's text says.

The text is a signal, how many processes die of it, and a file where these are counted.
"""

import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from engine_worker.grammar.trial_process import TrialResult
from protocol.wire.messages import Grammar


def main(file_descriptor: int) -> None:
    """Until the parent closes the connection."""
    connection = Connection(file_descriptor)
    connection.recv_bytes()
    connection.send_bytes(b"")
    while True:
        grammar = msgspec.json.decode(connection.recv_bytes(), type=Grammar)
        signal_number, num_deaths, path = grammar.source.split(" ", 2)
        with Path(path).open("ab") as file:
            if file.tell() < int(num_deaths):
                file.write(b"x")
                file.flush()
                os.kill(os.getpid(), int(signal_number))
        connection.send_bytes(msgspec.json.encode(TrialResult(source='start: "a"\n')))


if __name__ == "__main__":
    main(int(sys.argv[1]))
