"""Test that models of other programs become runs that compute the same; damaged or hostile ones are refused."""

import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cli_run import json_of
from foreign_model import make
from torch import Tensor, nn

from minigpt import export_gguf, generate_text, import_model, load_run
from minigpt.cli import main
from minigpt.errors import CheckpointError, DataError
from minigpt.tokenizers import ByteTokenizer

CHARS = "\n !'-.,abcdefghijklmnopqrstuvwxyzABC"
ARGS = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 64, "vocab_size": len(CHARS), "dropout": 0.0}


class NanoGPT(nn.Module):
    """The same computation as nanoGPT's model.py, with its names."""

    def __init__(self, args: dict, bias: bool):
        super().__init__()
        width, self.heads = args["n_embd"], args["n_head"]

        class Norm(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(width))
                self.bias = nn.Parameter(torch.randn(width)) if bias else None

            def forward(self, x: Tensor) -> Tensor:
                return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)

        def block() -> nn.ModuleDict:
            attn = {"c_attn": nn.Linear(width, 3 * width, bias), "c_proj": nn.Linear(width, width, bias)}
            mlp = {"c_fc": nn.Linear(width, 4 * width, bias), "c_proj": nn.Linear(4 * width, width, bias)}
            parts = {"ln_1": Norm(), "attn": nn.ModuleDict(attn), "ln_2": Norm(), "mlp": nn.ModuleDict(mlp)}
            return nn.ModuleDict(parts)

        tables = {"wte": nn.Embedding(args["vocab_size"], width), "wpe": nn.Embedding(args["block_size"], width)}
        blocks = nn.ModuleList(block() for _ in range(args["n_layer"]))
        self.transformer = nn.ModuleDict(tables | {"h": blocks, "ln_f": Norm()})
        self.lm_head = nn.Linear(width, args["vocab_size"], bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids: Tensor) -> Tensor:
        part = self.transformer
        x = part["wte"](ids) + part["wpe"](torch.arange(ids.shape[1]))
        for block in part["h"]:  # type: ignore[union-attr]
            q, k, v = block["attn"]["c_attn"](block["ln_1"](x)).split(x.shape[-1], 2)
            q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + block["attn"]["c_proj"](y)
            x = x + block["mlp"]["c_proj"](F.gelu(block["mlp"]["c_fc"](block["ln_2"](x))))
        return self.lm_head(part["ln_f"](x))


def nano(folder: Path, bias: bool = True, prefix: str = "", **changed: object) -> tuple[Path, NanoGPT]:
    """A ckpt.pt as nanoGPT's train.py saves it, and the model in it."""
    torch.manual_seed(3)
    model = NanoGPT(ARGS, bias)
    nn.init.normal_(model.lm_head.weight)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    saved = {
        "model": {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": ARGS | {"bias": bias},
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.47),
        "config": {"out_dir": "out", "dataset": "shakespeare_char", "compile": True, "learning_rate": 1e-3},
    } | changed
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(saved, folder / "ckpt.pt")
    (folder / "input.txt").write_text(CHARS[::-1])
    return folder, model.eval()


@pytest.mark.parametrize(("bias", "prefix"), [(True, ""), (False, "_orig_mod.")])
def test_nanogpt_writes_the_same_fifty_tokens(bias: bool, prefix: str, tmp_path: Path) -> None:
    folder, original = nano(tmp_path / "out", bias, prefix)
    done = import_model(folder, tmp_path / "run", folder / "input.txt")
    assert (done.kind, done.tokenizer, done.vocab_size) == ("nanogpt", "char", len(CHARS))
    run = load_run(done.path, "cpu")
    ids = torch.tensor([[5, 9, 17]])
    for _ in range(50):
        ids = torch.cat([ids, original(ids)[:, -1:].argmax(-1)], dim=1)
    text = "".join(sorted(CHARS)[id_] for id_ in ids[0].tolist())
    assert run.tokenizer.decode(ids[0].tolist()) == text and run.tokenizer.encode(text) == ids[0].tolist()
    assert generate_text(run.model, text[:3], run.tokenizer, max_new_tokens=50, temperature=0.0) == text[3:]
    torch.testing.assert_close(run.model(ids), original(ids), rtol=1e-4, atol=1e-4)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder, _ = nano(tmp_path / "out")
    (folder / "input.txt").write_text("abc")
    with pytest.raises(CheckpointError, match=r"the tokenizer has 3 ids, the model \d+; give .* own with --tokenizer"):
        import_model(folder, tmp_path / "run", folder / "input.txt")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_imported_run_is_evaluated_and_trained_further(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    folder, _ = nano(tmp_path / "out")
    report = json_of(capsys, "import", folder / "ckpt.pt", "--tokenizer", folder / "input.txt")
    assert list(report) == ["source", "path", "kind", "weights", "tokenizer", "vocab_size"]
    assert report["path"] == "runs/ckpt" and report["kind"] == "nanogpt"
    Path("my.txt").write_text("a cat sat on a mat, and the dog ran.\n" * 60)
    assert main(["eval", "runs/ckpt", "--data", "my.txt"]) == 0
    assert main(["finetune", "runs/ckpt", "my.txt", "--name", "more", "--train.max-steps", "2"]) == 0
    assert main(["generate", "runs/more", "--prompt", "a", "--max-new-tokens", "3"]) == 0


def test_the_files_of_an_imported_model_are_not_taken_for_its_text(tmp_path: Path, capsys) -> None:
    theirs = make(tmp_path / "hf", "llama", vocab_size=259)
    (theirs / "README.md").write_text("A card that is long enough to be scored. " * 500)
    run = import_model(theirs, tmp_path / "a", bytes_file(tmp_path)).path
    for flags in ([], ["--fit-temperature"], ["--split", "train"]):
        assert main(["eval", str(run), *flags]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "was imported, so it has no text of its own" in said and "--data FILE" in said
    assert not (run / "temperature.json").exists()
    for flags in ([], ["--resume", "--train.max-steps", "3"]):
        assert main(["train", str(run / "config.yaml"), "--logging.runs-dir", str(tmp_path), *flags]) == 2
        assert "has only weights, so training cannot continue from it; fine-tune it" in capsys.readouterr().err
    assert main(["eval", str(run), "--data", str(theirs / "README.md")]) == 0


def test_a_config_yaml_of_the_folder_around_a_model_is_not_the_models(tmp_path: Path, capsys) -> None:
    (tmp_path / "config.yaml").write_text("lr: 0.1\n")
    theirs = make(tmp_path / "models" / "hf", "llama", vocab_size=259)
    ByteTokenizer().save(theirs)
    assert main(["generate", str(theirs), "--prompt", "a", "--max-new-tokens", "3"]) == 0
    assert load_run(theirs, "cpu").name == "hf"
    run = import_model(theirs, tmp_path / "a").path
    for place in (run, run / "checkpoints/step-00000000", run / "checkpoints/last"):
        assert main(["import", str(place), "--out", str(tmp_path / "b")]) == 2
        assert "is a run of minigpt" in capsys.readouterr().err


def test_a_template_of_another_program_and_a_pipe_are_refused(tmp_path: Path) -> None:
    theirs = make(tmp_path / "hf", "llama", vocab_size=259)
    (theirs / "template.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot be read as a template"):
        import_model(theirs, tmp_path / "a", bytes_file(tmp_path))
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="not a file or directory"):
        import_model(tmp_path / "model.gguf", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_gguf_comes_back_as_the_same_run(tmp_path: Path) -> None:
    theirs = make(tmp_path / "hf", "llama", vocab_size=259)
    first = load_run(import_model(theirs, tmp_path / "a", bytes_file(tmp_path)).path, "cpu")
    for precision, most in (("fp32", 0.0), ("fp16", 0.01), ("q8_0", 0.2)):
        path = export_gguf(first, tmp_path / f"{precision}.gguf", precision).path
        back = load_run(import_model(path, tmp_path / precision).path, "cpu")
        ids = torch.arange(12)[None] * 20
        with torch.inference_mode():
            assert (back.model(ids) - first.model(ids)).abs().max() <= most, precision
        assert back.tokenizer.fingerprint == first.tokenizer.fingerprint


def bytes_file(folder: Path) -> Path:
    ByteTokenizer().save(folder / "bytes.json")
    return folder / "bytes.json"


def llama2c(path: Path, version: int = 0, tied: bool = True) -> tuple[Path, dict[str, np.ndarray], tuple[int, ...]]:
    """A file as llama2.c's export.py writes it, the weights by the names of run.c, and its header."""
    width, hidden, layers, heads, kv, vocabulary, context = sizes = (24, 40, 2, 4, 2, 259, 32)
    keys = width * kv // heads
    draw = np.random.default_rng(1)
    shapes = {
        "table": (vocabulary, width), "rms_att": (layers, width), "wq": (layers, width, width),
        "wk": (layers, keys, width), "wv": (layers, keys, width), "wo": (layers, width, width),
        "rms_ffn": (layers, width), "w1": (layers, hidden, width), "w2": (layers, width, hidden),
        "w3": (layers, hidden, width), "rms_final": (width,), "angles": (context * width // heads,),
        "head": (vocabulary, width),
    }  # fmt: skip
    weights = {name: draw.normal(0, 0.4, shape).astype("<f4") for name, shape in shapes.items()}
    order = list(shapes)
    header = struct.pack("<7i", *sizes[:5], vocabulary if tied or version else -vocabulary, context)
    if version:
        order = "rms_att rms_ffn rms_final table wq wk wv wo w1 w2 w3 head".split()
        header = (struct.pack("<Ii", 0x616B3432, 1) + header + bytes([tied])).ljust(256, b"\0")
    with path.open("wb") as file:
        file.write(header)
        for name in order[: -1 if tied else None]:
            file.write(weights[name].tobytes())
    if tied:
        weights["head"] = weights["table"]
    return path, weights, sizes


def forward(weights: dict[str, np.ndarray], sizes: tuple[int, ...], ids: list[int]) -> np.ndarray:
    """Logits after the last of the ids, as run.c's `forward` computes them: one position at a time, with a cache."""
    width, _, layers, heads, kv, _, _ = sizes
    size = width // heads

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return weight * x / np.sqrt((x * x).mean() + 1e-5)

    def rotated(x: np.ndarray, place: int) -> np.ndarray:
        out = x.copy()
        for i in range(0, len(x), 2):
            angle = place / 10000.0 ** ((i % size) / size)
            out[i] = x[i] * math.cos(angle) - x[i + 1] * math.sin(angle)
            out[i + 1] = x[i] * math.sin(angle) + x[i + 1] * math.cos(angle)
        return out

    cache: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(layers)]
    x = np.zeros(width)
    for place, id_ in enumerate(ids):
        x = weights["table"][id_].astype(np.float64)
        for i in range(layers):
            y = norm(x, weights["rms_att"][i])
            q = rotated(weights["wq"][i] @ y, place)
            cache[i].append((rotated(weights["wk"][i] @ y, place), weights["wv"][i] @ y))
            mixed = np.zeros(width)
            for head in range(heads):
                own, shared = slice(head * size, (head + 1) * size), head // (heads // kv)
                theirs = slice(shared * size, (shared + 1) * size)
                scores = np.array([q[own] @ key[theirs] / math.sqrt(size) for key, _ in cache[i]])
                shares = np.exp(scores - scores.max())
                mixed[own] = (shares / shares.sum()) @ np.array([value[theirs] for _, value in cache[i]])
            x = x + weights["wo"][i] @ mixed
            y = norm(x, weights["rms_ffn"][i])
            gate = weights["w1"][i] @ y
            x = x + weights["w2"][i] @ (gate / (1 + np.exp(-gate)) * (weights["w3"][i] @ y))
        logits = weights["head"] @ norm(x, weights["rms_final"])
    return logits


@pytest.mark.parametrize(("version", "tied"), [(0, True), (0, False), (1, True), (1, False)])
def test_llama2c_computes_the_same(version: int, tied: bool, tmp_path: Path) -> None:
    path, weights, sizes = llama2c(tmp_path / "stories.bin", version, tied)
    run = load_run(import_model(path, tmp_path / "run", bytes_file(tmp_path)).path, "cpu")
    ids = [1, 200, 37, 4, 90, 111, 5]
    with torch.inference_mode():
        found = run.model(torch.tensor([ids]))[0, -1]
    np.testing.assert_allclose(found, forward(weights, sizes, ids), rtol=1e-4, atol=1e-4)
