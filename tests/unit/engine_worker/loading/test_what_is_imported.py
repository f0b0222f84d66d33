"""What loading a model imports: a start waits for it, and its memory is held for good."""

import os
import subprocess
import sys

LOADED = """
import sys
import engine_worker.__main__
from engine_worker.demo import demo_model_path
from engine_worker.loading.decoder import load_model
from engine_worker.text.tokenizer import Tokenizer
Tokenizer.load(demo_model_path())
print(*sys.modules)
"""


def test_a_start_imports_no_package_that_few_models_need() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    names = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"jax", "tokenizers"} <= names
    unwanted = {"transformers", "torch", "gguf", "huggingface_hub", "tensorflow", "orbax"}
    assert not names & unwanted
