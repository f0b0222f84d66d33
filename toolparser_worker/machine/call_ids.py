"""Ids of tool calls: the same whenever the same text is parsed again."""

import hashlib
from typing import Literal

IdStyle = Literal["call", "nine", "indexed"]

_ALPHANUMERICS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NUM_ALPHANUMERICS = 9
_MAX_INDEX = 10**12


def call_id(
    request_id: str, choice: int, index: int, *, name: str = "", style: IdStyle = "call"
) -> str:
    """The id of one call.

    A hash rather than a random number, so that another worker that replays the text after a
    crash gives the call the id that the client has already seen.

    Args:
        request_id: The gateway's id, never used twice.
        choice: Which of the request's choices.
        index: Which of the choice's calls.
        name: The tool's name, which some styles show.
        style: `call`: `call_` and 24 hexadecimal digits. `nine`: nine letters and digits, which
            is all that Mistral's templates take. `indexed`: `functions.NAME:NUMBER` as Kimi
            writes it, with a number that no other turn has.
    """
    digest = hashlib.blake2b(
        f"{request_id}\0{choice}\0{index}".encode("utf-8", "replace"), digest_size=12
    )
    if style == "call":
        return f"call_{digest.hexdigest()}"
    number = int.from_bytes(digest.digest(), "big")
    if style == "indexed":
        return f"functions.{name}:{number % _MAX_INDEX}"
    letters = []
    for _ in range(_NUM_ALPHANUMERICS):
        number, digit = divmod(number, len(_ALPHANUMERICS))
        letters.append(_ALPHANUMERICS[digit])
    return "".join(letters)
