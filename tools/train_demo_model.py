"""Trains the bundled demo model from the written grammar, on whatever device jax finds.

python -m tools.train_demo_model                  # train, then export to engine_worker/demo
python -m tools.train_demo_model --export-only    # export the last saved state
"""

import argparse
import json
import random
from dataclasses import fields
from pathlib import Path

import jax

from tools.demo_model.decode import GreedyDecoder
from tools.demo_model.grammar import CATEGORIES, training_conversation
from tools.demo_model.model import ModelShape, Params, save_weights
from tools.demo_model.packing import ChatFormat
from tools.demo_model.scoring import draw_examples, score
from tools.demo_model.tokenizer import (
    END_OF_TEXT,
    TURN_END,
    TURN_START,
    save_tokenizer,
    token_id,
    train_tokenizer,
)
from tools.demo_model.training import Progress, Trainer, TrainingPlan

_ROOT = Path(__file__).resolve().parent.parent
_NUM_TOKENIZER_CONVERSATIONS = 30_000


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; each field of `TrainingPlan` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--output", type=Path, default=_ROOT / "engine_worker" / "demo")
    parser.add_argument("--state", type=Path, default=_ROOT / ".training" / "demo.npz")
    parser.add_argument("--num-layers", type=int, default=ModelShape.num_hidden_layers)
    parser.add_argument("--save-every", type=int, default=250, metavar="STEPS")
    parser.add_argument("--evaluate-every", type=int, default=500, metavar="STEPS")
    parser.add_argument("--num-examples", type=int, default=32, help="per category, while training")
    parser.add_argument("--restart", action="store_true", help="ignore a saved state")
    parser.add_argument(
        "--export-only", action="store_true", help="export the saved state, no step"
    )
    for field in fields(TrainingPlan):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default)
    return parser.parse_args(arguments)


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines and shows defaults."""


def prepare_tokenizer(folder: Path, shape: ModelShape, seed: int) -> ChatFormat:
    """The chat format of `folder`; its tokenizer is trained when there is none yet."""
    if (folder / "tokenizer.json").exists():
        return ChatFormat(folder)
    print("training the tokenizer", flush=True)
    rng = random.Random(f"tokenizer:{seed}")
    rendering = ChatFormat(folder, train_tokenizer([], 512))
    texts = (
        rendering.render(training_conversation(rng, max_characters=0))
        for _ in range(_NUM_TOKENIZER_CONVERSATIONS)
    )
    tokenizer = train_tokenizer(texts, shape.vocab_size)
    save_tokenizer(tokenizer, folder, max_length=shape.max_position_embeddings)
    return ChatFormat(folder, tokenizer)


def export(params: Params, shape: ModelShape, chat_format: ChatFormat, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors` beside the tokenizer."""
    tokenizer = chat_format.tokenizer
    config = shape.to_hf_config(
        bos_id=token_id(tokenizer, TURN_START),
        eos_id=token_id(tokenizer, TURN_END),
        pad_id=token_id(tokenizer, END_OF_TEXT),
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_weights(params, folder / "model.safetensors")


def evaluate(params: Params, shape: ModelShape, chat_format: ChatFormat, num_examples: int) -> str:
    """One line of exact shares by category, closed and open, on a few examples."""
    decoder = GreedyDecoder(params, shape, [token_id(chat_format.tokenizer, TURN_END)])
    parts = []
    for category in CATEGORIES:
        shares = []
        for level in ("closed", "open"):
            examples = draw_examples(category, level, num_examples, seed=1)
            result = score(decoder.generate, chat_format, examples, level, batch_size=num_examples)
            shares.append(f"{result.share:.0%}")
        parts.append(f"{category}: {'/'.join(shares)}")
    return ", ".join(parts)


def main() -> None:
    """Trains, reports, saves and exports."""
    options = parse_arguments()
    plan = TrainingPlan(
        **{field.name: getattr(options, field.name) for field in fields(TrainingPlan)}
    )
    shape = ModelShape(num_hidden_layers=options.num_layers)
    chat_format = prepare_tokenizer(options.output, shape, plan.seed)
    trainer = Trainer(plan, shape, chat_format)
    if options.state.exists() and not options.restart:
        trainer.restore(options.state)
    num_weights = sum(value.size for value in trainer.state.params.values())
    print(
        f"{num_weights:,} weights on {jax.devices()[0].device_kind}, "
        f"step {trainer.state.step} of {plan.num_steps}",
        flush=True,
    )

    def on_step(progress: Progress) -> None:
        step = progress.step
        is_last = step == plan.num_steps
        if step % 25 == 0:
            print(
                f"step {step} loss {progress.loss:.3f} {progress.tokens_per_s:,.0f} tokens/s "
                f"{progress.remaining_s / 60:.0f} min left",
                flush=True,
            )
        if step % options.save_every == 0 or is_last:
            trainer.save(options.state)
        if step % options.evaluate_every == 0 or is_last:
            line = evaluate(trainer.state.params, shape, chat_format, options.num_examples)
            print(f"step {step} {line}", flush=True)

    if not options.export_only:
        trainer.run(on_step)
    export(trainer.state.params, shape, chat_format, options.output)
    print(f"exported to {options.output}", flush=True)


if __name__ == "__main__":
    main()
