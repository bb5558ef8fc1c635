"""Test the command line's own parser: each type of argument, mistakes as one line, and the help."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from minigpt.cli import main
from minigpt.cli.arguments import PathText, Positional, parse
from minigpt.cli.demo import Demo
from minigpt.config import load_config, split_flags
from minigpt.errors import ConfigError, UserError, nearest


@dataclass(frozen=True)
class Copy:
    """Copy a file.

    minigpt copy a b
    """

    source: Positional[str]
    """What to copy."""
    targets: Positional[tuple[str, ...]] = ()
    """Where to."""
    times: int = 1
    """How often."""
    speed: float | None = None
    """Bytes per second."""
    mode: Literal["fast", "safe"] = "safe"
    """How."""
    tags: tuple[str, ...] | None = None
    """Words to add."""
    weights: dict[str, float] | None = None
    """Words with numbers."""
    log: Path | None = None
    """A file."""
    sure: bool | None = None
    """Whether to ask."""
    draw: bool = True
    """Show a bar."""
    json: bool = False
    """Print an object."""
    note: str | None = None
    """A text."""


def copy(*words: str) -> Any:
    return parse(Copy, list(words), "copy")[0]


def test_every_kind_of_argument():
    found = copy(
        "a", "--times=3", "--speed", "1e3", "b", "--mode", "fast", "--draw", "--weights", "x", "1", "y", "-2.5",
        "--log", "log.txt", "--sure", "False", "--json", "c", "--tags", "-", "e",
    )  # fmt: skip
    assert found == Copy(
        "a", ("b", "c"), 3, 1000.0, "fast", ("-", "e"), {"x": 1.0, "y": -2.5}, Path("log.txt"), False, True, True
    )
    assert copy("a", "--no-draw", "--speed", "None") == Copy("a", draw=False)
    assert copy("a", "--times", "-1", "--times", "2").times == 2
    assert copy("a", "--", "b").targets == ("b",)
    assert copy("a", "--tags", "x", "--json", "--tags=y").tags == ("x", "y")
    assert copy("a", "--weights", "x", "1", "--weights", "y", "2").weights == {"x": 1.0, "y": 2.0}


def test_words_after_two_dashes_are_never_flags() -> None:
    assert copy("a", "--", "-b", "--json", "--", "--x.y").targets == ("-b", "--json", "--", "--x.y")
    assert not copy("--", "-h", "--help").json
    assert split_flags(["--train.seed", "1", "--", "--my.txt"]) == ({"train.seed": 1}, ["--", "--my.txt"])


def test_none_is_a_word_where_texts_are_wanted() -> None:
    assert copy("a", "--tags", "None").tags == ("None",)
    assert copy("a", "--note", "None").note == "None"


@dataclass(frozen=True)
class Mix:
    """Mix runs."""

    runs: Positional[tuple[PathText, ...]]
    """Runs."""
    ensemble: tuple[PathText, ...] = ()
    """More runs."""


def test_a_flag_with_runs_is_split_at_commas_unless_the_path_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def mixed(*words: str) -> tuple[str, ...]:
        return parse(Mix, ["lr=1,seed=2", "--ensemble", *words], "mix")[0].ensemble

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("c", "runs/b", "runs/lr=1,seed=2", "here,there"):
        (tmp_path / folder).mkdir(parents=True)
    assert mixed("b,c", "d") == ("runs/b", "c", "d")
    assert mixed("b, c,", "--ensemble=d,~/e") == ("runs/b", "c", "d", str(tmp_path / "home/e"))
    assert mixed("here,there", "lr=1,seed=2", str(tmp_path / "here,there")) == (
        "here,there", "runs/lr=1,seed=2", str(tmp_path / "here,there"),
    )  # fmt: skip
    assert mixed(",") == (",",)
    assert parse(Mix, ["a,b"], "mix")[0].runs == ("a,b",), "commas separate runs only in a flag"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name SOURCE, for example: minigpt copy a b"),
        (["a", "--times", "x"], "--times: give a whole number, not 'x'; see minigpt copy --help"),
        (["a", "--weights", "x", "1", "y"], "--weights: give texts, each with a number, not 'x', '1', 'y'"),
        (["a", "--mode", "slow"], "--mode: choose fast or safe, not slow"),
        (["a", "--sure", "yes"], "--sure: choose True or False, not yes"),
        (["a", "--json=1"], "--json: choose True or False, not 1"),
        (["a", "--json", "off"], "--json: choose True or False, not off"),
        (["a", "--json="], "--json: choose True or False, not nothing"),
        (["a", "--no-draw", "no"], "--draw: choose True or False, not no"),
        (["a", "--tags"], "--tags: needs a value; write --tags VALUE"),
        (["a", "--no-json"], "no such option: --no-json; did you mean --json?"),
        (["a", "-v"], "-v: one word too many; write a file of that name as ./-v"),
        (["a", "--note", "--- b c"], "no such option: --- b c; see minigpt copy --help; as the value of --note: "
         "--note='--- b c'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_one_line(words: list[str], message: str):
    with pytest.raises(UserError) as failed:
        copy(*words)
    assert message in str(failed.value)


def test_booleans_may_have_a_value_and_a_file_may_follow_a_switch():
    assert copy("--json", "true", "a").json and copy("--json", "a").json
    assert not copy("a", "--json", "false").json and not copy("a", "--json=False").json
    assert copy("a", "--no-draw=false").draw and not copy("a", "--draw", "false").draw
    assert [copy("a", *words).sure for words in (["--sure"], ["--sure", "false"], ["--sure=TRUE"])] == [
        True,
        False,
        True,
    ]
    assert [copy("a", *words).sure for words in (["--no-sure"], ["--no-sure=false"], ["--no-sure", "None"])] == [
        False,
        True,
        None,
    ]
    assert copy("--draw", "b").targets == () and copy("--draw", "--", "no").source == "no"


def test_a_setting_that_is_true_or_false_takes_the_same_words():
    def plots(*words: str) -> bool:
        overrides, rest = split_flags([*words])
        assert not rest
        return load_config(None, overrides).logging.plots

    assert plots("--logging.plots") and plots("--logging.plots", "true") and plots("--logging.plots=on")
    assert not any(plots("--logging.plots", word) for word in ("false", "False", "no", "off", "0"))
    assert split_flags(["--logging.plots", "off.txt"])[1] == ["off.txt"]
    for flag in ("--no-logging.plots", "--logging.no-plots"):
        with pytest.raises(ConfigError, match=f"no such option: {flag}; write --logging.plots false"):
            split_flags([flag])


def test_logging_name_is_the_same_as_name():
    for given, name in {"": "demo", "--name a": "a", "--logging.name a": "a", "--name a --logging.name a": "a"}.items():
        assert parse(Demo, given.split(), "demo", with_config=True)[0].name == name


def test_help_is_the_docstrings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        copy("--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "usage: minigpt copy [-h] [OPTIONS] SOURCE [TARGETS ...]\n\nCopy a file.\n\n    minigpt copy"
    )
    for words in ("--times INT", "How often. (default: 1)", "--mode {fast,safe}", "--no-draw", "--weights STR FLOAT"):
        assert words in shown


def test_short_help_has_fifteen_options_and_sections_can_be_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def shown(*words: str) -> str:
        with pytest.raises(SystemExit):
            main(list(words))
        text = capsys.readouterr().out
        assert all(len(line) <= 80 and line == line.rstrip() for line in text.splitlines())
        return text

    for command in ("train", "finetune", "sweep", "generate"):
        assert len(re.findall(r"^  --", shown(command, "-h"), flags=re.M)) == 15
    full = shown("train", "--help")
    assert "--budget STR" in full and "--data.val-fraction" in full and "--recovery.patience" in full
    section = shown("train", "my.txt", "--help", "model")
    assert section.startswith("model:\n") and "--model.embed-dim" in section and "--train." not in section
    assert "--top-k" in shown("generate", "--help", "generation")
    assert main(["train", "--help", "modle"]) == 2
    assert "--help modle: no such section; did you mean model?" in capsys.readouterr().err


def test_a_typing_error_gets_five_suggestions_at_most():
    assert nearest("zzz", "abc") == "choose from a, b, c"
    assert nearest("zzz", "abcdefg") == "choose from a, b, c, d, e and 2 more"
    assert nearest("zzz", "abcdefg", "see --help") == "see --help"
    assert nearest("alpha", ["alpa", "beta"], "see --help") == "did you mean alpa?"
