"""The training loop: loss, optimizer, resumable state and progress."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tools.demo_model.model import ModelShape, Params, forward, init_params, logits
from tools.demo_model.packing import Batch, ChatFormat, packed_batch


@dataclass(frozen=True)
class TrainingPlan:
    """What a run does; the schedule and every batch follow from it.

    Attributes:
        seed: of the weights and of the data.
        num_steps: in all, those before a resume included.
        num_rows: rows of a short batch.
        row_length: tokens of a short row.
        long_row_length: tokens of a long row, the context that the model must serve.
        long_every: every so many steps the batch is of long rows.
        long_from: the share of the run before the first long batch.
        peak_rate: learning rate of the matrices (Muon).
        peak_adam_rate: learning rate of the embedding and the norms (Adam).
        num_warmup_steps: of linear warm-up.
        decay_from: the share of the run at constant rate; then it falls to 0 in a line.
    """

    seed: int = 0
    num_steps: int = 4000
    num_rows: int = 16
    row_length: int = 256
    long_row_length: int = 2048
    long_every: int = 16
    long_from: float = 0.3
    peak_rate: float = 0.012
    peak_adam_rate: float = 0.003
    num_warmup_steps: int = 100
    decay_from: float = 0.35

    def is_long(self, step: int) -> bool:
        """Whether this step's batch is of long rows."""
        return step >= self.long_from * self.num_steps and step % self.long_every == 0

    def batch(self, chat_format: ChatFormat, step: int) -> Batch:
        """This step's batch; long ones have at most as many tokens as short ones."""
        num_rows, length = self.num_rows, self.row_length
        if self.is_long(step):
            length = self.long_row_length
            num_rows = max(1, self.num_rows * self.row_length // length)
        return packed_batch(chat_format, self.seed, step, num_rows=num_rows, row_length=length)

    def rate(self, peak: float) -> optax.Schedule:
        """Learning rate by step: warm-up, constant, linear to 0."""
        decay_start = int(self.decay_from * self.num_steps)
        return optax.join_schedules(
            [
                optax.linear_schedule(0.0, peak, self.num_warmup_steps),
                optax.constant_schedule(peak),
                optax.linear_schedule(peak, 0.0, max(1, self.num_steps - decay_start)),
            ],
            [self.num_warmup_steps, max(decay_start, self.num_warmup_steps)],
        )


@dataclass
class TrainingState:
    """All that a resume needs."""

    step: int
    params: Params
    optimizer_state: Any


def make_optimizer(plan: TrainingPlan) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for the matrices, Adam for the embedding and the norms."""

    def dimensions(params: Params) -> dict[str, object]:
        matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
        # By name: the values are not arrays where optax has masked them.
        return {name: matrix if "_proj" in name else None for name in params}

    muon = optax.contrib.muon(
        plan.rate(plan.peak_rate),
        weight_decay=0.01,
        adam_learning_rate=plan.rate(plan.peak_adam_rate),
        adam_b2=0.98,
        muon_weight_dimension_numbers=dimensions,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def batch_loss(params: Params, shape: ModelShape, batch: dict[str, jax.Array]) -> jax.Array:
    """Weighted mean cross-entropy of a packed batch, in nats a token."""
    documents = batch["documents"]
    length = documents.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    visible = causal & (documents[:, :, None] == documents[:, None, :])
    positions = jnp.broadcast_to(jnp.arange(length), documents.shape)
    hidden, _ = forward(params, shape, batch["token_ids"], positions, visible)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits(params, hidden), batch["targets"]
    )
    return jnp.sum(losses * batch["weights"]) / jnp.sum(batch["weights"])


class Trainer:
    """Runs a plan from its start or from a saved state."""

    def __init__(self, plan: TrainingPlan, shape: ModelShape, chat_format: ChatFormat) -> None:
        self._plan = plan
        self._shape = shape
        self._chat_format = chat_format
        self._optimizer = make_optimizer(plan)
        params = init_params(shape, plan.seed)
        self.state = TrainingState(0, params, self._optimizer.init(params))
        self._update = jax.jit(self._update_step, donate_argnums=(0, 1))

    def _update_step(
        self, params: Params, optimizer_state: Any, batch: dict[str, jax.Array]
    ) -> tuple[Params, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(partial(batch_loss, shape=self._shape, batch=batch))(
            params
        )
        updates, optimizer_state = self._optimizer.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state, loss

    def run(self, on_step: Callable[["Progress"], None]) -> None:
        """Trains to the end of the plan; `on_step` is told of every step."""
        started, start_step = time.monotonic(), self.state.step
        num_tokens = 0
        for batch in self._batches(start_step):
            arrays = {name: jnp.asarray(value) for name, value in vars(batch).items()}
            params, optimizer_state, loss = self._update(
                self.state.params, self.state.optimizer_state, arrays
            )
            step = self.state.step + 1
            self.state = TrainingState(step, params, optimizer_state)
            num_tokens += int(np.count_nonzero(batch.documents))
            elapsed_s = time.monotonic() - started
            remaining = self._plan.num_steps - step
            on_step(
                Progress(
                    step=step,
                    loss=float(loss),
                    tokens_per_s=num_tokens / elapsed_s,
                    remaining_s=elapsed_s / (step - start_step) * remaining,
                )
            )

    def _batches(self, start_step: int) -> Iterator[Batch]:
        """Batches in order, each made on another thread while the step before it runs."""
        with ThreadPoolExecutor(1) as pool:
            make = partial(self._plan.batch, self._chat_format)
            pending = pool.submit(make, start_step)
            for step in range(start_step, self._plan.num_steps):
                batch = pending.result()
                pending = pool.submit(make, step + 1)
                yield batch

    def save(self, path: Path) -> None:
        """Writes the state so that a kill in the middle leaves the one before."""
        leaves = jax.tree.leaves((self.state.params, self.state.optimizer_state))
        arrays = {f"leaf{index}": np.asarray(leaf) for index, leaf in enumerate(leaves)}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_suffix(".partial.npz")
        np.savez(partial_path, step=np.asarray(self.state.step), allow_pickle=False, **arrays)
        partial_path.replace(path)

    def restore(self, path: Path) -> None:
        """Continues from a state that `save` wrote for the same shape."""
        with np.load(path, allow_pickle=False) as arrays:
            old, tree = jax.tree.flatten((self.state.params, self.state.optimizer_state))
            leaves = [jnp.asarray(arrays[f"leaf{index}"]) for index in range(len(old))]
            params, optimizer_state = jax.tree.unflatten(tree, leaves)
            self.state = TrainingState(int(arrays["step"]), params, optimizer_state)


@dataclass(frozen=True)
class Progress:
    """What one step reports."""

    step: int
    loss: float
    tokens_per_s: float
    remaining_s: float
