"""Compare old runs: the bits of a checkpoint, and whether this machine rounds as another one does.

As a program, for old_runs/make.sh: write ends.json, and the last weights of the runs in a directory.

    python old_arithmetic.py RUNS_DIR OUT_DIR
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor


def bits(tensors: dict[str, Tensor]) -> dict[str, str]:
    """sha256 of each tensor's bytes, with its type and shape."""
    return {
        name: hashlib.sha256(f"{value.dtype} {list(value.shape)} ".encode() + value.numpy().tobytes()).hexdigest()
        for name, value in tensors.items()
    }


def tensors_of(step: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint directory, {"model blocks.0.norm1.weight": ...}."""
    return {
        f"{file.stem} {name}": value
        for file in sorted(step.glob("*.safetensors"))
        for name, value in sorted(load_file(file).items())
    }


def last(run: Path) -> Path:
    """The checkpoint directory that `last` names."""
    return run / "checkpoints" / (run / "checkpoints/last").read_text().strip()


def state_of(step: Path) -> dict[str, object]:
    """The training's record in state.json, without times."""
    train = json.loads((step / "state.json").read_text())["train"]
    return {key: value for key, value in train.items() if key != "seconds"}


def arithmetic() -> dict[str, str]:
    """What decides the rounding of a training step here: torch, its CPU kernels, and the bits they give.

    The steps below use the operations and shapes of the runs in old_runs, but no code of minigpt. So a machine that
    rounds differently is not mistaken for a change of minigpt.
    """
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    names = {"table": (64, 16), "qkv": (32, 16), "out": (16, 16), "up": (64, 16), "down": (16, 32), "norm": (16,)}
    weights = {name: (noise(*shape) * 0.2).requires_grad_() for name, shape in names.items()}
    adamw = torch.optim.AdamW(list(weights.values()), lr=0.01, betas=(0.9, 0.95), fused=True)
    ids = torch.randint(64, (2, 4, 33), generator=generator)
    for step in range(6):
        tokens = ids[step % 2]
        x = F.embedding(tokens[:, :-1], weights["table"])  # [B, T, C]
        heads = F.linear(F.rms_norm(x, (16,), weights["norm"]), weights["qkv"]).view(4, 32, 8, 4).transpose(1, 2)
        query, key, value = heads.split([4, 2, 2], dim=1)
        angles = torch.arange(32)[:, None] * 10000.0 ** (-torch.arange(0, 4, 2) / 4).repeat(2)  # [T, D]
        query, key = (F.rms_norm(side, (4,)) * angles.cos() + side * angles.sin() for side in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + F.linear(mixed.transpose(1, 2).reshape(4, 32, 16), weights["out"])
        gate, hidden = F.linear(x, weights["up"]).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * hidden, weights["down"])
        logits = F.linear(x, weights["table"])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), label_smoothing=0.05)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 0.5)
        adamw.step()
        adamw.zero_grad()
        with torch.no_grad():
            square = torch.stack([weights["out"]] * 3) / weights["out"].norm()
            square = torch.baddbmm(square, square @ square.mT, square, beta=3.4445, alpha=-4.775)
            weights["out"].add_(square[0], alpha=-0.01)
    found = "".join(bits({name: value.detach() for name, value in weights.items()}).values())
    return {
        "torch": torch.__version__,
        "kernels": f"{torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()}",
        "probe": hashlib.sha256(found.encode()).hexdigest(),
    }


def main(runs: Path, out: Path) -> None:
    """Save the bits of each run's end, and its weights for machines that round differently."""
    ends = {}
    for run in sorted(path for path in runs.iterdir() if path.is_dir()):
        step = last(run)
        ends[run.name] = {"step": step.name, "state": state_of(step), "bits": bits(tensors_of(step))}
        weights = {name: value for name, value in tensors_of(step).items() if name.split()[0] in ("model", "adapter")}
        save_file(weights, out / f"{run.name}-end.safetensors")
    (out / "ends.json").write_text(json.dumps({"arithmetic": arithmetic(), "ends": ends}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
