"""The process that tokenises long texts: it may be killed meanwhile.

It is run as a module, and ends when its parent does, or after a while without work. It has a low
priority, so that steps and short prompts go first.
"""

import sys
from array import array
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

from tokenizers import Tokenizer

from engine_worker.text.long_texts import ID_TYPE

IDLE_S: Final = 60.0


def serve(connection: Connection) -> None:
    """Answer text after text: a byte that says whether special tokens are added, and UTF-8."""
    backend = Tokenizer.from_str(connection.recv_bytes().decode())
    while connection.poll(IDLE_S):
        request = connection.recv_bytes()
        text, adds_special_tokens = request[1:].decode(), bool(request[0])
        (encoding,) = backend.encode_batch_fast([text], add_special_tokens=adds_special_tokens)
        connection.send_bytes(array(ID_TYPE, encoding.ids).tobytes())


def main(file_descriptor: int) -> None:
    """Until the parent closes the connection."""
    with suppress(EOFError, ConnectionError):
        serve(Connection(file_descriptor))


if __name__ == "__main__":
    main(int(sys.argv[1]))
