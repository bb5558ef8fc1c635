"""Test minigpt tokenizer train, inspect, compare."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from minigpt.cli import main
from minigpt.cli.tokenizer import printable, token_view
from minigpt.tokenizers import ByteTokenizer, load
from minigpt.tokenizers.base import show

TEXT = "The cat sat on the mat.\nThe rat sat on the cat. naïve 🦊\n" * 50


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "my.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["tokenizer", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_train_writes_the_tokenizer_that_was_asked_for(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", text_file, "--vocab-size", 280, "--pattern", "gpt2", "--out", tmp_path / "tok", "--json")
    code, out, _ = run(capsys, *words)
    summary = json.loads(out)
    assert code == 0
    assert set(summary) == {"path", "kind", "vocab_size", "special_tokens", "pattern", "fingerprint", "seconds"}
    made = load(tmp_path / "tok" / "tokenizer.json")
    assert (made.kind, made.vocab_size, summary["pattern"]) == ("bpe", 280, "gpt2")
    assert (summary["path"], summary["fingerprint"]) == (str(tmp_path / "tok" / "tokenizer.json"), made.fingerprint)

    code, _, err = run(capsys, *words)
    assert code == 2 and "exists already" in err
    code, _, err = run(capsys, *words, "--overwrite", "--kind", "char")
    assert code == 2 and "--vocab-size and --pattern: not for the kind char" in err
    words = ("train", text_file, "--kind", "char", "--unknown", "error", "--out", tmp_path / "tok", "--overwrite")
    assert run(capsys, *words)[0] == 0
    assert load(tmp_path / "tok").unk_id is None


def test_train_reads_the_text_by_the_data_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text("\n".join(json.dumps({"body": f"ÀB{i}", "title": "zzz"}) for i in range(200)))
    words = ("train", path, "--kind", "char", "--out", tmp_path / "c.json")
    code, _, err = run(capsys, *words, "--data.text-field", "body", "--data.clean", "[lower]")
    assert (code, err.strip()) == (0, "")
    made = load(tmp_path / "c.json")
    assert set(made.decode(range(2, made.vocab_size))) - {"\n"} == set("àb0123456789")


def test_a_char_tokenizer_has_the_characters_of_all_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.txt").write_text("abc abc\n" * 50 + "xyz é\n")  # the last words are for validation
    run(capsys, "train", tmp_path / "my.txt", "--kind", "char", "--unknown", "error", "--out", tmp_path / "c.json")
    assert set(load(tmp_path / "c.json").decode(range(1, 10))) == set("abc \nxyzé")
    source = ["prepare", str(tmp_path / "my.txt"), "--data.cache-dir", str(tmp_path / "cache")]
    assert main([*source, "--tokenizer.path", str(tmp_path / "c.json")]) == 0


def test_the_unk_that_a_text_spells_is_not_counted_as_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.txt").write_text(" the <unk> cat \n" * 50 + " <unk> dog \n")
    run(capsys, "train", tmp_path / "my.txt", "--kind", "word", "--out", tmp_path / "w.json")
    report = run(capsys, "compare", tmp_path / "w.json", "byte", "--text", tmp_path / "my.txt", "--json")[1]
    assert [row["unknown"] for row in json.loads(report)["tokenizers"]] == [1, 0]


def test_inspect_shows_what_a_tokenizer_is_and_how_it_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ByteTokenizer().save(tmp_path)
    code, out, _ = run(capsys, "inspect", tmp_path, "--text", "aé\n", "--json")
    report = json.loads(out)
    assert code == 0
    keys = {"kind", "vocab_size", "special_tokens", "pattern", "fingerprint", "longest_tokens", "tokens"}
    assert set(report) == keys
    assert [token["text"] for token in report["tokens"]] == ["a", "<c3>", "<a9>", "\n"]
    assert json.loads(run(capsys, "inspect", "byte", "--json")[1])["tokens"] is None
    code, out, _ = run(capsys, "inspect", "byte", "--text", "aé\nb")
    assert code == 0 and "a|<c3>|<a9>|\\n\n|b" in out and "97 195 169 10 98" in out


def test_the_view_marks_tokens_by_colour_or_bars_and_escapes_controls() -> None:
    byte = ByteTokenizer()
    ids = byte.encode("a[b]\x1b")
    assert token_view(byte, ids, colour=False).plain == "a|[|b|]|\\x1b"
    coloured = token_view(byte, ids, colour=True)
    assert coloured.plain == "a[b]\\x1b"
    styles = [str(span.style) for span in coloured.spans]
    assert len(styles) == 5 and all(left != right for left, right in pairwise(styles))
    assert token_view(byte, [256], colour=False).plain == "<|endoftext|>"
    assert show(b" \xf0\x9f") == " <f0><9f>"
    assert printable("a\t\n中 🦊") == "a\\t\\n中 🦊"


def test_compare_counts_what_each_tokenizer_makes_of_the_same_text(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "train", text_file, "--vocab-size", 300, "--out", tmp_path / "bpe.json")
    run(capsys, "train", text_file, "--kind", "char", "--out", tmp_path / "char.json")
    names = [str(tmp_path / "bpe.json"), str(tmp_path / "char.json"), "byte"]
    code, out, _ = run(capsys, "compare", *names, "--text", text_file, "--json")
    report = json.loads(out)
    assert code == 0
    assert set(report) == {"text", "bytes", "words", "tokenizers"}
    text = TEXT.rstrip("\n") if report["bytes"] < len(TEXT.encode()) else TEXT
    assert (report["bytes"], report["words"]) == (len(text.encode()), len(text.split()))
    rows = report["tokenizers"]
    assert [row["name"] for row in rows] == names
    for row, name in zip(rows, names, strict=True):
        tokens = len((ByteTokenizer() if name == "byte" else load(name)).encode(text))
        assert row["tokens"] == tokens
        assert row["bytes_per_token"] == pytest.approx(len(text.encode()) / tokens, abs=1e-4)
        assert row["tokens_per_word"] == pytest.approx(tokens / len(text.split()), abs=1e-4)
        assert set(row) == {
            "name", "kind", "vocab_size", "tokens", "bytes_per_token", "tokens_per_word", "unknown", "mb_per_second",
        }  # fmt: skip
    assert "bytes per" in run(capsys, "compare", *names, "--text", text_file)[1]
    limited = json.loads(run(capsys, "compare", *names, "--text", text_file, "--max-bytes", 100, "--json")[1])
    assert limited["bytes"] == 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "did you mean train?"),
        (["train"], "name a source"),
        (["train", "FILE", "--vocab-size", "100"], "vocab_size 100 is too small"),
        (["train", "FILE", "--vocab-size", "0"], "greater than 0"),
        (["train", "no-such-file.txt", "--out", "FILE/x.json"], "is a file); choose another --out"),
        (["train", "FILE", "--train.max-steps", "3"], "--train.max-steps: not a setting"),
        (["train", "no-such-file.txt"], "no-such-file.txt"),
        (["inspect", "nowhere"], "no such tokenizer: nowhere"),
        (["compare", "byte"], "two tokenizers or more"),
        (["compare", "byte", "byte", "--text", "FILE", "--max-bytes", "0"], "--max-bytes 0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, text_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *[word.replace("FILE", str(text_file)) for word in words])
    assert (code, out) == (2, "")
    assert message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "tokenizer.json").exists()


def test_help_shows_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "minigpt tokenizer compare" in out
    for action in ("train", "inspect", "compare"):
        with pytest.raises(SystemExit) as ended:
            main(["tokenizer", action, "--help"])
        assert not ended.value.code
        assert f"minigpt tokenizer {action}" in capsys.readouterr().out
