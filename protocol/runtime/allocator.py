"""How C's allocator gives memory back, where it can be told: in glibc."""

import ctypes
import os
from collections.abc import Mapping

LARGE_BLOCK_BYTES = 256 * 1024
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_TRIM_BYTES = 1024 * 1024
_USERS_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def return_large_blocks(environ: Mapping[str, str] = os.environ) -> bool:
    """Let every large block go back to the system as soon as it is freed.

    By default glibc learns from the first large block that it frees, and takes blocks up to 32 MB
    from its heap from then on. There a small one that stays keeps all that was freed below it: a
    server that once read large bodies would hold them for good.

    Args:
        environ: Where somebody has set the allocator's own variables, they count.

    Returns:
        Whether the allocator was told; elsewhere than with glibc it can't be.
    """
    if any(name in environ for name in _USERS_OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES) and mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    )
