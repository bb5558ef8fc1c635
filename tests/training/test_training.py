"""Test the step, the schedules and the loop, with a tiny model and batches made in the test."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mostly_slow import mostly_slow

from minigpt.config import ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from minigpt.files import read_lines
from minigpt.layout import whole_steps
from minigpt.model import GPT
from minigpt.model.loss import IGNORE, next_token_loss
from minigpt.runtime.device import Runtime
from minigpt.training import Budget, Hook, Trainer, accumulate, loop, lr_factor, make_optimizer, update
from minigpt.training.hooks.average import Average, TailAverage
from minigpt.training.hooks.checkpoints import Checkpoints
from minigpt.training.hooks.early_stopping import EarlyStopping
from minigpt.training.hooks.metrics import Metrics
from minigpt.training.hooks.plateau import Plateau
from minigpt.training.schedule import context_parts
from minigpt.weights import checkpoint
from minigpt.weights.damage import PARTS

CPU = Runtime(torch.device("cpu"), "fp32")
SHAPE = ModelConfig(vocab_size=20, embed_dim=32, num_heads=2, num_layers=2, max_seq_len=16, dropout=0.1)
RATES = OptimizerConfig(adamw_ratio=0.15)


@dataclass
class CountingBatches:
    """Sequences that count upwards from a random start: learnable, and a pure function of the step."""

    size: int = 8
    steps_per_epoch: float = 10.0
    tokens_per_step: int = 8 * 16

    def batch(self, step: int, rank: int = 0, world: int = 1):
        starts = torch.randint(20, (self.size, 1), generator=torch.Generator().manual_seed(step))
        rows = (starts + torch.arange(17)) % 20
        return rows[:, :-1], rows[:, 1:]


def make_trainer(hooks=(), schedule=None, shape=SHAPE, **settings) -> Trainer:
    model = GPT(shape, seed=1)
    config = TrainConfig(**{"batch_size": 8, "eval_every": 5, **settings})
    schedule = schedule or ScheduleConfig(warmup_steps=3)
    source = CountingBatches()
    own = [Average(model, config.ema_decay)] if config.ema_decay else []
    own += [TailAverage(model, config.average_last)] if config.average_last else []
    own += [Plateau(schedule)] if schedule.kind == "cosine+plateau" else []
    own += [EarlyStopping(config.early_stopping)] if config.early_stopping else []
    return Trainer(
        model,
        make_optimizer(model, RATES),
        source,
        lambda: [source.batch(10_000)],
        config,
        schedule,
        CPU,
        RATES.learning_rate,
        [*own, *hooks],
    )


def gradients(model: GPT) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_accumulation_over_uneven_masks_equals_the_one_batch_gradient() -> None:
    model = GPT(SHAPE.model_copy(update={"dropout": 0.0}))
    inputs = torch.randint(20, (6, 16), generator=torch.Generator().manual_seed(0))
    targets = torch.randint(20, (6, 16), generator=torch.Generator().manual_seed(1))
    for row, masked in enumerate([0, 15, 3, 16, 7, 12]):  # a row may have no target
        targets[row, :masked] = IGNORE
    whole = accumulate(model, [(inputs, targets)], runtime=CPU)
    expected = gradients(model)
    parts = list(zip(inputs.split([1, 2, 3]), targets.split([1, 2, 3]), strict=True))
    loss = accumulate(model, parts, runtime=CPU)
    torch.testing.assert_close(loss, whole)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)
    naive = sum(next_token_loss(model(x), y) for x, y in parts) / 3
    assert abs(naive.item() - whole.item()) > 1e-3, "the masks must be uneven enough to tell the two apart"


def test_loss_equals_torchs_and_smoothing_its_definition() -> None:
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 2, IGNORE], [0, IGNORE, 6]])
    chances = logits.log_softmax(-1)
    picked = [chances[0, 0, 1], chances[0, 1, 2], chances[1, 0, 0], chances[1, 2, 6]]
    torch.testing.assert_close(next_token_loss(logits, targets), -torch.stack(picked).mean())
    uniform = torch.stack([chances[0, 0], chances[0, 1], chances[1, 0], chances[1, 2]]).mean()
    expected = -0.9 * torch.stack(picked).mean() - 0.1 * uniform
    torch.testing.assert_close(next_token_loss(logits, targets, label_smoothing=0.1), expected)
    assert next_token_loss(logits, torch.full((2, 3), IGNORE)) == 0


def test_overfitting_one_batch_reaches_a_loss_below_a_hundredth() -> None:
    model = GPT(SHAPE.model_copy(update={"dropout": 0.0}))
    rows = torch.randint(20, (4, 17), generator=torch.Generator().manual_seed(0))
    optimizer = make_optimizer(model, OptimizerConfig(adamw_ratio=0.15, weight_decay=0.0))
    for step in range(200):
        loss = accumulate(model, [(rows[:, :-1], rows[:, 1:])], runtime=CPU, step=step)
        update(model, optimizer, runtime=CPU)
    print(f"loss on the one batch: {loss:.5f}")
    assert loss < 0.01


def test_clipping_limits_the_norm_that_the_optimizer_sees() -> None:
    model = GPT(SHAPE)
    inputs, targets = CountingBatches().batch(0)
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    accumulate(model, [(inputs, targets)], runtime=CPU)
    norm = update(model, frozen, runtime=CPU, grad_clip=0.1)
    assert norm > 0.1
    total = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert total.item() == pytest.approx(0.1, rel=1e-3)


def test_vectors_do_not_decay_and_matrices_do() -> None:
    model = GPT(SHAPE.model_copy(update={"bias": True}))
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.3))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in model.parameters():
        assert decays[id(parameter)] == (0.3 if parameter.dim() >= 2 else 0.0)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "trapezoidal", "cosine+plateau"])
def test_schedules_warm_up_stay_within_bounds_and_end_at_the_floor(kind: str) -> None:
    config = ScheduleConfig(kind=kind, warmup_steps=10, min_lr_ratio=0.1, decay_fraction=0.2)
    rates = [lr_factor(step, step / 100, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert max(rates) <= 1.0
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(1.0 if kind == "constant" else 0.1)
    assert lr_factor(500, 5.0, config) == rates[100]


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "trapezoidal", "cosine+plateau"])
@pytest.mark.parametrize("warmup", [0, 1, 20, 100, 159, 160, 200])
def test_the_rate_never_jumps(kind: str, warmup: int) -> None:
    """Over 160 steps, counted by number and by a clock whose steps take longer and longer."""
    config = ScheduleConfig(kind=kind, warmup_steps=warmup, min_lr_ratio=0.1, decay_fraction=1.0)
    for clock in (lambda step: step / 160, lambda step: (step / 160) ** 2):
        rates = [lr_factor(step, clock(step), config) for step in range(161)]
        if 0 < warmup <= 160:
            assert rates[warmup - 1] == 1.0
        if warmup < 160:
            assert rates[warmup] == 1.0
            assert rates[160] == pytest.approx(1.0 if kind == "constant" else 0.1)
        longest = 4 / max(161 - warmup, 1)  # a cosine's steepest slope is 1.6; the clock doubles it
        assert all(b >= a - longest for a, b in itertools.pairwise(rates))
        assert all(a >= b for a, b in itertools.pairwise(rates[warmup:]))


def test_a_run_of_an_older_version_keeps_the_rule_that_it_began_with(tmp_path: Path) -> None:
    schedule = ScheduleConfig(warmup_steps=4, min_lr_ratio=0.0)
    rates = {}
    for rule in (True, False):
        trainer = make_trainer(schedule=schedule, max_steps=8)
        assert trainer.state.decay_after_warmup, "a new run uses the new rule"
        trainer.state.decay_after_warmup = rule
        saver = Checkpoints(tmp_path / str(rule), 5, 3, {})
        trainer.hooks.append(saver)
        trainer.run()
        again = make_trainer(schedule=schedule, max_steps=8)
        again.resume(checkpoint.load(saver.directory(5), PARTS))
        again.run()
        assert again.lr == trainer.lr, "after a resume too"
        rates[rule] = trainer.lr
    assert rates[False] == pytest.approx(RATES.learning_rate * 0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert rates[True] == pytest.approx(RATES.learning_rate * 0.5 * (1 + math.cos(math.pi * 3 / 4)))


@pytest.mark.slow
def test_after_a_kill_the_lines_of_metrics_are_those_of_the_undisturbed_run(tmp_path: Path) -> None:
    """A line every 7 steps, a checkpoint every 3, one broken step: restarts do not change the steps of a line."""

    class Break(Hook):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.state.step == 5:
                trainer.grad_norm = torch.tensor(math.inf)

    def run(name: str, after: int | None = None) -> list[dict]:
        path = tmp_path / name / "metrics.jsonl"
        path.parent.mkdir(exist_ok=True)
        saver = Checkpoints(path.parent / "checkpoints", 3, 9, {})
        trainer = make_trainer([Break(), Metrics(path, 7, lambda parts: 1, None), saver], max_steps=20, eval_every=10)
        if after:
            trainer.resume(checkpoint.load(saver.directory(after), PARTS))
        trainer.run()
        timings = ("seconds", "tokens_per_second", "mfu")
        return [{key: value for key, value in line.items() if key not in timings} for line in read_lines(path)]

    whole = run("whole")
    assert [line["step"] for line in whole] == [0, 7, 10, 14, 20] and whole[1]["skipped"] == 1
    run("cut")
    for after in (15, 12, 9, 6, 3):
        assert run("cut", after) == whole, f"killed after the checkpoint of step {after}"


def test_the_logged_rate_is_the_one_that_moved_the_matrices(tmp_path: Path) -> None:
    applied = []

    class Note(Hook):
        def on_update(self, trainer: Trainer) -> None:
            matrix = trainer.model.blocks[0].attention.qkv.weight
            groups = trainer.optimizer.param_groups
            applied.extend(group["lr"] for group in groups if any(matrix is each for each in group["params"]))

    make_trainer([Note(), Metrics(tmp_path / "metrics.jsonl", 1, lambda parts: 1, None)], max_steps=6).run()
    assert [line["lr"] for line in read_lines(tmp_path / "metrics.jsonl") if line["step"]] == applied
    assert max(applied) == RATES.learning_rate, "the peak is the setting"


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_epochs": 1.5}, 15),
        ({"max_tokens": 300}, 3),
        ({"max_steps": 9, "max_epochs": 0.5}, 5),
    ],
)
def test_each_budget_ends_the_run(settings: dict, steps: int) -> None:
    assert make_trainer(**settings).run().step == steps


class Clock(Hook):
    """Stands in for the trainer's clock: a step takes a quarter of a second, what follows the second one longer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after_second: float = 0.0):
        self.now, self.after_second = 0.0, after_second
        monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def on_update(self, trainer: Trainer) -> None:
        self.now += 0.25

    def on_step(self, trainer: Trainer) -> None:
        self.now += self.after_second * (trainer.state.step == 2)


def test_minutes_are_a_budget_and_drive_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(TrainConfig(max_minutes=2), 10.0, 128)
    assert budget.total_steps is None
    assert budget.progress(1000, 60.0) == pytest.approx(0.5)
    schedule = ScheduleConfig(kind="linear", warmup_steps=0, min_lr_ratio=0.0)
    trainer = make_trainer([Clock(monkeypatch)], schedule, max_minutes=0.02)
    state = trainer.run()
    assert (state.step, state.seconds) == (5, 1.25), "the first step that ends after 1.2 seconds is the last"
    assert trainer.lr == pytest.approx(RATES.learning_rate * 0.2 / 1.2)


def test_a_run_out_of_time_ends_with_an_evaluated_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time runs out between two steps, as while a checkpoint is written to a slow disk."""
    state = make_trainer([Clock(monkeypatch, after_second=1.0)], max_minutes=0.02, eval_every=1000).run()
    assert state.val_loss is not None and state.eval_step == state.step == 3


def test_the_context_grows_with_the_run_and_a_part_is_a_window_of_its_own() -> None:
    schedule = ScheduleConfig(warmup_steps=0, context_warmup=0.8)
    assert [context_parts(step / 10, schedule) for step in range(10)] == [4] * 4 + [2] * 4 + [1] * 2
    assert context_parts(0.0, ScheduleConfig()) == 1
    seen = []
    trainer = make_trainer(schedule=schedule, max_steps=10, micro_batch_size=4, eval_every=10)
    trainer.model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    trainer.run()
    seen = [tokens for tokens in seen if tokens.shape != (8, 16)]  # the validation batch is whole
    assert [tuple(tokens.shape) for tokens in seen] == [(16, 4)] * 8 + [(8, 8)] * 8 + [(4, 16)] * 4
    assert torch.equal(seen[0].reshape(4, 16), CountingBatches().batch(0)[0][:4])


def evaluated_steps(path: Path, **settings) -> list[int]:
    make_trainer([Metrics(path, 1000, lambda parts: 1, 4.0)], **settings).run()
    return [line["step"] for line in read_lines(path) if "val_loss" in line]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 40}, range(0, 41, 4)),
        ({"max_steps": 25}, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25]),
        ({"max_steps": 3}, range(4)),
        ({"max_tokens": 128 * 20}, range(0, 21, 2)),
        ({"max_epochs": 2}, range(0, 21, 2)),  # two epochs of ten steps each
        ({"max_steps": 12, "eval_every": 5}, [0, 5, 10, 12]),
    ],
)
def test_a_run_is_evaluated_at_its_start_and_ten_times(tmp_path: Path, settings: dict, steps: Sequence[int]) -> None:
    assert evaluated_steps(tmp_path / "metrics.jsonl", **{"eval_every": "auto", **settings}) == list(steps)


def test_a_run_by_the_clock_is_evaluated_about_ten_times(tmp_path: Path) -> None:
    found = evaluated_steps(tmp_path / "metrics.jsonl", eval_every="auto", max_minutes=0.01)
    assert found[0] == 0 and 2 <= len(found) <= 11  # on a slow machine a step may be longer than a tenth


def test_the_start_is_never_the_best_and_moves_no_random_state() -> None:
    seen: list[tuple[float, torch.Tensor]] = []

    class Watch(Hook):
        def on_first_loss(self, trainer: Trainer, loss: float) -> None:
            seen.append((loss, torch.get_rng_state()))

    trainer = make_trainer([Watch()], max_steps=1, schedule=ScheduleConfig(warmup_steps=0))
    before = torch.get_rng_state()
    trainer.learning_rate = 10.0  # one step that makes the model worse
    state = trainer.run()
    ((loss, after),) = seen
    assert torch.equal(before, after)
    assert loss < state.val_loss == state.best_loss and state.best_step == 1 and state.evals_since_best == 0


def test_a_run_leaves_the_callers_random_numbers_as_they_were() -> None:
    trainer = make_trainer(max_steps=2)
    before = torch.get_rng_state()
    trainer.run()
    assert torch.equal(torch.get_rng_state(), before)


def test_learning_goes_down_and_the_metrics_of_the_loop_are_right() -> None:
    trainer = make_trainer(max_steps=60)
    first = trainer.evaluate()
    state = trainer.run()
    assert first == pytest.approx(math.log(20), abs=0.2)
    assert state.val_loss < 0.7 * first
    assert state.tokens == 60 * 128
    assert trainer.epoch == 6.0
    assert state.best_loss <= state.val_loss


class Scripted(Trainer):
    """A trainer whose validation losses are given."""

    losses: list[float]

    def evaluate(self) -> float:
        value = self.losses.pop(0) if self.losses else 9.0
        self.model.eval()
        import minigpt.training.loop as loop

        original, loop.validation_loss = loop.validation_loss, lambda *_: value
        try:
            return super().evaluate()
        finally:
            loop.validation_loss = original
            self.model.train()


def scripted(losses: list[float], schedule: ScheduleConfig, **settings) -> Scripted:
    trainer = make_trainer(schedule=schedule, **settings)
    trainer.__class__ = Scripted
    trainer.losses = losses
    return trainer


def test_plateau_cuts_the_rate_at_each_stall_down_to_its_limit() -> None:
    schedule = ScheduleConfig(
        kind="cosine+plateau", warmup_steps=0, min_lr_ratio=0.5, plateau_patience=2, plateau_max_steps=20
    )
    trainer = scripted([3.0, 2.0, 2.1, 2.2, 2.3, 2.4], schedule, max_steps=10)
    state = trainer.run()
    assert state.step == 30
    assert state.cuts == 2
    assert trainer.lr == pytest.approx(RATES.learning_rate * 0.5 * 0.5), "the second cut is after the last step"


def test_the_plateau_goes_on_after_the_steps_but_not_after_the_minutes() -> None:
    schedule = ScheduleConfig(kind="cosine+plateau", plateau_max_steps=20)
    trainer = make_trainer(schedule=schedule, max_steps=10, max_minutes=1)
    for step, seconds, goes_on in [(10, 59.0, True), (30, 59.0, False), (10, 60.0, False), (5, 60.0, False)]:
        trainer.state.step, trainer.state.seconds = step, seconds
        assert trainer.hooks[0].extends(trainer) == goes_on, (step, seconds)
    trainer.state.step, trainer.state.seconds = 10, 59.0
    assert not Plateau(schedule.model_copy(update={"min_lr_ratio": 0.0})).extends(trainer), "its rate would be 0"


def test_early_stopping_waits_for_its_patience_and_keeps_the_best_step() -> None:
    trainer = scripted([3.0, 2.0, 2.1, 2.2, 2.3], ScheduleConfig(), max_steps=1000, early_stopping=3)
    state = trainer.run()
    assert (state.step, state.best_step, state.best_loss) == (25, 10, 2.0)
    assert "no better validation loss in 3 evaluations" in state.stop_reason


def test_average_equals_its_recurrence_and_is_what_evaluation_sees() -> None:
    seen = []

    class Watch(Hook):
        def on_step(self, trainer):
            seen.append(trainer.model.embedding.weight.detach().clone())

    trainer = make_trainer(hooks=[Watch()], max_steps=12, ema_decay=0.5)
    start = trainer.model.embedding.weight.detach().clone()
    trainer.run()
    expected = start
    for step, weight in enumerate(seen, 1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    average = trainer.tensors()["ema"]["embedding.weight"]
    torch.testing.assert_close(average, expected)
    with trainer.weights_to_use():
        assert torch.equal(trainer.model.embedding.weight, average)
    assert torch.equal(trainer.model.embedding.weight, seen[-1])


@pytest.mark.parametrize(("last", "steps"), [(0.3, (8, 9, 10)), (0.05, (10,)), (0.95, tuple(range(1, 11)))])
def test_the_average_of_the_end_is_the_mean_of_its_steps(last: float, steps: tuple[int, ...]) -> None:
    seen, used = [], []

    class Watch(Hook):
        def on_step(self, trainer):
            seen.append(trainer.model.embedding.weight.detach().clone())
            used.append(trainer.tensors()["ema"]["embedding.weight"].clone())

    trainer = make_trainer(hooks=[Watch()], max_steps=10, average_last=last)
    trainer.run()
    mean = torch.stack([seen[step - 1] for step in steps]).mean(0)
    torch.testing.assert_close(used[-1], mean)
    assert trainer.state.averaged == len(steps)
    for step in range(1, steps[0] + 1):
        assert torch.equal(used[step - 1], seen[step - 1]), "before the last part, the weights themselves are used"
    with trainer.weights_to_use():
        assert torch.equal(trainer.model.embedding.weight, used[-1])
    assert torch.equal(trainer.model.embedding.weight, seen[-1])


def test_a_longer_run_averages_its_own_end(tmp_path: Path) -> None:
    first = make_trainer(max_steps=10, average_last=0.3)
    first.run()
    saved = checkpoint.save(tmp_path / "step-00000010", first.tensors(), first.checkpoint_state())
    longer = make_trainer(max_steps=30, average_last=0.3)
    longer.resume(checkpoint.load(saved, PARTS))
    assert longer.state.averaged == 3
    longer.run()
    assert longer.state.averaged == 9


@pytest.mark.parametrize("average", [{"ema_decay": 0.9}, {"average_last": 0.5}])
@pytest.mark.parametrize("stop_at", mostly_slow([10, 4, 13]))
def test_a_resumed_run_ends_with_bit_identical_weights(tmp_path, average: dict[str, float], stop_at: int) -> None:
    settings = {
        "max_steps": 20, "micro_batch_size": 2, "eval_every": 3, "label_smoothing": 0.05, **average,
    }  # fmt: skip
    schedule = ScheduleConfig(
        kind="cosine+plateau", warmup_steps=3, plateau_patience=1, plateau_max_steps=7, context_warmup=0.7
    )

    class StopAt(Hook):
        def on_step(self, trainer):
            if trainer.state.step == stop_at:
                trainer.stop("interrupted by a test")

    whole = make_trainer(schedule=schedule, **settings)
    whole.run()
    first = make_trainer(hooks=[StopAt()], schedule=schedule, **settings)
    first.run()
    saved = checkpoint.save(tmp_path / "step-00000001", first.tensors(), first.checkpoint_state())
    second = make_trainer(schedule=schedule, **settings)
    second.resume(checkpoint.load(saved, ("model", "ema", "optimizer")))
    second.run()
    assert second.state.step == whole.state.step == 27
    assert second.state.best_loss == whole.state.best_loss
    assert second.state.cuts == whole.state.cuts
    for part, named in whole.tensors().items():
        for name, tensor in named.items():
            assert torch.equal(tensor, second.tensors()[part][name]), f"{part} {name}"


def test_after_an_error_hooks_are_closed_and_no_broken_model_is_saved(tmp_path) -> None:
    import signal

    from minigpt.errors import MiniGPTError
    from minigpt.training.hooks.checkpoints import Checkpoints
    from minigpt.training.hooks.signals import Signals

    class Break(Hook):
        def on_step(self, trainer):
            if trainer.state.step == 3:
                trainer.model.norm.weight.data.mul_(float("nan"))

    before = signal.getsignal(signal.SIGINT)
    saver = Checkpoints(tmp_path, every=1, keep=9, extra={})
    trainer = make_trainer(hooks=[Signals(), Break(), saver], max_steps=10)
    with pytest.raises(MiniGPTError, match=r"model norm\.weight is NaN or infinite after step 3; not saved"):
        trainer.run()
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in whole_steps(tmp_path)] == ["step-00000001", "step-00000002"]


def test_stalls_are_counted_by_the_plateau_schedule_only() -> None:
    trainer = scripted([1.0, 2.0, 2.1, 2.2, 2.3, 2.4], ScheduleConfig(plateau_patience=1), max_steps=30)
    assert trainer.run().cuts == 0
