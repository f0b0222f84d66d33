"""Ids of tool calls: the same whenever the same text is parsed again."""

import hashlib


def call_id(request_id: str, choice: int, index: int) -> str:
    """The id of one call: `call_` and 24 hexadecimal digits.

    A hash rather than a random number, so that another worker that replays the text after a
    crash gives the call the id that the client has already seen.

    Args:
        request_id: The gateway's id, never used twice.
        choice: Which of the request's choices.
        index: Which of the choice's calls.
    """
    digest = hashlib.blake2b(
        f"{request_id}\0{choice}\0{index}".encode("utf-8", "replace"), digest_size=12
    )
    return f"call_{digest.hexdigest()}"
