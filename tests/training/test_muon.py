"""Test Muon against torch's own, and against the singular value decomposition that it approximates."""

from typing import Any

import pytest
import torch

from minigpt.config import ModelConfig, OptimizerConfig
from minigpt.model import GPT
from minigpt.training import make_optimizer
from minigpt.training.muon import Muon, orthogonalise
from minigpt.training.optim import hidden_matrices, load_optimizer, optimizer_tensors

SHAPE = ModelConfig(vocab_size=20, embed_dim=32, num_heads=4, num_kv_heads=2, num_layers=2, max_seq_len=16)


def test_orthogonalised_matrices_are_near_those_of_the_svd() -> None:
    for rows, columns in ((24, 24), (40, 16), (16, 40)):
        matrices = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalise(matrices))
        assert values.min() > 0.1
        assert values.max() < 1.3
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        cosine = torch.cosine_similarity(orthogonalise(matrices).flatten(1), (left @ right).flatten(1))
        assert cosine.min() > 0.95


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (64, 128), (512, 64), (70, 500)])
@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-6, 0.0])
def test_the_short_way_of_long_matrices_is_the_iteration(shape: tuple[int, int], smallest: float) -> None:
    generator = torch.Generator().manual_seed(2)
    left, _, right = torch.linalg.svd(torch.randn(2, *shape, generator=generator).double(), full_matrices=False)
    sizes = torch.linspace(1, smallest, min(shape)).double()
    x = matrices = (left * sizes) @ right
    x = x / x.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    assert (orthogonalise(matrices.float(), dtype=torch.float32) - x).abs().max() < 2e-4
    nothing = torch.zeros(2, *shape)
    assert torch.equal(orthogonalise(nothing, dtype=torch.float32), nothing)


def test_steps_equal_torchs_muon() -> None:
    ours = [torch.randn(*shape, generator=torch.Generator().manual_seed(1)) for shape in ((12, 8), (8, 12), (8, 12))]
    theirs = [matrix.clone() for matrix in ours]
    for matrix in ours + theirs:
        matrix.requires_grad_()
    rest = torch.zeros(2, requires_grad=True)
    adamw = torch.optim.AdamW([rest], lr=1e-3, fused=True)
    mine = Muon({matrix: [matrix.shape[0]] for matrix in ours}, adamw, 0.02, 0.95, 0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1)
    for step in range(5):
        for index, (one, two) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(10 * step + index))
            two.grad = one.grad.clone()
        rest.grad = torch.ones(2)
        mine.step()
        reference.step()
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=2e-3, rtol=0)  # bf16 inside, batched in ours: sums in another order
        assert (one - two).abs().max() < 0.05 * 5 * 0.02
    assert rest.abs().min() > 0, "AdamW updates the other parameters"


def test_normuon_evens_the_rows_and_keeps_the_size_of_the_update() -> None:
    weights = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    even, plain = weights.clone().requires_grad_(), weights.clone().requires_grad_()
    adamw = torch.optim.AdamW([torch.zeros(2, requires_grad=True)])
    optimizers = [
        Muon({matrix: [7, 5]}, adamw, 1.0, 0.9, 0.0, rows, torch.float32)
        for matrix, rows in ((even, 0.8), (plain, None))
    ]
    mean = torch.zeros(12, dtype=torch.float64)
    for step in range(4):
        even.grad = torch.randn(12, 8, generator=torch.Generator().manual_seed(step)) * torch.arange(1.0, 13.0)[:, None]
        plain.grad = even.grad.clone()
        before = even.detach().clone(), plain.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
        ours, muons = (old - new.detach() for old, new in zip(before, (even, plain), strict=True))
        # the definition (section 3 of the paper), in double precision, with the mean's bias corrected
        mean = 0.8 * mean + 0.2 * muons.double().square().mean(1)
        expected = muons.double() / (mean / (1 - 0.8 ** (step + 1))).sqrt()[:, None]
        expected *= muons.double().norm() / expected.norm()
        torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-4)
        if step == 0:  # the mean is that of this update, so all rows are equally large
            sizes = ours.norm(dim=1)
            torch.testing.assert_close(sizes, sizes.mean().expand(12))
            assert muons.norm(dim=1).std() > 0.05


def test_a_gradient_of_zero_moves_nothing() -> None:
    model = GPT(SHAPE)
    optimizer = make_optimizer(model, OptimizerConfig(kind="normuon", weight_decay=0.0))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = model.weights()
    optimizer.step()
    for name, tensor in model.weights().items():
        assert torch.equal(tensor, before[name]), name


def test_muon_takes_each_block_matrix_and_splits_stacked_ones() -> None:
    model = GPT(SHAPE)
    pieces = {name: hidden_matrices(model).get(p) for name, p in model.named_parameters()}
    assert pieces["blocks.0.attention.qkv.weight"] == [32, 16, 16]
    assert pieces["blocks.1.feed_forward.up.weight"] == [128, 128]
    assert pieces["blocks.1.feed_forward.down.weight"] == [32]
    assert pieces["embedding.weight"] is None
    assert pieces["blocks.0.norm1.weight"] is None
    optimizer = make_optimizer(model, OptimizerConfig(kind="muon"))
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("kind", ["muon", "normuon"])
def test_state_survives_a_checkpoint_bit_for_bit(kind: Any) -> None:
    def step(model: GPT, optimizer: torch.optim.Optimizer, seed: int) -> None:
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + index))
        optimizer.step()

    config = OptimizerConfig(kind=kind)
    model, again = GPT(SHAPE, seed=1), GPT(SHAPE, seed=1)
    optimizer, other = make_optimizer(model, config), make_optimizer(again, config)
    step(model, optimizer, 0)
    again.load_weights(model.weights())
    load_optimizer(again, other, optimizer_tensors(model, optimizer))
    step(model, optimizer, 100)
    step(again, other, 100)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
