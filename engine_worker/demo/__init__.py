"""The bundled demo model `penstock-demo`: checkpoint, tokenizer and chat template as files.

Trained by `tools/train_demo_model.py`; loaded like any other checkpoint folder.
Others use `demo_model_path`.
May import nothing of ours.
"""

from pathlib import Path

DEMO_MODEL_NAME = "penstock-demo"


def demo_model_path() -> Path:
    """The folder of the demo model, in the layout of a Hugging Face checkpoint."""
    return Path(__file__).resolve().parent
