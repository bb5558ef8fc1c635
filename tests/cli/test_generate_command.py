"""Test minigpt generate: many prompts, saved settings, scores, and every mistake in them."""

import json
import shutil
from pathlib import Path

import pytest
from cli_run import fails, json_of, small_run

from minigpt.cli import main
from minigpt.config import dump_config, load_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_run(tmp_path_factory.mktemp("generate")))


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_CONFIG", str(tmp_path / "settings"))


def answer(capsys, *argv: object) -> dict:
    return json_of(capsys, "generate", *argv)


def test_a_file_of_prompts_becomes_json_lines_each_as_if_alone(run: str, tmp_path: Path, capsys) -> None:
    prompts = ["the cat", "saw", "the dog who ran to the red barn", "by"]
    (tmp_path / "many.txt").write_text("\n".join(prompts[:2]) + "\n\n" + "\n".join(prompts[2:]))
    flags = ["--max-new-tokens", "30", "--seed", "5"]
    argv = ["generate", run, "--prompts", str(tmp_path / "many.txt"), *flags]
    out = tmp_path / "new/out.jsonl"
    assert main([*argv, "--out", str(out), "--batch-size", "3"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    alone = [answer(capsys, run, "--prompt", prompt, *flags)["samples"][0] for prompt in prompts]
    assert [line["samples"][0]["text"] for line in lines] == alone
    assert set(lines[0]) == {"prompt", "seed", "samples"}
    assert set(lines[0]["samples"][0]) == {"text", "reason", "tokens"}
    fails(capsys, [*argv, "--out", str(out)], "exists; choose another --out")


def test_json_lines_carry_seeds_and_other_keys(run: str, tmp_path: Path, capsys) -> None:
    records = [{"prompt": "the", "seed": seed, "id": f"q{seed}"} for seed in (3, 4, 3)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    capsys.readouterr()
    argv = ["--prompts", str(tmp_path / "in.jsonl"), "--temperature", "1.5", "--logprobs", "1"]
    assert main(["generate", run, *argv, "--max-new-tokens", "20"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    texts = [line.pop("samples")[0]["text"] for line in lines]
    assert lines == records
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a"}\n{"prompt": }\n', "in.jsonl:2: is not JSON"),
        ('{"prompt": "a"}\n\n{"text": "b"}\n', 'in.jsonl:3: needs a text under "prompt"'),
        ('{"prompt": "a", "seed": -1}\n', 'in.jsonl:1: "seed" is -1'),
        ("\n\n", "holds no prompt"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(run: str, tmp_path: Path, capsys, text: str, words: str) -> None:
    (tmp_path / "in.jsonl").write_text(text)
    fails(capsys, ["generate", run, "--prompts", str(tmp_path / "in.jsonl")], words)


def test_settings_are_saved_under_a_name_and_flags_go_before_them(run: str, tmp_path: Path, capsys) -> None:
    first = answer(
        capsys, run, "--prompt", "the", "--temperature", "1.3", "--top-k", "9", "--stop", ".", "--save-preset", "bold"
    )
    saved = answer(capsys, run, "--prompt", "the", "--preset", "bold")
    assert saved == first
    assert saved["settings"]["stop"] == ["."]
    assert saved["settings"]["top_k"] == 9
    assert answer(capsys, run, "--prompt", "the", "--preset", "bold", "--top-k", "3")["settings"]["top_k"] == 3
    fails(capsys, ["generate", run, "--prompt", "the", "--preset", "bald"], "no preset bald", "did you mean bold?")
    (tmp_path / "settings/generation.yaml").write_text("bold: 3\n")
    fails(capsys, ["generate", run, "--prompt", "the", "--preset", "bold"], "must map names to settings")
    fails(capsys, ["generate", run, "--prompt", "a", "--save-preset", "x", "--top-p", "2"], "--top-p: input should be")
    (tmp_path / "settings/generation.yaml").unlink()
    fails(capsys, ["chat", run, "--preset", "bold"], "no preset bold", "with minigpt generate --save-preset NAME")


def test_stop_score_and_alternatives_reach_the_person(run: str, capsys) -> None:
    found = answer(capsys, run, "--prompt", "the", "--stop", ".", "--logprobs", "2", "--stop-at-eos", "False")
    assert found["reasons"] == ["stop"]
    assert "." not in found["samples"][0]
    assert set(found["tokens"][0][0]) == {"text", "logprob", "top"}
    assert len(found["tokens"][0][0]["top"]) == 2
    capsys.readouterr()
    assert main(["generate", run, "--prompt", "the", "--best-of", "3", "--max-new-tokens", "10"]) == 0
    assert capsys.readouterr().out.startswith("--- 1 (score -")


def test_stops_and_bad_words_are_cleaned_as_the_text_was(run: str, tmp_path: Path, capsys) -> None:
    lower = shutil.copytree(run, tmp_path / "lower")
    config = load_config(lower / "config.yaml").changed(data={"clean": ("lower",)})
    (lower / "config.yaml").write_text(dump_config(config))
    plain = answer(capsys, lower, "--prompt", "THE CAT", "--seed", "4")["samples"][0]
    flags = ["--prompt", "The cat", "--seed", "4", "--stop", plain[20:26].upper()]
    assert answer(capsys, lower, *flags)["samples"] == [plain[: plain.index(plain[20:26])]]
    banned = answer(capsys, lower, "--prompt", "the cat", "--bad-words", "THE", "--max-new-tokens", "100")
    assert "the" not in banned["samples"][0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stop-regex", "("], "--stop-regex: '(' is not a regular expression"),
        (["--num-beams", "0"], "--num-beams: input should be"),
        (["--top-k", "-1"], "--top-k: input should be"),
        (["--max-seconds", "0"], "--max-seconds: input should be"),
        (["--num-beams", "4", "--best-of", "2"], "exclude each other"),
        (["--prompts", "x.txt", "--prompt", "a"], "--prompt, --prompt-file, --prompts exclude each other"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: cannot be read (No such file or directory); give"),
        (["--prompt-file", "no.txt"], "no.txt: cannot be read (No such file or directory); give"),
        (["--precision", "fp3"], "--precision: choose fp32, bf16, int8, int4 or auto, not fp3"),
        (["--seed"], "--seed: needs a value; write --seed VALUE"),
        (["Far away,", "there"], 'no such argument: Far away, there; write --prompt "Far away, there"'),
        (["--presence-penalty", "x"], "--presence-penalty: give a number, not 'x'"),
        (["--logit-bias", "zz"], "--logit-bias: give texts, each with a number, not 'zz'"),
        (["--num-beams", "1.5"], "--num-beams: give a whole number, not '1.5'"),
        (["--temprature", "1"], "did you mean --temperature?"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_setting_is_one_clear_error(run: str, capsys, flags: list[str], words: str) -> None:
    fails(capsys, ["generate", run, *flags], words)


def test_prompts_are_checked_before_the_model_is_loaded(tmp_path: Path, capsys) -> None:
    (tmp_path / "x.txt").write_text("the cat\n")
    argv = ["generate", "no-such-run", "--prompts", str(tmp_path / "x.txt")]
    fails(capsys, ["generate", "no-such-run", "--prompts", "nowhere.txt"], "nowhere.txt: cannot be read")
    fails(capsys, [*argv, "--out", str(tmp_path / "x.txt")], "x.txt exists; choose another --out")
    fails(capsys, [*argv, "--batch-size", "0"], "--batch-size 0: give 1 or more")
    fails(capsys, argv, "no such run")


def test_settings_are_checked_together_with_the_runs_own(run: str, tmp_path: Path, capsys) -> None:
    tuned = shutil.copytree(run, tmp_path / "tuned")
    config = tuned / "config.yaml"
    config.write_text(config.read_text().replace("num_beams: 1", "num_beams: 4"))
    found = answer(capsys, str(tuned), "--prompt", "the", "--num-beam-groups", "2", "--max-new-tokens", "3")
    assert (found["settings"]["num_beams"], found["settings"]["num_beam_groups"]) == (4, 2)
    fails(capsys, ["generate", str(tuned), "--num-beam-groups", "3"], "num_beams 4 is not a multiple")


def test_the_last_part_of_a_long_prompt_is_read_and_that_is_reported(run: str, tmp_path: Path, capsys) -> None:
    """The text is the same as after the last 32 tokens alone."""
    long = "the cat sat on a mat and saw the dog who ran to the red barn"
    flags = ["--max-new-tokens", "40", "--seed", "5"]
    expected = answer(capsys, run, "--prompt", long[-32:], *flags)["samples"]
    assert "tokens" not in capsys.readouterr().err
    assert main(["generate", run, "--prompt", long, *flags]) == 0
    captured = capsys.readouterr()
    assert captured.out == long + expected[0] + "\n"
    told = f"the prompt has {len(long)} tokens; only the last 32 fit into the model's context\n"
    assert captured.err == told
    (tmp_path / "many.txt").write_text(f"{long}\nthe cat\n{long} by\n")
    assert main(["generate", run, "--prompts", str(tmp_path / "many.txt"), "--batch-size", "1", *flags]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[0])["samples"][0]["text"] == expected[0]
    assert captured.err == told.replace(f"the prompt has {len(long)}", f"2 of 3 prompts have up to {len(long) + 3}")


def test_characters_that_the_model_never_saw_are_reported_once(run: str, tmp_path: Path, capsys) -> None:
    flags = ["--max-new-tokens", "3"]
    assert main(["generate", run, "--prompt", "the cat", *flags]) == 0
    capsys.readouterr()  # the first call prints that it compiles
    assert main(["generate", run, "--prompt", "the ☃ cat 😀 ☃", *flags]) == 0
    assert capsys.readouterr().err == "2 characters that the model never saw: ☃ 😀\n"
    (tmp_path / "many.txt").write_text("the ☃\nthe cat\nthe \t☃\n")
    assert main(["generate", run, "--prompts", str(tmp_path / "many.txt"), "--batch-size", "1", *flags]) == 0
    assert capsys.readouterr().err == "2 characters that the model never saw: ☃ '\\t'\n"
    assert main(["generate", run, "--prompt", "the cat", *flags]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["chat"], "minigpt: name a run, for example: minigpt chat runs/my"),
        (["eval"], "minigpt: name a run, for example: minigpt eval runs/my"),
        (["runs", "diff", "a"], "minigpt: name two runs, for example: minigpt runs diff runs/my runs/my-2"),
        (["model"], "minigpt: name ACTION, for example: minigpt model inspect"),
        (["quantize", "x", "--bits", "5"], "minigpt: --bits: choose 8 or 4, not 5"),
        (["data", "foo"], "minigpt: ACTION: choose inspect or questions, not foo"),
        (["eval", "x", "y"], "minigpt: y: one word too many; quote a path with spaces"),
        (["eval", __file__], "is a file; a run is a directory, for example: minigpt eval runs/my"),
        (["explain", __file__], "is a file; a run is a directory, for example: minigpt explain runs/my"),
    ],
    ids=str,
)
def test_a_missing_or_wrong_word_is_answered_with_an_example(capsys, argv: list[str], words: str) -> None:
    fails(capsys, argv, words)
