"""Test minigpt runs: what is listed, shown, compared, and the command that repeats a run."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_run import SMALL, fails, json_of, text
from safetensors.torch import load_file
from tuned_run import StopAt, make_base, questions, tune

from minigpt.cli import main
from minigpt.config import dump_config, load_config, split_flags
from minigpt.errors import RunError
from minigpt.files import GrowingLines, read_lines
from minigpt.layout import RunFolder
from minigpt.runs import record
from minigpt.runs import train as assembly
from minigpt.runs.compare import grouped, ranking
from minigpt.runs.lock import run_lock
from minigpt.runs.plan import write_run_files
from minigpt.runs.record import read_run
from minigpt.runs.repeat import receipt_line
from minigpt.runs.settings import as_flag, essential, flat, quoted
from minigpt.runs.task import FromScratch

PROMPT = "the cat's\n\tmat, é \\ {}"
FEW = [
    "--train.max-steps",
    "4",
    "--train.eval-every",
    "2",
    "--logging.log-every",
    "2",
    "--train.sample-every",
    "4",
    "--model.attention",
    "sdpa",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a-1 and a-2 differ in seed, wide in width, bytes in its tokenizer, other in its text; one is in a sweep."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "cats.txt").write_text(text())
    (folder / "dogs.txt").write_text(text().replace("cat", "dog"))
    for name, data, *more in (
        ("a-1", "cats", "--train.seed", "1", "--train.sample-prompt", PROMPT, "--model.bias"),
        ("a-2", "cats", "--train.seed", "2", "--train.sample-prompt", PROMPT, "--model.bias"),
        ("wide", "cats", "--model.embed-dim", "48", "--optimizer.learning-rate", "1e-5"),
        ("bytes", "cats", "--tokenizer.kind", "byte"),
        ("other", "dogs"),
    ):
        argv = ["train", str(folder / f"{data}.txt"), *SMALL, *FEW, *more]
        assert main([*argv, "--name", name, "--logging.runs-dir", str(folder / "runs")]) == 0
    (folder / "runs/group").mkdir()
    shutil.copytree(folder / "runs/wide", folder / "runs/group/inner")
    return folder / "runs"


def read(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    return json_of(capsys, "runs", *argv)


def test_list_finds_runs_and_those_of_sweeps_and_sorts_them(runs: Path, capsys) -> None:
    where = ["--runs-dir", str(runs)]
    rows = read(capsys, "list", *where)["runs"]
    assert [row["name"] for row in rows] == ["other", "bytes", "group/inner", "wide", "a-2", "a-1"], (
        "the newest run comes first"
    )
    assert [row["started"] for row in rows] == sorted((row["started"] for row in rows), reverse=True)
    by_name = [row["name"] for row in read(capsys, "list", *where, "--sort", "name")["runs"]]
    assert by_name == ["a-1", "a-2", "bytes", "group/inner", "other", "wide"]
    row = rows[-1]
    lines = read_lines(runs / "a-1/metrics.jsonl")
    assert row["best_val_loss"] == min(line["val_loss"] for line in lines if "val_loss" in line)
    assert (row["steps"], row["state"]) == (4, "finished")
    model = FromScratch().model(load_config(runs / "a-1/config.yaml"))
    assert row["parameters"] == sum(p.numel() for p in model.parameters())
    assert [row["name"] for row in read(capsys, "list", "a-*", *where)["runs"]] == ["a-2", "a-1"]
    assert [row["name"] for row in read(capsys, "list", "group", *where)["runs"]] == ["group/inner"]
    losses = [
        row["best_val_loss"] for row in read(capsys, "list", *where, "--sort", "best_val_loss", "--reverse")["runs"]
    ]
    assert losses == sorted(losses, reverse=True)
    assert main(["runs", "list", *where]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 1 + len(rows) and shown[3].startswith("group/inner"), "one line per run"
    assert all(line == line.rstrip() for line in shown)
    fails(capsys, ["runs", "list", "--runs-dir", str(runs / "nowhere")], "no such folder")


def test_a_pattern_is_compared_with_names_and_not_with_the_folder_of_the_runs(tmp_path: Path, monkeypatch) -> None:
    for name in ("my", "red", "sweep/seed=1"):
        write_run_files(tmp_path / "runs" / name, load_config(), {}, "settings")
    monkeypatch.chdir(tmp_path)

    def found(pattern: str) -> list[str]:
        return [run.name for run in record.find_runs("runs", pattern)]

    assert (found("r*"), found("runs"), found("*")) == (["red"], [], ["my", "red", "sweep/seed=1"])
    assert found("sw*") == found("sweep/*") == found("seed*") == ["sweep/seed=1"]
    for nothing in ("", "."):
        with pytest.raises(RunError, match="matches no name; leave it out to list all runs"):
            found(nothing)


def test_a_list_reads_the_figures_of_each_run_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    own = GrowingLines.read
    monkeypatch.setattr(GrowingLines, "read", lambda lines: read.append(lines.path) or own(lines))
    listed = [run.summary() for run in record.find_runs(runs, say=print)]
    assert len(read) == len(set(read)) == len(listed) > 1


def test_a_state_is_finished_interrupted_or_running(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "wide", tmp_path / "wide")
    assert read_run(run).state == "finished"
    with run_lock(run):
        assert read_run(run).state == "running"
    assert read_run(run).state == "finished", "a lock file that no process holds does not count"
    state = sorted(run.glob("checkpoints/step-*/state.json"))[-1]
    tree = json.loads(state.read_text())
    tree["train"]["finished"] = False
    state.write_text(json.dumps(tree))
    assert read_run(run).state == "interrupted"
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    empty = read_run(run).summary()
    assert (empty["state"], empty["steps"], empty["best_val_loss"], empty["parameters"]) == (
        "interrupted",
        0,
        None,
        None,
    )


def test_show_has_what_is_on_the_disk(runs: Path, tmp_path: Path, capsys) -> None:
    run = shutil.copytree(runs / "a-1", tmp_path / "a-1")
    (run / "incidents.jsonl").write_text('{"step": 3, "what": "the loss is nan", "action": "skipped"}\n')
    report = read(capsys, "show", str(run))
    assert report["settings"]["train.sample_prompt"] == PROMPT
    assert "optimizer.learning_rate" not in report["settings"], "this rate follows from the width"
    assert report["checkpoints"][-1]["name"] == "step-00000004"
    size = sum(file.stat().st_size for file in (run / "checkpoints/step-00000004").iterdir())
    assert report["checkpoints"][-1]["bytes"] == size
    assert report["metrics"] == read_lines(run / "metrics.jsonl")[-1]
    assert report["sample"]["step"] == 4
    assert main(["runs", "show", str(run)]) == 0
    shown = capsys.readouterr().out
    for part in (
        "model.embed_dim",
        "torch",
        "step-00000004",
        "incident at step 3: the loss is nan",
        "sample of step 4",
    ):
        assert part in shown
    fails(capsys, ["runs", "show", str(runs / "wid")], "no such run", f"did you mean {runs / 'wide'}?")


def test_a_damaged_run_is_listed_and_shown(runs: Path, tmp_path: Path, capsys) -> None:
    """A file is cut at every place that is read differently: no header's length, half a header, half the numbers."""
    shutil.copytree(runs / "a-1", tmp_path / "bad")
    step = tmp_path / "bad/checkpoints/step-00000004"
    for name, size in (("model", -9), ("model", 40), ("model", 3), ("state", 9)):
        (file,) = step.glob(f"{name}.*")
        os.truncate(file, size % file.stat().st_size)
        (row,) = read(capsys, "list", "--runs-dir", str(tmp_path))["runs"]
        assert row["name"] == "bad" and row["parameters"] is None and row["steps"] == 4
        assert read(capsys, "show", str(tmp_path / "bad"))["parameters"] is None
    assert main(["runs", "list", "--runs-dir", str(tmp_path)]) == 0
    assert " - " in capsys.readouterr().out
    assert main(["runs", "show", str(tmp_path / "bad")]) == 0


@pytest.mark.parametrize("name", ["samples.jsonl", "incidents.jsonl"])
@pytest.mark.parametrize("line", ["3", "[]", '{"step": 4}'])
def test_a_damaged_line_of_what_a_run_wrote_is_named(name: str, line: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / name).write_text(line + "\n")
    fails(capsys, ["runs", "show", str(tmp_path)], f"{name}, line 1: damaged")


DEEP = "[" * 100_000
DAMAGE = {
    "config.yaml": ["model: [", "- 1", "no_such_section: {}", "\0"],
    "metrics.jsonl": [
        "3\n3\n",
        "[]\n[]\n",
        '{"loss": 1}\n{}\n',
        f"{DEEP}\n{{}}\n",
        f'{{"step": 1{"0" * 400}}}\n{{}}\n',
    ],
    "receipt.json": [
        "3",
        "[1]",
        '{"data": 3}',
        '{"data": {"sha256": []}}',
        DEEP,
        *(
            f'{{"data": {{"sha256": {{}}}}, {wrong}}}'
            for wrong in ('"budget": [1]', '"merged": 4', '"base": {"path": 7}')
        ),
    ],
    "eval.json": ["3", "{}", DEEP],
    "tokenizer.json": ["3", DEEP],
    "checkpoints/step-00000004/state.json": ["3", DEEP, '{"train": {"step": []}}'],
}
UNLISTED = ("config.yaml", "metrics.jsonl", "eval.json")


@pytest.mark.parametrize(("file", "content"), [(file, each) for file, many in DAMAGE.items() for each in many])
def test_a_damaged_run_is_named_and_the_others_are_listed(
    runs: Path, tmp_path: Path, capsys, file: str, content: str
) -> None:
    for name in ("a-1", "a-2", "wide"):
        shutil.copytree(runs / name, tmp_path / name)
    (tmp_path / "a-2" / file).write_text(content)
    assert main(["runs", "list", "--runs-dir", str(tmp_path), "--json", "--sort", "name"]) == 0
    found = capsys.readouterr()
    left_out = file in UNLISTED
    assert [row["name"] for row in json.loads(found.out)["runs"]] == ["a-1", *([] if left_out else ["a-2"]), "wide"]
    assert (str(tmp_path / "a-2") in found.err) == left_out
    for argv in (["runs", "compare", "--no-plot"], ["plot", "--what", "bpb"]):
        code = main([*argv, *(str(tmp_path / name) for name in ("a-1", "a-2", "wide"))])
        assert code == 0, argv
        assert (str(tmp_path / "a-2") in capsys.readouterr().err) == left_out
    if left_out:
        fails(capsys, ["plot", str(tmp_path / "a-2")], str(tmp_path / "a-2"))
    assert main(["runs", "receipt", str(tmp_path / "a-2")]) == (2 if file == "config.yaml" else 0)


def test_a_run_that_may_not_be_read_is_named(runs: Path, tmp_path: Path) -> None:
    for name in ("a-1", "a-2"):
        shutil.copytree(runs / name, tmp_path / name)
    (tmp_path / "a-2").chmod(0)
    tmp_path.chmod(0o755)
    code = (
        "import io, os, sys; from contextlib import redirect_stdout; from minigpt.cli import main\n"
        # everything is imported before the permissions are dropped
        "with redirect_stdout(io.StringIO()): main(sys.argv[1:])\n"
        "os.geteuid() or os.setuid(65534)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    argv = [sys.executable, "-c", code, "runs", "list", "--runs-dir", ".", "--json"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    (tmp_path / "a-2").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert [row["name"] for row in json.loads(done.stdout)["runs"]] == ["a-1"]
    assert "a-2: cannot be read (Permission denied)" in done.stderr


def test_a_bare_name_is_a_run_in_runs_unless_it_is_there(runs: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(runs.parent)
    assert read(capsys, "show", "wide")["path"] == str(Path("runs/wide"))
    assert read(capsys, "diff", "group/inner", "wide") == read(capsys, "diff", "runs/group/inner", "runs/wide")
    fails(capsys, ["runs", "show", "wid"], f"did you mean {Path('runs/wide')}?")
    fails(capsys, ["generate", "qqqqq"], f"no such run: qqqqq; {runs.parent} holds runs/a-1, runs/a-2, runs/bytes, ")
    fails(capsys, ["generate", "runs/iner"], f"did you mean {Path('runs/group/inner')}?")
    fails(capsys, ["runs", "show", "cats.txt"], "cats.txt is a file; a run is a directory", "minigpt runs show runs/my")
    shutil.copytree(runs / "bytes", tmp_path / "wide")
    monkeypatch.chdir(tmp_path)
    assert read(capsys, "show", "wide")["settings"]["tokenizer.kind"] == "byte", "a path is tried before a name"
    fails(capsys, ["runs", "show", "no/my"], f"no runs in {tmp_path / 'no'}; cd to where you trained, or give the path")


def test_the_fewest_settings_make_the_same_config() -> None:
    for given in (
        {},
        {"model.shape": "gpt2", "model.bias": False, "model.embed_dim": 96},
        {"optimizer.kind": "adamw", "optimizer.learning_rate": 1e-3, "train.max_minutes": 3, "train.max_steps": 2000},
        {"model.embed_dim": 512, "model.num_heads": 8, "data.clean": ["nfc", "lower"], "train.sample_prompt": "null"},
        {"train.batch_size": 64, "train.micro_batch_size": 64},  # neither value is valid with the default of the other
        {"model.embed_dim": 126, "model.num_heads": 3, "model.head_dim": 44, "train.batch_size": 48},
        {"tokenizer.kind": "word", "model.softmaxes": 3, "train.masked_inputs": 0.5, "train.average_last": 0.2},
    ):
        config = load_config(None, given)
        few = essential(config)
        assert load_config(None, few) == config
        assert set(few) <= set(given), "no setting that follows from others"
    assert essential(load_config(None, {"model.shape": "gpt2"})) == {"model.shape": "gpt2"}


def test_diff_names_settings_data_and_results(runs: Path, capsys) -> None:
    found = read(capsys, "diff", str(runs / "wide"), str(runs / "other"))
    assert found["settings"]["model.embed_dim"] == [48, 32]
    assert found["settings"]["data.source"][1].endswith("dogs.txt")
    assert "train.seed" not in found["settings"]
    assert set(found["data"]) == {"train", "val"}
    assert found["versions"] == {}
    assert found["results"]["steps"] == [4, 4]
    assert main(["runs", "diff", str(runs / "wide"), str(runs / "other")]) == 0
    assert "model.embed_dim" in capsys.readouterr().out


def test_compare_groups_seeds_with_mean_and_spread(runs: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "seeds.svg"
    report = read(capsys, "compare", *(str(runs / name) for name in ("a-1", "a-2", "wide")), "--out", str(picture))
    assert b"<svg" in picture.read_bytes()
    assert report["cautions"] == []
    by_seeds = {tuple(group["seeds"]): group for group in report["groups"]}
    assert set(by_seeds) == {(1, 2), (1337,)}
    one, two = (read_run(runs / name).best["val_loss"] for name in ("a-1", "a-2"))
    group = by_seeds[1, 2]
    assert group["mean"]["best_val_loss"] == pytest.approx((one + two) / 2)
    assert group["deviation"]["best_val_loss"] == pytest.approx(abs(one - two) / math.sqrt(2)), "divided by n - 1"
    assert by_seeds[1337,]["deviation"]["best_val_loss"] is None
    assert group["settings"]["model.embed_dim"] == 32
    means = [group["mean"]["best_val_loss"] for group in report["groups"]]
    assert means == sorted(means)
    assert main(["runs", "compare", str(runs / "a-1"), str(runs / "a-2"), "--no-plot"]) == 0
    shown = capsys.readouterr().out
    assert (
        "±" in shown and [line.split()[0] for line in shown.splitlines()[1:]] == "best bits/byte minutes seeds".split()
    )
    assert main(["runs", "compare", str(runs / "a-1"), str(runs / "wide"), "--no-plot"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() in (["a-1", "wide"], ["wide", "a-1"]) and shown[1].startswith("best val ")
    (width,) = (line.split()[1:] for line in shown if line.startswith("model.embed_dim "))
    assert sorted(width) == ["32", "48"], "a row for each setting, results first"
    assert (
        read(capsys, "compare", str(runs / "group"), str(runs / "wide"), "--no-plot")["groups"][0]["seeds"]
        == [1337] * 2
    )
    fails(capsys, ["runs", "compare", str(runs / "a-1")], "name two runs or more")


def test_compare_warns_where_figures_do_not_compare(runs: Path, capsys) -> None:
    def cautions(*names: str) -> list[str]:
        return read(capsys, "compare", *(str(runs / name) for name in names), "--no-plot")["cautions"]

    [caution] = cautions("wide", "bytes")
    assert "2 tokenizers" in caution and "bits per byte can" in caution
    [caution] = cautions("wide", "other")
    assert "2 texts" in caution and "neither" in caution


@pytest.mark.slow  # starts a new process each time
@pytest.mark.parametrize("flags", [(), ("--flags",)], ids=["by its config", "by flags"])
def test_the_receipt_repeats_the_run_bit_for_bit_in_a_shell(runs: Path, flags, capsys) -> None:
    assert main(["runs", "receipt", str(runs / "a-1"), *flags]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads((runs / "a-1/receipt.json").read_text())["data"]["sha256"]["train"] in line
    assert ("config.yaml" in line) is not bool(flags)
    minigpt = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", f'PATH="{minigpt}:$PATH"\n{line}'], capture_output=True, text=True, check=False, timeout=80
    )
    assert done.returncode == 0, done.stderr
    again = runs / "a-1-again"
    assert flat(load_config(again / "config.yaml")) == flat(load_config(runs / "a-1/config.yaml"))
    one, two = (load_file(run / "checkpoints/step-00000004/model.safetensors") for run in (runs / "a-1", again))
    assert all((one[name] == two[name]).all() for name in one)
    shutil.rmtree(again)


@pytest.mark.parametrize(
    ("state", "receipt", "command"),
    [
        ({"train": {"step": 0, "stop_reason": "imported"}}, {}, "minigpt import stories"),
        (
            {"quantization": {"bits": 8, "group": None, "embedding_bits": 8, "source": "a b"}},
            {},
            "minigpt quantize 'a b' --bits 8",
        ),
        ({"train": {"step": 3}}, {"merged": "runs/x"}, "minigpt finetune --merge runs/x"),
    ],
)
def test_a_run_that_was_not_trained_has_another_command(tmp_path: Path, state, receipt, command: str) -> None:
    receipt = receipt and {"data": {"sha256": {}}, **receipt}
    write_run_files(tmp_path / "made", load_config(), receipt, "settings")
    step = RunFolder(tmp_path / "made").checkpoint(3)
    step.mkdir()
    (step / "state.json").write_text(json.dumps({"model": {}, **state}))
    (step / "manifest.json").write_text("{}")
    assert receipt_line(read_run(tmp_path / "made")) == f"{command} --out {tmp_path / 'made-again'}"


def test_the_first_line_of_a_config_can_be_pasted_into_a_shell(runs: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["train", str(runs.parent / "cats.txt"), *SMALL, *FEW, "--logging.runs-dir", "two\nlines", "--name", "a b"]
    assert main(argv) == 0
    file = Path("two\nlines/a b/config.yaml")
    assert file.read_text().splitlines()[0].endswith(r"minigpt train $'two\nlines/a b/config.yaml'")
    assert load_config(file).logging.runs_dir == "two\nlines"


def test_a_run_is_repeated_from_inside_its_folder(tmp_path: Path, monkeypatch) -> None:
    write_run_files(tmp_path / "my", load_config(), {}, "settings")
    monkeypatch.chdir(tmp_path / "my")
    assert read_run(".").name == "my"
    assert receipt_line(read_run(".")) == "minigpt train config.yaml --name my-again"


def test_every_setting_comes_back_from_its_flag() -> None:
    config = load_config(None, {"train.sample_prompt": PROMPT, "data.clean": ["lower"], "train.compile": "on"})
    flags = ["=".join(as_flag(path, value)) for path, value in flat(config).items()]
    overrides, rest = split_flags(flags)
    assert (load_config(None, overrides), rest) == (config, [])
    echoed = subprocess.run(["bash", "-c", f"printf %s {quoted(PROMPT)}"], capture_output=True, check=True).stdout
    assert echoed.decode() == PROMPT


def test_a_finetuned_run_is_listed_shown_and_repeated(tmp_path: Path, capsys, monkeypatch) -> None:
    base = make_base(tmp_path / "runs/base")
    run = tune(base, questions(tmp_path / "q.jsonl"), lora__rank=2, model__dropout=0.1).path
    rows = read(capsys, "list", "--runs-dir", str(tmp_path / "runs"))["runs"]
    assert [(row["name"], row["state"]) for row in rows] == [("tuned", "finished"), ("base", "finished")]
    assert 0 < rows[0]["parameters"] < rows[1]["parameters"], "only the adapter's parameters count"
    assert read(capsys, "show", str(run))["settings"]["lora.rank"] == 2
    for line in (receipt_line(read_run(run)), receipt_line(read_run(run), flags=True)):
        argv = shlex.split(line, comments=True)
        assert argv[:2] == ["minigpt", "finetune"]
        assert main(argv[1:]) == 0
        again = tmp_path / "runs/tuned-again"
        ours, theirs = (load_file(r / "checkpoints/step-00000006/adapter.safetensors") for r in (run, again))
        assert all((ours[name] == theirs[name]).all() for name in ours)
        shutil.rmtree(again)


def test_a_run_that_goes_on_keeps_its_budget_until_its_settings_change(tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text(text())
    flags = [*SMALL, "--train.max-steps", "6", "--logging.runs-dir", str(tmp_path), "--logging.name", "cats"]
    settings = split_flags([*flags, "--data.source", str(tmp_path / "cats.txt")])[0]
    plan = {"asked": {"budget": "1m", "settings": {}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "Signals", StopAt)
        run = assembly.train(load_config(None, settings), quiet=True, task=FromScratch({"budget": plan}))
    config = load_config(run.path / "config.yaml")  # as the page continues a run
    assert assembly.train(config, quiet=True).state.finished
    assert read_run(run.path).receipt["budget"] == plan
    longer = config.changed(train={"max_steps": 8})
    assert assembly.train(longer, quiet=True, resume=True).state.step == 8
    assert "budget" not in read_run(run.path).receipt


def test_groups_know_nothing_of_where_and_how_a_run_was_written(tmp_path: Path) -> None:
    for name, given in {"a": {"train.seed": 1}, "b": {"train.seed": 2, "logging.log_every": 5}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(dump_config(load_config(None, given)))
    [group] = grouped([read_run(tmp_path / "a"), read_run(tmp_path / "b")])
    assert (group.seeds, group.mean["best_val_loss"]) == ([1, 2], None)
    assert grouped([]) == []


def test_the_best_of_runs_with_other_tokenizers_has_the_fewest_bits_per_byte(tmp_path: Path) -> None:
    """A character has fewer nats than a word, also of a worse model."""
    for kind, loss, bits in (("char", 1.6, 2.3), ("word", 4.8, 1.3)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.yaml").write_text(dump_config(load_config(None, {"tokenizer.kind": kind})))
        line = {"step": 2, "seconds": 60, "val_loss": loss, "bits_per_byte": bits}
        (tmp_path / kind / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    runs = [read_run(tmp_path / kind) for kind in ("char", "word")]
    assert [group.runs[0].name for group in grouped(runs)] == ["word", "char"]
    assert ranking(run.summary() | {"bits_per_byte": None} for run in runs) == "best_val_loss"


def test_seeds_of_one_budget_are_one_group_though_the_machine_was_not_equally_fast(tmp_path: Path) -> None:
    for name, budget, seed, minutes in (("a", "1m", 1, 0.91), ("b", "1m", 2, 0.87), ("c", "3m", 1, 2.9)):
        given = {"train.seed": seed, "model.num_layers": 2}
        config = load_config(None, {**given, "train.max_minutes": minutes, "train.eval_every": round(100 * minutes)})
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(dump_config(config))
        asked = {"budget": budget, "settings": {**given, "train.max_minutes": None}}
        receipt = {"data": {"sha256": {}}, "budget": {"asked": asked}}
        (tmp_path / name / "receipt.json").write_text(json.dumps(receipt))
    one, three = grouped([read_run(tmp_path / name) for name in "abc"])
    assert (one.seeds, three.seeds) == ([1, 2], [1])
    assert one.settings == {"train.max_minutes": 0.91, "train.eval_every": 91}
    assert three.settings == {"train.max_minutes": 2.9, "train.eval_every": 290}


def test_the_lines_of_a_run_share_the_names_of_their_figures(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 2.5}}\n' for step in range(1, 100)))
    lines = read_run(tmp_path).lines
    assert len(lines) == 99 and len({id(name) for line in lines for name in line}) == 2


def test_reading_many_runs_shows_how_far_it_is(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("{}")
    shown: list[tuple[int, int | None]] = []
    record.find_runs(tmp_path, report=lambda label, done, total: shown.append((done, total)))
    assert shown == [(1, 2), (2, 2)]
