"""Test the public API: run README's code as it is, and check every listed name."""

import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minigpt
from minigpt.generation.text import generate_text
from minigpt.model import GPT
from minigpt.training import Trainer

README = Path(__file__).parent.parent / "README.md"
RECIPE = """\
model: {embed_dim: 32, num_heads: 2, num_layers: 1, max_seq_len: 32}
train: {max_steps: 20, batch_size: 8, eval_every: 10, device: cpu, precision: fp32}
"""


def test_every_public_name_is_there_and_a_thing_to_use() -> None:
    for name in minigpt.__all__:
        assert getattr(minigpt, name) is not None
    assert callable(minigpt.train)
    assert callable(minigpt.generate)
    assert not hasattr(minigpt, "zork")


@pytest.mark.slow
def test_train_is_the_function_whatever_was_imported_before() -> None:
    code = "from minigpt import load_run, GPT, train, generate; print(train.__name__, generate.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["train", "generate"]


def test_the_readmes_python_runs_unchanged(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "my.txt").write_text("Once upon a time there was a cat who sat on a mat and saw a dog.\n" * 60)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert isinstance(scope["model"], GPT)
    assert 0 < len(scope["text"]) <= 50, "it may end early at the end-of-text token"
    assert (tmp_path / "runs/mine/plots/loss.png").is_file() or os.environ.get("NO_PLOT")


def test_save_and_load_give_the_same_model(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "my.txt").write_text("Once upon a time there was a cat who sat on a mat and saw a dog.\n" * 60)
    monkeypatch.chdir(tmp_path)
    run = minigpt.train(minigpt.load_config("recipe.yaml", {"logging.plots": False}), data="my.txt", quiet=True)
    again = GPT.from_pretrained(run.path / "checkpoints" / "last")
    settings = {"max_new_tokens": 30, "temperature": 0}
    assert generate_text(again, "Once", run.tokenizer, **settings) == generate_text(run.model, "Once", **settings)
    Path("other.txt").write_text("ONE MORE TEXT, of other letters & 23 figures.\n" * 60)
    config = minigpt.load_config(run.path / "config.yaml")
    other = minigpt.train(config, data=Path("other.txt"), name="other", quiet=True)
    assert other.tokenizer.vocab_size == other.model.config.vocab_size != run.tokenizer.vocab_size
    hands = minigpt.load_run("runs/my")
    assert hands.tokenizer.decode(hands.tokenizer.encode("a cat")) == "a cat"


def test_public_names_are_listed_before_they_are_used() -> None:
    code = "import minigpt; assert {*minigpt.__all__} <= {*dir(minigpt)}"
    subprocess.run([sys.executable, "-c", code], check=True)


def trainers() -> int:
    """How many are in memory, those of other tests too."""
    return sum(type(each) is Trainer for each in gc.get_objects())


def test_train_keeps_nothing_but_the_run_that_it_returns(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE + "logging: {plots: false}\n")
    (tmp_path / "my.txt").write_text("Once upon a time there was a cat who sat on a mat and saw a dog.\n" * 60)
    monkeypatch.chdir(tmp_path)
    gc.collect()
    before = trainers()
    gc.disable()  # what a cycle keeps would stay until Python collects garbage, which may be much later
    try:
        run = minigpt.train(minigpt.load_config("recipe.yaml"), data="my.txt", quiet=True)
        assert trainers() == before
    finally:
        gc.enable()
    assert all(parameter.grad is None for parameter in run.model.parameters())
