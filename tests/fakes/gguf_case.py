"""What a family of GGUF files is tested with."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter

from tests.fakes.gguf_files import Tensor, llama_tensors
from tests.fakes.tiny_checkpoint import TINY_LLAMA


def _same(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


def _nothing(_: GGUFWriter) -> None:
    return


@dataclass(frozen=True)
class GgufCase:
    """One family.

    Attributes:
        arch: llama.cpp's name of it.
        config: Hugging Face's `config.json`.
        convert: What happens to tensors.
        more: Adds what only this family has.
        spelled: What its published checkpoint makes of tensors that are one for each expert.
    """

    arch: str
    config: Mapping[str, Any]
    convert: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Iterable[tuple[str, Tensor]]] = (
        llama_tensors
    )
    more: Callable[[GGUFWriter], None] = _nothing
    spelled: Callable[[dict[str, Tensor]], dict[str, Tensor]] = _same


def config_of(architecture: str, model_type: str, **values: Any) -> dict[str, Any]:
    return {**TINY_LLAMA, "architectures": [architecture], "model_type": model_type, **values}
