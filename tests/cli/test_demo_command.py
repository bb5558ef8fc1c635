"""Test that minigpt demo ends in time on a slow machine too, and prints its loss."""

from pathlib import Path

from cli_run import SMALL, fails, json_of

from minigpt.cli import main
from minigpt.config import load_config

TINY = [*SMALL, "--data.stories-count", "60", "--train.eval-batches", "1", "--train.compile", "off"]


def test_the_clock_ends_it_where_the_steps_would_take_too_long(tmp_path: Path, capsys) -> None:
    flags = ["--logging.runs-dir", tmp_path, "--train.max-steps", "1000000", "--train.max-minutes", "0.02"]
    said = json_of(capsys, "demo", *TINY, *flags)
    assert 1.2 <= said["seconds"] < 30
    assert said["gap"] == said["loss"] - said["entropy"] > 0
    assert len(said["samples"]) == 3


def test_it_has_a_text_of_its_own(capsys) -> None:
    fails(capsys, ["demo", "--data.source", "my.txt"], "on another text: minigpt train demo my.txt")


def test_it_trains_72_seconds_at_most_unless_a_flag_says_otherwise(tmp_path: Path) -> None:
    argv = ["demo", *TINY, "--logging.runs-dir", str(tmp_path), "--train.max-steps", "2"]
    assert main(argv) == 0
    train = load_config(tmp_path / "demo" / "config.yaml").train
    assert (train.max_steps, train.max_minutes) == (2, 1.2)


def test_a_time_of_your_own_replaces_the_recipes_steps(tmp_path: Path) -> None:
    assert main(["demo", *TINY, "--logging.runs-dir", str(tmp_path), "--train.max-minutes", "0.01"]) == 0
    train = load_config(tmp_path / "demo" / "config.yaml").train
    assert (train.max_steps, train.max_minutes) == (None, 0.01)
