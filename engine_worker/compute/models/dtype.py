"""Chooses the type of the weights and activations when nobody did."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from protocol.errors import ConfigurationError

QUANTIZED = ("int8", "int4")
DTYPES = {"float32": np.dtype(jnp.float32), "bfloat16": np.dtype(jnp.bfloat16)}
NATIVE_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Names in /proc/cpuinfo of instructions that multiply bfloat16 (x86, x86, ARM)."""
FLOAT32_MAX_PARAMETERS = 1_000_000_000
"""Beyond it float32 is not chosen by itself: the weights alone would take 4 GB."""
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class DtypeChoice:
    """A type for the weights, and the sentence that says why.

    Attributes:
        name: float32, bfloat16, int8 or int4.
        reason: For the log.
        keeps_stored: Matrices that a checkpoint keeps in fewer bits stay so where they can be
            computed with, because no type was asked for.
    """

    name: str
    reason: str
    keeps_stored: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """In which weights are read: float32 where they are then quantised."""
        dtype: np.dtype[Any] = DTYPES.get(self.name, DTYPES["float32"])
        return dtype


def resolve_dtype(
    requested: str,
    backend: str,
    count_parameters: Callable[[], int],
    cpu_flags: frozenset[str],
    *,
    deterministic: bool = False,
) -> DtypeChoice:
    """Decides the type of the weights; it is never a quantised one unless that is asked for.

    The choice depends on nothing that varies from run to run: engines that continue each other's
    streams must compute alike. On CPUs that multiply bfloat16, a step of XLA:CPU takes about as
    long for two rows in bfloat16 as for one in float32, and half as long or less from two rows
    up, so bfloat16 serves best; float32 would win a tenth for one stream that is always alone.

    Args:
        requested: auto, float32, bfloat16, int8 or int4.
        backend: JAX's name of the platform: cpu, gpu, tpu.
        count_parameters: Of the model; called where the choice depends on it, which takes a
            moment of a start.
        cpu_flags: From `read_cpu_flags`; looked at on a CPU only.
        deterministic: Equal logits in every batch are asked for, which float32 gives.

    Returns:
        The type and the reason, for the log.

    Raises:
        ConfigurationError: An unknown type, or another one than float32 with `deterministic`.
    """
    if requested not in ("auto", *DTYPES, *QUANTIZED):
        known = " or ".join((*DTYPES, *QUANTIZED))
        raise ConfigurationError(f"dtype must be auto, {known}, not {requested!r}", param="dtype")
    if deterministic and requested not in ("auto", "float32"):
        raise ConfigurationError("deterministic needs dtype float32 (or auto)", param="dtype")
    if requested != "auto":
        return DtypeChoice(requested, "as asked for")
    if deterministic:
        return DtypeChoice("float32", "deterministic mode computes in float32")
    if backend != "cpu":
        return DtypeChoice("bfloat16", f"{backend} multiplies bfloat16", keeps_stored=True)
    if cpu_flags & NATIVE_BFLOAT16_FLAGS:
        return DtypeChoice("bfloat16", "this CPU multiplies bfloat16", keeps_stored=True)
    if count_parameters() <= FLOAT32_MAX_PARAMETERS:
        return DtypeChoice("float32", "this CPU does not multiply bfloat16", keeps_stored=True)
    return DtypeChoice(
        "bfloat16", "float32 would double the memory of a large model", keeps_stored=True
    )


def read_cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The instruction sets of the first core; empty where the system doesn't tell (macOS)."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()
