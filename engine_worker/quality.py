"""`python -m engine_worker.quality`: what a type of weights or of the KV cache costs on a text.

Loads a model twice, in the types that are measured and in float32 (bfloat16 for large ones) on
plain XLA, reads the text with both, and prints how their predictions differ. The result is kept
beside the packed weights, and engines of this model in these types show it in `/v1/models/{id}`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine_worker.config import (
    DEFAULT_COMPILE_CACHE_DIR,
    DEFAULT_WEIGHTS_CACHE_DIR,
    DTYPES,
    ModelSettings,
)
from engine_worker.demo import DEMO_MODEL_NAME, demo_model_path
from protocol.errors import ConfigurationError, PenstockError
from protocol.runtime.gguf_header import model_name
from protocol.runtime.shared_settings import BACKENDS, KV_DTYPES

if TYPE_CHECKING:
    from engine_worker.compute.backends.base import Backend

BUNDLED_TEXT = "bundled"
_MAX_TEXT_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Job:
    """What to measure.

    Attributes:
        settings: The model and its types.
        against: Another model to compare with, such as the one that a GGUF file was made of; None
            compares with the same.
        reference_dtype: auto, float32 or bfloat16.
        text_name: For the record.
        text: What is read.
        max_tokens: The most of it that are.
    """

    settings: ModelSettings
    against: Path | None
    reference_dtype: str
    text_name: str
    text: str
    max_tokens: int


def run(job: Job) -> dict[str, object]:
    """Measure, and keep the record.

    Raises:
        PenstockError: A model can't be loaded, the text is too short, or the two models read it as
            different tokens.
    """
    from engine_worker.compute.backends.choice import kv_label
    from engine_worker.compute.backends.kv_memory import device_memory_stats
    from engine_worker.compute.models.dtype import FLOAT32_MAX_PARAMETERS
    from engine_worker.compute.runner.compile_cache import prepare_backend
    from engine_worker.loading.decoder import choose_for_settings
    from engine_worker.loading.gguf_folder import with_model_folder
    from engine_worker.loading.memory_estimate import require_memory_of_both
    from engine_worker.loading.quality import measure_quality
    from engine_worker.loading.quality_record import write_quality
    from engine_worker.loading.weights import load_for_backend
    from engine_worker.text.tokenizer import Tokenizer

    settings = with_model_folder(job.settings)
    prepare_backend(settings.compile_cache_dir, settings.num_threads)
    measured = choose_for_settings(settings)
    reference_dtype = job.reference_dtype
    if reference_dtype == "auto":
        is_large = measured.graph.num_parameters > FLOAT32_MAX_PARAMETERS
        reference_dtype = "bfloat16" if is_large else "float32"
    other = replace(settings, kv_dtype="auto")
    if job.against is not None:
        other = with_model_folder(replace(other, path=job.against, lora=None))
    reference = choose_for_settings(other, dtype=reference_dtype, backend="xla")
    token_ids, expected = (
        Tokenizer.load(one.tokenizer_path or one.path, one.path).encode(
            job.text, add_special_tokens=False
        )[: job.max_tokens]
        for one in (settings, other)
    )
    if token_ids != expected or measured.spec.vocab_size != reference.spec.vocab_size:
        raise ConfigurationError(
            f"--against {job.against}: this model reads the text as other tokens, so that nothing"
            " can be compared",
            param="against",
        )
    require_memory_of_both(settings, measured, other, reference, device_memory_stats())
    ours, theirs = (
        load_for_backend(one.path, backend, settings.weights_cache_dir, _tell, one.lora)
        for one, backend in ((settings, measured), (other, reference))
    )
    try:
        quality = measure_quality(ours, theirs, token_ids, lambda done: _tell(done, "compared"))
    except ValueError as error:
        raise ConfigurationError(f"--text {job.text_name}: {error}", param="text") from error
    record: dict[str, object] = {
        "weights": _weights_of(measured),
        "kv": kv_label(measured),
        "backend": measured.name,
        "reference": f"{reference.weight_type} on {reference.name}{_of(job.against)}",
        "text": job.text_name,
        **quality.record(),
    }
    if settings.weights_cache_dir is not None:
        try:
            path = write_quality(
                record, settings.weights_cache_dir, settings.path, measured, settings.lora
            )
            sys.stderr.write(f"kept in {path}\n")
        except OSError as error:
            sys.stderr.write(f"not kept: {error}\n")
    return record


def _weights_of(backend: "Backend") -> str:
    # Imports jax, as all that is needed to measure.
    from engine_worker.compute.backends.choice import stored_label

    stored = stored_label(backend)
    return f"{backend.weight_type}, {stored}" if stored else backend.weight_type


def _of(against: Path | None) -> str:
    return "" if against is None else f", {model_name(against)}"


def read_text(name: str) -> str:
    """A file's text, or that of the bundled one.

    Raises:
        ConfigurationError: It can't be read, is no UTF-8 or too large.
    """
    path = demo_model_path() / "quality.txt" if name == BUNDLED_TEXT else Path(name)
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_TEXT_BYTES + 1)
        if len(content) > _MAX_TEXT_BYTES:
            raise ConfigurationError(
                f"--text {name}: more than {_MAX_TEXT_BYTES} bytes", param="text"
            )
        return content.decode("utf-8")
    except OSError as error:
        raise ConfigurationError(f"--text {name}: {error.strerror}", param="text") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--text {name}: not UTF-8 text", param="text") from error


def _tell(done: float, what: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done:4.0%} {what:<60.60}")
        if done >= 1:
            sys.stderr.write("\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; the exit code is 1 when it can't be measured."""
    parser = argparse.ArgumentParser(prog="penstock quality", description=__doc__)
    parser.add_argument(
        "model", nargs="?", type=Path, help="a folder or GGUF file; the bundled model if none"
    )
    parser.add_argument("--lora", type=Path, help="folder of an adapter that is merged into it")
    parser.add_argument("--text", default=BUNDLED_TEXT, help="a UTF-8 file, or `bundled`")
    parser.add_argument("--max-tokens", type=int, default=20_000, help="of the text")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="what is measured")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, default="auto", help="likewise")
    parser.add_argument("--reference", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument(
        "--against", type=Path, help="another model to compare with: what a GGUF file was made of"
    )
    parser.add_argument("--compile-cache", type=Path, default=DEFAULT_COMPILE_CACHE_DIR)
    parser.add_argument("--weights-cache", type=Path, default=DEFAULT_WEIGHTS_CACHE_DIR)
    args = parser.parse_args(arguments)
    # The engine gets a folder; nothing in it may reach for the network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = demo_model_path() if args.model is None else args.model.expanduser().absolute()
    try:
        settings = ModelSettings(
            path=folder,
            name=DEMO_MODEL_NAME if args.model is None else model_name(folder),
            lora=None if args.lora is None else args.lora.expanduser().absolute(),
            dtype=args.dtype,
            backend=args.backend,
            kv_dtype=args.kv_dtype,
            compile_cache_dir=args.compile_cache.expanduser(),
            weights_cache_dir=args.weights_cache.expanduser(),
        )
        text_name = args.text if args.text == BUNDLED_TEXT else Path(args.text).name
        against = None if args.against is None else args.against.expanduser().absolute()
        job = Job(
            settings, against, args.reference, text_name, read_text(args.text), args.max_tokens
        )
        record = run(job)
    except PenstockError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    width = max(map(len, record))
    sys.stdout.writelines(f"{name:<{width}}  {value}\n" for name, value in record.items())
    return 0


if __name__ == "__main__":
    sys.exit(main())
