"""Convert a text of any size to token files, with constant memory. They are written completely or not at all.

    CACHE/prepared/KEY/ {train.tokens, val.tokens, test.tokens, tokenizer.json, meta.json}

KEY is a hash of everything that the ids depend on: the text's identity (path, size and change time of each file, or
the sha256 of a published file), cleaning, splitting, the tokenizer's fingerprint, the version of the format. So the
same preparation is found again at once, and a changed file is prepared again.

Everything is written into a temporary directory, which is renamed at the end. If two processes prepare the same text,
both write their own directory, and the one that finishes second uses the directory of the other. The next process
deletes the unfinished directory of a killed process.

The end-of-text id follows each document if there are several and the tokenizer has such an id. A text that is one
document gets none.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.config import DataConfig
from minigpt.data.corpus import Corpus, changed, corpus_key, open_corpus
from minigpt.data.encode import Encoder, encode_corpus
from minigpt.data.sources import Source, resolve
from minigpt.data.token_file import ANOTHER_CACHE, TokenFile
from minigpt.download import Progress, cache_root
from minigpt.errors import DataError, StorageError, TokenFileError, storage_error
from minigpt.files import delete_folder, find, move, parse_json, temporary_path
from minigpt.layout import TOKENIZER
from minigpt.tokenizers.base import Tokenizer

VERSION = 1


@dataclass(frozen=True)
class Prepared:
    """A prepared text.

    Attributes:
        directory: its directory.
        meta: the content of meta.json: version, key, source, encoding, clean, val_fraction, eos, skipped,
            tokenizer {kind, vocab_size, fingerprint}, splits {name: {tokens, bytes, chars, words, documents, sha256}}.
        splits: train, val, and test if the source has a published test split.
    """

    directory: Path
    meta: dict[str, Any]
    splits: dict[str, TokenFile]

    @property
    def sha256(self) -> dict[str, str]:
        """The sha256 of the text of each split."""
        return {name: split["sha256"] for name, split in self.meta["splits"].items()}

    def predicted_bytes(self, split: str, tokenizer: Tokenizer) -> int:
        """Bytes of a split's source without those of its first token, which is not predicted.

        All other bytes count, also those that a tokenizer of words does not keep.
        """
        first = int(self.splits[split].tokens[0])
        return self.meta["splits"][split]["bytes"] - len(tokenizer.token_bytes(first))


def prepare(
    config: DataConfig,
    tokenizer: Encoder,
    safe_cut: Callable[[str], int],
    out: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Prepared:
    """Convert a text to token files, or find them in the cache.

    Args:
        config: the text, and how it is cleaned and split.
        tokenizer: encodes the text.
        safe_cut: text -> the largest index at which it may be cut without changing ids; 0 for none.
        out: a directory to write instead of the cache; it must be new or empty.
        progress: called with (label, characters done, all characters).
        workers: number of threads that encode (default: number of processors, at most 8).

    Raises:
        DataError, EncodingError: the text cannot be used.
        StorageError: the directory cannot be written, or the disk is full; nothing incomplete is left.
    """
    source = resolve(config, progress)
    target, key = _target(source, config, tokenizer.fingerprint, out)
    if (found := _reuse(target, key, tokenizer.fingerprint, given=out is not None)) is not None:
        return found
    corpus = open_corpus(config, progress, source)
    with _temporary(target, _fix(out)) as folder:
        counted = encode_corpus(corpus, tokenizer, safe_cut, folder, progress, workers or min(8, os.cpu_count() or 1))
        if resolve(config).identity != source.identity:
            raise changed(config.source)
        meta = _meta(corpus, tokenizer, key, counted)
        tokenizer.save(folder / TOKENIZER)
        (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        _publish(folder, target, tokenizer.fingerprint)
    return load_prepared(target, tokenizer.fingerprint)


def load_prepared(directory: str | Path, fingerprint: str | None = None) -> Prepared:
    """Load a directory that `prepare` wrote. Raises TokenFileError if it is damaged or of another tokenizer."""
    directory = Path(directory)
    try:
        meta = parse_json((directory / "meta.json").read_bytes())
        counts = {str(name): split["tokens"] for name, split in meta["splits"].items()}
        version, *_ = (meta[name] for name in ("version", "key", "source", "clean", "skipped", "tokenizer"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TokenFileError(
            f"{directory}: is not a complete preparation ({error}); prepare the data again: minigpt prepare SOURCE"
        ) from None
    if version != VERSION:
        raise TokenFileError(f"{directory}: is of format version {version}, not {VERSION}; prepare the data again")
    splits = {name: TokenFile(directory / f"{name}.tokens", fingerprint) for name in counts}
    for name, file in splits.items():
        if len(file) != counts[name]:
            raise TokenFileError(f"{file.path}: is not the file that meta.json describes; prepare the data again")
    return Prepared(directory, meta, splits)


def _target(source: Source, config: DataConfig, fingerprint: str, out: Path | None) -> tuple[Path, str]:
    parts = [VERSION, *corpus_key(source, config), fingerprint]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return Path(out) if out is not None else cache_root(config.cache_dir) / "prepared" / key[:32], key


def _reuse(target: Path, key: str, fingerprint: str, given: bool) -> Prepared | None:
    """Load the target if it is the wanted preparation, else None. A directory that the user gave is not overwritten."""
    try:
        if not find(target):
            return None
    except OSError as error:
        raise storage_error(target, error, _fix(target if given else None)) from None
    try:
        found = load_prepared(target, fingerprint)
        if found.meta["key"] == key:
            return found
        problem = "holds another preparation"
    except TokenFileError as error:
        problem = str(error).split("; ")[0] if (target / "meta.json").exists() else "is not empty"
    if given and (not target.is_dir() or any(target.iterdir())):
        problem = problem.removeprefix(f"{target}: ")
        raise DataError(f"{target}: {problem}; give --out a new directory, or remove this one")
    if given and (target == Path() or os.path.ismount(target)):
        raise DataError(f"{target}: cannot be replaced; give --out a new directory in it: {target / 'prepared'}")
    return None


def _meta(corpus: Corpus, tokenizer: Encoder, key: str, counted: Mapping[str, Any]) -> dict[str, Any]:
    config = corpus.config
    return {
        "version": VERSION,
        "key": key,
        "source": config.source,
        "encoding": config.encoding,
        "clean": list(config.clean),
        "val_fraction": config.val_fraction,
        "eos": corpus.many and tokenizer.eos_id is not None,
        "skipped": list(corpus.source.skipped),
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
        },
        "splits": dict(counted),
    }


def _fix(out: Path | None) -> str:
    """What to do if the directory cannot be written. `out`: the one that the person gave."""
    return ANOTHER_CACHE if out is None else "choose another --out"


@contextlib.contextmanager
def _temporary(target: Path, fix: str) -> Iterator[Path]:
    """A directory next to the target, deleted at the end unless it was renamed. Raises StorageError for the target."""
    folder = temporary_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(target.parent, error, fix) from None
    try:
        folder.mkdir()
        yield folder
    except (OSError, StorageError) as error:
        raise storage_error(target, error, fix) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, target: Path, fingerprint: str) -> None:
    """Give the finished directory its name. If another process was first and its files are whole, keep those."""
    for _ in range(3):
        try:
            move(folder, target)
            return
        except OSError:
            if not target.exists():
                raise
        try:
            load_prepared(target, fingerprint)
            return
        except TokenFileError:  # damaged: delete it
            with contextlib.suppress(OSError):  # another process may be deleting it too
                delete_folder(target)
    move(folder, target)
