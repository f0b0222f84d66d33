"""Small files of a model folder, which may be of any size where somebody means harm."""

from pathlib import Path
from typing import Final

MAX_TEXT_BYTES: Final = 16 * 2**20
"""Of a config, a template, a list of roles: the largest ones of real models have two megabytes."""
MAX_TOKENIZER_BYTES: Final = 256 * 2**20
"""Of a `tokenizer.json`: those of vocabularies of 260,000 words have 35 MB."""


def check_size(path: Path, max_bytes: int) -> None:
    """Refuses a file that is too large to be what its name says.

    Raises:
        ValueError: It is; says what to do.
        OSError: It can't be looked at.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(
            f"it has {size} bytes, and at most {max_bytes} are read; use the model's own file"
        )


def read_bounded(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The text of a file.

    Raises:
        ValueError: It is too large, or no UTF-8.
        OSError: It can't be read.
    """
    check_size(path, max_bytes)
    return path.read_text(encoding="utf-8")
