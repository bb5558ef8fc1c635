"""Test a run whose tokens are words: its figures are those of the source text, and errors say what it cannot do."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cli_run import SMALL, fails, json_of, text

from minigpt import GPT, ModelConfig, load_run, load_tokenizer
from minigpt.cli import main
from minigpt.config import GenerationConfig
from minigpt.evals.records import Question, _write
from minigpt.generation.text.bias_and_bans import make_rules
from minigpt.generation.text.prompts import tell_unknown
from minigpt.tokenizers import ByteTokenizer
from minigpt.tokenizers.words import WordTokenizer

FORM = "".join(f" {line[:-1]} . \n" for line in text().splitlines())
"""In WikiText's form, so that the tokens keep all of it."""


def train(folder: Path, content: str, *more: str, kind: str = "word") -> Path:
    (folder / "my.txt").write_text(content)
    argv = ["train", str(folder / "my.txt"), *SMALL, "--tokenizer.kind", kind, "--logging.runs-dir", str(folder)]
    assert main([*argv, "--train.max-steps", "2", "--name", kind, *more]) == 0
    return folder / kind


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("words"), FORM)


def score(run: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict:
    return json_of(capsys, "eval", run, *more)


def first_token(run: Path, content: str) -> str:
    tokenizer = load_run(run, "cpu").tokenizer
    return tokenizer.decode(tokenizer.encode(content)[:1])


def test_a_token_is_a_word_or_a_line_end_so_their_perplexities_are_one(words: Path, capsys) -> None:
    figures = score(words, capsys)
    assert figures["tokens"] == figures["words"] - 1, "the first token is not predicted"
    nats = figures["loss"] * figures["tokens"]
    assert figures["perplexity"] == pytest.approx(math.exp(nats / (figures["words"] - 1)))
    assert figures["word_perplexity"] == pytest.approx(math.exp(nats / figures["words"]))
    held_out = FORM[int(0.9 * len(FORM)) :]
    assert figures["words"] == len(held_out.split()) + held_out.count("\n")
    assert figures["bytes"] == len(held_out) - len(first_token(words, held_out))
    assert set(figures["floors"]) == {"uniform", "unigram", "five_gram", "xz"}


def test_bits_per_byte_count_the_source_where_the_tokens_do_not_keep_it(tmp_path: Path, capsys) -> None:
    content = text().replace(" ", "  \t") + "".join(f"the strange{n} " for n in range(30))
    run = train(tmp_path, content)
    said = capsys.readouterr().err
    assert "are words that the tokenizer does not know: strange0 strange1" in said
    figures = score(run, capsys)
    held_out = content[int(0.9 * len(content)) :]
    assert figures["bytes"] == len(held_out) - len(first_token(run, held_out))
    assert figures["bits_per_byte"] == pytest.approx(
        figures["loss"] * figures["tokens"] / math.log(2) / figures["bytes"]
    )
    assert figures["floors"] == {}, "the decoded text is another text"


def test_the_unk_that_a_text_spells_is_a_word_of_it(tmp_path: Path, capsys) -> None:
    train(tmp_path, FORM.replace(" dog ", " <unk> "))
    assert "does not know" not in capsys.readouterr().err


def test_a_text_of_other_words_is_refused_with_the_fix(words: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "other.txt").write_text("Привет мир и снова\n" * 100)
    parts = (
        "(80 %) are words that the tokenizer does not know: Привет мир и снова",
        "own words, or take",
        "bpe or gpt2",
    )
    fails(capsys, ["eval", str(words), "--data", str(tmp_path / "other.txt")], "validation tokens", *parts)


def test_a_prompt_of_strange_words_is_told_and_one_without_words_refused(words: Path, capsys) -> None:
    argv = ["generate", str(words), "--max-new-tokens", "5", "--bad-words", "the,zebra", "--prompt"]
    capsys.readouterr()
    assert main([*argv, "the zebra and\tthe okapi"]) == 0
    said = capsys.readouterr()
    assert "2 words that the model never saw: zebra okapi" in said.err
    written = said.out.removeprefix("the zebra and\tthe okapi").removesuffix("\n").replace("\n", "<eos> ").split()
    assert len(written) == 5 and "the" not in written
    tokenizer = load_run(words, "cpu").tokenizer
    banned = make_rules(GenerationConfig(bad_words=("the", "zebra", "\t", "on a")), tokenizer).bad_words
    assert sorted(banned) == sorted(tuple(tokenizer.encode(word)) for word in ("the", "on a"))
    fails(capsys, [*argv, " \t "], "the prompt has no word")
    fails(capsys, [*argv, "the", "--logit-bias", "zebra", "1"], "'zebra' is not in the tokenizer's vocabulary")


def test_two_prompts_do_not_share_a_word() -> None:
    tokenizer = WordTokenizer(["<unk>", "<eos>", "the", "cat"])
    assert tell_unknown(["the cat", "the"], tokenizer) == ""
    assert tell_unknown(["the zebra", "okapi"], tokenizer) == "2 words that the model never saw: zebra okapi"


def test_quantising_measures_the_bits_that_eval_measures(tmp_path: Path, capsys) -> None:
    run = train(tmp_path, text() + "unheardof words \n", "--tokenizer.vocab-size", "20")
    report = json_of(capsys, "quantize", run, "--bits", "8", "--tokens", "1000000")
    assert report["bits_per_byte_before"] == pytest.approx(score(run, capsys)["bits_per_byte"], abs=1e-9)


def test_the_commands_around_a_tokenizer_know_words(words: Path, tmp_path: Path, capsys) -> None:
    source, out = str(words.parent / "my.txt"), tmp_path / "tok.json"
    argv = ["tokenizer", "train", source, "--kind", "word", "--out", str(out)]
    assert json_of(capsys, *argv, "--vocab-size", "6")["vocab_size"] == 6
    assert json_of(capsys, *argv, "--overwrite")["vocab_size"] == load_run(words, "cpu").tokenizer.vocab_size
    fails(capsys, ["tokenizer", "train", "--kind", "word"], "a word tokenizer is made from a text")
    assert json_of(capsys, "model", "inspect", "--tokenizer.kind", "word")["config"]["vocab_size"] == 33_278
    report = json_of(capsys, "model", "inspect", "--tokenizer.path", out)
    assert report["config"]["vocab_size"] == load_tokenizer(out).vocab_size
    report = json_of(capsys, "model", "inspect", "--tokenizer.kind", "byte")
    assert report["config"]["vocab_size"] == ByteTokenizer().vocab_size
    with pytest.raises(SystemExit):
        main(["model", "inspect", "--help"])
    named = capsys.readouterr().out.split("--json")[-1]
    assert all(key in named for key in report)
    counted = json_of(capsys, "data", "inspect", source, "--tokenizer.kind", "word")
    assert all(split["tokens"] == split["words"] for split in counted["splits"].values())


def test_answers_of_records_are_counted_in_bytes_of_their_text(words: Path, tmp_path: Path, capsys) -> None:
    rows = [{"prompt": "the cat ", "completion": f" sat   on\ta strange{n} mat"} for n in range(40)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["finetune", str(words), str(tmp_path / "my.jsonl"), "--train.max-steps", "1", "--logging.plots", "false"]
    assert main([*argv, "--logging.runs-dir", str(tmp_path), "--name", "tuned"]) == 0
    said = capsys.readouterr().err
    assert "the tokenizer has no end of text" in said
    assert "are words that the tokenizer does not know: strange" in said
    lines = [json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if line.get("val_loss") is not None)
    sizes = [len(row["completion"]) / 5 for row in rows]
    ratio = last["val_loss"] / math.log(2) / last["bits_per_byte"]
    assert min(sizes) <= ratio <= max(sizes)


def test_a_longer_word_is_not_the_expected_one() -> None:
    tokenizer = WordTokenizer(["cats", "cat", "<eos>", "<unk>"])
    model = GPT(ModelConfig(vocab_size=4, embed_dim=16, num_heads=1, num_layers=1, max_seq_len=8)).eval()
    torch.nn.init.zeros_(model.embedding.weight)  # tied to the head, so all logits are equal: it writes id 0
    asked = [Question([1], "", expected, 1) for expected in ("cat", "cats", "cats cats")]
    answers = _write(SimpleNamespace(model=model, tokenizer=tokenizer), asked, None)
    assert [(answer["got"], answer["exact"]) for answer in answers] == [
        ("cats", False),
        ("cats", True),
        ("cats cats", True),
    ]
