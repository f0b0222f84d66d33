"""`penstock convert IN OUT`: a PyTorch checkpoint (.pt, .bin) becomes a folder with safetensors.

Nothing in the checkpoint is run: its pickle is read as data, and what isn't a tensor is refused.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine_worker.compute.models.config_fields import CONFIG_NAME
from engine_worker.conversion.converter import Converted, convert
from engine_worker.conversion.name_map import NO_MAP, read_map
from engine_worker.errors import ModelLoadError
from protocol.errors import PenstockError

_NAMED = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, and say whether the result can be served; the exit code is 1 when it can't be."""
    parser = argparse.ArgumentParser(
        prog="penstock convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="IN", help="a file or a folder with one")
    parser.add_argument("folder", type=Path, metavar="OUT", help="the folder that is written")
    parser.add_argument(
        "--map", type=Path, help="JSON file that renames tensors: docs/model-folders.md"
    )
    args = parser.parse_args(arguments)
    try:
        names = NO_MAP if args.map is None else read_map(args.map)
        done = convert(args.source.expanduser(), args.folder.expanduser(), names)
    except PenstockError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{args.folder}: can't be written: {error}\n")
        return 1
    sys.stdout.write(f"{done.file}: {done.num_tensors} tensors, {done.size_bytes} bytes\n")
    if done.left_out:
        named = ", ".join(done.left_out[:_NAMED])
        sys.stdout.write(f"left out by the mapping: {len(done.left_out)} ({named})\n")
    return _check(done)


def _check(done: Converted) -> int:
    """Whether the architecture that the config names finds its tensors."""
    folder = done.file.parent
    if done.file.name != "model.safetensors":
        return 0
    if not (folder / CONFIG_NAME).is_file():
        sys.stdout.write(f"no {CONFIG_NAME} was there: write one, or `config` into --map\n")
        return 0
    from engine_worker.compute.models.decoder import declare
    from engine_worker.compute.models.hf_config import load_spec
    from engine_worker.compute.weights.checkpoint import open_checkpoint
    from engine_worker.compute.weights.loader import open_weights, with_own_head
    from engine_worker.compute.weights.sources import is_ignorable, weight_sources

    try:
        checkpoint = open_checkpoint(folder)
        graph = with_own_head(declare(load_spec(folder), "float32"), checkpoint)
        spec = graph.spec
        with open_weights(
            checkpoint,
            graph.parameters,
            weight_sources(graph, checkpoint.tensors),
            architecture=spec.architecture,
            is_ignorable=lambda name: is_ignorable(name, spec),
        ):
            sys.stdout.write(f"{spec.architecture}: every weight is there\n")
    except ModelLoadError as error:
        sys.stderr.write(f"written, but can't be served yet: {error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
