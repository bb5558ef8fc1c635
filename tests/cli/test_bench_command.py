"""Test that minigpt bench prints what its help says, and that a mistake is one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typed_report import check, keys, words_of_help

from minigpt.cli import main
from minigpt.machine.bench.data import DataReport
from minigpt.machine.bench.generate import GenerateReport
from minigpt.machine.bench.tokenizer import TokenizerReport
from minigpt.machine.bench.train import TrainReport

SMALL = (
    "--model.vocab-size 64 --model.embed-dim 32 --model.num-heads 2 --model.num-layers 1 --model.max-seq-len 32 "
    "--train.device cpu"
).split()
TINY = [*SMALL, "--train.batch-size", "2", "--train.precision", "fp32"]
TRAIN = ["train", *TINY, "--train.compile", "off", "--steps", "2", "--warmup", "0"]
GENERATE = ["generate", *SMALL, "--new-tokens", "4", "--rounds", "1"]
SPREAD = {"median", "q1", "q3", "min", "max"}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "my.txt"
    path.write_text("The cat sat on the mat. The rat sat on the cat.\n" * 80)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["bench", *map(str, words)])
    captured = capsys.readouterr()
    # a test may be the first of its process that needs a kernel
    err = [line for line in captured.err.splitlines(keepends=True) if not re.match(r"compiling \w+\.c for ", line)]
    return code, captured.out, "".join(err)


def test_train_prints_the_documented_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    code, out, err = run(capsys, *TRAIN, "--profile", tmp_path / "trace.json.gz", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    check(TrainReport, report)
    assert report["model"]["vocab_size"] == 64 and report["profile"]["file"] == str(tmp_path / "trace.json.gz")
    assert json.loads(run(capsys, *TRAIN, "--json")[1])["profile"] is None


def test_generate_prints_the_documented_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    code, out, err = run(capsys, *GENERATE, "--profile", tmp_path / "trace.json", "--json")
    assert (code, err) == (0, "")
    check(GenerateReport, json.loads(out))
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_tokenizer_prints_the_documented_keys(capsys: pytest.CaptureFixture[str], text: Path):
    code, out, _ = run(capsys, "tokenizer", text, "--vocab-size", 270, "--rounds", 1, "--json")
    report = json.loads(out)
    assert code == 0
    source = next(iter(report))
    check(TokenizerReport, {name: value for name, value in report.items() if name != source})
    assert source == "source"
    assert (report["source"], report["bytes"], report["vocab_size"]) == (str(text), text.stat().st_size, 270)


def test_data_prints_the_documented_keys(capsys: pytest.CaptureFixture[str], text: Path):
    words = ("data", text, "--rounds", 1, "--tokenizer.kind", "byte", "--model.max-seq-len", 32)
    code, out, _ = run(capsys, *words, "--json")
    report = json.loads(out)
    assert code == 0
    check(DataReport, report)
    assert (report["tokenizer"]["kind"], report["batches"]["seq_len"]) == ("byte", 32)


@pytest.mark.parametrize(
    ("subject", "report"),
    [("train", TrainReport), ("generate", GenerateReport), ("tokenizer", TokenizerReport), ("data", DataReport)],
)
def test_the_help_names_every_key(subject: str, report: Any, capsys: pytest.CaptureFixture[str]):
    assert keys(report) <= words_of_help(["bench", subject], capsys)


def test_keys_of_a_report_are_found_at_every_depth():
    assert keys(TrainReport) > SPREAD
    assert {"profile", "operations", "name", "group", "share", "ms", "calls"} < keys(TrainReport)
    assert "ours" not in keys(TrainReport)


def test_people_get_tables_that_no_narrow_window_cuts(
    capsys: pytest.CaptureFixture[str], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "40")
    for words, parts in (
        ([*TRAIN, "--profile", tmp_path / "t.json"], ("tokens/s", "MFU", "ceilings", "matrix products", "optimizer")),
        (GENERATE, ("random weights", "first token, ms", "of bound", "GB/s")),
        (["tokenizer", text, "--vocab-size", 270, "--rounds", 1], ("training", "encoding", "ids the same as tiktoken")),
        (["data", text, "--rounds", 1], ("prepare", "batches/s")),
    ):
        code, out, err = run(capsys, *words)
        assert (code, err) == (0, "")
        assert all(part in out for part in parts), out
        assert "…" not in out


@pytest.mark.slow
def test_a_run_a_recipe_and_a_checkpoint_are_taken(capsys: pytest.CaptureFixture[str], text: Path, tmp_path: Path):
    flags = [*TINY[2:], "--train.max-steps", "2", "--train.sample-every", "0", "--logging.plots", "false"]
    assert main(["train", str(text), *flags, "--logging.runs-dir", str(tmp_path), "--name", "run"]) == 0
    capsys.readouterr()
    vocabulary = json.loads((tmp_path / "run" / "tokenizer.json").read_text())["model"]["vocab"]
    code, out, _ = run(capsys, "generate", tmp_path / "run", "--train.device", "cpu", "--rounds", 1, "--json")
    report = json.loads(out)
    assert (code, report["source"], report["new_tokens"]) == (0, str(tmp_path / "run"), 16)
    assert report["model"]["vocab_size"] == len(vocabulary)
    code, out, _ = run(capsys, "train", tmp_path / "run", "--steps", 1, "--warmup", 0, "--json")
    written = json.loads(out)["model"]
    assert code == 0 and [written[k] for k in ("vocab_size", "embed_dim")] == [len(vocabulary), 32]
    code, _, err = run(capsys, "generate", tmp_path / "run", "--model.num-layers", "3")
    assert code == 2 and "--model.num-layers: " in err and len(err.splitlines()) == 1
    code, out, _ = run(capsys, "generate", tmp_path / "run", "--precision", "int8", "--rounds", 1, "--json")
    (side,) = json.loads(out)["sides"]
    assert code == 0 and (side["name"], side["precision"]) == ("minigpt int8", "int8")
    for precision in ("fp32", "bf16", "int8", "auto"):
        words = ["--prompt", "the cat", "--max-new-tokens", "8", "--device", "cpu", "--precision", precision]
        assert main(["generate", str(tmp_path / "run"), *words]) == 0
        assert capsys.readouterr().out.startswith("the cat")
    code, out, _ = run(capsys, "train", "tiny-6.7m", *TINY, "--steps", 1, "--warmup", 0, "--json")
    assert code == 0 and json.loads(out)["model"]["shape"] == "gpt2"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "did you mean train?"),
        (["train", "--stesp", "3"], "no such option: --stesp; did you mean --steps?"),
        (["train", "--batch-size", "3"], "did you mean --train.batch-size?"),
        (["train", "--steps", "0"], "--steps 0 measures nothing"),
        (["train", "--vs", "nanogpt"], "nanogpt"),
        (["train", "shakespear-char"], "did you mean shakespeare-char?"),
        (["train", "--profile", "trace.txt"], ".json or .json.gz"),
        (["train", "--train.batch-size", "0"], "--train.batch-size: "),
        (["generate", "--prompt-tokens", "200"], "context of 128"),
        (["generate", "--new-tokens", "1"], "give 2 or more"),
        (["generate", "--precision", "fp8"], "fp8"),
        (["generate", "no-such-run"], "no-such-run"),
        (["tokenizer", "--train.max-steps", "3"], "no such option"),
        (["tokenizer", "no-such-file.txt"], "no-such-file.txt"),
        (["tokenizer", "--vocab-size", "100"], "too small"),
        (["data", "no-such-file.txt"], "no-such-file.txt"),
        (["data", "--rounds", "0"], "--rounds 0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err and len(err.strip().splitlines()) == 1


def test_help_shows_the_examples(capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "minigpt bench tokenizer" in out
    for subject in ("train", "generate", "tokenizer", "data"):
        with pytest.raises(SystemExit) as ended:
            main(["bench", subject, "--help"])
        assert not ended.value.code
        shown = capsys.readouterr().out
        assert f"minigpt bench {subject}" in shown and "--rounds" in shown


def test_generation_is_compared_with_transformers(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("transformers")
    code, out, err = run(capsys, *GENERATE, "--vs", "hf", "--json")
    report = json.loads(out)
    assert (code, err, report["notes"]) == (0, "", [])
    assert [side["name"] for side in report["sides"]] == ["minigpt fp32", "transformers fp32", "transformers bf16"]
    assert len({side["parameters"] for side in report["sides"]}) == 1
    assert report["sides"][0]["ratio"] is None and all(side["ratio"] > 0 for side in report["sides"][1:])


@pytest.mark.slow
def test_training_is_compared_with_transformers(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("transformers")
    code, out, _ = run(capsys, *TRAIN, "--vs", "hf", "--rounds", 2, "--json", "--model.shape", "gpt2")
    report = json.loads(out)
    assert (code, report["rounds"]) == (0, 2)
    assert [note.split(",")[0] for note in report["notes"]] == ["all sides step by AdamW", "timed here"]
    names = ["minigpt fp32", "transformers fp32", "transformers bf16 compiled"]
    assert [side["name"] for side in report["sides"]] == names
    assert len({side["parameters"] for side in report["sides"]}) == 1
