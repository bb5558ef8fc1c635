"""Test minigpt serve: from the command to an answer, and to a clean end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_run import fails
from served import make_runs

from minigpt.cli import main

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_the_command_serves_and_ctrl_c_ends_it_cleanly(tmp_path: Path):
    make_runs(tmp_path / "runs")
    words = [sys.executable, "-m", "minigpt", "serve", "--port", "0", "--host", "0.0.0.0", "--device", "cpu"]
    begun = time.monotonic()
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        said = ""
        while "at http" not in said:
            said += process.stderr.readline()
        key, port = re.search(r"a key: (\S+)", said), re.search(r":(\d+)/v1", said)
        assert key and port
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port[1]}", headers={"Authorization": f"Bearer {key[1]}"}, timeout=300
        ) as client:
            while True:
                try:
                    assert client.get("/health").status_code == 200
                    break
                except httpx.ConnectError:
                    time.sleep(0.02)
            up = time.monotonic() - begun
            asked = {"model": "base", "prompt": "a", "max_tokens": 4000, "stream": True, "n": 4}
            with client.stream("POST", "/v1/completions", json=asked) as answer:
                lines = answer.iter_lines()
                next(lines)
                process.send_signal(signal.SIGINT)
                rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        said += process.stderr.read()
    assert process.returncode == 0, said
    assert "Traceback" not in said and "ERROR" not in said
    print(f"/health answered {up:.1f} s after the command")


def test_a_wrong_command_is_one_clear_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["serve", "runs/my"], "no such run")
    fails(capsys, ["serve", "--port", "70000"], "65535")
    fails(capsys, ["serve", "--max-texts", "0"], "--max-texts")
    for name in ("--memory", "--max-seconds"):
        for value in ("inf", "nan"):
            fails(capsys, ["serve", name, value], f"{name} {value}: give a finite number above 0")
    fails(capsys, ["serve", "--api-key", "a key "], "--api-key")
    fails(capsys, ["serve", "--device", "gpu"], "--device: 'gpu' is not a device here")
    monkeypatch.setenv("MINIGPT_API_KEY", "")
    fails(capsys, ["serve"], "MINIGPT_API_KEY: use letters")
    monkeypatch.delenv("MINIGPT_API_KEY")
    make_runs(tmp_path / "runs")
    fails(capsys, ["serve", "--host", "256.1.1.1"], "256.1.1.1", "--host")


def test_without_runs_the_page_offers_to_train_the_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minigpt.serve.server.Server.run", lambda server, sockets: None)
    assert main(["serve", "--port", "0"]) == 0
    assert (
        f"no model in {tmp_path / 'runs'} yet; the page can train the first, at http://127.0.0.1:"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()


def test_help_needs_no_server(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert "--api-key" in capsys.readouterr().out
