"""Test that an unusable text gives one line that names the fix, and that no run is made."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_run import SMALL, fails

from minigpt.errors import DataError
from minigpt.runs.feeds import check_lengths


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ("no such",)),
        (b"", ("empty",)),
        (b"\x00\x01\x02\xff" * 500, ("not text", "zero byte")),
        (b"caf\xe9 au lait\n" * 300, ("utf-8", "--data.encoding")),
        (b"short\n", ("the training text has 5 tokens, but one window needs 33; give more text",)),
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


def test_a_context_is_named_only_if_both_splits_fill_it() -> None:
    def said(train: int, val: int, flag: str | None = "--finetune.seq-len") -> str:
        splits = {"train": SimpleNamespace(count=train), "val": SimpleNamespace(count=val)}
        prepared: Any = SimpleNamespace(splits=splits)
        with pytest.raises(DataError) as error:
            check_lengths(prepared, 128, flag)
        return str(error.value)

    assert said(100, 11).endswith("give more text, or set --finetune.seq-len 5"), "a window of 50 would not fit val"
    assert said(900, 11).endswith("a larger --data.val-fraction, or set --finetune.seq-len 5")
    assert said(900, 1).endswith("a larger --data.val-fraction") and said(100, 11, None).endswith("give more text")


@pytest.mark.parametrize("length", [["--train.max-steps", "2"], ["--budget", "1m"]])
def test_a_device_that_is_not_here_is_refused_before_the_text_is_read(length: list[str], capsys) -> None:
    argv = ["train", "no-such-text.txt", *length, "--train.device"]
    fails(capsys, [*argv, "gpu"], "--train.device: 'gpu' is not a device here; choose from auto,")
    fails(capsys, [*argv, "cpu", "--train.precision", "fp16"], "--train.precision: fp16 does not train on a CPU")


def test_no_network_and_no_mirror_is_reported(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("MINIGPT_DATA", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    argv = ["train", "shakespeare", "--logging.runs-dir", str(tmp_path / "runs")]
    fails(capsys, argv, "shakespeare", "MINIGPT_DATA", "https://")
