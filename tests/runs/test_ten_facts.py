"""Test what minigpt says about a run by computing it again from the run's files, in plain torch, by the textbook.

Only the command is imported from minigpt. The files are model.safetensors, adapter.safetensors, config.yaml,
tokenizer.json, metrics.jsonl and the text.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_run import WORDS, json_of, text
from safetensors.torch import load_file
from torch import Tensor

from minigpt.cli import main

pytestmark = pytest.mark.slow  # four runs

FLAGS = (
    "--model.embed-dim 32 --model.num-heads 2 --model.num-layers 1 --model.max-seq-len 32 --model.ff-dim 64 "
    "--train.batch-size 8 --train.device cpu --train.precision fp32 --train.compile off --train.sample-every 0 "
    "--logging.plots false --logging.log-every 3 --schedule.warmup-steps 5 --optimizer.kind adamw "
    "--optimizer.learning-rate 1e-2 --train.max-steps 40"
).split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """char, bpe, lora and int4: four runs in one folder, with their texts."""
    folder = tmp_path_factory.mktemp("facts")
    (folder / "cats.txt").write_text(text(160))
    (folder / "more.txt").write_text(text(200).replace("cat", "cow"))
    rest = [*FLAGS, "--logging.runs-dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGPT_CACHE", str(folder / "cache"))
        assert main(["train", str(folder / "cats.txt"), "--name", "char", *rest]) == 0
        bpe = ["--tokenizer.kind", "bpe", "--tokenizer.vocab-size", "290"]
        assert main(["train", str(folder / "cats.txt"), "--name", "bpe", *bpe, *rest]) == 0
        lora = [str(folder / "char"), str(folder / "more.txt"), "--name", "lora", "--lora.rank", "4"]
        lora += rest[rest.index("--train.batch-size") :]
        assert main(["finetune", *lora]) == 0
        four = ["--bits", "4", "--group", "32", "--out", str(folder / "int4"), "--tokens", "0"]
        assert main(["quantize", str(folder / "bpe"), *four]) == 0
    return folder


def newest(run: Path) -> Path:
    """The checkpoint that is used: the best, else the last."""
    pointer = next(path for path in (run / "checkpoints/best", run / "checkpoints/last") if path.exists())
    return run / "checkpoints" / pointer.read_text().strip()


def weights_of(run: Path) -> dict[str, Tensor]:
    """Every matrix in fp32: packed ones unpacked, an adapter added to its base."""
    step = newest(run)
    if (step / "adapter.safetensors").exists():
        weights = weights_of(run.parent / "char")
        settings = yaml.safe_load((run / "config.yaml").read_text())["lora"]
        parts = load_file(step / "adapter.safetensors")
        for name in [name.removesuffix(".lora_A") for name in parts if name.endswith(".lora_A")]:
            change = parts[f"{name}.lora_B"] @ parts[f"{name}.lora_A"]
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + settings["alpha"] / settings["rank"] * change
        return weights
    weights = {}
    for name, tensor in load_file(step / "model.safetensors").items():
        whole, _, kind = name.rpartition(".")
        if kind == "int8":
            scale = load_file(step / "model.safetensors")[f"{whole}.scale"].float()
            weights[whole] = tensor.float() * scale[:, None]
        elif kind == "int4":  # the first of two numbers is in the lower half of a byte
            scale = load_file(step / "model.safetensors")[f"{whole}.scale"].float()
            numbers = torch.stack([tensor % 16, tensor // 16], 2).float().reshape(len(tensor), -1) - 8
            weights[whole] = numbers * scale.repeat_interleave(numbers.shape[1] // scale.shape[1], 1)
        elif kind != "scale":
            weights[name] = tensor.float()
    return weights


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x: Tensor, theta: float) -> Tensor:
    """Rotary positions: numbers i and i + D/2 of a head are a point, rotated by position x theta^(-2i/D)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[0])[:, None] * theta ** (-2 * torch.arange(half) / x.shape[-1])
    point = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([point.real, point.imag], -1)


def nats_of(window: list[int], weights: dict[str, Tensor], shape: dict[str, Any]) -> float:
    """-ln p of all tokens of the window except the first."""
    size, eps = shape["embed_dim"] // shape["num_heads"], shape["norm_eps"]
    x = weights["embedding.weight"][torch.tensor(window[:-1])]
    hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    for layer in range(shape["num_layers"]):
        w = {name.removeprefix(f"blocks.{layer}."): tensor for name, tensor in weights.items()}
        normed = rms(x, w["norm1.weight"], eps)
        query, key, value = (normed @ w["attention.qkv.weight"].T).chunk(3, -1)
        heads = []
        for at in range(0, shape["embed_dim"], size):
            q = turned(rms(query[:, at : at + size], w["attention.q_norm.weight"], eps), shape["rope_theta"])
            k = turned(rms(key[:, at : at + size], w["attention.k_norm.weight"], eps), shape["rope_theta"])
            scores = (q @ k.T / math.sqrt(size)).masked_fill(hidden, -math.inf)
            heads.append(scores.softmax(-1) @ value[:, at : at + size])
        x = x + torch.cat(heads, -1) @ w["attention.out.weight"].T
        gate, up = (rms(x, w["norm2.weight"], eps) @ w["feed_forward.up.weight"].T).chunk(2, -1)
        x = x + (gate * torch.sigmoid(gate) * up) @ w["feed_forward.down.weight"].T
    logits = (rms(x, weights["norm.weight"], eps) @ weights["embedding.weight"].T)[:, : shape["vocab_size"]]
    return float(-logits.double().log_softmax(-1)[torch.arange(len(x)), torch.tensor(window[1:])].sum())


def ids_of(part: str, run: Path) -> list[int]:
    file = json.loads((run / "tokenizer.json").read_text())
    if file["model"]["type"] == "BPE":
        return pytest.importorskip("tokenizers").Tokenizer.from_file(str(run / "tokenizer.json")).encode(part).ids
    return [file["model"]["vocab"][char] for char in part]


def facts_of(run: Path) -> dict[str, float]:
    """The figures by the names of `minigpt eval --json`, and parameters."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    whole, share = Path(config["data"]["source"]).read_text(), 1 - config["data"]["val_fraction"]
    train, val = whole[: int(share * len(whole))], whole[int(share * len(whole)) :]
    ids, weights, context = ids_of(val, run), weights_of(run), config["model"]["max_seq_len"]
    nats = sum(nats_of(ids[at : at + context + 1], weights, config["model"]) for at in range(0, len(ids) - 1, context))
    first = next(length for length in range(1, len(val)) if ids_of(val[:length], run)[:1] == ids[:1])
    scored, seen = val.encode()[first:], Counter(train.encode())
    words = len(re.findall(r"\S+", val)) + val.count("\n")
    counts = [(seen[byte] + 1) / (sum(seen.values()) + 256) for byte in val.encode()]
    return {
        "loss": nats / (len(ids) - 1),
        "perplexity": math.exp(nats / (len(ids) - 1)),
        "bits_per_byte": nats / math.log(2) / len(scored),
        "word_perplexity": math.exp(nats / words),
        "tokens": len(ids) - 1,
        "bytes": len(scored),
        "words": words,
        "uniform": math.log2(len(seen)),
        "unigram": -sum(map(math.log2, counts)) / len(val.encode()),
        "parameters": sum(weight.numel() for weight in weights.values()),
    }


@pytest.mark.parametrize("name", ["char", "bpe", "lora", "int4"])
def test_ten_facts_of_a_model_are_those_of_its_files(runs: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = json_of(capsys, "eval", str(runs / name))
    said |= said["floors"] | json_of(capsys, "explain", str(runs / name), "--prompt", " ".join(WORDS[:2]))["model"]
    for fact, value in facts_of(runs / name).items():
        assert said[fact] == pytest.approx(value, rel=2e-5), fact


@pytest.mark.parametrize("name", ["char", "bpe", "lora"])
def test_ten_facts_of_training_are_those_of_its_files(
    runs: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model = runs / name, facts_of(runs / name)
    config = yaml.safe_load((run / "config.yaml").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps, batch, context = 40, config["train"]["batch_size"], config["model"]["max_seq_len"]
    whole = Path(config["data"]["source"]).read_text()
    train = len(ids_of(whole[: int((1 - config["data"]["val_fraction"]) * len(whole))], run))
    windows = train // context - 1  # adjacent windows in an epoch, wherever in the text the first one begins
    warm, least = config["schedule"]["warmup_steps"], config["schedule"]["min_lr_ratio"]

    def rate(step: int) -> float:
        if step <= warm:
            return step / warm
        return least + (1 - least) * (1 + math.cos(math.pi * (step - 1 - warm) / (steps - warm))) / 2

    evaluated = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in evaluated] == list(range(0, 41, 4)), "at the start and ten times"
    best = min(evaluated[1:], key=lambda line: line["val_loss"])
    assert newest(run).name == f"step-{best['step']:08d}"
    assert best["val_loss"] == pytest.approx(model["loss"], rel=2e-5)
    assert best["bits_per_byte"] == pytest.approx(model["bits_per_byte"], rel=2e-5)
    for line in lines[1:]:
        assert line["tokens"] == line["step"] * batch * context
        assert line["epoch"] == pytest.approx(line["step"] * batch / windows, abs=1e-4)
        assert line["epoch"] == pytest.approx(line["tokens"] / train, rel=2.5 / windows), "passes over the text"
        assert line["lr"] == pytest.approx(config["optimizer"]["learning_rate"] * rate(line["step"]))
    saved = json.loads((run / "eval.json").read_text())
    shown = json_of(capsys, "runs", "show", str(run))
    assert saved["bits_per_byte"] == pytest.approx(model["bits_per_byte"], rel=2e-5)
    assert (shown["steps"], shown["best_val_loss"]) == (steps, best["val_loss"])
    assert saved["step"] == best["step"]


def test_bits_per_weight_of_a_packed_run_are_those_of_its_file(runs: Path) -> None:
    """The block's matrices have 4 bits, and 16 for the scale of 32 numbers; others have 8, and 16 for the scale of a
    row.
    """
    file = load_file(newest(runs / "int4") / "model.safetensors")
    shape = yaml.safe_load((runs / "int4/config.yaml").read_text())["model"]
    width, hidden = shape["embed_dim"], shape["ff_dim"]
    inside = 3 * width * width + width * width + 3 * width * hidden
    rows = -(-shape["vocab_size"] // 64) * 64
    norms = 3 * width + 2 * width // shape["num_heads"]
    expected = inside * (4 + 16 / 32) + rows * (8 * width + 16) + 32 * norms
    assert 8 * sum(tensor.numel() * tensor.element_size() for tensor in file.values()) == expected
    assert sum(weight.numel() for weight in weights_of(runs / "int4").values()) == inside + rows * width + norms
