"""The model, the training loop and the decoder at a size that takes seconds."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.demo import demo_model_path
from tools.demo_model.decode import GreedyDecoder
from tools.demo_model.model import (
    ModelShape,
    forward,
    init_params,
    linear,
    load_weights,
    logits,
    save_weights,
    weight_shapes,
)
from tools.demo_model.packing import ChatFormat
from tools.demo_model.training import Trainer, TrainingPlan, batch_loss

# Twenty seconds of compiling for a tool that makes the bundled model, once.
pytestmark = pytest.mark.long

SHAPE = ModelShape(hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8)
PLAN = TrainingPlan(num_steps=6, num_rows=2, row_length=64, long_every=100, num_warmup_steps=2)


@pytest.fixture(scope="module")
def chat_format() -> ChatFormat:
    return ChatFormat(demo_model_path())


def final_params(trainer: Trainer) -> dict[str, np.ndarray]:
    trainer.run(lambda progress: None)
    return {name: np.asarray(value) for name, value in trainer.state.params.items()}


@pytest.mark.long
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    chat_format: ChatFormat, tmp_path: Path
) -> None:
    saved = tmp_path / "state.npz"
    whole = Trainer(PLAN, SHAPE, chat_format)
    whole.run(lambda progress: whole.save(saved) if progress.step == 3 else None)
    resumed = Trainer(PLAN, SHAPE, chat_format)
    resumed.restore(saved)
    assert resumed.state.step == 3
    params = final_params(resumed)
    for name, value in whole.state.params.items():
        np.testing.assert_array_equal(params[name], value)


def test_a_few_steps_lower_the_loss(chat_format: ChatFormat) -> None:
    losses: list[float] = []
    plan = TrainingPlan(num_steps=30, num_rows=2, row_length=64, long_every=100, num_warmup_steps=5)
    Trainer(plan, SHAPE, chat_format).run(lambda progress: losses.append(progress.loss))
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.85 * losses[0]


def test_long_batches_start_late_and_keep_the_number_of_tokens(chat_format: ChatFormat) -> None:
    plan = TrainingPlan(num_steps=100, long_every=10, long_from=0.5)
    assert [step for step in range(100) if plan.is_long(step)] == [50, 60, 70, 80, 90]
    assert plan.batch(chat_format, 50).token_ids.shape == (2, 2048)
    assert plan.batch(chat_format, 51).token_ids.shape == (16, 256)


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    rate = TrainingPlan(num_steps=1000, num_warmup_steps=10, decay_from=0.5).rate(0.1)
    steps = (0, 10, 300, 500, 750, 1000)
    assert [float(rate(step)) for step in steps] == pytest.approx([0, 0.1, 0.1, 0.1, 0.05, 0])


def test_the_gradient_of_linear_is_that_of_the_product() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    weight = jax.random.normal(jax.random.key(1), (5, 8))
    got = jax.grad(lambda x, w: jnp.sum(jnp.sin(linear(x, w))), (0, 1))(x, weight)
    wanted = jax.grad(lambda x, w: jnp.sum(jnp.sin(x @ w.T)), (0, 1))(x, weight)
    for one, other in zip(got, wanted, strict=True):
        assert float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other)) < 0.03


def test_conversations_of_a_row_do_not_see_each_other() -> None:
    params = init_params(SHAPE, 0)
    token_ids = jax.random.randint(jax.random.key(0), (1, 8), 0, SHAPE.vocab_size)
    documents = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 2]])
    weights = jnp.asarray([[0, 0, 0, 0, 1, 1, 1, 1.0]])

    def loss(token_ids: jax.Array) -> float:
        batch = {"token_ids": token_ids, "targets": token_ids, "weights": weights}
        return float(batch_loss(params, SHAPE, {**batch, "documents": documents}))

    assert loss(token_ids) == loss(token_ids.at[0, 0].add(1))
    assert loss(token_ids) != loss(token_ids.at[0, 4].add(1))


@pytest.mark.long
def test_cached_decoding_chooses_what_the_whole_forward_chooses() -> None:
    params = {name: 3 * value for name, value in init_params(SHAPE, 1).items()}
    prompts = [[5, 9, 700, 31], [8, 1500, 77, 4, 12, 900, 3]]
    outputs = GreedyDecoder(params, SHAPE, [2]).generate(prompts, 6)
    for prompt, output in zip(prompts, outputs, strict=True):
        token_ids = jnp.asarray([prompt + output])
        length = token_ids.shape[1]
        positions = jnp.arange(length)[None]
        visible = jnp.tril(jnp.ones((1, length, length), bool))
        hidden, _ = forward(params, SHAPE, token_ids, positions, visible)
        chosen = jnp.argmax(logits(params, hidden[0, len(prompt) - 1 : -1]), axis=-1)
        assert len(output) == 6
        assert chosen.tolist() == output


def test_decoding_stops_at_the_end_of_the_turn() -> None:
    params = init_params(SHAPE, 1)
    (first, *_), *_ = GreedyDecoder(params, SHAPE, []).generate([[5, 6]], 3)
    assert GreedyDecoder(params, SHAPE, [first]).generate([[5, 6]], 3) == [[]]


def test_weights_survive_the_checkpoint_in_bfloat16(tmp_path: Path) -> None:
    params = init_params(SHAPE, 0)
    save_weights(params, tmp_path / "model.safetensors")
    loaded = load_weights(tmp_path / "model.safetensors")
    assert {name: value.shape for name, value in loaded.items()} == weight_shapes(SHAPE)
    for name, value in params.items():
        assert jnp.array_equal(loaded[name], value.astype(jnp.bfloat16).astype(jnp.float32))
