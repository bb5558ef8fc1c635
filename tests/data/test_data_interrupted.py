"""Test that a preparation leaves nothing half-written if it is interrupted, killed, raced or short of disk."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from split_text import cached, jsonl

from minigpt.config import DataConfig
from minigpt.data import load_prepared, prepare
from minigpt.data.encode import CHUNK
from minigpt.errors import DataError, StorageError
from minigpt.tokenizers import ByteTokenizer, safe_cut

PASSAGE = "It was a bright cold day in April, and the clocks were striking 13.\n"


def numbered(count: int) -> str:
    return "".join(f"{n} {PASSAGE}" for n in range(count))


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, DataError])
def test_an_exception_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    class Failing(ByteTokenizer):
        def encode_array(self, text: str) -> np.ndarray:
            if "9 " in text:
                raise failure
            return super().encode_array(text)

    (tmp_path / "my.txt").write_text(numbered(2 * CHUNK // len(PASSAGE)))
    config = DataConfig(source=str(tmp_path / "my.txt"), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(failure):
        prepare(config, Failing(), safe_cut)
    assert files_below(tmp_path / "cache") == ["prepared"]


def test_a_text_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    class Touching(ByteTokenizer):
        def encode_array(self, text: str) -> np.ndarray:
            os.utime(tmp_path / "my.txt", ns=(1, 1))
            return super().encode_array(text)

    (tmp_path / "my.txt").write_text("0123456789" * 9)
    config = DataConfig(source=str(tmp_path / "my.txt"), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(config, Touching(), safe_cut)
    assert files_below(tmp_path / "cache") == ["prepared"]


WORKER = """
import sys, time
from pathlib import Path
from minigpt.config import DataConfig
from minigpt.data import prepare
from minigpt.tokenizers import ByteTokenizer, safe_cut

pauses = map(float, sys.argv[3:])

class Slow(ByteTokenizer):
    def encode_array(self, text):
        Path(sys.argv[2], f"at-work-{time.monotonic_ns()}").touch()
        time.sleep(next(pauses, 0))
        return super().encode_array(text)

config = DataConfig(source=sys.argv[1], cache_dir=sys.argv[2])
print(prepare(config, Slow(), safe_cut, workers=1).directory)
"""


def start(config: DataConfig, *pauses: float) -> "subprocess.Popen[str]":
    """A process that prepares, and pauses before it encodes each of the first chunks."""
    assert config.cache_dir is not None
    command = [sys.executable, "-c", WORKER, config.source, config.cache_dir, *map(str, pauses)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_preparation_leaves_no_directory_and_the_next_sweeps_up(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "my.txt").write_text(numbered(4 * CHUNK // len(PASSAGE)))
    config = DataConfig(source=str(tmp_path / "my.txt"), cache_dir=str(cache))
    process = start(config, 0, 600)
    while len(list(cache.glob("at-work-*"))) < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = cached(config)
    assert [path.name.endswith(".tmp") for path in left] == [True]
    prepared = prepare(config, ByteTokenizer(), safe_cut)
    assert cached(config) == [prepared.directory]


def test_two_at_once_do_not_break_each_other(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "my.txt").write_text(numbered(2 * CHUNK // len(PASSAGE)))
    config = DataConfig(source=str(tmp_path / "my.txt"), cache_dir=str(cache))
    processes = [start(config, 0.2, 0.2, 0.2), start(config, 0.2, 0.2, 0.2)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    directory = Path(answers[0][0].strip())
    assert cached(config) == [directory]
    load_prepared(directory, ByteTokenizer().fingerprint)  # raises if it is not whole


def test_a_cache_that_cannot_be_made_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    config = jsonl(tmp_path / "my.jsonl", ["one", "two"])
    with pytest.raises(StorageError) as error:
        prepare(config.model_copy(update={"cache_dir": str(tmp_path / "file")}), ByteTokenizer(), safe_cut)
    assert "\n" not in str(error.value)
    assert "--data.cache-dir" in str(error.value)
    with pytest.raises(StorageError) as error:
        prepare(config, ByteTokenizer(), safe_cut, tmp_path / "file/out")
    assert str(error.value) == f"{tmp_path / 'file'}: cannot be written (File exists); choose another --out"
    monkeypatch.setattr(ByteTokenizer, "save", lambda self, path: (tmp_path / "file/x").write_text(""))
    with pytest.raises(StorageError) as error:
        prepare(config, ByteTokenizer(), safe_cut, tmp_path / "out")
    assert str(error.value) == f"{tmp_path / 'out'}: cannot be written (Not a directory); choose another --out"


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("0123456789" * 400_000)
    code = (
        "import resource, sys\n"
        "from minigpt.config import DataConfig\n"
        "from minigpt.data import prepare\n"
        "from minigpt.errors import StorageError\n"
        "from minigpt.tokenizers import ByteTokenizer, safe_cut\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))\n"
        "try: prepare(DataConfig(source=sys.argv[1], cache_dir=sys.argv[2]), ByteTokenizer(), safe_cut)\n"
        "except StorageError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "my.txt"), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "cannot be written (File too large); free some space" in done.stdout, done.stderr
    assert files_below(tmp_path / "cache") == ["prepared"]
