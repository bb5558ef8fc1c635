"""Test that a wrong flag or recipe gives one line that names the fix, before anything is written."""

from pathlib import Path

import pytest
from cli_run import SMALL, fails, text

from minigpt.cli import main
from minigpt.config import load_config


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--train.max-stepz", "3"], ("minigpt: --train.max-stepz: no such", "did you mean --train.max-steps?")),
        (["--train.learning_rate=1"], ("--train.learning-rate: no such", "did you mean --optimizer.learning-rate?")),
        (["--train.max-minutes", "3m"], ("--train.max-minutes: give minutes as a number, not '3m'",)),
        (["two words.txt"], ("one data source is enough; quote a glob or a path with spaces; put files in a folder",)),
        (["--max-steps", "3"], ("--max-steps", "did you mean --train.max-steps")),
        (["--train.max-steps", "many"], ("--train.max-steps: input should be a valid integer, not 'many'",)),
        (["--train.max-steps", "0"], ("--train.max-steps", "greater than 0")),
        (["--model.num-layers", "-3"], ("--model.num-layers", "greater than 0")),
        (["--model.embed-dim", "130"], ("embed_dim 130 is not divisible by num_heads",)),
        (["--optimizer.learning-rate", ".nan"], ("--optimizer.learning-rate", "finite")),
        (["--train.device", "abacus"], ("train.device", "cpu")),
        (["--model.vocab-size", "7"], ("--model.vocab-size: 7 is not the tokenizer's",)),
        (["--tokenizer.kind", "bpe", "--tokenizer.vocab-size", "9"], ("vocab",)),
        (["--resume"], ("nothing to resume",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_setting_that_cannot_be_used(flags, parts, tmp_path: Path, capsys) -> None:
    (tmp_path / "cats.txt").write_text(text())
    fails(capsys, ["train", str(tmp_path / "cats.txt"), "--logging.runs-dir", str(tmp_path / "runs"), *flags], *parts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--train.sample-prompt", "cat " * 30], "--train.sample-prompt: has 120 tokens, and the model reads 1 to 32"),
        (["--train.seed", str(2**64)], "train.seed"),
        (["--model.shape", "[a]"], "model.shape"),
    ],
)
def test_what_would_fail_later_fails_before_the_first_step(flags, part, tmp_path: Path, capsys) -> None:
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(tmp_path / "runs"), *flags]
    fails(capsys, argv, part)
    assert not (tmp_path / "runs").exists()


def test_a_sample_is_cleaned_like_the_text_and_never_ends_a_training(tmp_path: Path, capsys) -> None:
    (tmp_path / "cats.txt").write_text(text().replace("\n", " "))  # the default prompt is a line end
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(tmp_path), "--train.max-steps", "2"]
    argv += ["--tokenizer.unknown", "error", "--train.sample-every", "1", "--train.save-every", "1"]
    fails(capsys, argv, "train.sample_prompt: character '\\n'", "--train.sample-every 0")
    argv += ["--data.clean", "lower", "--train.sample-prompt", "The CAT", "--generation.logit-bias", "{th: 1}"]
    assert main(argv) == 0
    assert "step 1: no sample: logit_bias: 'th' is 2 tokens" in capsys.readouterr().err
    assert load_config(tmp_path / "cats/config.yaml").train.sample_prompt == "the cat"
    assert main([*argv, "--train.sample-prompt", "\u2603", "--train.sample-every", "0", "--name", "none"]) == 0


def test_a_recipe_that_cannot_be_read(tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train: {max_steps: ten}\n")
    fails(capsys, ["train", str(recipe)], "train.max_steps", "'ten'")
    recipe.write_text("train: [\n")
    fails(capsys, ["train", str(recipe)], "not valid YAML")
    fails(capsys, ["train", "nowhere.yaml"], "no such recipe")
    fails(capsys, ["trian"], "no such command: trian; did you mean train?")
