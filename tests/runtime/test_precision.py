"""Test precision: the check against fp32 at the start, fp32 masters of bf16 weights, the fp16 scaler, TF32 and fp8."""

import importlib.util
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from minigpt.config import ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig, load_config
from minigpt.errors import ConfigError
from minigpt.model import GPT, parts
from minigpt.runs.resolve import pick_kernels
from minigpt.runtime.device import DTYPES, Runtime, make_runtime
from minigpt.runtime.placement import make_placement
from minigpt.runtime.precision import BOUNDS, MasterWeights, self_test, with_masters
from minigpt.training import Trainer, accumulate, make_optimizer, update
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState

CPU = torch.device("cpu")
SHAPE = ModelConfig(vocab_size=20, embed_dim=32, num_heads=2, num_layers=2, max_seq_len=16)


class Counting:
    """Sequences that count upwards from a random start."""

    steps_per_epoch, tokens_per_step = 10.0, 8 * 16

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        starts = torch.randint(20, (8, 1), generator=torch.Generator().manual_seed(step))
        rows = (starts + torch.arange(17)) % 20
        return rows[:, :-1], rows[:, 1:]


def trainer(precision: str, rate: float = 3e-3, kind: str = "adamw", **settings) -> Trainer:
    model, runtime = GPT(SHAPE, seed=1), Runtime(CPU, precision)
    optimizer = make_optimizer(model, OptimizerConfig(kind=kind, learning_rate=rate), precision)
    config = TrainConfig(batch_size=8, **{"max_steps": 60, "eval_every": 1000, **settings})
    return Trainer(
        model, with_masters(optimizer, model, runtime), Counting(), lambda: [Counting().batch(10_000)], config,
        ScheduleConfig(kind="constant", warmup_steps=3), runtime, rate,
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "bf16-pure", "fp16"])
@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_what_works_passes_the_self_test_with_room(precision: str, attention: str) -> None:
    drops = dict.fromkeys(("dropout", "word_dropout", "qkv_dropout", "hidden_dropout", "output_dropout"), 0.1)
    shape = SHAPE.model_copy(update={"attention": attention, "embed_dim": 128, "vocab_size": 300, **drops})
    verdict = self_test(shape, Runtime(CPU, precision))
    print(verdict)
    assert verdict.ok
    assert 0 < verdict.gradient < BOUNDS[precision] / 2, "an error above 0 shows that another precision was used"


def test_a_vocabulary_of_one_id_can_be_tested() -> None:
    assert self_test(SHAPE.model_copy(update={"vocab_size": 1}), Runtime(CPU, "bf16")).ok


def broken_in_bf16(query: Tensor, key: Tensor, value: Tensor, *rest: object) -> Tensor:
    """A kernel that loses a tenth of its result in bf16."""
    out = parts.reference.attention(query, key, value)
    return out * 0.9 if query.dtype == torch.bfloat16 else out


def test_a_kernel_that_is_wrong_in_bf16_makes_the_run_fp32_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chosen(*settings: tuple[str, object], before: CheckpointState = CheckpointState()) -> str:  # noqa: B008  never changed
        fixed = {"train.precision": "bf16", "train.device": "cpu", "train.compile": "off", "model.attention": "sdpa"}
        fixed |= {"model.embed_dim": 64, "model.max_seq_len": 64}  # quick on machines with bf16
        config = load_config(None, {**fixed, "model.vocab_size": 50, **dict(settings)})
        return pick_kernels(config, Counting(), before, Console(width=200), make_placement(config))[0].train.precision

    assert chosen() == "bf16"
    assert "too much" not in capsys.readouterr().out
    monkeypatch.setitem(parts.ATTENTION, "sdpa", broken_in_bf16)
    assert chosen() == "fp32"
    said = capsys.readouterr().out
    assert "bf16 against fp32" in said
    assert "too much, so this run is in fp32" in said
    assert chosen(before=CheckpointState(precision="bf16", attention="sdpa", compile=False)) == "bf16", (
        "a resumed run keeps its precision"
    )
    with pytest.raises(ConfigError, match=r"bf16-pure does not go with parallel\.kind fsdp"):
        chosen(("train.precision", "bf16-pure"), ("parallel.kind", "fsdp"))


@pytest.mark.parametrize(("precision", "told"), [("bf16", True), ("fp32", False)])
def test_an_attention_kernel_that_cannot_compute_here_is_told(precision: str, told: bool, capsys) -> None:
    config = load_config(None, {"model.attention": "fused", "train.precision": precision, "train.device": "cpu"})
    before = CheckpointState(precision=precision, attention="fused", compile=False)
    pick_kernels(config, Counting(), before, Console(width=200), make_placement(config))
    assert ("model.attention: fused is for a CPU in fp32" in capsys.readouterr().out) is told


@pytest.mark.parametrize("kind", ["adamw", "muon", "normuon"])
def test_masters_take_the_same_steps_as_fp32_weights(kind: str) -> None:
    config = OptimizerConfig(kind=kind, weight_decay=0.3)
    plain, low = GPT(SHAPE, seed=1), GPT(SHAPE, seed=1)
    exact, masters = make_optimizer(plain, config, "fp32"), MasterWeights(make_optimizer(low, config, "fp32"), low)
    for step in range(3):
        for group in (*exact.param_groups, *masters.param_groups):
            group["lr"] = 0.01
        for ours, theirs in zip(low.parameters(), plain.parameters(), strict=True):
            generator = torch.Generator().manual_seed(step)
            ours.grad = torch.randn(ours.shape, generator=generator).bfloat16()
            theirs.grad = ours.grad.float()
        exact.step()
        masters.step()
    for ours, theirs in zip(low.parameters(), plain.parameters(), strict=True):
        assert torch.equal(masters.state[ours]["master"], theirs)
        assert ours.dtype == ours.grad.dtype == torch.bfloat16
        assert torch.equal(ours, theirs.bfloat16())


@pytest.mark.slow
def test_bf16_weights_learn_like_autocast_with_masters_and_worse_without() -> None:
    losses = {}
    for name in ("fp32", "bf16", "bf16-pure", "bf16 without masters"):
        run = trainer(name.split()[0], rate=3e-4, max_steps=150)
        if name == "bf16 without masters":
            run.model.to(torch.bfloat16)
            run.runtime = Runtime(CPU, "bf16-pure")
            run.optimizer = make_optimizer(run.model, OptimizerConfig(kind="adamw", learning_rate=3e-4))
        run.run()
        losses[name] = run.evaluate()
    print("validation loss after 150 steps at 3e-4:", {name: round(loss, 3) for name, loss in losses.items()})
    assert losses["bf16-pure"] == pytest.approx(losses["bf16"], rel=0.01)
    assert losses["bf16 without masters"] > losses["bf16-pure"] + 0.05


def test_small_updates_add_up_in_masters_and_vanish_in_bf16_weights() -> None:
    norm = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.ones_(norm.weight)
    plain = torch.nn.Parameter(norm.weight.detach().bfloat16())
    masters = MasterWeights(torch.optim.SGD(norm.parameters(), lr=1e-3), norm)
    bare = torch.optim.SGD([plain], lr=1e-3)
    for _ in range(100):
        norm.weight.grad, plain.grad = (torch.ones(4, 4, dtype=torch.bfloat16) for _ in range(2))
        masters.step()
        bare.step()
    assert plain.unique().tolist() == [1.0], "each of 100 steps of 0.001 is lost"
    assert norm.weight.float().mean().item() == pytest.approx(0.9, abs=0.004)


@pytest.mark.parametrize("kind", ["adamw", "muon", "normuon"])
def test_a_resumed_bf16_run_is_bit_identical_with_fp32_masters(kind: str, tmp_path: Path) -> None:
    whole = trainer("bf16-pure", kind=kind, max_steps=12)
    whole.run()
    first = trainer("bf16-pure", kind=kind, max_steps=7)
    first.run()
    saved = checkpoint.save(tmp_path / "step-00000007", first.tensors(), first.checkpoint_state())
    held = checkpoint.load(saved, ("model", "optimizer"))
    masters = {name: tensor for name, tensor in held.tensors["optimizer"].items() if name.startswith("master:")}
    assert len(masters) == len(list(first.model.parameters()))
    assert {tensor.dtype for tensor in masters.values()} == {torch.float32}
    second = trainer("bf16-pure", kind=kind, max_steps=12)
    second.resume(held)
    second.run()
    for part, named in whole.tensors().items():
        for name, tensor in named.items():
            assert torch.equal(tensor, second.tensors()[part][name]), f"{part} {name}"


def test_the_fp16_scaler_unscales_before_clipping_and_skips_infinity() -> None:
    batch, exact = Counting().batch(0), Runtime(CPU, "fp32")
    plain, scaled = GPT(SHAPE, seed=1), GPT(SHAPE, seed=1)
    sgd = [torch.optim.SGD(model.parameters(), lr=1.0) for model in (plain, scaled)]
    scaler = GradScaler("cpu", init_scale=1024.0)
    accumulate(plain, [batch], runtime=exact)
    norm = update(plain, sgd[0], runtime=exact, grad_clip=0.1)
    accumulate(scaled, [batch], runtime=exact, scaler=scaler)
    assert update(scaled, sgd[1], runtime=exact, grad_clip=0.1, scaler=scaler).item() == pytest.approx(norm.item())
    for ours, theirs in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    before = [parameter.clone() for parameter in scaled.parameters()]
    accumulate(scaled, [batch], runtime=exact, scaler=scaler)
    next(scaled.parameters()).grad[0, 0] = float("inf")
    assert not update(scaled, sgd[1], runtime=exact, scaler=scaler).isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, scaled.parameters(), strict=True))
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("kind", ["adamw", "muon", "normuon"])
def test_fp16_learns_and_overcomes_a_scale_that_is_far_too_large(kind: str) -> None:
    run = trainer("fp16", rate=1e-2, kind=kind, max_steps=24)
    assert run.scaler is not None
    run.scaler = GradScaler("cpu", init_scale=2.0**24)  # the first steps overflow
    first = run.evaluate()
    run.run()
    print(f"{kind}: loss {first:.2f} -> {run.evaluate():.2f}, scale 2^24 -> {run.scaler.get_scale():.0f}")
    assert run.scaler.get_scale() < 2.0**24
    assert run.evaluate() < first - 0.3
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_products_are_exact_or_tf32_inside_and_as_before_outside() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with Runtime(CPU, "tf32").products():
            assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(KeyError), Runtime(CPU, "fp32").products():
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_a_device_has_not_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"tf32 needs an NVIDIA GPU from Ampere on, not cpu; use auto"):
        make_runtime("cpu", "tf32")
    with pytest.raises(ConfigError, match=r"fp8 needs an NVIDIA GPU from Hopper on \(or Ada\), not cpu; use auto"):
        make_runtime("cpu", "fp8")
    with pytest.raises(ConfigError, match=r"ema_decay: bf16 weights cannot hold an average"):
        load_config(None, {"train.precision": "bf16-pure", "train.ema_decay": 0.9})
    with pytest.raises(ConfigError, match=r"average_last: bf16 weights cannot hold an average"):
        load_config(None, {"train.precision": "bf16-pure", "train.average_last": 0.2})
    with pytest.raises(ConfigError, match=r"average_last: a run keeps only one average; set ema_decay"):
        load_config(None, {"train.ema_decay": 0.9, "train.average_last": 0.2})
    assert set(BOUNDS) == set(DTYPES)
    monkeypatch.setattr("minigpt.runtime.device.pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"fp8 needs torchao; pip install 'minigpt\[fp8\]'"):
        make_runtime("auto", "fp8")
    assert make_runtime("auto", "tf32").precision == "tf32"


def test_the_doctor_says_what_auto_takes_and_why() -> None:
    from minigpt.machine.doctor.kernels import precision

    check = precision("cpu")
    print(check.detail)
    assert check.ok
    assert check.figures["auto"] == make_runtime("cpu").precision
    assert check.detail.startswith(f"auto takes {check.figures['auto']}: bf16 products are")
    assert check.figures["possible"] == ["fp32", "bf16", "bf16-pure"]
