"""Test `minigpt chat` as a person uses it: in a real pseudo-terminal, and in a pipe."""

import io
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt.cli import main
from minigpt.tokenizers.chat_template import Template

fcntl = pytest.importorskip("fcntl", reason="needs POSIX")
pty = pytest.importorskip("pty", reason="needs POSIX")
termios = pytest.importorskip("termios", reason="needs POSIX")

ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-_=>])")
TEXT = "the cat sat on a mat and saw the dog. System: User: Assistant: so it ran to the red barn.\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, trained for a few steps."""
    folder = tmp_path_factory.mktemp("chat")
    (folder / "cats.txt").write_text(TEXT * 80)
    argv = "--model.embed-dim 32 --model.num-heads 2 --model.num-layers 1 --model.max-seq-len 64 --train.batch-size 8"
    argv += " --train.device cpu --train.precision fp32 --logging.plots false --schedule.warmup-steps 2"
    argv += " --train.max-steps 30 --tokenizer.kind char --train.eval-every 30"
    assert (
        main(["train", str(folder / "cats.txt"), *argv.split(), "--logging.runs-dir", str(folder), "--name", "c"]) == 0
    )
    return folder / "c"


@pytest.fixture(scope="module")
def tuned(run: Path) -> Path:
    """The same with a chat template."""
    folder = run.parent / "tuned"
    shutil.copytree(run, folder)
    Template().save(folder)
    return folder


def shown(raw: bytes) -> str:
    """What a person reads."""
    return ESCAPES.sub("", raw.decode(errors="replace")).replace("\r", "")


class Terminal:
    """A program in its own terminal, to type to and to resize; `screen` is its output without escape codes."""

    def __init__(self, argv: list[str], folder: Path):
        self.master, slave = pty.openpty()
        self.resize(24, 80)
        modes = termios.tcgetattr(slave)
        modes[3] |= termios.NOFLSH  # else Ctrl-C would discard output that was not read here yet
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        env = os.environ | {"MINIGPT_CONFIG": str(folder), "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minigpt", "chat", *argv],
            stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
        )  # fmt: skip
        os.close(slave)
        self.raw, self.mark = b"", 0

    @property
    def screen(self) -> str:
        """The output since the last keys."""
        return shown(self.raw[self.mark :])

    def type(self, keys: str) -> None:
        """Press keys; "\\r" is Enter, "\\x03" Ctrl-C."""
        self.mark = len(self.raw)
        os.write(self.master, keys.encode())

    def read(self, seconds: float) -> bool:
        """Read; returns whether something arrived in time."""
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            new = os.read(self.master, 65536)
        except OSError:  # the other side is closed
            return False
        if b"\x1b[6n" in new:  # the program asks where the cursor is
            os.write(self.master, b"\x1b[24;1R")
        self.raw += new
        return bool(new)

    def expect(self, pattern: str, prompt: bool = False) -> str:
        """Wait until the pattern appears after the last keys, and then the prompt; returns the match."""
        end = time.monotonic() + 240
        while True:
            found = re.search(pattern, self.screen, re.S)
            if found and not (prompt and b"\x1b[?2004h" not in self.raw[self.mark :]):  # the editor has opened
                return found[0]
            assert time.monotonic() < end and (self.read(0.2) or self.process.poll() is None), (pattern, self.screen)

    def resize(self, rows: int, columns: int) -> None:
        """Resize the terminal, which also sends SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def leave(self) -> int:
        """The exit code, after the rest was read."""
        while self.read(2.0):
            continue
        code = self.process.wait(20)
        os.close(self.master)
        return code


@pytest.mark.slow
def test_a_person_chats_in_a_terminal(run: Path, tmp_path: Path, capsys) -> None:
    flags = "--max-new-tokens 1000000 --stop-at-eos False --device cpu --seed 5".split()
    terminal = Terminal([str(run), *flags, "--session", str(tmp_path / "kept.json")], tmp_path)
    terminal.expect("/help lists the commands", prompt=True)
    terminal.type("the cat")
    terminal.type("\r")
    size = 0
    for least in (20, 200, 600):  # the text is visible while it is written: each time there is more
        size = len(terminal.expect(f"cat.{{{max(least, size)},}}"))
        assert "tokens/s" not in terminal.screen
    for rows, columns in ((40, 20), (10, 200), (24, 80)):
        terminal.resize(rows, columns)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        before = len(terminal.screen)
        while len(terminal.screen) < before + 200:
            assert terminal.read(30)
    terminal.type("\x03")
    line = terminal.expect(r"\[[\d,]+ tokens, [\d.]+ tokens/s, interrupted\]", prompt=True)
    tokens = int(re.findall(r"[\d,]+", line)[0].replace(",", ""))
    assert tokens > 1000
    assert terminal.process.poll() is None
    terminal.type("/set temperature hot\r")
    assert "\n" not in terminal.expect("minigpt: temperature: [^\n]*not 'hot'")
    terminal.expect("not 'hot'\n", prompt=True)
    terminal.type("/set max_new_tokens 12\r")
    terminal.expect("max_new_tokens 12\n", prompt=True)
    terminal.type("so it\\\rran\r")  # two lines
    terminal.expect(r"\[12 tokens, .*length\]", prompt=True)
    terminal.type("\x1b[A\x1b[A\x1b[A")  # up to the second line, to the first, to the entry before
    terminal.expect("/set max_new_tokens 12")
    terminal.type("\x1b[B\x1b[B\x1b[B\x15the dog\x1b\ron\r")  # down to an empty line, then Alt-Enter
    terminal.expect(r"\[12 tokens, .*length\]", prompt=True)
    terminal.type("\x1b[A\r")  # the newest entry of the history
    terminal.expect(r"\[12 tokens, .*length\]", prompt=True)
    terminal.type(f"/save {tmp_path}/saved.json\r")
    terminal.expect("saved /", prompt=True)
    terminal.type("/quti\r")
    terminal.expect("minigpt: no such command: /quti; did you mean quit[^\n]*\n", prompt=True)
    terminal.type("/quit\r")
    assert terminal.leave() == 0
    assert b"Traceback" not in terminal.raw
    messages = json.loads((tmp_path / "saved.json").read_text())["messages"]
    asked = [message["content"].strip() for message in messages if message["role"] == "user"]
    assert asked == ["the cat", "so it\nran", "the dog\non", "the dog\non"]
    assert 1000 < len(messages[1]["content"]) <= tokens
    assert messages[1]["content"] in shown(terminal.raw).replace("^C", "")  # what was shown is what is saved
    assert json.loads((tmp_path / "kept.json").read_text()) == json.loads((tmp_path / "saved.json").read_text())
    history = tmp_path / "chat_history"
    assert "+the cat\n" in history.read_text() and history.stat().st_mode & 0o077 == 0
    with capsys.disabled():
        print(f"\n{tokens} tokens before Ctrl-C, while resized 3 times; {len(messages)} messages kept")


@pytest.mark.slow
@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_leaving_at_the_prompt_and_coming_back(key: str, tuned: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    turns = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "the \x1b[2J dog"}]
    kept.write_text(json.dumps({"format": 1, "messages": turns, "settings": {"max_new_tokens": 3}, "answers": 1}))
    (tmp_path / "chat_history").write_text("\n+from before\n")
    terminal = Terminal([str(tuned), "--device", "cpu", "--system", "so", "--session", str(kept)], tmp_path)
    terminal.expect("answers. /help.*3 messages so far.*the \\\\x1b.2J dog", prompt=True)
    assert b"\x1b[2J dog" not in terminal.raw  # the output of a model does not control the terminal
    terminal.type("\x1b[A")
    terminal.expect("from before")
    terminal.type("\x15/sys\t")
    terminal.expect("/system")
    terminal.type("\x15/set tempe\t 0.25\r")
    terminal.expect("\ntemperature 0.25\n", prompt=True)
    terminal.type("why\r")
    terminal.expect(r"\[\d tokens, ", prompt=True)
    terminal.type(key)
    assert terminal.leave() == 0
    assert b"Traceback" not in terminal.raw
    roles = [message["role"] for message in json.loads(kept.read_text())["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]


def pipe(monkeypatch: pytest.MonkeyPatch, folder: Path, lines: bytes, argv: list[str]) -> int:
    """The command in this process, with these lines as standard input."""
    monkeypatch.setenv("MINIGPT_CONFIG", str(folder))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    return main(["chat", *argv, "--device", "cpu"])


def test_a_pipe_gets_the_answers_and_nothing_else(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    argv = ["--max-new-tokens", "20", "--seed", "7"]
    assert main(["generate", str(run), "--prompt", "the\ncat", *argv, "--device", "cpu"]) == 0
    expected = capsys.readouterr().out
    assert pipe(monkeypatch, tmp_path, b"the\\\ncat\n", [str(run), *argv]) == 0
    captured = capsys.readouterr()
    assert "the\ncat" + captured.out == expected
    assert captured.err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_that_was_finetuned_on_chats_answers(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    answers = {"cat": "on a mat.", "dog": "a barn.", "red": "it ran so."}
    pairs = [(one, two) for one in answers for two in answers] * 40
    chats = [
        [{"role": role, "content": text} for one in pair for role, text in (("user", one), ("assistant", answers[one]))]
        for pair in pairs
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    flags = "--optimizer.learning-rate 1e-2 --train.max-epochs 4 --logging.plots false --name answers"
    flags += f" --logging.runs-dir {tmp_path}"
    assert main(["finetune", str(run), str(tmp_path / "chats.jsonl"), *flags.split()]) == 0
    capsys.readouterr()
    asked = ["dog", "cat", "red", "red", "cat"]
    lines = "\n".join(asked).encode()
    assert pipe(monkeypatch, tmp_path, lines, [str(tmp_path / "answers"), "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [answers[one] for one in asked]  # each answer ends at its end of text
    assert captured.err.count("\n") == 1 and "full" in captured.err
    with capsys.disabled():
        print(f"\n{len(asked)} of {len(asked)} answers right, also after the context was full")


def test_a_pipe_goes_on_after_a_mistake_and_says_so_at_the_end(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    lines = b"/set top_k many\n/set top_k 4\n/stop\nthe cat\n/save x.json y\n/quit\nnever\n"
    monkeypatch.chdir(tmp_path)
    assert pipe(monkeypatch, tmp_path, lines, [str(run), "--max-new-tokens", "20", "--stop-at-eos", "False"]) == 2
    captured = capsys.readouterr()
    assert [line.split(";")[0] for line in captured.err.splitlines()] == [
        "minigpt: top_k: input should be a valid integer, not 'many'",
        "minigpt: no such command: /stop",
    ]
    assert captured.out.startswith("top_k 4\n") and captured.out.endswith("saved x.json y\n")
    assert len(json.loads((tmp_path / "x.json y").read_text())["messages"]) == 2


def test_a_preset_a_full_context_and_the_flags_go_together(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "generation.yaml").write_text("bold: {temperature: 1.5, top_k: 3}\n")
    argv = [str(run), "--preset", "bold", "--top-k", "2", "--max-new-tokens", "30"]
    assert pipe(monkeypatch, tmp_path, b"the cat\n\n\n\n\n/set top_k\n/set temperature\n", argv) == 0
    captured = capsys.readouterr()
    assert "\ntop_k 2: " in captured.out and "\ntemperature 1.5: " in captured.out
    assert captured.err.count("the context of 64 tokens is full") == 1


def test_a_character_that_the_model_never_saw_is_reported(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    assert pipe(monkeypatch, tmp_path, "the ☃ cat\n/set top_k 3\nthe cat\n".encode(), [str(run)]) == 0
    assert capsys.readouterr().err.count("1 character that the model never saw: ☃\n") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--tempratur", "1"], "did you mean --temperature?"),
        (["--num-samples", "2"], "one answer at a time"),
        (["--preset", "none"], "no preset none"),
        (["--system", "be brief"], "not tuned on chats"),
        (["--session", "cats.txt"], "cannot be read as a saved chat"),
        (["--session", "no/such/folder.json"], "cannot be written"),
        (["--draft", "no/such/run"], "no such run"),
    ],
)
def test_a_wrong_flag_is_one_line_before_anything_is_read(run, tmp_path, monkeypatch, capsys, flags, words) -> None:
    monkeypatch.chdir(run.parent)
    assert pipe(monkeypatch, tmp_path, b"never\n", [str(run), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert words in captured.err and captured.err.startswith("minigpt: ")
    assert (run.parent / "cats.txt").read_text() == TEXT * 80


def test_input_that_is_not_text_is_one_error_line(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    assert pipe(monkeypatch, tmp_path, b"\xff\xfe\n", [str(run)]) == 2
    assert capsys.readouterr().err.splitlines() == ["minigpt: standard input is not utf-8 text; convert it"]
