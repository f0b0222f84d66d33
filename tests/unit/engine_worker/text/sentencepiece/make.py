"""Makes the models and the expected ids in this folder; needs `pip install sentencepiece==0.2.3`.

Run it here: `python make.py`. The tests need neither it nor the library.
"""

import json
import random
from pathlib import Path

import sentencepiece  # type: ignore[import-not-found]

FOLDER = Path(__file__).parent
CORPUS = [
    line.strip()
    for page in sorted((FOLDER.parents[4] / "docs").glob("*.md"))
    for line in page.read_text(encoding="utf-8").splitlines()
    if line.strip()
]
MODELS = {
    "llama": {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
    },
    "gemma": {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "allow_whitespace_only_pieces": True,
        "control_symbols": ["<start_of_turn>", "<end_of_turn>"],
        "user_defined_symbols": ["<tool>", "\n\n"],
        "pad_id": 3,
    },
    "t5": {
        "model_type": "unigram",
        "vocab_size": 500,
        "normalization_rule_tsv": str(FOLDER / "rules.tsv"),
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
    },
    "unigram_bytes": {
        "model_type": "unigram",
        "vocab_size": 700,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
}
TEXTS = [
    "",
    " ",
    "   ",
    "a",
    "Hello world",
    " leading",
    "trailing  ",
    "two  spaces   three",
    "def f(x):\n    return [0.5, x]\n\n\nprint(f(1))",
    "tab\tand\r\nline ends\n",
    "1234567890 3.14159 1,000,000",
    "Ünïcödé naïve café",
    "ﬁne ＡＢＣ",
    "水は低きに流れる。",
    "한국어 텍스트",
    "مرحبا بالعالم",
    "👩‍👩‍👧 🎉 e\u0301 \u200b|\u00a0|",
    "\x00\x01\x7f",
    "▁ already ▁▁ there",
    "<0x41> <unk>",
    '{"name": "f", "arguments": {"a": [1, 2]}}',
    "word " * 200,
    "x" * 300,
]


def main() -> None:
    (FOLDER / "rules.tsv").write_text("FB01\t66 69\nFF21\t41\nFF22\t42\n", encoding="utf-8")
    rng = random.Random(5)
    letters = "abcdefghij xyz  ..,\n\t01é水👍<>_"
    texts = TEXTS + ["".join(rng.choices(letters, k=rng.randint(1, 40))) for _ in range(200)]
    texts += [" ".join(rng.sample(" ".join(CORPUS).split(), 12)) for _ in range(50)]
    expected = {}
    for name, options in MODELS.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_prefix=str(FOLDER / name),
            num_threads=1,
            **options,
        )
        (FOLDER / f"{name}.vocab").unlink()
        processor = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / f"{name}.model"))
        expected[name] = [processor.encode(text) for text in texts]
    content = {"texts": texts, "ids": expected}
    (FOLDER / "expected.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
