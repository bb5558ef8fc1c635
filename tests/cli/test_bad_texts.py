"""Test that an unusable text gives one line that names the fix, and that no run is made."""

from pathlib import Path

import pytest
from cli_run import SMALL, fails


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("no such",)),
        (b"", ("empty",)),
        (b"\x00\x01\x02\xff" * 500, ("not text", "zero byte")),
        (b"caf\xe9 au lait\n" * 300, ("utf-8", "--data.encoding")),
        (b"short\n", ("--model.max-seq-len",)),
        (
            b"a few words, but no window of validation text\n" * 6,
            ("validation", "--model.max-seq-len", "--data.val-fraction"),
        ),
    ],
    ids=["missing", "empty", "binary", "undecodable", "tiny", "no validation window"],
)
def test_a_text_that_cannot_be_used(content, parts, tmp_path: Path, capsys) -> None:
    path = tmp_path / "my.txt"
    if content is not None:
        path.write_bytes(content)
    fails(capsys, ["train", str(path), *SMALL, "--logging.runs-dir", str(tmp_path / "runs")], *parts)
    assert not (tmp_path / "runs").exists()


def test_no_network_and_no_mirror_is_reported(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("MINIGPT_DATA", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    argv = ["train", "shakespeare", "--logging.runs-dir", str(tmp_path / "runs")]
    fails(capsys, argv, "shakespeare", "MINIGPT_DATA", "https://")
