"""Test that commands accept every path of a run, print what training printed, and refuse damaged runs."""

import json
import shutil
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest
from cli_run import fails, json_of
from safetensors.torch import load_file, save_file

from minigpt import GPT, load_tokenizer
from minigpt.cli import main
from minigpt.cli.finished import _next
from minigpt.tokenizers import CharTokenizer
from minigpt.weights.huggingface import config_to_hf, weights_to_hf


class WindowsPath(PureWindowsPath):
    """A path of Windows where no file is."""

    def is_file(self) -> bool:
        return False


def test_the_next_commands_can_be_typed_in_every_shell_of_windows() -> None:
    settings = SimpleNamespace(train=SimpleNamespace(sample_prompt="Once"))
    shown = _next(SimpleNamespace(path=WindowsPath(r"runs\my"), config=settings))  # type: ignore[arg-type]
    assert shown.startswith('Next: minigpt generate runs/my --prompt "Once"\n')


def test_generate_prints_prompt_and_text_and_repeats_itself(trained: Path, capsys) -> None:
    argv = ["generate", str(trained), "--prompt", "the cat", "--max-new-tokens", "60", "--seed", "3"]
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert first.startswith("the cat")
    assert len(first) == len("the cat") + 60 + 1
    assert main(argv) == 0
    assert capsys.readouterr().out == first
    answer = json_of(capsys, *argv, "--num-samples", "3")
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
    report = json_of(capsys, "eval", trained)
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert report["loss"] == pytest.approx(last["val_loss"], abs=1e-5)
    assert report["bits_per_byte"] == pytest.approx(last["bits_per_byte"], abs=1e-5)
    documented = {"loss", "perplexity", "bits_per_byte", "word_perplexity", "tokens", "bytes", "words"}
    assert documented | {"confidence_interval", "floors"} <= set(report)


def test_plot_draws_a_picture(trained: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    assert main(["plot", str(trained), "--out", str(tmp_path / "loss.png")]) == 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_prompts_that_cannot_be_used(trained: Path, tmp_path: Path, capsys) -> None:
    fails(capsys, ["generate", str(trained), "--prompt", ""], "the prompt is empty")
    fails(capsys, ["generate", str(trained), "--prompt-file", str(tmp_path / "no.txt")], "cannot be read")
    fails(capsys, ["generate", str(trained), "--temperature", "-1"], "--temperature: input should be")
    fails(capsys, ["generate", str(trained), "--top-p", "0"], "--top-p: input should be")
    fails(capsys, ["generate", str(tmp_path / "nowhere"), "--prompt", "a"], "no such run")


def test_scores_that_cannot_be_saved_are_shown(broken: Path, capsys) -> None:
    (broken / "eval.json").unlink(missing_ok=True)
    (broken / "eval.json").mkdir()
    assert main(["eval", str(broken), "--save"]) == 2
    shown = capsys.readouterr()
    assert "bits per byte" in shown.out and "eval.json: cannot be written" in shown.err


def test_a_missing_library_is_told_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    fails(capsys, ["explain", "no-such-run", "--png", "x.png"], "drawing needs matplotlib")


def test_a_tokenizer_of_another_run_is_refused(broken: Path, capsys) -> None:
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    assert (
        main(["tokenizer", "train", str(broken / "config.yaml"), "--kind", "byte", "--out", str(broken), "--overwrite"])
        == 0
    )
    assert json.loads((broken / "tokenizer.json").read_text()) != tokenizer
    fails(capsys, ["generate", str(broken), "--prompt", "a"], "the tokenizer has", "put back the tokenizer.json")


def test_another_tokenizer_with_as_many_ids_is_refused(broken: Path, capsys) -> None:
    own = load_tokenizer(broken)
    CharTokenizer([chr(ord("A") + n) for n in range(own.vocab_size - 2)]).save(broken)
    assert load_tokenizer(broken).vocab_size == own.vocab_size
    for command in ("generate", "eval"):
        fails(capsys, [command, str(broken)], "is another tokenizer", "put back the tokenizer.json")
    own.save(broken)
    assert main(["generate", str(broken), "--max-new-tokens", "2"]) == 0


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
