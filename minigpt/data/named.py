"""Texts known by name: where they are published, their sha256, and where they lie on this machine.

A file is looked for in $MINIGPT_DATA (a mirror somebody made), then in the cache ($MINIGPT_CACHE, else
~/.cache/minigpt), then downloaded. Whatever lies there is checked by sha256 each time: it costs 1 ms a MB.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minigpt.data.download import Progress, fetch, file_sha256
from minigpt.errors import DataError


@dataclass(frozen=True)
class RemoteFile:
    """One published file. `sha256` lists the accepted digests, the published one first."""

    path: str
    url: str
    sha256: tuple[str, ...]


_WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"

NAMED: Mapping[str, Mapping[str, RemoteFile]] = {
    "shakespeare": {
        "train": RemoteFile(
            "tinyshakespeare/input.txt",
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            ("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",),
        ),
    },
    "wikitext-2": {
        "train": RemoteFile(
            "wikitext-2/train.txt",
            f"{_WIKITEXT}/train.txt",
            (
                "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
                # rebuilt from Hugging Face's copy: the same lines in another article order, 23 of which begin
                # with a quotation mark too many, so it has 2,088,651 words where the published file has 2,088,628
                "4780fcd561e987ce297832efaa685cc4887effe12eaaa1bfa2955332ce71da6d",
            ),
        ),
        "val": RemoteFile(
            "wikitext-2/valid.txt",
            f"{_WIKITEXT}/valid.txt",
            ("f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",),
        ),
        "test": RemoteFile(
            "wikitext-2/test.txt",
            f"{_WIKITEXT}/test.txt",
            ("d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",),
        ),
    },
}


def cache_root(cache_dir: str | None = None) -> Path:
    """`cache_dir`, else $MINIGPT_CACHE, else ~/.cache/minigpt."""
    return Path(cache_dir or os.environ.get("MINIGPT_CACHE") or "~/.cache/minigpt").expanduser()


def locate(file: RemoteFile, progress: Progress | None = None) -> Path:
    """A published file on this machine, downloaded if need be.

    Raises:
        DataError: it is nowhere and cannot be fetched, or what lies there is another file.
        StorageError: the cache cannot be written.
    """
    mirror = os.environ.get("MINIGPT_DATA")
    cached = cache_root() / "datasets" / file.path
    for path in ([Path(mirror) / file.path] if mirror else []) + [cached]:
        if path.is_file():
            return _checked(path, file, is_mirror=path != cached)
    hint = f"; put the file at {cached} by hand, or name a directory that holds {file.path} with MINIGPT_DATA"
    return fetch(file.url, cached, file.sha256, progress, hint=hint)


def _checked(path: Path, file: RemoteFile, is_mirror: bool) -> Path:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); mend its permissions") from None
    if found not in file.sha256:
        fix = "mend the mirror, or unset MINIGPT_DATA to download it" if is_mirror else "delete it, and it is fetched"
        raise DataError(f"{path}: sha256 {found[:16]}… is not the published {file.sha256[0][:16]}…; {fix}")
    return path
