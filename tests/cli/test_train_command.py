"""Test that minigpt train leaves a whole run, its config repeats it, and a tiny run is a small copy of a recipe."""

import json
from pathlib import Path

import pytest
from cli_run import SMALL, fails, text
from safetensors.torch import load_file

from minigpt.cli import main
from minigpt.config import load_config, recipes
from minigpt.runs.tiny_run import tiny


def test_the_sample_prompt_is_cleaned_as_the_text_is(tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text(text())
    flags = "--train.max-steps 2 --train.sample-every 2 --data.clean lower --tokenizer.unknown error --name low".split()
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, *flags, "--train.sample-prompt", "The cat"]
    assert main([*argv, "--logging.runs-dir", str(tmp_path)]) == 0
    (sample,) = map(json.loads, (tmp_path / "low/samples.jsonl").read_text().splitlines())
    assert sample["prompt"] == "the cat"


@pytest.mark.parametrize(("warmup", "told"), [("12", True), ("11", False)])
def test_a_warm_up_that_is_as_long_as_the_run_is_told(tmp_path: Path, capsys, warmup: str, told: bool) -> None:
    (tmp_path / "cats.txt").write_text(text())
    flags = ["--train.max-steps", "12", "--schedule.warmup-steps", warmup, "--logging.runs-dir", str(tmp_path)]
    assert main(["train", str(tmp_path / "cats.txt"), *SMALL, *flags]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert ("warm-up takes 12 steps, and the run 12; --schedule.warmup-steps 1 is usual" in said) == told


def test_an_empty_name_is_not_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(text())
    for command in ("train", "prepare"):
        fails(capsys, [command, ""], "data.source: is empty")


def test_a_run_leaves_what_the_design_promises(trained: Path) -> None:
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    for name in ("config.yaml", "receipt.json", "tokenizer.json", "metrics.jsonl", "metrics.csv", "samples.jsonl"):
        assert name in names
    assert {path.name for path in (trained / "checkpoints/step-00000040").iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
    }  # fmt: skip
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 10, 20, 30, 40]
    keys = {"step", "epoch", "tokens", "seconds", "loss", "lr", "grad_norm", "tokens_per_second", "mfu"}
    assert set(lines[0]) == {"step", "epoch", "tokens", "seconds", "val_loss", "bits_per_byte"}
    assert set(lines[1]) == keys
    assert set(lines[2]) == keys | {"val_loss", "bits_per_byte"}
    assert lines[-1]["tokens"] == 40 * 8 * 32
    assert lines[-1]["val_loss"] < lines[2]["val_loss"] < 3 < lines[0]["val_loss"]
    receipt = json.loads((trained / "receipt.json").read_text())
    assert receipt["seed"] == 1337
    assert len(receipt["data"]["sha256"]["train"]) == 64
    assert len((trained / "samples.jsonl").read_text().splitlines()) == 2


def test_the_saved_config_repeats_the_run_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    assert main(["train", str(trained / "config.yaml"), "--logging.runs-dir", str(tmp_path), "--name", "again"]) == 0
    ours, theirs = (run / "checkpoints/last" for run in (trained, tmp_path / "again"))
    assert ours.read_text() == theirs.read_text()
    for part in ("model", "optimizer"):
        one = load_file(ours.parent / ours.read_text().strip() / f"{part}.safetensors")
        two = load_file(theirs.parent / theirs.read_text().strip() / f"{part}.safetensors")
        assert all((one[name] == two[name]).all() for name in one)


def test_a_tiny_run_has_a_name_of_its_own_and_any_recipe_can_be_shrunk(tmp_path: Path) -> None:
    for name in recipes():
        assert tiny(load_config(name)).train.max_steps == 100
    odd = {"model.embed_dim": 30, "model.num_heads": 4, "model.head_dim": 16, "model.vocab_size": 8192}
    assert tiny(load_config(None, odd)).model.vocab_size is None
    given = {"model.num_heads": 6, "model.num_kv_heads": 3, "train.micro_batch_size": 3}
    config = load_config(None, {"model.embed_dim": 384, "train.batch_size": 12, **given})
    for path, value in given.items():  # what does not fit the flag is not shrunk
        section, _, name = path.partition(".")
        assert getattr(getattr(tiny(config, [path]), section), name) == value
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(tmp_path / "runs"), "--tiny-run"]
    assert main([*argv, "--train.max-steps", "20"]) == 0
    made = load_config(tmp_path / "runs/cats-tiny/config.yaml")
    assert (made.train.max_steps, made.train.eval_every) == (20, 50)  # the flag is kept, other settings are shrunk


def test_train_with_nothing_named_prints_its_usage(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for argv in ([], ["--budget", "10m"], ["--train.max-steps", "5"]):
        assert main(["train", *argv]) == 2
        shown = capsys.readouterr()
        assert "minigpt train my.txt" in shown.err and "minigpt train stories" in shown.err and shown.out == ""
    assert not list(tmp_path.iterdir())
