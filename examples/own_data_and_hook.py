"""Use a data set that is not a text, and a hook that watches the run: a GPT learns to continue 3 5 7 9 ...

    python examples/own_data_and_hook.py

`batch(step)` must be a pure function of the step; then a run can be resumed at any step. A hook sees the trainer after
every step. This one measures how many rows end with the right number, and stops the run when 99 % of them do.
"""

import torch

from minigpt import GPT, ModelConfig
from minigpt.config import OptimizerConfig, ScheduleConfig, TrainConfig
from minigpt.runtime.device import make_runtime
from minigpt.training import Hook, Trainer, make_optimizer

NUMBERS, LENGTH, ROWS = 16, 8, 64


class Progressions:
    """Rows a, a + d, a + 2 d, ..., modulo 16, with any start and step."""

    steps_per_epoch = float("inf")
    tokens_per_step = ROWS * LENGTH

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets [ROWS, LENGTH]: the targets are the inputs' next numbers."""
        generator = torch.Generator().manual_seed(step)
        start, distance = torch.randint(NUMBERS, (2, ROWS, 1), generator=generator)
        rows = (start + distance * torch.arange(LENGTH + 1)) % NUMBERS  # [ROWS, LENGTH + 1]
        return rows[:, :-1], rows[:, 1:]


class Accuracy(Hook):
    """Every 20 steps: the share of rows, never seen before, whose last number is right."""

    def on_step(self, trainer: Trainer) -> None:
        if trainer.state.step % 20:
            return
        inputs, targets = trainer.batches.batch(1_000_000 + trainer.state.step)
        with torch.no_grad():
            right = (trainer.model(inputs)[:, -1].argmax(-1) == targets[:, -1]).float().mean().item()
        print(f"step {trainer.state.step:>4}  loss {trainer.loss.item():.3f}  right {right:.0%}")
        if right > 0.99:
            trainer.stop("it counts")


config = TrainConfig(max_steps=600, eval_every=600)
model = GPT(ModelConfig(vocab_size=NUMBERS, max_seq_len=LENGTH, embed_dim=64, num_layers=2, num_heads=4))
rates = OptimizerConfig()
optimizer = make_optimizer(model, rates)
data, runtime = Progressions(), make_runtime("cpu", "fp32")
schedule = ScheduleConfig(kind="constant", warmup_steps=10)
trainer = Trainer(model, optimizer, data, list, config, schedule, runtime, rates.learning_rate, hooks=[Accuracy()])
state = trainer.run()
print(f"stopped at step {state.step}: {state.stop_reason}")
