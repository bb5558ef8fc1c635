"""Test AdamW against torch's own, bit for bit, and that training never waits for torch's compiler."""

import subprocess
import sys
from pathlib import Path

import torch
from cli_run import SMALL, text

from minigpt.training.adamw import AdamW


def test_steps_equal_torchs_fused_adamw_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (3,), (64, 64), (1, 1)]
    ours, theirs = ([torch.empty(shape).requires_grad_() for shape in shapes] for _ in range(2))
    for mine, other in zip(ours, theirs, strict=True):
        torch.nn.init.normal_(mine, generator=generator)
        other.data.copy_(mine.data)

    def groups(parameters: list[torch.Tensor]) -> list[dict]:
        return [{"params": parameters[::2], "weight_decay": 0.1}, {"params": parameters[1::2], "weight_decay": 0.0}]

    here = AdamW(groups(ours), lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    there = torch.optim.AdamW(groups(theirs), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(7):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator) if step or mine.dim() > 1 else None
            other.grad = None if mine.grad is None else mine.grad.clone()
        for optimizer in (here, there):
            optimizer.param_groups[1]["lr"] = 1e-2 / (step + 1)
            optimizer.step()
        assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    for mine, other in zip(ours, theirs, strict=True):
        assert here.state[mine].keys() == there.state[other].keys()
        assert all(torch.equal(here.state[mine][name], there.state[other][name]) for name in here.state[mine])


def test_an_eager_training_never_imports_torchs_compiler(tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text(text(100))
    argv = [
        "train",
        "cats.txt",
        *SMALL,
        "--train.max-steps",
        "3",
        "--train.compile",
        "off",
        "--model.attention",
        "sdpa",
    ]
    code = f"import sys; from minigpt.cli import main; main({argv!r}); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
