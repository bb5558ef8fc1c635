"""Test that the C kernels of training give torch's values and gradients; on other devices torch replaces them."""

from itertools import product

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.model.kernels import fused
from minigpt.model.kernels.chunked_loss import loss_terms


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    if fused.library() is None:
        pytest.skip("no C compiler here")


SHAPE = ModelConfig(vocab_size=60, embed_dim=48, num_heads=4, num_layers=2, max_seq_len=64, init_std=0.2)
FIELDS = {
    "norm": ["layernorm", "rmsnorm"],
    "activation": ["gelu", "gelu_tanh", "relu2", "swiglu"],
    "position": ["learned", "rope"],
    "bias": [False, True],
    "qk_norm": [False, True],
    "num_kv_heads": [1, 4],
}


def make(attention: str, dtype: torch.dtype = torch.float32, **fields: object) -> GPT:
    """A model whose every parameter is random, so that a misplaced one shows."""
    model = GPT(SHAPE.model_copy(update={"attention": attention, **fields}), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)


def results(model: GPT, length: int = 19, batch: int = 3) -> dict[str, torch.Tensor]:
    """The logits, and the gradient of every parameter."""
    ids = torch.randint(60, (batch, length + 1), generator=torch.Generator().manual_seed(3))
    torch.manual_seed(4)
    logits = model(ids[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    return {"logits": logits.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def check_equal(ours: dict[str, torch.Tensor], right: dict[str, torch.Tensor], within: float = 1e-5) -> None:
    assert ours.keys() == right.keys()
    for name, wanted in right.items():
        error = (ours[name] - wanted).abs().max()
        assert error <= within * wanted.abs().max() + 1e-6, f"{name}: {error}"


@pytest.mark.parametrize(("norm", "activation"), [*product(FIELDS["norm"], FIELDS["activation"])])
def test_values_and_gradients_are_those_of_torch_in_fp64(norm: str, activation: str) -> None:
    others = {name: values for name, values in FIELDS.items() if name not in ("norm", "activation")}
    for values in product(*others.values()):
        fields = {"norm": norm, "activation": activation, **dict(zip(others, values, strict=True))}
        check_equal(results(make("fused", **fields)), results(make("reference", torch.float64, **fields)))


@pytest.mark.parametrize("length", [1, 6, 25, 49, 64])
@pytest.mark.parametrize("width", [4, 24, 68, 1024])
def test_every_length_and_head_size_is_right(length: int, width: int) -> None:
    odd = {"position": "learned", "qk_norm": False} if width % 8 else {}
    fields = {"embed_dim": width, "num_kv_heads": 2, "num_layers": 1, "ff_dim": 16, "init_std": 0.02, **odd}
    check_equal(
        results(make("fused", **fields), length, batch=1),
        results(make("reference", torch.float64, **fields), length, batch=1),
    )


def qkv(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 70, 4 * 16, generator=torch.Generator().manual_seed(seed))


def test_equal_runs_give_equal_bits() -> None:
    for dropout in (0.0, 0.2):
        first, again = (results(make("fused", dropout=dropout).train()) for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_what_is_dropped_in_attention_is_a_share_and_its_gradient_right() -> None:
    x, shape = qkv(), fused.Shape(2, 1, 16)
    x[..., 32:48] = 0  # all keys are equal: every query gives equal weights
    x[..., 48:] = 1
    torch.manual_seed(0)
    kept = fused.attend(x, shape, dropout=0.25)
    assert kept.mean().item() == pytest.approx(1, abs=0.02) and kept.std().item() > 0.05
    x = qkv(1).requires_grad_()
    along = qkv(2)

    def total(into: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return fused.attend(into, shape, dropout=0.25).double().cos().sum()

    (slope,) = torch.autograd.grad(total(x), x)
    with torch.no_grad():
        measured = (total(x + 1e-2 * along) - total(x - 1e-2 * along)) / 2e-2
    assert (slope.double() * along).sum().item() == pytest.approx(measured.item(), rel=5e-3)


def test_a_checkpointed_block_has_the_same_gradients() -> None:
    weight = torch.ones(16, requires_grad=True)

    def attend(x: torch.Tensor) -> torch.Tensor:
        return fused.attend(x * 2, fused.Shape(2, 1, 16, 1, 1e-5), (weight, weight, None, None), dropout=0.1)

    found = []
    for form in (attend, lambda x: checkpoint(attend, x, use_reentrant=False)):
        torch.manual_seed(0)
        x = qkv().requires_grad_()
        found.append(torch.autograd.grad(form(x).cos().sum(), (x, weight)))
    assert all(map(torch.equal, *found))


def test_torch_serves_where_c_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 8)
    assert fused.usable(x)
    assert not any(map(fused.usable, (x.T, x.double(), x.bfloat16(), x.to("meta"), x[:0])))
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.usable(x)
    monkeypatch.setenv("MINIGPT_FUSED", "0")
    assert fused.library.__wrapped__() is None


def test_a_number_that_is_none_is_passed_on() -> None:
    x = qkv()
    x[1, 30, 3] = float("nan")
    assert fused.attend(x, fused.Shape(2, 1, 16)).isnan().any(-1).nonzero().tolist() == [[1, 30]]
    assert fused.activate(x, fused.GELU, 1).isnan().sum() == 1
    assert fused.norm(x, torch.ones(64), None, 1e-5, 1).isnan().any(-1).sum() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exponentials_are_those_of_torch_and_keep_what_is_not_finite(dtype: torch.dtype) -> None:
    kernels = fused.library()
    assert kernels is not None
    logits = 30 * torch.randn(7, 1031, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(dtype)
    logits[:, 1000:] = float("-inf")  # padding
    ours = logits.clone()
    for one, other in zip(loss_terms(logits), fused.exponentials(ours, kernels), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5 if dtype == torch.float32 else 1e-3, atol=0)
    torch.testing.assert_close(logits, ours, rtol=3e-7 if dtype == torch.float32 else 8e-3, atol=1e-37)
    assert not ours[:, 1000:].any()
    for bad in (float("nan"), float("inf")):
        row = torch.zeros(1, 40, dtype=dtype)
        row[0, 17] = bad
        assert fused.exponentials(row, kernels)[1].isnan().all()


def test_the_library_loads_inside_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert fused.library.__wrapped__() is not None
