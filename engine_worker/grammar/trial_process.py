"""The process that compiles a grammar first: it may be killed when that takes too long.

It is run as a file, imports nothing of ours, and ends when its parent does.
"""

import json
import resource
import sys
from multiprocessing.connection import Connection

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance._tokenizer import TokenizerWrapper


class _ByteVocabulary:
    """One token a byte beside the model's special tokens, all under ids that the model has.

    Args:
        num_tokens: Size of the model's vocabulary.
        special: Text of each special token by its id.
        eos_token_id: One that ends an output.
    """

    def __init__(self, num_tokens: int, special: dict[int, str], eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self.special_token_ids = list(special)
        self.tokens = [b""] * max(num_tokens, 256 + len(special))
        free = (token_id for token_id in range(len(self.tokens)) if token_id not in special)
        self._token_ids = [next(free) for _ in range(256)]
        for byte, token_id in enumerate(self._token_ids):
            self.tokens[token_id] = bytes([byte])
        for token_id, text in special.items():
            self.tokens[token_id] = text.encode()

    def __call__(self, data: bytes) -> list[int]:
        """Token ids of some bytes."""
        return [self._token_ids[byte] for byte in data]


def main(file_descriptor: int) -> None:
    """Answer grammar after grammar until the parent closes the connection."""
    connection = Connection(file_descriptor)
    setup = json.loads(connection.recv_bytes())
    max_bytes = setup["max_memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    special = {int(token_id): text for token_id, text in setup["special"].items()}
    vocabulary = _ByteVocabulary(setup["num_tokens"], special, setup["eos_token_ids"][0])
    tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=setup["eos_token_ids"])
    limits = LLParserLimits(**setup["limits"])
    while True:
        try:
            source = connection.recv_bytes().decode()
        except EOFError:
            return
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        connection.send_bytes(matcher.get_error().encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
