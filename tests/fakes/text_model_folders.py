"""Folders of small random encoders with a tokenizer, as people download them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from tokenizers.processors import BertProcessing

WORDS = [
    "river",
    "stone",
    "light",
    "copper",
    "garden",
    "window",
    "seven",
    "north",
    "quiet",
    "paper",
    "what",
    "where",
    "who",
    "is",
    "a",
]
_VOCABULARY = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3}


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of a few words that joins pairs as BERT's does."""
    words = {word: len(_VOCABULARY) + number for number, word in enumerate(WORDS)}
    backend = Backend(models.WordLevel(_VOCABULARY | words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(_VOCABULARY))
    backend.post_processor = BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    backend.save(str(folder / "tokenizer.json"))


def write_text_model(folder: Path, config: Any, kind: Any, **more: Any) -> Any:
    """Save a random model of transformers with that tokenizer.

    Args:
        folder: Need not be there.
        config: Of transformers.
        kind: The class of the model.
        more: Fields of `config.json` that are set afterwards.

    Returns:
        The model, in float32 and ready to compute.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(4)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | more
    path.write_text(json.dumps(values), encoding="utf-8")
    return model
