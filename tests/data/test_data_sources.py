"""Test that files of every kind become documents, and that a wrong file gives one line that names the fix."""

import gzip
import json
import os
import random
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from split_text import split_of

from minigpt.config import DataConfig
from minigpt.config.load import validate
from minigpt.data import huggingface, open_corpus, sources, text_chunks
from minigpt.data.text_files import binary_reason, spool_stdin
from minigpt.errors import DataError, EncodingError, UserError


def config(source: str | Path, **fields: Any) -> DataConfig:
    return DataConfig(source=str(source), **fields)


def read(source: str | Path, split: str | None = None, **fields: Any) -> list[str]:
    return split_of(config(source, **fields), split)


def whole(source: str | Path, **fields: Any) -> str:
    return "".join(text_chunks(str(source), config(source, **fields), None))


def one_line(error: pytest.ExceptionInfo[Any], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# --- what can be read


def test_a_text_file_is_read_as_it_is(tmp_path: Path) -> None:
    text = "one\r\ntwo\u2028 três\n" * 100_000  # more than a block of a megabyte
    (tmp_path / "my.txt").write_bytes(text.encode())
    assert whole(tmp_path / "my.txt") == text


def test_a_character_on_the_border_of_two_blocks_stays_whole(tmp_path: Path) -> None:
    text = "a" * ((1 << 20) - 1) + "é😀" * 10
    (tmp_path / "my.txt").write_bytes(text.encode())
    assert whole(tmp_path / "my.txt") == text


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "shift_jis", "gb18030"])
def test_other_encodings_are_read_when_named(tmp_path: Path, encoding: str) -> None:
    text = "日本語のテキスト\n" if encoding in ("shift_jis", "gb18030") else "déjà vu\n"
    text *= 200_000
    (tmp_path / "my.txt").write_bytes(text.encode(encoding))
    assert whole(tmp_path / "my.txt", encoding=encoding) == text


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_bytes("\ufeffabc abc abc abc".encode())
    assert whole(tmp_path / "my.txt") == "abc abc abc abc"


def test_gzip_is_recognised_by_its_content(tmp_path: Path) -> None:
    for name in ("my.txt.gz", "my.txt"):
        (tmp_path / name).write_bytes(gzip.compress(b"some text to read\n" * 9))
        assert whole(tmp_path / name) == "some text to read\n" * 9


@pytest.mark.parametrize("name", ["my.jsonl", "my.ndjson", "my.jsonl.gz"])
def test_each_json_line_is_a_document(tmp_path: Path, name: str) -> None:
    texts = [f"document {n}\nwith é and \u2028" for n in range(30)]
    lines = "".join(json.dumps({"id": n, "body": text}) + "\n" for n, text in enumerate(texts)) + "\n"
    data = lines.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read(tmp_path / name, text_field="body") == texts


def test_half_a_surrogate_pair_in_json_becomes_a_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "my.jsonl").write_text('{"text": "a\\ud83d b"}\n{"text": "\\ud83d\\ude00 c"}\n')
    assert read(tmp_path / "my.jsonl") == ["a\ufffd b", "😀 c"]


def test_a_directory_is_read_in_order_without_hidden_or_binary_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    files = {"a.txt": "first", "b/c.md": "second", "z.txt.gz": "third", ".git/x": "no", ".hidden": "no", "empty": ""}
    for name, text in files.items():
        data = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    (tmp_path / "lines.jsonl").write_text('{"text": "line 1"}\n{"text": "line 2"}\n')
    assert read(tmp_path) == ["first", "second", "line 1", "line 2", "third"]
    assert open_corpus(config(tmp_path)).source.skipped == (str(tmp_path / "picture.png"),)


def test_what_a_directory_leaves_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.txt").write_text("behind a link")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("in the folder")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "data" / "up").symlink_to(tmp_path)
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data" / "loop")
    os.mkfifo(tmp_path / "data" / "pipe")
    with pytest.warns(UserWarning) as told:
        assert "".join(read(tmp_path / "data")) == "in the folder"
    message = str(told[0].message)
    for part in (
        "linked (a link to a folder; to read it",
        "up (a link",
        "loop (a link to nothing)",
        "pipe (not a file)",
    ):
        assert part in message
    (tmp_path / "data" / "up").unlink()
    assert sorted(read(f"{tmp_path / 'data'}/**/*.txt")) == ["behind a link", "in the folder"]


def test_a_folder_of_texts_that_holds_runs_too_is_read_without_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "config.yaml").write_text("title: no run")
    run = tmp_path / "runs" / "my"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("model: {}")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.warns(UserWarning, match=r"left out: .*runs/my \(a run of minigpt\)$"):
        assert read(tmp_path) == ["text", "title: no run"]


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("text")
    scan = os.scandir

    def scandir(path: str) -> Any:  # simulated, since root can read every folder
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError) as error:
        read(tmp_path)
    one_line(error, "closed: cannot be read (Permission denied)", "permissions")


@pytest.mark.parametrize("path", ["~nosuchuser/a.txt", "x" * 300, "a\0b", "/dev/zero", f"{__file__}/a.txt", "*" * 300])
def test_a_path_that_the_system_refuses_is_one_line(path: str) -> None:
    with pytest.raises(UserError) as error:
        split_of(validate({"data": {"source": path}}).data, "train")
    one_line(error, path[:20].partition("\0")[0])


@pytest.mark.parametrize("block", [1, 5, 13, 1 << 20])
def test_a_spelled_end_of_text_is_told_and_splits_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    mark, texts = "<|endoftext|>", [f"story {n} é<|endof\n" for n in range(12)]
    monkeypatch.setattr("minigpt.data.text_files.BLOCK", block)
    (tmp_path / "my.txt").write_text(mark.join(texts) + mark)
    with pytest.warns(UserWarning, match=r"my.txt: contains <\|endoftext\|> 12 times.*--data.split-at"):
        assert "".join(read(tmp_path / "my.txt")) == mark.join(texts) + mark
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path / "my.txt", split_at=mark) == texts
        sides = [read(tmp_path / "my.txt", split, split_at=mark) for split in ("train", "val")]
    assert sorted(sides[0] + sides[1]) == sorted(texts)
    assert sides[1]


def test_a_mark_that_splits_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_bytes(b"one\r\n\r\ntwo\r\n\r\nthree")
    with pytest.warns(UserWarning, match=r"my.txt: is one document, although it is split at '\\n\\n'"):
        read(tmp_path / "my.txt", split_at="\n\n", clean=("newlines",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(tmp_path / "my.txt", split_at="\r\n\r\n")) == 3


def test_a_glob_takes_what_it_matches(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("2.txt", "1.txt", "3.md", "sub/4.txt"):
        (tmp_path / name).write_text(f"this is {name}")
    assert read(tmp_path / "*.txt") == ["this is 1.txt", "this is 2.txt"]
    assert read(tmp_path / "**" / "*.txt") == ["this is 1.txt", "this is 2.txt", "this is sub/4.txt"]


def test_standard_input_that_comes_once_can_be_read_twice() -> None:
    code = (
        "from minigpt.config import DataConfig\n"
        "from minigpt.data import text_chunks\n"
        "config = DataConfig(source='-', encoding='latin-1')\n"
        "texts = ['/'.join(text_chunks('-', config, split)) for split in ('train', 'val', None)]\n"
        "print(texts == ['caf\\xe9 ' * 9, 'caf\\xe9 ', ('caf\\xe9 ' * 9) + '/' + 'caf\\xe9 '])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input="café ".encode("latin-1") * 10, capture_output=True)
    assert (done.stdout.decode().strip(), done.stderr.decode()) == ("True", "")


def test_stories_are_the_same_every_time_and_many_documents() -> None:
    first = read("stories", stories_count=30)
    assert first == read("stories", stories_count=30)
    assert len(first) == 30
    assert all(story.endswith("\n") for story in first)


def test_wikitext_keeps_its_published_splits(mirror: Path) -> None:
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        published = (mirror / "wikitext-2" / f"{name}.txt").read_bytes().decode()
        assert read("wikitext-2", split) == [published]


@pytest.fixture(autouse=True)
def _forget_datasets() -> Iterator[None]:
    yield
    huggingface.load_splits.cache_clear()


def test_a_split_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError) as error:
        read("stories", "tain", stories_count=5)
    one_line(error, "has no tain split", "did you mean train?")


class FakeRows(list[dict[str, Any]]):
    """What `datasets` gives for a split, as far as we use it."""

    column_names = ("text", "label")

    def select_columns(self, names: list[str]) -> "FakeRows":
        return FakeRows([{name: row[name] for name in names} for row in self])


def test_hugging_face_splits_become_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    rows = {
        "train": FakeRows({"text": f"train {n}", "label": n} for n in range(5)),
        "validation": FakeRows({"text": "val", "label": 0} for _ in range(1)),
        "unsupervised": FakeRows([]),
    }

    def load_dataset(name: str, configuration: str | None) -> Any:
        asked.append((name, configuration))
        return rows

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert read("hf:some/thing/config-1", "train") == [f"train {n}" for n in range(5)]
    assert read("hf:imdb", "val") == ["val"]
    assert len(asked) == 2
    assert set(asked) == {("some/thing", "config-1"), ("imdb", None)}
    with pytest.raises(DataError) as error:
        read("hf:imdb", text_field="body")
    one_line(error, "'body'", "text, label", "--data.text-field")


def test_hugging_face_failures_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, configuration: str | None) -> Any:
        raise ConnectionError("cannot reach\nthe hub")

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(DataError) as error:
        read("hf:imdb")
    one_line(error, "hf:imdb", "cannot reach the hub", "check the name")


def test_without_the_datasets_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError) as error:
        read("hf:imdb")
    one_line(error, "pip install 'minigpt[hf]'")


# --- what cannot be read


def test_a_missing_path_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("x" * 50)
    with pytest.raises(DataError) as error:
        read(tmp_path / "nvel.txt")
    one_line(error, "nvel.txt", f"did you mean {tmp_path / 'novel.txt'}?")
    with pytest.raises(DataError) as error:
        read("shakespere")
    one_line(error, "did you mean shakespeare?")
    with pytest.raises(DataError) as error:
        read(tmp_path / "no" / "such" / "place")
    one_line(error, "shakespeare, stories, text8, tinystories, wikitext-103, wikitext-2", "hf:NAME")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.txt").touch()
    with pytest.raises(DataError) as error:
        read(tmp_path / "my.txt")
    one_line(error, "my.txt", "is empty")


def test_a_text_that_cleaning_empties_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("日本語", encoding="utf-8")
    with pytest.raises(DataError) as error:
        read(tmp_path / "my.txt", clean=("ascii",))
    one_line(error, "after cleaning (ascii)")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"text then\0zero" * 9, "zero byte at 9"),
        (b"%PDF-1.7\n%text", "a PDF"),
        (b"PK\x03\x04 docx", "zip"),
        (b"BZh91AY", "bzip2"),
        (bytes(range(1, 32)) * 30, "control characters"),
        ("utf-16 text".encode("utf-16"), "--data.encoding utf-16"),
        (("longer text without a mark " * 9).encode("utf-16-le"), "--data.encoding utf-16-le"),
        (("longer text without a mark " * 9).encode("utf-16-be"), "--data.encoding utf-16-be"),
    ],
)
def test_a_binary_file_is_refused_with_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "my.txt").write_bytes(data)
    with pytest.raises(DataError) as error:
        read(tmp_path / "my.txt")
    one_line(error, "my.txt", "is not text", reason)


@pytest.mark.parametrize("before", [5, (1 << 20) - 1, (1 << 20) + 3, 3 << 20])
def test_an_undecodable_byte_is_named_by_its_offset(tmp_path: Path, before: int) -> None:
    (tmp_path / "my.txt").write_bytes(b"a" * before + "é".encode("latin-1") + b" and more")
    with pytest.raises(EncodingError) as error:
        read(tmp_path / "my.txt")
    one_line(error, "my.txt", f"byte {before:,} (0xe9)", "utf-8", "cp1252 (Western)", "gb18030", "shift_jis", "latin-1")


def test_a_character_cut_off_by_the_end_of_the_file_is_undecodable(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_bytes(b"abc" + "€".encode()[:2])
    with pytest.raises(EncodingError) as error:
        read(tmp_path / "my.txt")
    one_line(error, "byte 3 (0xe2)")


def test_an_undecodable_byte_under_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_bytes("日本".encode())
    with pytest.raises(EncodingError) as error:
        read(tmp_path / "my.txt", encoding="ascii")
    one_line(error, "byte 0 (0xe6)", "ascii", "--data.encoding utf-8")


@pytest.mark.parametrize("encoding", ["utf8-with-bees", "base64", "rot13"])
def test_an_unknown_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "my.txt").write_text("text")
    with pytest.raises(DataError) as error:
        read(tmp_path / "my.txt", encoding=encoding)
    one_line(error, "data.encoding", encoding, "utf-8")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"text": "cut off', ("line 3", "is not JSON")),
        ('["text"]', ("line 3", "is not an object")),
        ('{"title": "x", "body": "y"}', ("line 3", "no field 'text'", "title, body", "--data.text-field")),
        ('{"text": 5}', ("line 3", "int", "--data.text-field")),
        ("[" * 100_000, ("line 3", "is not JSON")),
    ],
)
def test_a_bad_json_line_is_named_by_its_number(tmp_path: Path, line: str, parts: tuple[str, ...]) -> None:
    (tmp_path / "my.jsonl").write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(DataError) as error:
        read(tmp_path / "my.jsonl")
    one_line(error, "my.jsonl", *parts)


def test_a_broken_gzip_is_refused(tmp_path: Path) -> None:
    data = gzip.compress(random.Random(0).randbytes(50_000).hex().encode())
    (tmp_path / "short.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "flipped.gz").write_bytes(data[:20_000] + bytes([data[20_000] ^ 255]) + data[20_001:])
    (tmp_path / "none.gz").write_text("no gzip at all")
    for name, part in (("short.gz", "gzip is broken"), ("flipped.gz", "gzip is broken"), ("none.gz", "is not gzip")):
        with pytest.raises(DataError) as error:
            read(tmp_path / name)
        one_line(error, name, part)


def test_a_directory_or_glob_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG" + bytes(9))
    with pytest.raises(DataError) as error:
        read(tmp_path)
    one_line(error, "without text files", f"{tmp_path / 'x.png'} is a PNG picture")
    with pytest.raises(DataError) as error:
        read(tmp_path / "*.png")
    one_line(error, "matches no text file", "a PNG picture")
    with pytest.raises(DataError) as error:
        read(tmp_path / "*.txt")
    one_line(error, "matches no text file")


def test_a_named_pipe_is_refused_with_a_hint_at_standard_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError) as error:
        read(tmp_path / "pipe")
    one_line(error, "minigpt train -")


def test_empty_standard_input_is_refused() -> None:
    code = (
        "from minigpt.config import DataConfig\n"
        "from minigpt.data import open_corpus\n"
        "from minigpt.errors import DataError\n"
        "try: open_corpus(DataConfig(source='-'))\n"
        "except DataError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"", capture_output=True)
    assert done.stdout.decode().strip() == "standard input: is empty; give a text"


def test_standard_input_without_space_for_it_is_a_storage_error() -> None:
    code = (
        "import resource\n"
        "from minigpt.data.text_files import spool_stdin\n"
        "from minigpt.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try: spool_stdin()\n"
        "except StorageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"x" * 5000, capture_output=True)
    assert b"standard input: cannot be written (File too large); name another place with TMPDIR" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_the_copy_of_standard_input_that_a_killed_process_left_is_deleted(tmp_path: Path) -> None:
    code = "import os; from minigpt.data.text_files import spool_stdin; spool_stdin(); os.kill(os.getpid(), {})"
    for number, left in ((9, 1), (0, 0)):
        env = {**os.environ, "TMPDIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code.format(number)], input=b"text", env=env, check=False)
        files = list(tmp_path.iterdir())
        assert len(files) == left and all(file.stat().st_mode & 0o777 == 0o600 for file in files)


def test_a_terminal_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    spool_stdin.cache_clear()
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(DataError) as error:
        spool_stdin()
    one_line(error, "cat my.txt | minigpt train -")


def test_standard_input_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    spool_stdin.cache_clear()
    monkeypatch.setattr("minigpt.data.text_files.MOST_PIPED", 1 << 22)
    with open("/dev/zero") as endless:  # noqa: PTH123  a file that has no end
        monkeypatch.setattr(sys, "stdin", endless)
        with pytest.raises(DataError) as error:
            spool_stdin()
    one_line(error, "standard input: is longer than", "name a file, not -")


def test_a_process_looks_once_at_each_file_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def noted(path: Path, encoding: str) -> str | None:
        looked.append(path.name)
        return binary_reason(path, encoding)

    monkeypatch.setattr(sources, "binary_reason", noted)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"the text of {name}\n" * 20)
    for _ in range(3):
        sources.resolve(config(tmp_path))
    assert looked == ["a.txt", "b.txt"]
    (tmp_path / "b.txt").write_bytes(b"\0" * 100)
    assert sources.resolve(config(tmp_path)).skipped == (str(tmp_path / "b.txt"),)
    assert looked == ["a.txt", "b.txt", "b.txt"]
