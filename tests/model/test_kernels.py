"""Test that fast forms equal the readable ones: the loss in pieces, dropout by a hash, the choice between kernels."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.model.kernels import fused
from minigpt.model.kernels.chunked_loss import head_loss
from minigpt.model.kernels.dropout import mixed
from minigpt.model.loss import IGNORE, next_token_loss
from minigpt.runtime import autotune
from minigpt.runtime.device import Runtime, make_runtime

V = 50


def loss_and_gradients(chunk: int, smoothing: float, head: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 8, 16, generator=generator).requires_grad_()
    targets = torch.randint(0, V, (3, 8), generator=generator)
    targets[1, 2:7] = IGNORE
    head.weight.grad = None
    loss = head_loss(head, hidden, targets, V, valid=19, label_smoothing=smoothing, chunk=chunk)
    (3 * loss).backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None
    if chunk >= 4 * 24 * V:  # compare with the plain form
        assert torch.equal(loss, next_token_loss(head(hidden)[..., :V], targets, valid=19, label_smoothing=smoothing))
    return loss.detach(), hidden.grad, head.weight.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 3 * V, 7 * V, 23 * V])
def test_loss_in_pieces_equals_the_whole_with_gradients(chunk: int, smoothing: float) -> None:
    torch.manual_seed(1)
    head = nn.Linear(16, 64, bias=False)  # 14 rows of padding
    whole, pieces = loss_and_gradients(4 * 24 * V, smoothing, head), loss_and_gradients(chunk, smoothing, head)
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert pieces[2][V:].abs().max() == 0


def test_bf16_gradients_of_a_confident_model_are_exact_in_pieces_too() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    head, targets = nn.Linear(16, 64, bias=False), torch.randint(0, V, (1, 64), generator=generator)
    hidden = 1.5 * head.weight.detach()[targets] / head.weight.detach()[targets].norm(dim=-1, keepdim=True)
    with torch.no_grad():
        head.weight.mul_(24)  # half of the targets now have a share of 0.99 and more

    def gradients(chunk: int, bf16: bool) -> tuple[Tensor, Tensor]:
        at, head.weight.grad = hidden.clone().requires_grad_(), None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            head_loss(head, at, targets, V, valid=64, chunk=chunk).backward()
        assert at.grad is not None
        assert head.weight.grad is not None
        return at.grad, head.weight.grad

    for exact, whole, pieces in zip(
        gradients(256 * V, False), gradients(256 * V, True), gradients(7 * V, True), strict=True
    ):
        assert (pieces - exact).norm() < 1.2 * (whole - exact).norm() < 0.1 * exact.norm()


def test_an_evaluation_of_the_loss_in_pieces_computes_only_logits() -> None:
    head, hidden, targets = nn.Linear(16, 64, bias=False), torch.randn(2, 8, 16), torch.randint(V, (2, 8))
    learned = head_loss(head, hidden, targets, V, valid=16, chunk=3 * V)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        evaluated = head_loss(head, hidden, targets, V, valid=16, chunk=3 * V)
    assert torch.equal(evaluated, learned)
    assert counter.get_total_flops() == 2 * 16 * 16 * 64


def test_a_frozen_head_gets_no_gradient_and_passes_one_on() -> None:
    head = nn.Linear(16, 64, bias=False).requires_grad_(False)
    targets, grads = torch.randint(0, V, (1, 24)), []
    for chunk in (3 * V, 96 * V):
        hidden = torch.linspace(-1, 1, 24 * 16).view(1, 24, 16).requires_grad_()
        head_loss(head, hidden, targets, V, valid=24, chunk=chunk).backward()
        grads.append(hidden.grad)
    torch.testing.assert_close(*grads)
    assert head.weight.grad is None


def test_a_head_that_is_not_a_plain_linear_layer_is_read_whole() -> None:
    head = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, V))
    hidden, targets = torch.randn(1, 4, 16), torch.randint(0, V, (1, 4))
    whole = next_token_loss(head(hidden), targets, valid=4)
    assert torch.equal(head_loss(head, hidden, targets, V, valid=4, chunk=1), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_hashed_dropout_compiles_where_strides_overflow() -> None:
    """triton says that 512 x 2^32 / golden ratio is not an int32."""
    shape = ModelConfig(vocab_size=65, embed_dim=512, num_heads=8, num_layers=1, max_seq_len=64, dropout=0.3)
    model = GPT(shape).cuda().train()
    x = torch.ones(4, 64, 512, device="cuda", requires_grad=True)
    torch.manual_seed(1)
    model.compiled().blocks[0](x, model.rotary(slice(64))).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_hashed_dropout_is_fair_and_neighbours_and_keys_independent() -> None:
    count = 1 << 20
    place = torch.arange(count, dtype=torch.int32)
    kept = [
        (mixed(place, torch.tensor([key], dtype=torch.int32)) >= round(0.2 * 2**31)).float()
        for key in (0, 1, 2, 12345, 2**31 - 2)
    ]
    for mask in kept:
        assert mask.mean().item() == pytest.approx(0.8, abs=4 * (0.16 / count) ** 0.5)
        for step in (1, 2, 64, 256, 1024):  # along a row, and down the columns of common widths
            both = (mask[step:] * mask[:-step]).mean().item()
            assert both == pytest.approx(0.64, abs=0.003), step
    for index, one in enumerate(kept):
        for other in kept[index + 1 :]:
            assert (one * other).mean().item() == pytest.approx(0.64, abs=0.003)


class Clocks(dict[str, float]):
    """Seconds per block and kernel, instead of a real clock; "asked" counts the questions."""

    def measure(
        self, _shape: object, _runtime: object, _batch: int, eager: list[str], compiled: list[str]
    ) -> autotune.Timings:
        self["asked"] += 1
        times = {name: self[name] for name in eager}, self.get("loss", 0.0)
        return autotune.Timings(
            *times, {name: self[f"{name} compiled"] for name in compiled}, self.get("loss compiled", 0.0)
        )


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clocks:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(Runtime, "can_compile", lambda _: True)
    return Clocks(
        {
            "reference": 0.010,
            "sdpa": 0.020,
            "fused": 0.030,
            "reference compiled": 0.005,
            "sdpa compiled": 0.006,
            "asked": 0,
        }
    )


SHAPE = ModelConfig(vocab_size=65, num_layers=4)
CPU = make_runtime("cpu", "fp32")


def pick(clocks: Clocks, passes: float, compile: str = "auto", shape: ModelConfig = SHAPE) -> tuple[str, bool]:
    choice = autotune.choose(shape, CPU, compile, 8, passes, lambda _: None, clocks.measure)
    return choice.attention, choice.compile


def test_a_short_run_takes_the_fastest_kernel_and_a_long_one_compiles_it(clocks: Clocks) -> None:
    assert pick(clocks, 100) == ("reference", False)  # 4 s in all: too short to save time
    assert pick(clocks, 10_000) == ("reference", True)  # 400 s in all: compiling saves 200 s
    assert clocks["asked"] == 2


def test_a_kernel_fast_by_chance_is_timed_again_next_to_the_compiled(clocks: Clocks) -> None:
    clocks["sdpa"] = 0.009
    assert pick(clocks, 100) == ("sdpa", False)
    clocks |= {"sdpa": 0.013, "reference compiled": 0.011}  # their times when all are timed in turn
    assert pick(clocks, 10_000) == ("reference", False)


def test_what_was_measured_is_remembered(clocks: Clocks, tmp_path: Path) -> None:
    pick(clocks, 10_000)
    asked = clocks["asked"]
    clocks["sdpa"] = 0.001
    assert pick(clocks, 10_000) == ("reference", True)
    assert pick(clocks, 1_000) == ("reference", True)  # 40 s in all: with a warm cache, compiling saves 20 s
    assert pick(clocks, 100) == ("reference", False)
    assert clocks["asked"] == asked
    assert pick(clocks, 100, shape=SHAPE.model_copy(update={"embed_dim": 256})) == (
        "sdpa",
        False,
    )  # another shape is measured again
    assert len(json.loads((tmp_path / "tuning.json").read_text())) == 2


def test_a_compiler_that_gains_nothing_is_left_out(clocks: Clocks) -> None:
    clocks["reference compiled"] = clocks["sdpa compiled"] = 0.011
    assert pick(clocks, 100_000) == ("reference", False)


class Broken(Clocks):
    """A compiler that fails."""

    def measure(self, shape, runtime, batch, eager, compiled) -> autotune.Timings:
        if compiled:
            raise RuntimeError("Scalar -839952141824 is out of range\nand a page of code")
        return super().measure(shape, runtime, batch, eager, compiled)


def test_a_failing_compiler_costs_one_line_and_the_run_is_eager(clocks: Clocks) -> None:
    with pytest.warns(UserWarning, match="cannot compile this model, running eager: Scalar -8.* out of range$"):
        assert pick(Broken(clocks), 10_000) == ("reference", False)


def test_a_large_vocabulary_is_a_reason_of_its_own_to_compile(clocks: Clocks) -> None:
    clocks |= {"reference compiled": 0.012, "sdpa compiled": 0.012, "loss": 0.200, "loss compiled": 0.120}
    assert pick(clocks, 100) == ("reference", False)  # 24 s
    assert pick(clocks, 10_000) == ("reference", True)  # 168 ms per pass instead of 240, though its blocks are slower


def test_the_reference_is_compiled_if_it_is_near_and_sdpa_if_not(clocks: Clocks) -> None:
    clocks["sdpa"] = 0.009
    assert pick(clocks, 10) == ("sdpa", False)
    assert pick(clocks, 10_000) == ("reference", True)
    clocks["sdpa"] = 0.005
    other = SHAPE.model_copy(update={"embed_dim": 256})
    assert pick(clocks, 100_000, shape=other) == ("sdpa", False)  # 6 ms compiled
    clocks["sdpa compiled"] = 0.003
    assert pick(clocks, 100_000, shape=SHAPE.model_copy(update={"embed_dim": 512})) == ("sdpa", True)


def test_in_a_long_context_the_reference_in_parts_is_tried_too(clocks: Clocks) -> None:
    clocks |= {"blockwise": 0.008, "blockwise compiled": 0.003, "sdpa": 0.007}
    long = SHAPE.model_copy(update={"max_seq_len": 512})
    assert pick(clocks, 100, shape=long) == ("sdpa", False)
    assert pick(clocks, 10_000, shape=long) == ("blockwise", True)  # the fastest when compiled
    assert pick(clocks, 10_000, shape=SHAPE.model_copy(update={"max_seq_len": 128})) == (
        "sdpa",
        True,
    )  # blockwise has one part
    assert pick(clocks, 10_000, shape=long.model_copy(update={"attention": "blockwise"})) == ("blockwise", True)


def test_c_kernels_are_taken_in_fp32_on_a_cpu_and_what_is_compiled_is_torchs(clocks: Clocks) -> None:
    if fused.library() is None:
        pytest.skip("no C compiler here")
    clocks |= {"fused": 0.006}
    assert pick(clocks, 100) == ("fused", False)
    assert pick(clocks, 100, "on") == ("reference", True)  # not tried before, so by the eager times
    assert pick(clocks, 100_000) == ("reference", True)
    asked = SHAPE.model_copy(update={"attention": "auto"})
    low = make_runtime("cpu", "bf16-pure")
    assert autotune.choose(asked, low, "off", 8, 100, lambda _: None, clocks.measure).attention == "reference"


def test_a_kernel_asked_for_by_name_is_taken(clocks: Clocks) -> None:
    asked = SHAPE.model_copy(update={"attention": "sdpa"})
    assert pick(clocks, 10_000, "off", asked) == ("sdpa", False)
    assert pick(clocks, 1, "on", asked) == ("sdpa", True)
    assert clocks


OTHER_FORMS = [
    "{",
    "[]",
    "3",
    "[" * 100_000,
    '{"KEY": 3}',
    '{"KEY": {"eager": {}}}',
    '{"KEY": {"eager": {"nonsense": 1.0}, "eager_loss": 0.0}}',
    '{"KEY": {"eager": {"reference": [], "sdpa": "x"}, "eager_loss": null}}',
]


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_a_memory_of_another_form_is_measured_again(clocks: Clocks, tmp_path: Path, form: str) -> None:
    pick(clocks, 100)
    store = tmp_path / "tuning.json"
    (key,) = whole = json.loads(store.read_text())
    store.write_text(form.replace("KEY", key))
    assert pick(clocks, 100) == ("reference", False)
    assert clocks["asked"] == 2
    assert json.loads(store.read_text()) == whole


def test_timings_that_cannot_be_written_cost_a_warning(clocks: Clocks, tmp_path: Path) -> None:
    (tmp_path / "tuning.json").mkdir()
    with pytest.warns(UserWarning, match="timings are not stored"):
        assert pick(clocks, 100) == ("reference", False)


def test_the_reference_is_not_tried_where_its_weights_would_not_fit(clocks: Clocks) -> None:
    assert pick(clocks, 100, shape=ModelConfig(vocab_size=65, max_seq_len=16384, num_heads=4)) == ("sdpa", False)
    assert clocks["asked"] == 1


def test_a_block_is_really_timed_with_every_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    choice = autotune.choose(SHAPE, CPU, "auto", 2, 10, lambda _: None)
    times = next(iter(json.loads((tmp_path / "tuning.json").read_text()).values()))["eager"]
    assert set(times) == {"reference", "sdpa"} | ({"fused"} if fused.library() else set())
    assert choice.attention == min(times, key=times.__getitem__)
    assert "the loss" not in choice.reason
    wide = ModelConfig(vocab_size=5000, max_seq_len=64, embed_dim=64, num_layers=1)
    assert "ms, the loss " in autotune.choose(wide, CPU, "off", 8, 10, lambda _: None).reason  # 2.6 M logits


def test_weights_in_bf16_are_timed_in_bf16() -> None:
    kinds: list[torch.dtype] = []

    def passes(made: list[Callable[[], Tensor]], _runtime: Runtime, _rounds: int) -> list[float]:
        kinds.extend(forward().dtype for forward in made)
        return [0.01] * len(made)

    wide = ModelConfig(vocab_size=5000, max_seq_len=64, embed_dim=64, num_layers=1)
    autotune.time_kernels(wide, make_runtime("cpu", "bf16-pure"), 8, ["sdpa"], [], passes)
    assert kinds[0] == torch.bfloat16 and len(kinds) == 2
    autotune.time_kernels(wide, CPU, 8, ["sdpa"], [], passes)
    assert kinds[2:] == [torch.float32] * 2
