"""Writes what docs/models.md has from measurements: `python -m tests.models_table`.

The column of GGUF files, from the families that are read of them; that of agreement, from
docs/measurements/parity.md; and the table of memory, from the estimate that an engine makes before
it loads a model, of models as they were published. Nothing is loaded.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from engine_worker.compute.backends.cpu_native.backend import CpuNativeBackend
from engine_worker.compute.models.decoder import DecoderGraph, declare
from engine_worker.compute.models.hf_config import decoder_spec
from engine_worker.compute.weights.gguf.families import FAMILIES as GGUF_FAMILIES
from engine_worker.compute.weights.safetensors_files import SafetensorsCheckpoint
from engine_worker.compute.weights.sources import weight_sources
from engine_worker.compute.weights.tensor_info import TensorInfo
from engine_worker.config import ModelSettings
from engine_worker.loading.cache_shape import block_size_of, cache_shape_of
from engine_worker.loading.memory_estimate import MemoryEstimate, estimate_memory
from tests.fakes.published_models import PUBLISHED, PublishedModel
from tests.parity.measurement import WAYS
from tests.parity.page import Measured, read_page

DOCS: Final = Path(__file__).parents[1] / "docs"
MODELS: Final = DOCS / "models.md"
PARITY: Final = DOCS / "measurements" / "parity.md"
TYPES: Final = ("float32", "bfloat16", "int8", "int4")
CONTEXT: Final = 4096
"""Tokens of the request whose cache is counted."""
_BACKEND: Final = "cpu_native"
_SETTINGS: Final = ModelSettings(path=Path("model"), name="model")
_ROW: Final = re.compile(
    r"^\| `(\w+)` \| (.+) \| .+ \| (.+ \| .+ \|) [\d– ]+ (\| (?:`\w+`(?:, )?)+ \|)$", re.M
)
_AS_ANOTHER: Final = {
    "MistralForCausalLM": ("llama",),
    "Mistral3ForConditionalGeneration": ("llama", "mistral3", "mistral4"),
    "Qwen2VLForConditionalGeneration": ("qwen2vl",),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2vl",),
    "Qwen3VLForConditionalGeneration": ("qwen3vl",),
    "Qwen3VLMoeForConditionalGeneration": ("qwen3vlmoe",),
}
"""Whose files llama.cpp's converter writes under the name of another family."""
_MEMORY_HEAD: Final = "| model |"
Parity = Mapping[tuple[str, str, str], Measured]


def agreement(cases: Sequence[str], parity: Parity) -> str:
    """The least share of tokens in percent of any way and case, type by type."""
    cells = []
    for weight_type in TYPES:
        found = [parity.get((case, _BACKEND, weight_type)) for case in cases]
        shares = [one.ways[way].percent for one in found if one is not None for way in WAYS]
        cells.append("–" if None in found else str(min(shares)))
    return " ".join(cells)


def gguf_names(architecture: str) -> str:
    """What GGUF files of an architecture, or of its text model, call it; `–` where none is read."""
    text = architecture.replace("ForConditionalGeneration", "ForCausalLM")
    names = _AS_ANOTHER.get(architecture) or [
        name
        for name, families in GGUF_FAMILIES.items()
        if any(family.architecture == text for family in families)
    ]
    return ", ".join(f"`{name}`" for name in names) or "–"


def declared(model: PublishedModel) -> dict[str, DecoderGraph]:
    """Its decoder by the type of weights: read in float32 where they are then quantised."""
    spec = decoder_spec(model.config)
    wide, narrow = declare(spec, "float32"), declare(spec, "bfloat16")
    return {one: narrow if one == "bfloat16" else wide for one in TYPES}


def estimate(graph: DecoderGraph, weight_type: str) -> MemoryEstimate:
    """What an engine would ask for, of a checkpoint in bfloat16."""
    backend = CpuNativeBackend(graph, weight_type, block_size_of(_SETTINGS, graph.spec))
    shape = cache_shape_of(_SETTINGS, backend)
    return estimate_memory(
        backend,
        _SETTINGS,
        kv_memory_bytes=shape.layout(shape.blocks_of_request(CONTEXT)).size_bytes,
        checkpoint=_stored(graph),
    )


def _stored(graph: DecoderGraph) -> SafetensorsCheckpoint:
    file = Path("model.safetensors")
    tensors = {
        source.name: TensorInfo(source.name, file, "BF16", source.shape, 0, 0, in_rows=True)
        for parts in weight_sources(graph)
        for source in parts
    }
    return SafetensorsCheckpoint(file, (file,), tensors)


def memory_row(model: PublishedModel, graphs: Mapping[str, DecoderGraph]) -> str:
    """A row of the table: of each type weights and all, the cache, and the states of a request.

    Args:
        model: Whose row it is.
        graphs: As `declared` gives them.
    """
    found = {one: estimate(graph, one) for one, graph in graphs.items()}
    cells = [
        f"{_gibibytes(one.weights_bytes)} / {_gibibytes(one.total_bytes)}" for one in found.values()
    ]
    usual = found["bfloat16"]
    cache = f"{usual.kv_bytes / 2**20:.0f} MiB"
    more = f"{usual.request_bytes / 2**20:.0f} MiB" if usual.request_bytes else "–"
    size = f"{model.num_parameters / 1e9:.2f}"
    return f"| {model.name} | {size} | {' | '.join(cells)} | {cache} | {more} |"


def _gibibytes(size_bytes: int) -> str:
    size = size_bytes / 2**30
    num_digits = 2 if size < 1 else 1 if size < 100 else 0
    return f"{size:.{num_digits}f}"


def memory_table() -> list[str]:
    """The whole table."""
    head = ["model", "billions", *TYPES, "cache", "states of one more"]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [
        *(f"| {' | '.join(cells)} |" for cells in (head, rule)),
        *(memory_row(model, declared(model)) for model in PUBLISHED),
    ]


def written(text: str, parity: Parity, memory: Sequence[str] | None) -> str:
    """The page with what is measured and computed now.

    Args:
        text: As it was.
        parity: What was measured.
        memory: The lines of `memory_table`; None leaves those that are there.
    """

    def row(match: re.Match[str]) -> str:
        name, models, more, cases = match.groups()
        shares = agreement(re.findall(r"`(\w+)`", cases), parity)
        return f"| `{name}` | {models} | {gguf_names(name)} | {more} {shares} {cases}"

    lines = _ROW.sub(row, text).split("\n")
    if memory is None:
        return "\n".join(lines)
    first = next(at for at, line in enumerate(lines) if line.startswith(_MEMORY_HEAD))
    last = next(at for at, line in enumerate(lines[first:], first) if not line)
    lines[first:last] = memory
    return "\n".join(lines)


def main() -> int:
    """Write the page."""
    parity = read_page(PARITY.read_text(encoding="utf-8"))
    text = written(MODELS.read_text(encoding="utf-8"), parity, memory_table())
    MODELS.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
