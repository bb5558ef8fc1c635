"""Test that every path (config, flags, environment) knows ~, and that a run's name cannot leave the runs' folder."""

from pathlib import Path
from typing import get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from minigpt.cli.arguments import Name, PathText, Positional, parse
from minigpt.config import find_recipe, load_config
from minigpt.config.section import OptionalPath, RunName
from minigpt.config.section import PathText as ConfigPath
from minigpt.config.tree import RunConfig
from minigpt.download import cache_root
from minigpt.errors import ConfigError, UserError
from minigpt.layout import check_name
from minigpt.runs import plan
from minigpt.runs.plan import pick_run
from minigpt.weights.checkpoint import resolve

PATHS = [
    "data.source", "data.cache_dir", "tokenizer.path", "logging.runs_dir", "finetune.base", "finetune.val_source",
    "finetune.teacher", "finetune.template",
]  # fmt: skip
LISTS = ["finetune.teacher"]
"""The settings of PATHS that hold several paths."""
BAD_NAMES = [
    "../x",
    "../../x",
    "a/../../x",
    "/tmp/x",
    "a\nb",
    "a\rb",
    "\x1b[31mred",
    "a\x9bb",
    "a\u202eb",
    "",
    ".",
    "x" * 300,
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and another folder to work in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


@pytest.mark.parametrize("setting", PATHS)
def test_paths_of_the_config_know_home(setting: str, home: Path) -> None:
    section, field = setting.split(".")
    expected = (str(home / "x"),) if setting in LISTS else str(home / "x")
    for path in ("~/x", Path("~/x")):
        config = load_config(None, {setting: [path] if setting in LISTS else path})
        assert getattr(getattr(config, section), field) == expected
    recipe = home / "r.yaml"
    recipe.write_text(f"{section}: {{{field}: ~/x}}\n")
    assert getattr(getattr(load_config("~/r.yaml"), section), field) == expected


def metadata(info: FieldInfo) -> list[object]:
    """The metadata of a field's type; for a list, of the type of its items."""
    inner = get_args(info.annotation)[:1] if get_origin(info.annotation) is tuple else ()
    return [*info.metadata, *(each for kind in inner for each in getattr(kind, "__metadata__", ()))]


def test_every_setting_that_is_a_path_is_declared_as_one() -> None:
    """Exactly the settings whose name says path or folder, or that are in the list above, have the type."""
    kinds = {id(kind.__metadata__[0]) for kind in (ConfigPath, OptionalPath)}
    declared = {
        f"{name}.{field}"
        for name, section in RunConfig.model_fields.items()
        for field, info in type(section.default).model_fields.items()
        if kinds & {id(each) for each in metadata(info)}
    }
    assert declared == set(PATHS)


def test_paths_of_the_command_line_know_home(home: Path) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Words:
        """Help."""

        what: Positional[tuple[PathText, ...]] = ()
        out: PathText | None = None
        plot: Path | None = None
        prompt: str | None = None

    args, _ = parse(Words, ["~/a", "~", "b~", "--out", "~/o", "--plot=~/p.png", "--prompt", "~/p"], "words")
    assert args == Words((str(home / "a"), str(home), "b~"), str(home / "o"), home / "p.png", "~/p")  # pyright: ignore


@pytest.mark.parametrize("variable", ["MINIGPT_CACHE", "MINIGPT_CONFIG"])
def test_variables_know_home(variable: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt.config.presets import presets_file

    monkeypatch.setenv(variable, "~/there")
    found = cache_root() if variable == "MINIGPT_CACHE" else presets_file().parent
    assert found == home / "there"


@pytest.mark.parametrize("variable", ["MINIGPT_CACHE", "MINIGPT_CONFIG"])
def test_a_user_without_a_home_is_told_which_variable_to_set(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt.config.presets import presets_file

    def nobody(number: int) -> None:
        raise KeyError(number)

    pwd = pytest.importorskip("pwd", reason="Windows has no such list of users")
    monkeypatch.setattr(pwd, "getpwuid", nobody)  # as in a container that runs as any number
    for name in ("HOME", variable):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=f"home folder is not known; .* with {variable}"):
        cache_root() if variable == "MINIGPT_CACHE" else presets_file()


def test_mirror_knows_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt.machine.doctor.machine import data

    monkeypatch.setenv("MINIGPT_DATA", "~/mirror")
    monkeypatch.setenv("MINIGPT_CACHE", str(home / "cache"))
    (home / "mirror").mkdir()
    assert data().figures["mirror_path"] == str(home / "mirror")


def test_home_of_nobody_is_an_error_that_names_it(home: Path) -> None:
    with pytest.raises(ConfigError, match="no user 'nosuchuser'; write the path in full"):
        load_config(None, {"logging.runs_dir": "~nosuchuser/x"})
    with pytest.raises(UserError, match="no user 'nosuchuser'"):
        find_recipe("~nosuchuser/x.yaml")
    Path("~really").write_text("a file")
    assert load_config(None, {"data.source": "~really"}).data.source == str(Path("~really").absolute())


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_leave_the_folder_or_steer_a_terminal_are_refused(name: str) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Words:
        """Help."""

        name: Name | None = None

    with pytest.raises(UserError, match="cannot be named"):
        parse(Words, [f"--name={name}"], "words")
    with pytest.raises(ConfigError, match=r"logging\.name: a run cannot be named"):
        load_config(None, {"logging.name": name})


def test_usual_names_stay() -> None:
    assert [check_name(name) for name in ("my", "my run", "a.b-2", "été", "sweep/1")]
    assert RunName.__metadata__  # the config's type is checked too


def test_library_refuses_such_a_name_too(tmp_path: Path) -> None:
    config = load_config(None, {"logging.runs_dir": str(tmp_path)})
    with pytest.raises(UserError, match="cannot be named"):
        pick_run(config, "../x", "run", resume=False)


def test_a_run_is_called_after_its_text_in_any_script() -> None:
    names = {"红楼梦 (上).txt": "红楼梦-上", "हिन्दी.txt": "हिन्दी", "a/Über uns.jsonl": "Über-uns", "👩.txt": "run"}
    for source, name in (names | {f"{'長' * 80}.txt": "長" * 60}).items():
        assert check_name(plan.default_name(load_config(None, {"data.source": source}), None)) == name


def test_a_run_may_be_called_best(tmp_path: Path) -> None:
    step = tmp_path / "best/checkpoints/step-00000003"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    (step.parent / "best").write_text(step.name)
    assert resolve(tmp_path / "best") == resolve(step.parent / "best") == step


@pytest.mark.parametrize("name", ["my/2", "my/checkpoints", "my/checkpoints/x"])
def test_a_run_holds_no_other_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "my").mkdir()
    (tmp_path / "my/config.yaml").write_text("{}")
    config = load_config(None, {"logging.runs_dir": str(tmp_path)})
    with pytest.raises(UserError, match="my is a run, which cannot hold another; choose another name with --name"):
        pick_run(config, name, "run", resume=False)
    assert pick_run(config, "other/2", "run", resume=False) == tmp_path / "other/2"


def test_each_run_of_a_name_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("my", 1), ("my-2", 2), ("my-3", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"train: {{seed: {seed}}}")
    read: list[str] = []

    def noted(path: Path) -> RunConfig:
        read.append(path.parent.name)
        return load_config(path)

    monkeypatch.setattr(plan, "load_config", noted)
    config = load_config(None, {"logging.runs_dir": str(tmp_path), "train.seed": "4"})
    assert pick_run(config, None, "my", resume=False) == tmp_path / "my-4"
    assert read == ["my", "my-2", "my-3"]
