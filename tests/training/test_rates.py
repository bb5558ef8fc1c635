"""Test the one learning rate for all weights: what it changes, what is logged, and what rates of older configs mean."""

from pathlib import Path

import pytest
import torch

from minigpt.config import ModelConfig, OptimizerConfig, ScheduleConfig, load_config
from minigpt.errors import ConfigError
from minigpt.model import GPT
from minigpt.training import lr_factor, make_optimizer

SHAPE = ModelConfig(vocab_size=20, embed_dim=32, num_heads=2, num_layers=2, max_seq_len=16, shape="gpt2")


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def one_step(config: OptimizerConfig) -> dict[str, torch.Tensor]:
    """How much each weight moved in one step with made-up gradients, without decay."""
    model = GPT(SHAPE, seed=1)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for index, weight in enumerate(model.parameters()):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
    make_optimizer(model, config, "fp32").step()
    return {name: weight.detach() - before[name] for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_twice_the_learning_rate_moves_every_weight_twice_as_far(kind: str) -> None:
    config = OptimizerConfig(kind=kind, learning_rate=0.01, weight_decay=0.0)
    once, twice = one_step(config), one_step(config.model_copy(update={"learning_rate": 0.02}))
    for name, moved in once.items():
        assert moved.abs().min() > 0, name
        torch.testing.assert_close(twice[name], 2 * moved, rtol=1e-3, atol=1e-6)


def test_the_ratio_moves_adamws_part_alone() -> None:
    config = OptimizerConfig(weight_decay=0.0)
    once, twice = one_step(config), one_step(config.model_copy(update={"adamw_ratio": 0.4}))
    for name, moved in once.items():
        factor = 1 if moved.dim() == 2 and name.startswith("blocks") else 2
        torch.testing.assert_close(twice[name], factor * moved, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "rate", "ratio"),
    [({}, 0.02, 0.285), ({"model.embed_dim": 256}, 0.02, 0.2), ({"optimizer.kind": "adamw"}, 0.0028, 0.285),
     ({"optimizer.learning_rate": 0.04}, 0.04, 0.285)],
)  # fmt: skip
def test_the_defaults_by_width(settings: dict, rate: float, ratio: float) -> None:
    optimizer = load_config(None, settings).optimizer
    assert (optimizer.learning_rate, optimizer.adamw_ratio) == (rate, ratio)


@pytest.mark.parametrize(
    ("written", "rate", "ratio"),
    [
        ("{learning_rate: 6e-3, muon_learning_rate: 0.03}", 0.03, 0.2),
        ("{learning_rate: 0.0057, muon_learning_rate: 0.02}", 0.02, 0.285),
        ("{muon_learning_rate: 0.01}", 0.01, 0.57),
        ("{kind: adamw, learning_rate: 0.001, muon_learning_rate: 0.02}", 0.001, 0.285),
        ("{kind: adamw, muon_learning_rate: 0.02}", 0.0028, 0.285),
    ],
)
def test_a_file_with_muon_learning_rate_keeps_its_meaning(
    tmp_path: Path, written: str, rate: float, ratio: float
) -> None:
    optimizer = load_config(recipe(tmp_path, f"optimizer: {written}")).optimizer
    assert (optimizer.learning_rate, optimizer.adamw_ratio) == (rate, ratio)


@pytest.mark.parametrize(
    "written",
    [
        "{adamw_ratio: 0.2, muon_learning_rate: 0.03}",
        "{muon_learning_rate: fast}",
        "{muon_learning_rate: -1}",
        f"{{muon_learning_rate: {10**400}}}",
    ],
)
def test_a_mixture_of_the_forms_is_refused(tmp_path: Path, written: str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer.muon_learning_rate: no such setting; did you mean learning_rate"):
        load_config(recipe(tmp_path, f"optimizer: {written}"))


def test_muon_learning_rate_is_no_flag_any_more() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.muon_learning_rate: no such setting; did you mean learning_rate"):
        load_config(None, {"optimizer.muon_learning_rate": 0.03})


def test_a_recipes_rate_is_not_given_to_another_optimizer(tmp_path: Path) -> None:
    path = recipe(tmp_path, "optimizer: {learning_rate: 0.03, adamw_ratio: 0.2, beta2: 0.99}")
    other = load_config(path, {"optimizer.kind": "adamw"}).optimizer
    assert (other.learning_rate, other.beta2) == (0.0028, 0.99)
    own = load_config(path, {"optimizer.kind": "adamw", "optimizer.learning_rate": 1e-3}).optimizer
    assert own.learning_rate == 1e-3
    assert load_config(path, {"optimizer.kind": "muon"}).optimizer.learning_rate == 0.03


@pytest.mark.parametrize(("adamw", "muon"), [(0.0057, 0.02), (0.006, 0.03), (0.0033, 0.02), (0.007, 0.013)])
def test_old_rates_train_to_the_bits_of_the_old_formula(tmp_path: Path, adamw: float, muon: float) -> None:
    """Each group's rate was AdamW's current rate, times muon / adamw for Muon's group."""
    written = f"optimizer: {{kind: muon, learning_rate: {adamw}, muon_learning_rate: {muon}}}"
    config = load_config(recipe(tmp_path, written)).optimizer
    models = GPT(SHAPE, seed=1), GPT(SHAPE, seed=1)
    now, then = (make_optimizer(model, config, "fp32") for model in models)
    for step in range(20):
        share = 1 - step / 21
        for group, old in zip(now.param_groups, then.param_groups, strict=True):
            group["lr"] = config.learning_rate * 1.0 * share * group.get("lr_scale", 1.0)
            old["lr"] = adamw * 1.0 * share * (1.0 if "lr_scale" in old else muon / adamw)
        for model in models:
            for index, weight in enumerate(model.parameters()):
                weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 * step + index))
        now.step()
        then.step()
    assert all(torch.equal(one, two) for one, two in zip(*(model.parameters() for model in models), strict=True))


def test_cosine_and_linear_equal_torchs_schedulers() -> None:
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

    for kind, make in {
        "cosine": lambda o: CosineAnnealingLR(o, 50, eta_min=0.1),
        "linear": lambda o: LinearLR(o, 1.0, 0.1, 50),
    }.items():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = make(optimizer)
        config = ScheduleConfig(kind=kind, warmup_steps=0, min_lr_ratio=0.1)
        for step in range(51):
            assert lr_factor(step, step / 50, config) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-6)
            optimizer.step()
            scheduler.step()


def test_trapezoid_is_flat_then_falls_in_the_last_part() -> None:
    config = ScheduleConfig(kind="trapezoidal", warmup_steps=0, min_lr_ratio=0.0, decay_fraction=0.25)
    assert [lr_factor(s, s / 8, config) for s in range(9)] == [1, 1, 1, 1, 1, 1, 1, 0.5, 0]
