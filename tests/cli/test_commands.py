"""The command line as a person meets it: the whole path, and every kind of bad input."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_run import SMALL, fails, small_run, text
from safetensors.torch import load_file, save_file

from minigpt.cli import main, share_the_cores


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 40 steps; tests copy it before they break it."""
    return small_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def broken(trained: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(trained, tmp_path / "broken")
    return tmp_path / "broken"


@pytest.mark.parametrize(
    ("load", "spin"), [("0.10 0.20 0.30 1/300 77", None), ("0.0 0.0 0.0 3/300 77", "3000"), (None, None)]
)
def test_threads_spin_long_unless_another_process_computes(
    load: str | None, spin: str | None, tmp_path, monkeypatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if load:
        (tmp_path / "loadavg").write_text(load)
    share_the_cores(tmp_path / "loadavg")
    assert os.environ.pop("GOMP_SPINCOUNT", None) == spin
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    share_the_cores(tmp_path / "loadavg")
    assert os.environ["GOMP_SPINCOUNT"] == "5"


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="only Linux tells how many processes compute")
def test_a_process_that_computes_is_seen(monkeypatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)  # it has begun by then
        share_the_cores()
    finally:
        busy.kill()
        busy.wait()
    assert os.environ.pop("GOMP_SPINCOUNT") == "3000"


def test_a_run_leaves_what_the_design_promises(trained: Path) -> None:
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    for name in ("config.yaml", "receipt.json", "tokenizer.json", "metrics.jsonl", "metrics.csv", "samples.jsonl"):
        assert name in names
    assert {path.name for path in (trained / "checkpoints/step-00000040").iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
    }  # fmt: skip
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    keys = {"step", "epoch", "tokens", "seconds", "loss", "lr", "grad_norm", "tokens_per_second", "mfu"}
    assert set(lines[0]) == keys
    assert set(lines[1]) == keys | {"val_loss", "bits_per_byte"}
    assert lines[-1]["tokens"] == 40 * 8 * 32
    assert lines[-1]["val_loss"] < lines[1]["val_loss"] < 3
    receipt = json.loads((trained / "receipt.json").read_text())
    assert receipt["seed"] == 1337
    assert len(receipt["data"]["sha256"]["train"]) == 64
    assert len((trained / "samples.jsonl").read_text().splitlines()) == 2


def test_generate_prints_prompt_and_text_and_repeats_itself(trained: Path, capsys) -> None:
    argv = ["generate", str(trained), "--prompt", "the cat", "--max-new-tokens", "60", "--seed", "3"]
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert first.startswith("the cat")
    assert len(first) == len("the cat") + 60 + 1
    assert main(argv) == 0
    assert capsys.readouterr().out == first
    assert main([*argv, "--json", "--num-samples", "3"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"run", "step", "prompt", "samples", "reasons", "settings"}
    assert "the cat" + answer["samples"][0] + "\n" == first
    assert len(set(answer["samples"])) == 3


def test_every_path_to_a_model_is_taken(trained: Path, capsys) -> None:
    texts = []
    for path in (trained, trained / "checkpoints/last", trained / "checkpoints/step-00000040"):
        assert main(["generate", str(path), "--prompt", "the", "--max-new-tokens", "20"]) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1


def test_a_hugging_face_directory_is_taken_too(trained: Path, tmp_path: Path, capsys) -> None:
    from minigpt import GPT
    from minigpt.weights.huggingface import config_to_hf, weights_to_hf

    model = GPT.from_pretrained(trained)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(model.config)))
    save_file(weights_to_hf(model.config, model.weights()), tmp_path / "model.safetensors")
    shutil.copy(trained / "tokenizer.json", tmp_path)
    argv = ["--prompt", "the", "--max-new-tokens", "30", "--temperature", "0"]
    assert main(["generate", str(trained), *argv]) == 0
    expected = capsys.readouterr().out
    assert main(["generate", str(tmp_path), *argv]) == 0
    assert capsys.readouterr().out == expected
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt3"}))
    fails(capsys, ["generate", str(tmp_path), *argv], "architecture 'gpt3'", "did you mean gpt2?")


def test_eval_reports_what_training_reported(trained: Path, capsys) -> None:
    assert main(["eval", str(trained), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert report["loss"] == pytest.approx(last["val_loss"], abs=1e-5)
    assert report["bits_per_byte"] == pytest.approx(last["bits_per_byte"], abs=1e-5)
    documented = {"loss", "perplexity", "bits_per_byte", "word_perplexity", "tokens", "bytes", "words"}
    assert documented | {"confidence_interval", "floors"} <= set(report)


def test_plot_draws_a_picture(trained: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    assert main(["plot", str(trained), "--out", str(tmp_path / "loss.png")]) == 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_saved_config_repeats_the_run_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    assert main(["train", str(trained / "config.yaml"), "--logging.runs-dir", str(tmp_path), "--name", "again"]) == 0
    ours, theirs = (run / "checkpoints/last" for run in (trained, tmp_path / "again"))
    assert ours.read_text() == theirs.read_text()
    for part in ("model", "optimizer"):
        one = load_file(ours.parent / ours.read_text().strip() / f"{part}.safetensors")
        two = load_file(theirs.parent / theirs.read_text().strip() / f"{part}.safetensors")
        assert all((one[name] == two[name]).all() for name in one)


def test_an_existing_run_is_continued_or_kept_but_never_overwritten(broken: Path, capsys) -> None:
    before = (broken / "metrics.jsonl").read_text()
    base = ["train", str(broken / "config.yaml"), "--logging.runs-dir", str(broken.parent)]
    assert main([*base, "--name", "broken"]) == 0, "same settings: finished, nothing to do"
    assert (broken / "metrics.jsonl").read_text() == before
    fails(capsys, [*base, "--name", "broken", "--train.seed", "1"], "exists with another train.seed", "--resume")
    fails(
        capsys,
        [*base, "--name", "broken", "--train.seed", "1", "--resume"],
        "cannot be continued with another train.seed",
    )
    fails(capsys, [*base, "--name", "nowhere", "--resume"], "nothing to resume")
    assert main([*base, "--name", "broken", "--resume", "--train.max-steps", "50"]) == 0
    steps = [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert steps == [10, 20, 30, 40, 50]
    assert main([*base, "--train.seed", "1", "--train.max-steps", "2"]) == 0, "a derived name moves on to the next"
    assert (broken.parent / "broken-2" / "config.yaml").is_file()


def test_ctrl_c_saves_and_the_same_command_continues(tmp_path: Path) -> None:
    import signal
    import time

    (tmp_path / "cats.txt").write_text(text())
    argv = [sys.executable, "-m", "minigpt", "train", "cats.txt", *SMALL, "--train.max-steps", "5000"]
    process = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs/cats/metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size > 0:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted by SIGINT" in err
    assert "Traceback" not in err
    last = (tmp_path / "runs/cats/checkpoints/last").read_text().strip()
    step = int(last.split("-")[1])
    assert step > 0
    state = json.loads((tmp_path / f"runs/cats/checkpoints/{last}/state.json").read_text())
    assert state["train"]["finished"] is False


def test_a_measured_precision_is_kept_when_a_run_goes_on(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(tmp_path / "runs")]
    argv += ["--train.precision", "auto"]
    from minigpt.runtime import device

    monkeypatch.setattr(device, "_best_precision", lambda device: "bf16")
    assert main([*argv, "--train.max-steps", "4"]) == 0
    monkeypatch.setattr(device, "_best_precision", lambda device: "fp32")
    assert main([*argv, "--train.max-steps", "6", "--resume"]) == 0
    states = [
        json.loads(path.read_text()) for path in sorted((tmp_path / "runs/cats").glob("checkpoints/*/state.json"))
    ]
    assert states[-1]["train"]["step"] == 6
    assert states[-1]["precision"] == "bf16"


def test_lines_survive_odd_separators_and_a_cut_inside_a_character(tmp_path: Path) -> None:
    from minigpt.files import append_line, keep_lines, read_lines

    path = tmp_path / "samples.jsonl"
    for step in (1, 2, 3):
        append_line(path, {"step": step, "text": "a\u2028b\u2029c\x85d\n"})
    with path.open("ab") as file:
        file.write('{"step": 4, "text": "é'.encode()[:-1])
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    keep_lines(path, 2)
    assert [line["text"] for line in read_lines(path)] == ["a\u2028b\u2029c\x85d\n"] * 2


def test_a_tiny_run_has_a_name_of_its_own_and_any_recipe_can_be_shrunk(tmp_path: Path) -> None:
    from minigpt.config import load_config, recipes
    from minigpt.runs.tiny_run import tiny

    for name in recipes():
        assert tiny(load_config(name)).train.max_steps == 100
    odd = {"model.embed_dim": 30, "model.num_heads": 4, "model.head_dim": 16, "model.vocab_size": 8192}
    assert tiny(load_config(None, odd)).model.vocab_size is None
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(tmp_path / "runs"), "--tiny-run"]
    assert main([*argv, "--train.max-steps", "20"]) == 0
    made = load_config(tmp_path / "runs/cats-tiny/config.yaml")
    assert (made.train.max_steps, made.train.eval_every) == (20, 50)  # a flag stands, the rest is shrunk


# --- bad input: one line, the fix, exit code 2, nothing lost -------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("no such",)),
        (b"", ("empty",)),
        (b"\x00\x01\x02\xff" * 500, ("no text", "zero byte")),
        (b"caf\xe9 au lait\n" * 300, ("utf-8", "--data.encoding")),
        (b"short\n", ("--model.max-seq-len",)),
        (b"a few words, but no window of validation text\n" * 6, ("validation", "--model.max-seq-len")),
    ],
    ids=["missing", "empty", "binary", "undecodable", "tiny", "no validation window"],
)
def test_a_text_that_cannot_be_used(content, parts, tmp_path: Path, capsys) -> None:
    path = tmp_path / "my.txt"
    if content is not None:
        path.write_bytes(content)
    fails(capsys, ["train", str(path), *SMALL, "--logging.runs-dir", str(tmp_path / "runs")], *parts)
    assert not (tmp_path / "runs").exists()


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


def test_a_run_does_not_go_on_with_another_text_or_optimizer(tmp_path: Path, capsys) -> None:
    source = tmp_path / "cats.txt"
    source.write_text(text())
    base = ["train", str(source), *SMALL, "--logging.runs-dir", str(tmp_path), "--name", "mine"]
    assert main([*base, "--train.max-steps", "4"]) == 0
    longer = [*base, "--train.max-steps", "8", "--resume"]
    fails(capsys, [*longer, "--optimizer.kind", "adamw"], "cannot be continued with another optimizer.kind")
    source.write_text(text().replace("cat", "cow"))
    fails(capsys, longer, "was trained on another text", "--name")
    source.write_text(text())
    assert main(longer) == 0


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--train.sample-prompt", "cat " * 30], "--train.sample-prompt: "),
        (["--train.seed", str(2**64)], "train.seed"),
        (["--model.shape", "[a]"], "model.shape"),
    ],
)
def test_what_would_fail_later_fails_before_the_first_step(flags, part, tmp_path: Path, capsys) -> None:
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(tmp_path / "runs"), *flags]
    fails(capsys, argv, part)
    assert not (tmp_path / "runs").exists()


def test_a_recipe_that_cannot_be_read(tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train: {max_steps: ten}\n")
    fails(capsys, ["train", str(recipe)], "train.max_steps", "'ten'")
    recipe.write_text("train: [\n")
    fails(capsys, ["train", str(recipe)], "not valid YAML")
    fails(capsys, ["train", "nowhere.yaml"], "no such recipe")
    fails(capsys, ["trian"], "no such command: trian; did you mean train?")


def test_prompts_that_cannot_be_used(trained: Path, tmp_path: Path, capsys) -> None:
    fails(capsys, ["generate", str(trained), "--prompt", ""], "the prompt is empty")
    fails(capsys, ["generate", str(trained), "--prompt-file", str(tmp_path / "no.txt")], "cannot be read")
    fails(capsys, ["generate", str(trained), "--temperature", "-1"], "--temperature: input should be")
    fails(capsys, ["generate", str(trained), "--top-p", "0"], "--top-p: input should be")
    fails(capsys, ["generate", str(tmp_path / "nowhere"), "--prompt", "a"], "no such run")


def test_a_tokenizer_of_another_run_is_refused(broken: Path, capsys) -> None:
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    assert (
        main(["tokenizer", "train", str(broken / "config.yaml"), "--kind", "byte", "--out", str(broken), "--overwrite"])
        == 0
    )
    assert json.loads((broken / "tokenizer.json").read_text()) != tokenizer
    fails(capsys, ["generate", str(broken), "--prompt", "a"], "the tokenizer has", "put back the tokenizer.json")


@pytest.mark.parametrize("harm", ["truncated", "flipped", "foreign"])
def test_a_checkpoint_that_cannot_be_trusted(broken: Path, harm: str, capsys) -> None:
    step = broken / "checkpoints" / (broken / "checkpoints/last").read_text().strip()
    file = step / "model.safetensors"
    if harm == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif harm == "flipped":
        data = bytearray(file.read_bytes())
        data[-50] ^= 4
        file.write_bytes(data)
    else:
        shutil.rmtree(step)
        step.mkdir()
        save_file({"x": load_file(broken / "checkpoints/step-00000020/model.safetensors")["norm.weight"]}, file)
    fails(capsys, ["generate", str(step), "--prompt", "a"], str(step))


def test_a_disk_that_fills_up_while_saving_keeps_the_previous_checkpoint(tmp_path: Path, capsys) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        (tmp_path / "cats.txt").write_text(text())
        argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(small), "--name", "r"]
        argv += ["--model.embed-dim", "64", "--train.save-every", "5", "--train.keep-checkpoints", "9"]
        fails(capsys, argv, "the disk is full")
        saved = sorted((small / "r/checkpoints").glob("step-*"))
        assert saved, "at least one checkpoint fitted"
        assert main(["generate", str(small / "r/checkpoints/last"), "--prompt", "the", "--max-new-tokens", "5"]) == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_no_network_and_no_mirror_is_reported(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("MINIGPT_DATA", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    argv = ["train", "shakespeare", "--logging.runs-dir", str(tmp_path / "runs")]
    fails(capsys, argv, "shakespeare", "MINIGPT_DATA", "https://")


def test_exit_codes_and_help_from_a_real_process(tmp_path: Path) -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "minigpt", *argv], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    assert run("--help").returncode == 0
    assert "minigpt demo" in run().stdout
    wrong = run("train", "nowhere.txt")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Traceback" not in wrong.stderr
    shown = run("train", "--help").stdout
    for flag in ("--train.max-steps", "--model.embed-dim", "--optimizer.learning-rate", "--data.val-fraction"):
        assert flag in shown
