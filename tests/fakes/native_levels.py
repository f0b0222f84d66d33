"""The instruction levels of the native kernels, the best first."""

from typing import Final

LEVELS: Final = (
    "amx",
    "avx512_bf16",
    "avx512_vnni",
    "avx512",
    "avx2_vnni",
    "avx2",
    "generic",
)
