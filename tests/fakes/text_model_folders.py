"""Folders of small random encoders with a tokenizer, as people download them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from tokenizers.processors import BertProcessing

from tests.fakes.late import torch, transformers

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


MAX_TOKENS = 24
_SIZES: dict[str, Any] = {"vocab_size": 24, "max_position_embeddings": MAX_TOKENS}
_BERT = {
    **_SIZES,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
_DISTIL = {**_SIZES, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}


@dataclass(frozen=True)
class TextModels:
    """Three folders of small models for texts, and what transformers computes with them.

    Attributes:
        folder: Holds the folders, which are called by the names of these fields.
        ranker: A cross-encoder.
        topics: A classifier with the labels water, metal and air.
        sentences: An encoder.
        tokenizer: Of all three.
    """

    folder: Path
    ranker: Any
    topics: Any
    sentences: Any
    tokenizer: Any
    names = ("ranker", "topics", "sentences")


def write_text_models(folder: Path) -> TextModels:
    """Save them."""
    ranker = write_text_model(
        folder / "ranker",
        transformers.BertConfig(**_BERT, num_labels=1),
        transformers.BertForSequenceClassification,
    )
    topics = write_text_model(
        folder / "topics",
        transformers.DistilBertConfig(**_DISTIL, num_labels=3),
        transformers.DistilBertForSequenceClassification,
        id2label={"0": "water", "1": "metal", "2": "air"},
    )
    sentences = write_text_model(
        folder / "sentences", transformers.BertConfig(**_BERT), transformers.BertModel
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "ranker" / "tokenizer.json"), pad_token="[PAD]"
    )
    return TextModels(folder, ranker, topics, sentences, tokenizer)
