"""Test training that goes wrong: bad steps are skipped, a diverged run rolls back, and all of it is repeatable."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from mostly_slow import mostly_slow
from torch.amp.grad_scaler import GradScaler

from minigpt.config import ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from minigpt.config.rates import default_rate
from minigpt.config.recovery import RecoveryConfig
from minigpt.errors import DivergedError, GenerationError
from minigpt.files import read_lines
from minigpt.layout import step_name, whole_steps
from minigpt.model import GPT
from minigpt.runtime.device import Runtime
from minigpt.training import Hook, Trainer, make_optimizer
from minigpt.training.hooks import checkpoints
from minigpt.training.hooks.checkpoints import Checkpoints
from minigpt.training.hooks.early_stopping import EarlyStopping
from minigpt.training.hooks.guard import Guard, spike_limit
from minigpt.training.hooks.metrics import Metrics
from minigpt.training.hooks.samples import Samples
from minigpt.training.loop import batch_number
from minigpt.weights import checkpoint

CPU = Runtime(torch.device("cpu"), "fp32")
SHAPE = ModelConfig(vocab_size=20, embed_dim=32, num_heads=2, num_layers=1, max_seq_len=16, dropout=0.1)
ALONE = RecoveryConfig()


class Counting:
    """Sequences that count upwards from a random start; remembers which batches were asked for."""

    steps_per_epoch, tokens_per_step = 10.0, 8 * 16

    def __init__(self) -> None:
        self.asked: list[int] = []

    def batch(self, step: int, rank: int = 0, world: int = 1):
        self.asked.append(step)
        starts = torch.randint(20, (8, 1), generator=torch.Generator().manual_seed(step))
        rows = (starts + torch.arange(17)) % 20
        return rows[:, :-1], rows[:, 1:]


class Poisoned:
    """The model, but some batches have a loss, or only a gradient, that is NaN."""

    def __init__(self, model: GPT, source: Counting, bad: Callable[[int], bool], where: str):
        self.model, self.source, self.bad, self.where = model, source, bad, where
        self.parameters = model.parameters

    def loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = self.model.loss(*args, **kwargs)
        if self.bad(self.source.asked[-1]):
            if self.where == "loss":
                return loss * math.nan
            loss.register_hook(lambda gradient: gradient * math.nan)
        return loss


def make(
    folder: Path,
    bad: Callable[[int], bool] = lambda batch: False,
    where: str = "loss",
    hooks: tuple[Hook, ...] = (),
    resume: bool = False,
    **settings: Any,
) -> tuple[Trainer, list[str]]:
    """A trainer with all the hooks that matter here, and the list that receives its messages."""
    shape = settings.pop("shape", SHAPE)
    rate, recovery, kind = settings.pop("rate", 3e-3), settings.pop("recovery", ALONE), settings.pop("kind", "muon")
    write = settings.pop("write", lambda trainer: str(trainer.state.step))
    model, source, said = GPT(shape, seed=1), Counting(), []
    saver = settings.pop("saver", Checkpoints)(folder / "checkpoints", every=5, keep=2, extra={})
    config = TrainConfig(**{"batch_size": 8, "max_steps": 20, "eval_every": 5, **settings})
    early = [EarlyStopping(config.early_stopping)] if config.early_stopping else []
    last = folder / "checkpoints" / "last"
    saved = checkpoint.load(last, ("model", "ema", "optimizer")) if resume and last.exists() else None
    before = saved.state.recovery if saved else None
    guard = Guard(recovery, saver, folder / "incidents.jsonl", lambda: GPT(shape, seed=1), said.append, before)
    metrics = Metrics(folder / "metrics.jsonl", 1, lambda parts: 10**6, None)
    samples = Samples(folder / "samples.jsonl", 2, "", write, said.append)
    folder.mkdir(exist_ok=True)
    trainer = Trainer(
        model,
        make_optimizer(model, OptimizerConfig(kind=kind, learning_rate=rate)),
        source,
        lambda: [Counting().batch(10_000)],
        config,
        ScheduleConfig(warmup_steps=3),
        CPU,
        rate,
        [guard, metrics, samples, *hooks, saver, *early],
        Poisoned(model, source, bad, where),
    )
    if saved:
        trainer.resume(saved)
    return trainer, said


def strict_lines(path: Path) -> list[dict[str, Any]]:
    """Strict JSON: no NaN, no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def same(one: Trainer, other: Trainer) -> bool:
    """Whether all tensors of both are the same bits."""
    theirs = other.tensors()
    return all(torch.equal(t, theirs[part][name]) for part, named in one.tensors().items() for name, t in named.items())


class Watch(Hook):
    """Weights after every step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_step(self, trainer: Trainer) -> None:
        self.weights.append(trainer.model.embedding.weight.detach().clone())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_one_bad_batch_is_skipped_and_reported_and_harms_nothing(tmp_path: Path, where: str) -> None:
    watch = Watch()
    trainer, said = make(tmp_path, lambda batch: batch == 7, where, (watch,))
    state = trainer.run()
    print(f"\nNaN in a {where}: {said[0]}; ended at step {state.step}: {state.stop_reason}")
    assert torch.equal(watch.weights[7], watch.weights[6]) and not torch.equal(watch.weights[8], watch.weights[7])
    assert (state.step, state.rate_scale, state.skipped, len(said)) == (20, 1.0, [], 1)
    assert "batch 7 is skipped, the weights are unchanged" in said[0]
    (incident,) = strict_lines(tmp_path / "incidents.jsonl")
    assert set(incident) == {"step", "what", "batches", "action", "rate_scale", "checkpoint"}
    assert (incident["step"], incident["batches"], incident["action"]) == (8, [7], "skipped")
    lines = strict_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" not in line] == [0, 8]
    assert [line["step"] for line in lines if line.get("skipped") == 1] == [8]


@pytest.mark.parametrize("first", mostly_slow([7, 1]))
def test_five_in_a_row_go_back_without_the_bad_batches_at_half_the_rate(tmp_path: Path, first: int) -> None:
    trainer, said = make(tmp_path / "one", lambda batch: first <= batch < first + 5)
    state = trainer.run()
    back_to = 5 if first == 7 else 0
    print(f"\n{said[-1]}")
    assert state.skipped == list(range(first - 1, first + 5)), "also the batch just before the bad ones"
    assert (state.step, state.rate_scale) == (20, 0.5)
    source = cast(Counting, trainer.batches)
    assert source.asked == [*range(first + 5), *(batch_number(step, state.skipped) for step in range(back_to, 20))]
    actions = [(line["action"], line["checkpoint"]) for line in strict_lines(tmp_path / "one/incidents.jsonl")]
    assert actions == [("skipped", None)] * 4 + [("rolled back", "step-00000005" if back_to else None)]
    for name in ("metrics", "samples"):
        steps = [line["step"] for line in strict_lines(tmp_path / "one" / f"{name}.jsonl")]
        assert steps == sorted(set(steps)) and steps[-1] == 20, name
    other, _ = make(tmp_path / "two")  # a run that knows the skipped batches from the start

    class Tell(Hook):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.state.step == back_to:
                trainer.state.skipped, trainer.state.rate_scale = state.skipped, 0.5

    other.hooks.append(Tell())
    if not back_to:
        Tell().on_step(other)
    other.run()
    assert same(trainer, other)


def test_after_the_limit_it_stops_whole_and_says_what_to_change(tmp_path: Path) -> None:
    trainer, said = make(tmp_path, lambda batch: batch > 5)
    with pytest.raises(DivergedError, match=r"training diverged: 5 bad steps .* step-00000005 is whole") as error:
        trainer.run()
    for change in ("--optimizer.learning-rate 0.00019", "--schedule.warmup-steps", "--recovery.max-rollbacks 6"):
        assert change in str(error.value)
    actions = [line["action"] for line in strict_lines(tmp_path / "incidents.jsonl") if line["action"] != "skipped"]
    rates = [line["rate_scale"] for line in strict_lines(tmp_path / "incidents.jsonl") if line["action"] != "skipped"]
    assert actions == ["rolled back"] * 3 + ["stopped"] and rates == [0.5, 0.25, 0.125, 0.125]
    saved = checkpoint.load(tmp_path / "checkpoints/last")
    assert saved.train.step == 5 and saved.state.recovery.rollbacks == 3
    print(f"\n{said[-1]}\n{error.value}")


def test_a_rate_a_hundred_times_too_high_is_found_and_cut(tmp_path: Path) -> None:
    shape = ModelConfig(vocab_size=20, embed_dim=32, num_heads=2, num_layers=1, max_seq_len=16, shape="gpt2")
    rate, ends = 100 * default_rate("adamw", 32), {}
    for name, recovery in {"guarded": ALONE, "alone": RecoveryConfig(spike_deviations=0)}.items():
        trainer, said = make(tmp_path / name, rate=rate, shape=shape, kind="adamw", max_steps=40, recovery=recovery)
        ends[name] = trainer.run()
        print(f"\n{name}: {said}, then {ends[name].stop_reason} with validation loss {ends[name].val_loss:.2f}")
    assert ends["guarded"].rate_scale < 1 and ends["alone"].rate_scale == 1
    assert ends["guarded"].val_loss < ends["alone"].val_loss - 0.2


@pytest.mark.parametrize("stop_at", mostly_slow([9, 12]))
def test_a_run_stopped_within_trouble_goes_on_exactly(tmp_path: Path, stop_at: int) -> None:
    class StopAt(Hook):
        steps = 0

        def on_step(self, trainer: Trainer) -> None:
            self.steps += 1
            if self.steps == stop_at:
                trainer.stop("interrupted by a test")

    def bad(batch: int) -> bool:
        return 7 <= batch < 12 or 15 <= batch < 20

    whole, _ = make(tmp_path / "whole", bad)
    whole.run()
    assert whole.state.rate_scale == 0.25
    make(tmp_path / "parts", bad, hooks=(StopAt(),))[0].run()
    second, _ = make(tmp_path / "parts", bad, resume=True)
    second.run()
    assert same(whole, second) and whole.state.skipped == second.state.skipped
    assert (tmp_path / "whole/incidents.jsonl").read_text() == (tmp_path / "parts/incidents.jsonl").read_text()


def test_broken_weights_or_a_nan_validation_loss_roll_back_too(tmp_path: Path) -> None:
    class Fault(Hook):
        """A device that makes an error twice, but not when the steps are repeated."""

        def __init__(self) -> None:
            self.faults = [8, 12]

        def on_step(self, trainer: Trainer) -> None:
            if self.faults and trainer.state.step == self.faults[0]:
                self.faults.pop(0)
                trainer.model.norm.weight.data.fill_(math.inf if self.faults else math.nan)

    trainer, said = make(tmp_path, hooks=(Fault(),), eval_every=3)
    state = trainer.run()
    print("\n" + "\n".join(said))
    assert state.step == 20 and state.rate_scale == 0.25
    assert all(t.isfinite().all() for named in trainer.tensors().values() for t in named.values())
    assert ["validation loss" in line or "infinite" in line for line in said if "back to" in line] == [True, True]


def test_an_fp16_overflow_is_normal_until_the_scale_is_below_one(tmp_path: Path) -> None:
    trainer, said = make(tmp_path / "normal")
    trainer.scaler = GradScaler("cpu", init_scale=2.0**127)
    state = trainer.run()
    assert said == [] and state.step == 20
    assert trainer.scaler.get_scale() < 2.0**127, "the gradients overflowed"
    trainer, said = make(tmp_path / "broken", lambda batch: 7 <= batch < 13, "gradient")
    trainer.scaler = GradScaler("cpu", init_scale=2.0)
    trainer.run()
    assert "back to step-00000005" in said[-1] and len(said) == 5, "the first of six overflows only lowers the scale"


def test_spikes_are_measured_against_recent_losses_only() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.distributions.StudentT(3.0)
    torch.manual_seed(0)
    fall = 4 * torch.linspace(1, 500, 500) ** -0.3
    losses = (fall * (1 + 0.05 * noise.sample((500,)))).tolist()
    over = [
        loss > spike_limit(losses[max(0, at - 100) : at], math.log(65), losses[0], 6.0, 100)
        for at, loss in enumerate(losses)
    ]
    rows = [sum(over[at : at + 5]) for at in range(495)]
    assert max(rows) <= 2 and sum(over) < 10, f"heavy-tailed noise must not make five in a row: {sum(over)}"
    quiet = [2.0 + 0.01 * x for x in torch.randn(100, generator=generator).tolist()]
    assert spike_limit(quiet, 4.0, 4.0, 6.0, 100) == pytest.approx(2.5, abs=0.01), "half a nat over the median at least"
    assert spike_limit([4.0] * 100, 6.0, 6.0, 6.0, 100) == pytest.approx(4.8), "a fifth over the median at least"
    assert spike_limit([0.001] * 100, 4.0, 4.0, 6.0, 100) == pytest.approx(0.501), "also if the text is memorised"
    assert spike_limit([2.0, 2.1] * 15, 4.0, 4.1, 6.0, 100) == pytest.approx(2.05 + 6 * 0.10484, abs=1e-3)
    assert spike_limit([2.0] * 10, math.log(20), 9.0, 6.0, 100) == 10.0, "few losses: the limit is above the start"


def test_skipped_lines_of_a_killed_run_are_written_once(tmp_path: Path) -> None:
    trainer, _ = make(tmp_path, lambda batch: batch in (3, 6))
    trainer.run()
    before = read_lines(tmp_path / "incidents.jsonl")
    saved = whole_steps(tmp_path / "checkpoints")[0]  # as if killed after step 15
    checkpoint.point(saved.parent, "last", saved)
    with (tmp_path / "incidents.jsonl").open("a") as file:
        file.write('{"step": 99, "what": "torn')
    trainer, _ = make(tmp_path, lambda batch: batch in (3, 6), resume=True)
    trainer.run()
    assert read_lines(tmp_path / "incidents.jsonl") == before and len(before) == 2


def test_a_resumed_run_keeps_no_file_of_its_checkpoint_mapped(tmp_path: Path) -> None:
    """Windows could not delete it when the checkpoint becomes old."""
    first, _ = make(tmp_path, max_steps=5)
    first.run()
    held = checkpoint.load(tmp_path / "checkpoints/last", ("model", "optimizer"))
    second, _ = make(tmp_path, max_steps=10)
    second.resume(held)
    assert held.tensors == {}
    if (maps := Path("/proc/self/maps")).exists():
        assert str(held.path) not in maps.read_text()
    assert second.run().step == 10


@pytest.mark.parametrize("error", [GenerationError("no token is left"), MemoryError("no memory")], ids=repr)
def test_a_sample_that_cannot_be_written_does_not_end_the_run(error: Exception, tmp_path: Path) -> None:
    def write(trainer: Trainer) -> str:
        raise error

    trainer, said = make(tmp_path, max_steps=6, write=write)
    assert trainer.run().finished
    assert list(dict.fromkeys(said)) == [f"step {step}: no sample: {error}" for step in (2, 4, 6)]
    assert checkpoint.load(tmp_path / "checkpoints/last").train.step == 6


def test_a_second_rollback_to_the_first_weights_also_forgets_the_optimizer(tmp_path: Path) -> None:
    trainer, said = make(tmp_path / "twice", lambda batch: 1 <= batch < 6 or 8 <= batch < 13)
    state = trainer.run()
    assert [line.partition("back to ")[2][:13] for line in said if "back to" in line] == ["the first wei"] * 2
    assert (state.skipped, state.rate_scale) == ([*range(6), *range(7, 13)], 0.25)
    other, _ = make(tmp_path / "known")  # a run that knows the skipped batches from the start
    other.state.skipped, other.state.rate_scale = state.skipped, 0.25
    other.run()
    assert same(trainer, other)


def test_a_checkpoint_of_step_0_in_parts_has_no_optimizer(tmp_path: Path) -> None:
    trainer, _ = make(tmp_path)
    saved = checkpoint.Checkpoint(tmp_path, {"model": trainer.model.weights()}, trainer.checkpoint_state())
    trainer.run()
    trainer.resume(saved)
    assert trainer.tensors()["optimizer"] == {}


def test_a_rollback_to_the_first_weights_has_the_first_scale(tmp_path: Path) -> None:
    trainer, said = make(tmp_path, lambda batch: batch < 6, "gradient")
    trainer.scaler = GradScaler("cpu", init_scale=2.0)
    trainer.run()
    assert "back to the first weights" in said[-1]
    assert trainer.scaler.get_scale() == GradScaler("cpu").get_scale(), "not the one at which the run diverged"


def test_a_rollback_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    trainer, said = make(tmp_path, lambda batch: 7 <= batch < 12, eval_every=6)
    best = tmp_path / "checkpoints/best"
    names: list[str] = []

    class Watch(Hook):
        def on_rollback(self, trainer: Trainer) -> None:
            names.append(checkpoint.resolve(best).name)

    trainer.hooks.append(Watch())
    trainer.run()
    assert "back to step-00000006" in said[-1] and names == ["step-00000006"]


def test_a_step_that_is_rolled_back_does_not_stop_the_run_early(tmp_path: Path) -> None:
    """Five steps in a row change no weight, so the fifth uses up both the guard's patience and that of the losses."""
    trainer, said = make(tmp_path, lambda batch: 7 <= batch < 12, eval_every=1, early_stopping=5)
    state = trainer.run()
    assert (state.step, state.stop_reason) == (20, "budget used up")
    assert "back to step-00000007" in said[-1]


class Killed(Hook):
    """Ends the process after the run's last step, before its last save."""

    def on_end(self, trainer: Trainer) -> None:
        raise KeyboardInterrupt


def test_a_run_that_is_killed_while_it_stops_early_does_not_go_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"early_stopping": 2, "max_steps": 40, "recovery": RecoveryConfig(patience=100)}
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, lambda batch: batch >= 5, hooks=(Killed(),), **settings)[0].run()
    state = make(tmp_path, lambda batch: batch >= 5, resume=True, **settings)[0].run()
    assert (state.step, state.finished) == (15, True)
    assert state.stop_reason == "no better validation loss in 2 evaluations"


def test_a_run_that_stopped_early_and_is_continued_has_its_patience_again(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"early_stopping": 2, "max_steps": 40, "recovery": RecoveryConfig(patience=100)}
    steps = [make(tmp_path, lambda batch: batch >= 5, resume=more, **settings)[0].run().step for more in (False, True)]
    assert steps == [15, 25]


def test_a_run_that_is_killed_before_its_last_save_has_one_last_sample(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, max_steps=5, hooks=(Killed(),))[0].run()
    make(tmp_path, max_steps=5, resume=True)[0].run()
    make(tmp_path, max_steps=5, resume=True)[0].run()
    assert [line["step"] for line in strict_lines(tmp_path / "samples.jsonl")] == [2, 4, 5]


class KilledAt(Hook):
    """Ends the process after a step and its checkpoint."""

    def __init__(self, step: int):
        self.step = step

    def on_step(self, trainer: Trainer) -> None:
        if trainer.state.step == self.step:
            raise KeyboardInterrupt


def test_a_finished_run_that_is_killed_when_it_is_continued_is_not_finished(tmp_path: Path) -> None:
    make(tmp_path, max_steps=5)[0].run()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, hooks=(KilledAt(7),), resume=True)[0].run()
    saved = checkpoint.load(tmp_path / "checkpoints/last").train
    assert (saved.step, saved.finished) == (5, False), "else the run would not be continued"


def test_a_kill_before_old_checkpoints_are_deleted_changes_no_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(batch: int) -> bool:
        return 14 <= batch < 29

    settings: dict[str, Any] = {"max_steps": 40, "eval_every": 100, "recovery": RecoveryConfig(patience=15)}
    whole, _ = make(tmp_path / "whole", bad, **settings)
    whole.run()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "prune", lambda *_: None)
        make(tmp_path / "parts", bad, hooks=(KilledAt(26),), **settings)[0].run()
    second, _ = make(tmp_path / "parts", bad, resume=True, **settings)
    second.run()
    assert same(whole, second)
    assert (tmp_path / "whole/incidents.jsonl").read_text() == (tmp_path / "parts/incidents.jsonl").read_text()


def test_a_rollback_forgets_what_is_known_of_later_checkpoints(tmp_path: Path) -> None:
    """The run saves other checkpoints of the same steps, which are not the best, and do not have these scores."""
    trainer, _ = make(tmp_path, max_steps=15)
    trainer.run()
    steps, files = tmp_path / "checkpoints", [tmp_path / "eval.json", tmp_path / "temperature.json"]
    for step, kept in ((15, False), (10, True)):
        for file in files:
            file.write_text(json.dumps({"step": step}))
        checkpoint.point(steps, "best", steps / step_name(step))
        trainer.state.step, trainer.state.best_step = 10, 5 if step == 15 else 10
        checkpoint.delete_later(steps, 10)
        trainer.hooks[-1].on_rollback(trainer)
        assert [file.exists() for file in (*files, steps / "best")] == [kept] * 3


class Late(Checkpoints):
    """Writes a checkpoint before the next one only, as `ShardedCheckpoints` may."""

    held: tuple[Any, ...] = ()

    def save(self, trainer: Trainer, best: bool = False) -> None:
        self.finish(trainer)
        tensors = {p: {n: t.clone() for n, t in named.items()} for p, named in trainer.tensors().items()}
        self.held = (self.directory(trainer.state.step), tensors, self.state(trainer), best)

    def finish(self, trainer: Trainer) -> None:
        if self.held:
            (target, tensors, state, best), self.held = self.held, ()
            checkpoint.save(target, tensors, state)
            self.sealed(target, best)

    def on_rollback(self, trainer: Trainer) -> None:
        self.finish(trainer)
        super().on_rollback(trainer)


def test_a_checkpoint_that_is_being_written_is_rolled_back_too(tmp_path: Path) -> None:
    trainer, said = make(tmp_path, lambda batch: 3 <= batch < 8, saver=Late, max_steps=8)
    names: list[str] = []

    class Watch(Hook):
        def on_rollback(self, trainer: Trainer) -> None:
            names.extend(path.name for path in whole_steps(tmp_path / "checkpoints"))

    trainer.hooks.append(Watch())
    trainer.run()
    assert "back to the first weights" in said[-1]
    assert names == ["step-00000000"], "the checkpoint of step 5 was among the bad steps"


def test_lines_are_on_the_disk_before_their_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut they would be missing for ever: the resumed run begins after them."""
    synced: list[tuple[str, bool]] = []

    def note(file: Path) -> None:
        synced.append((file.name, bool(whole_steps(tmp_path / "checkpoints"))))

    monkeypatch.setattr(checkpoints, "sync", note)
    make(tmp_path, lambda batch: batch == 3, max_steps=5)[0].run()
    assert synced[:3] == [("metrics.jsonl", False), ("samples.jsonl", False), ("incidents.jsonl", False)]
