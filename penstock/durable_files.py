"""What it takes for a renamed file to be there after a power cut."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries, such as a rename just done, to the disk.

    Raises:
        OSError: The folder can't be opened, or the disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
