"""Files of lines survive odd separators and a cut inside a character; nothing that is named as a file is endless."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from minigpt import files
from minigpt.files import append_line, find, keep_lines, parse_json, read_lines, read_text


def test_lines_survive_odd_separators_and_a_cut_inside_a_character(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    for step in (1, 2, 3):
        append_line(path, {"step": step, "text": "a\u2028b\u2029c\x85d\n"})
    with path.open("ab") as file:
        file.write('{"step": 4, "text": "é'.encode()[:-1])
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    keep_lines(path, 2)
    assert [line["text"] for line in read_lines(path)] == ["a\u2028b\u2029c\x85d\n"] * 2


def test_a_text_is_read_without_its_mark_and_with_plain_line_ends(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfa\r\nb\rc")
    assert read_text(tmp_path / "x") == "\ufeffa\nb\nc"


def test_a_pipe_is_read_once_somebody_writes_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")

    def write() -> None:
        time.sleep(0.05)
        with (tmp_path / "pipe").open("wb") as pipe:
            time.sleep(0.4)  # longer than WAIT: a writer that is there may take its time
            pipe.write(b"slow")
            pipe.flush()
            time.sleep(0.1)
            pipe.write(b" text")

    monkeypatch.setattr(files, "WAIT", 0.2)
    writer = threading.Thread(target=write)
    writer.start()
    assert read_text(tmp_path / "pipe") == "slow text"
    writer.join()
    with pytest.raises(OSError, match="nobody wrote to this pipe"):
        read_text(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/dev/zero", errno.EFBIG),
        ("x" * 300, errno.ENAMETOOLONG),
        ("a\0b", errno.EINVAL),
        ("\ud800", errno.EINVAL),
        ("/", errno.EISDIR),
        ("nowhere", errno.ENOENT),
        (f"{__file__}/x", errno.ENOTDIR),
    ],
)
def test_what_the_system_refuses_is_an_oserror_alone(path: str, number: int) -> None:
    with pytest.raises(OSError) as error:
        read_text(path, 1 << 20)
    assert error.value.errno == number
    assert error.value.strerror


def test_a_path_is_looked_at_without_exceptions_for_what_is_not_there() -> None:
    assert find("nowhere") is find(f"{__file__}/x") is None
    assert find(__file__) is not None
    with pytest.raises(OSError, match="too long"):
        find("x" * 300)


def test_json_that_is_nested_too_deep_is_a_value_error() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, b"[" * 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)
