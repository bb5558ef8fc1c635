"""Test that files of lines survive odd separators and cuts, and that temporary files of dead processes are removed."""

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from minigpt import files
from minigpt.errors import RunError, StorageError, storage_error
from minigpt.files import (
    GrowingLines,
    append_line,
    check_writable,
    find,
    keep_lines,
    move,
    new_file,
    new_folder,
    parse_json,
    private_folder,
    read_lines,
    read_text,
    sync,
    temporary_path,
    write_bytes,
    write_text,
)
from minigpt.runs.lock import run_lock


def test_a_growing_file_is_parsed_once_and_a_replaced_one_again(tmp_path: Path) -> None:
    path, parsed = tmp_path / "metrics.jsonl", []

    def noted(line: dict[str, int]) -> int:
        parsed.append(line["step"])
        return line["step"]

    lines = GrowingLines(path, noted)
    assert lines.read() == []
    for step in (1, 2, 3):
        append_line(path, {"step": step})
        assert lines.read() == [*range(1, step + 1)]
    assert parsed == [1, 2, 3]
    with path.open("a") as file:
        file.write('{"step": 4')
    assert lines.read() == [1, 2, 3]
    with path.open("a") as file:
        file.write("}")
    assert lines.read() == lines.read() == [1, 2, 3, 4], "a whole last line counts, also without a line end"
    with path.open("a") as file:
        file.write('\n{"step": "x"\n{"step": 6}\n')
    for _ in range(2):
        with pytest.raises(RunError, match="line 5: damaged"):
            lines.read()
    write_text(path, '{"step": 1}\n{"step": 2}\n{"step": 7}\n')
    assert lines.read() == [1, 2, 7] == read_lines(path, noted)
    path.write_text('{"step": 9}\n')
    assert lines.read() == [9]


def test_lines_survive_odd_separators_and_a_cut_inside_a_character(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    for step in (1, 2, 3):
        append_line(path, {"step": step, "text": "a\u2028b\u2029c\x85d\n"})
    with path.open("ab") as file:
        file.write('{"step": 4, "text": "é'.encode()[:-1])
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    keep_lines(path, 2)
    assert [line["text"] for line in read_lines(path)] == ["a\u2028b\u2029c\x85d\n"] * 2


@pytest.mark.parametrize("line", ["3", "[]", "{}", '{"step": "x"}', "[" * 100_000])
def test_a_line_of_another_form_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(RunError, match="line 2: damaged"):
        keep_lines(path, 2)


def dead_work(path: Path) -> Path:
    """The name that a dead process gave to its temporary file for a path."""
    code = "import sys, minigpt.files, pathlib; print(minigpt.files.temporary_path(pathlib.Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def test_two_writers_of_one_file_never_share_a_name(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    assert len({temporary_path(path) for _ in range(100)}) == 100
    contents = [bytes([65 + number]) * 10_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: [write_bytes(path, content) for _ in range(20)], contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_work_of_the_dead_is_swept_and_that_of_the_living_and_of_others_stays(tmp_path: Path) -> None:
    left, file = dead_work(tmp_path / "model"), dead_work(tmp_path / "a.json")
    left.mkdir()
    (left / "model.safetensors").write_text("weights")
    file.write_text("{}")
    living = temporary_path(tmp_path / "b.json")
    living.write_text("{}")
    other_host = tmp_path / f".c.json.elsewhere-{2**22 + 1}-01234567.tmp"
    mine = tmp_path / ".mine.tmp"
    for path in (other_host, mine):
        path.write_text("{}")
    with new_folder(tmp_path / "other") as work:
        (work / "config.json").write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {living.name, other_host.name, mine.name, "other"}


def test_work_in_another_container_of_this_machine_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spaces = ["pid:[4026532201]", "pid:[4026532202]"]
    monkeypatch.setattr(os, "readlink", lambda _: spaces[0])
    monkeypatch.setattr(files, "_is_alive", lambda pid: False)  # the number means another process here, or none
    work = temporary_path(tmp_path / "a.json")
    work.write_text("{}")
    spaces.reverse()
    write_text(tmp_path / "b.json", "{}")
    assert work.exists()
    spaces.reverse()
    write_text(tmp_path / "b.json", "{}")
    assert not work.exists()


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".json")
    write_text(path, "whole")
    assert path.read_text() == "whole"


def test_the_first_error_of_a_write_is_the_one_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(StorageError, match="the disk is full"):
        write_text(tmp_path / "a.json", "{}")


def test_an_error_in_a_new_folder_or_file_names_what_the_person_asked_for(tmp_path: Path) -> None:
    for make in (new_folder, new_file):
        with pytest.raises(StorageError) as error, make(tmp_path / "out") as work:
            raise storage_error(work / "step-1", OSError(errno.ENOSPC, "No space left on device"))
        said = f"{tmp_path / 'out'}: cannot be written (No space left on device); choose another with --out"
        assert str(error.value) == said


def test_a_place_is_tried_before_the_work_begins(tmp_path: Path) -> None:
    check_writable(tmp_path / "not/there/yet.json", "choose another")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"x\.json: cannot be written \(.*file is a file\); choose another"):
        check_writable(tmp_path / "file/x.json", "choose another")


def test_a_folder_that_others_could_write_is_made_again_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "inductor"
    private_folder(folder)
    (folder / "mine").write_text("")
    private_folder(folder)
    assert [path.name for path in folder.iterdir()] == ["mine"]
    folder.chmod(0o770)
    private_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700 and not list(folder.iterdir())
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        with pytest.raises(PermissionError, match="another user's"):
            private_folder(folder)


def test_a_text_is_read_without_its_mark_and_with_plain_line_ends(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfa\r\nb\rc")
    assert read_text(tmp_path / "x") == "\ufeffa\nb\nc"


def test_a_pipe_is_read_once_somebody_writes_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's clock is a stand-in: the writer comes late, and then no more of its time passes while it waits."""
    os.mkfifo(tmp_path / "pipe")
    opened, now = threading.Event(), 0.0

    def write() -> None:
        with (tmp_path / "pipe").open("wb") as pipe:
            opened.set()
            time.sleep(0.1)  # a living writer may be slow
            pipe.write(b"slow")
            pipe.flush()
            time.sleep(0.1)
            pipe.write(b" text")

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > files.WAIT / 2 and not opened.is_set():
            writer.start()
            opened.wait()

    monkeypatch.setattr(files, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    writer = threading.Thread(target=write)
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


# --- Windows, as far as another system can play it ---


def test_a_file_is_synced_as_windows_wants_it_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"kept")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "fsync", lambda handle: os.write(handle, b""))  # EBADF where only reading is allowed
    sync(tmp_path / "x")
    sync(tmp_path)
    assert (tmp_path / "x").read_bytes() == b"kept"


def test_a_path_that_windows_calls_invalid_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def invalid(path: Path) -> None:
        error = OSError(errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect")
        error.winerror = number  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(Path, "stat", invalid)
    number = 123
    assert find("books/*.txt") is None, "a glob"
    number = 5
    with pytest.raises(OSError, match="syntax"):
        find("books")


def test_a_rename_waits_on_windows_until_nobody_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readers, replace = [1, 1], Path.replace

    def refuse_while_read(path: Path, target: Path) -> None:
        if readers:
            readers.pop()
            raise PermissionError(errno.EACCES, "Access is denied")
        replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse_while_read)
    (tmp_path / "new").write_bytes(b"new")
    with pytest.raises(PermissionError):  # other systems rename a file that is read, so they do not wait
        move(tmp_path / "new", tmp_path / "old")
    monkeypatch.setattr(sys, "platform", "win32")
    readers.append(1)
    write_text(tmp_path / "old", "old")
    move(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"new" and not readers


def test_json_that_is_nested_too_deep_is_a_value_error() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, b"[" * 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_a_run_of_another_person_leads_no_writing_out_of_its_folder(tmp_path: Path) -> None:
    mine, run = tmp_path / "mine.txt", tmp_path / "run"
    mine.write_text("mine")
    run.mkdir()
    for name, target in (("samples.jsonl", tmp_path / ".profile"), ("metrics.jsonl", mine), (".lock", mine)):
        (run / name).symlink_to(target)
    for name in ("samples.jsonl", "metrics.jsonl"):
        with pytest.raises(StorageError, match=f"{name}: cannot be written"):
            append_line(run / name, {"step": 1})
    with pytest.raises(StorageError, match="cannot be written"), run_lock(run):
        pass
    assert mine.read_text() == "mine" and not (tmp_path / ".profile").exists()
