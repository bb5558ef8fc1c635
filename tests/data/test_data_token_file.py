"""Test that token files are read as they were written, and that damaged or foreign files are never read."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.data.token_file import TokenFile, TokenWriter, token_dtype
from minigpt.errors import StorageError, TokenFileError

MARK = "ab" * 32


def write(path: Path, *blocks: list[int], vocab_size: int = 1000, fingerprint: str = MARK) -> Path:
    with TokenWriter(path, vocab_size, fingerprint) as writer:
        for block in blocks:
            writer.append(np.array(block, np.int64))
    return path


@given(st.lists(st.lists(st.integers(0, 99_999), max_size=50), max_size=5), st.sampled_from([100_000, 2**31]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_ids_come_back(tmp_path: Path, blocks: list[list[int]], vocab_size: int) -> None:
    file = TokenFile(write(tmp_path / "x.tokens", *blocks, vocab_size=vocab_size), MARK)
    assert file.tokens.tolist() == [id_ for block in blocks for id_ in block]
    assert len(file) == file.count == len(file.tokens)


@pytest.mark.parametrize(("vocab_size", "width"), [(2, 2), (65_536, 2), (65_537, 4)])
def test_the_width_is_that_of_the_largest_id(tmp_path: Path, vocab_size: int, width: int) -> None:
    file = TokenFile(write(tmp_path / "x.tokens", [0, vocab_size - 1], vocab_size=vocab_size))
    assert file.tokens.tolist() == [0, vocab_size - 1]
    assert file.tokens.dtype.itemsize == token_dtype(vocab_size).itemsize == width
    assert (tmp_path / "x.tokens").stat().st_size == 128 + 2 * width


def test_ids_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    tokens = TokenFile(write(tmp_path / "x.tokens", [1, 2, 3])).tokens
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 5


@pytest.mark.parametrize("ids", [[1000], [-1], [5, 70_000]])
def test_an_id_outside_the_vocabulary_is_not_written(tmp_path: Path, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="vocabulary of 1000"):
        write(tmp_path / "x.tokens", ids)
    assert list(tmp_path.iterdir()) == []


def test_every_single_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tokens", [7, 8])
    good = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for at, byte in enumerate(good):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), at)
                with pytest.raises(TokenFileError, match="minigpt prepare"):
                    TokenFile(path)
            os.pwrite(file.fileno(), bytes([byte]), at)
    assert TokenFile(path).tokens.tolist() == [7, 8]


def test_every_truncation_and_extension_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tokens", [7, 8, 9])
    good = path.read_bytes()
    for bad in [good[:size] for size in range(len(good))] + [good + b"\0", good + good]:
        path.write_bytes(bad)
        with pytest.raises(TokenFileError, match="minigpt prepare"):
            TokenFile(path)


def test_a_large_file_is_verified_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.tokens", list(range(100)))
    monkeypatch.setattr("minigpt.data.token_file.CHECKED_ON_OPENING", 100)
    TokenFile(path).verify()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    file = TokenFile(path)
    with pytest.raises(TokenFileError, match="altered ids"):
        file.verify()


def test_another_tokenizers_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tokens", [1])
    assert TokenFile(path, MARK).fingerprint == MARK
    with pytest.raises(TokenFileError, match="another tokenizer"):
        TokenFile(path, "cd" * 32)


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY" + bytes(500))
    with pytest.raises(TokenFileError, match="is not a token file"):
        TokenFile(tmp_path / "x.npy")
    with pytest.raises(TokenFileError, match="No such file"):
        TokenFile(tmp_path / "none")


def test_a_later_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.data.token_file.VERSION", 2)
    path = write(tmp_path / "x.tokens", [1])
    monkeypatch.undo()
    with pytest.raises(TokenFileError, match="version 2, this is version 1"):
        TokenFile(path)


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tokens", [1, 2])
    with pytest.raises(RuntimeError), TokenWriter(path, 10, MARK) as writer:
        writer.append(np.array([3]))
        raise RuntimeError
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.tokens"]
    assert TokenFile(path).tokens.tolist() == [1, 2]


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files (setrlimit)")
def test_a_file_that_cannot_grow_is_a_storage_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tokens", [1, 2])
    code = (
        "import resource, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from minigpt.data.token_file import TokenWriter\n"
        "from minigpt.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))\n"
        "try:\n"
        "    with TokenWriter(Path(sys.argv[1]), 10, 'aa') as writer:\n"
        "        for _ in range(10): writer.append(np.ones(500_000, np.int64))\n"
        "except StorageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "cannot be written (File too large); free some space" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.tokens"]
    assert TokenFile(path).tokens.tolist() == [1, 2]


def test_a_missing_directory_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"--data\.cache-dir"):
        write(tmp_path / "none" / "x.tokens", [1])
