"""Reads ranges of bytes of a file of weights that others may write to.

Every byte is read by a call, which fails where a file was cut short since its header was checked,
or its disk doesn't answer. A mapping would end the whole process there (SIGBUS): no check of the
size beforehand holds until its pages are touched.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from engine_worker.errors import CheckpointError

WAY_OUT: Final = "download it again"


class ReadOctets(Protocol):
    """Some bytes of one file."""

    def __call__(self, name: str, start: int, end: int) -> npt.NDArray[np.uint8]:
        """Reads them; for any thread.

        Args:
            name: Of the tensor that they are part of, for messages.
            start: The first byte's place in the file.
            end: Behind the last.

        Raises:
            CheckpointError: They can't be read, or aren't there; names file and tensor.
        """


class StoredFile:
    """One file, open until the block of its `with` ends."""

    def __init__(self, path: Path) -> None:
        """Opens it.

        Raises:
            CheckpointError: It can't be opened.
        """
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, name: str, start: int, end: int) -> npt.NDArray[np.uint8]:
        """As `ReadOctets`."""
        octets = np.empty(end - start, np.uint8)
        rest = memoryview(octets.data)
        try:
            # The system may give less than it is asked for, and never more than 2 GiB at once.
            while rest and (num_read := os.preadv(self._descriptor, [rest], end - len(rest))):
                rest = rest[num_read:]
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} cannot be read: {error.strerror}"
            ) from error
        if rest:
            raise CheckpointError(
                f"{self.path}: truncated: tensor {name!r} is cut short, {len(rest)} of its bytes"
                f" are no longer there; {WAY_OUT}"
            )
        return octets


@contextmanager
def opened(paths: Sequence[Path]) -> Iterator[Mapping[Path, StoredFile]]:
    """Some files by their paths, open for the block: a layer's tensors may lie in several.

    Raises:
        CheckpointError: One can't be opened.
    """
    with ExitStack() as stack:
        yield {path: stack.enter_context(StoredFile(path)) for path in paths}
