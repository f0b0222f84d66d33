"""AutoRound: the packings of GPTQ and AWQ under a method of its own.

Source: auto-round, `export/export_to_autoround/export.py`: `packing_format` says whose modules are
written. In GPTQ's zeros are stored less one, as in the first version of that format; in AutoRound's
own, which is named by the kernel that it was made for, they stand as they are.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from engine_worker.compute.models.config_fields import ConfigFields
from engine_worker.compute.weights.quantized.awq import read_awq
from engine_worker.compute.weights.quantized.derived import DerivedTensor, StoredTensors
from engine_worker.compute.weights.quantized.gptq import SECOND, read_gptq
from engine_worker.errors import UnsupportedFormatError

_GPTQ, _AWQ = "auto_gptq", "auto_awq"
_READ: Final[dict[str, Callable[[StoredTensors, ConfigFields], Iterator[DerivedTensor]]]] = {
    **dict.fromkeys((_GPTQ, "gptq"), read_gptq),
    **dict.fromkeys((_AWQ, "awq"), read_awq),
    **dict.fromkeys(
        ("auto_round", "exllamav2", "triton", "torch"), partial(read_gptq, version=SECOND)
    ),
}
"""By what a packing is called behind the first colon, if it has one."""


def read_auto_round(stored: StoredTensors, fields: ConfigFields) -> Iterator[DerivedTensor]:
    """Modules of whole numbers; those that `extra_config` leaves in 16 bits are none.

    Raises:
        UnsupportedFormatError: Another packing, or other numbers.
        CheckpointError: As `read_gptq` and `read_awq`.
    """
    kind = fields.text("data_type", "int")
    stated = fields.text("packing_format", fields.text("backend", f"auto_round:{_GPTQ}"))
    # What follows a second colon is the kernel that it was made for.
    parts = stated.lower().replace("-", "_").split(":")
    read = _READ.get(parts[1] if len(parts) > 1 else parts[0])
    if kind != "int" or read is None:
        raise UnsupportedFormatError(
            f"AutoRound with {kind!r:.40} numbers in the packing {stated!r:.40} is not read, only"
            f" whole numbers in 'auto_round', 'auto_round:{_GPTQ}' and 'auto_round:{_AWQ}'; use"
            " such a checkpoint or the original model"
        )
    yield from read(stored, fields)
