"""What a person names as data -> documents: files of any kind, standard input, named texts, stories, Hugging Face.

A `Source` has one part, "train", which is still to be split, or its published parts train / val / test.
A plain text is one document, and so is each split of WikiText-2, so that figures compare with published ones;
of a directory each file is one, of JSON lines each line, of stories each story.

Names come before paths: a file called `stories` is reached as ./stories.
"""

import glob
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from minigpt.config import DataConfig
from minigpt.data import huggingface
from minigpt.data.named_datasets import NAMED
from minigpt.data.text_files import Blocks, binary_reason, check_encoding, is_json_lines, read_documents, spool_stdin
from minigpt.download import Progress, locate
from minigpt.errors import DataError, nearest
from minigpt.files import file_sha256

STORIES_SEED = 0
"""Seed of the stories that everybody trains on; another seed gives stories nobody has seen."""

Reader = Callable[[], Iterator[Blocks]]
"""Starts reading a part from its beginning."""


@dataclass(frozen=True)
class Source:
    """A text that can be read again and again.

    Attributes:
        name: as the person gave it.
        identity: plain values that change whenever the text may have changed; part of the cache's key.
        parts: split name -> reader of its documents.
        single: every part is known to be one document, without reading it.
        skipped: files of a directory or glob that are no text.
    """

    name: str
    identity: Any
    parts: Mapping[str, Reader]
    single: bool = False
    skipped: tuple[str, ...] = ()


def resolve(config: DataConfig, progress: Progress | None = None) -> Source:
    """The source that `config.source` names, downloaded if it is a published one that is not here yet.

    Raises:
        DataError: nothing of that name, empty, binary, unreadable, or not to be had.
        StorageError: a download cannot be stored.
    """
    check_encoding(config.encoding)
    name = config.source
    if name == "stories":
        return _stories(config)
    if name in NAMED:
        return _named(name, progress)
    if name.startswith("hf:"):
        identity, parts = huggingface.load(name.removeprefix("hf:"), config.text_field)
        return Source(name, identity, parts)
    if name == "-":
        path = spool_stdin()
        _check_file(path, config, "standard input")
        read = partial(read_documents, path, config.encoding, config.text_field, "standard input")
        return Source(name, ["stdin", file_sha256(path)], {"train": read}, single=True)
    return _files(config)


def _stories(config: DataConfig) -> Source:
    from minigpt.data.stories.generator import generate_stories

    def read() -> Iterator[Blocks]:
        return (iter((story,)) for story in generate_stories(config.stories_count, STORIES_SEED))

    folder = Path(__file__).parent / "stories"
    code = sha256(b"".join((folder / name).read_bytes() for name in ("generator.py", "grammar.py")))
    return Source("stories", ["stories", config.stories_count, STORIES_SEED, code.hexdigest()], {"train": read})


def _named(name: str, progress: Progress | None) -> Source:
    files = {split: locate(file, progress) for split, file in NAMED[name].items()}
    parts = {split: partial(read_documents, path, "utf-8", "text") for split, path in files.items()}
    return Source(name, [name, {split: file_sha256(path) for split, path in files.items()}], parts, single=True)


def _files(config: DataConfig) -> Source:
    name, path = config.source, Path(config.source).expanduser()
    if path.is_file():
        _check_file(path, config, name)
        return _file_source(config, [path], single=not is_json_lines(path))
    if path.is_dir():
        found = [entry for entry in path.rglob("*") if not _hidden(entry.relative_to(path))]
    elif glob.has_magic(name) and not path.exists():
        found = [Path(entry) for entry in glob.glob(str(path), recursive=True)]  # noqa: PTH207  may be absolute
    elif path.exists():
        raise DataError(f"{name}: is no file or directory; pipe it in: cat {name} | minigpt train -")
    else:
        raise _missing(name, path)
    found = sorted(entry for entry in found if entry.is_file())
    texts = [entry for entry in found if entry.stat().st_size]
    skipped = {entry: reason for entry in texts if (reason := binary_reason(entry, config.encoding))}
    texts = [entry for entry in texts if entry not in skipped]
    if not texts:
        binary = f", and of {len(found)} files the first {next(iter(skipped.values()))}" if skipped else ""
        where = "is a directory without text files" if path.is_dir() else "matches no text file"
        raise DataError(f"{name}: {where}{binary}; name files that hold text")
    return _file_source(config, texts, skipped=tuple(map(str, skipped)))


def _file_source(config: DataConfig, paths: list[Path], single: bool = False, skipped: tuple[str, ...] = ()) -> Source:
    def read() -> Iterator[Blocks]:
        for path in paths:
            yield from read_documents(path, config.encoding, config.text_field)

    identity = []
    for path in paths:
        stat = path.stat()
        identity.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    return Source(config.source, ["files", identity], {"train": read}, single, skipped)


def _check_file(path: Path, config: DataConfig, label: str) -> None:
    if path.stat().st_size == 0:
        raise DataError(f"{label}: is empty; give a text")
    reason = binary_reason(path, config.encoding)
    if reason:
        fix = "" if "--data.encoding" in reason else "; give plain text, .jsonl, or .gz of these"
        raise DataError(f"{label}: is no text, it {reason}{fix}")


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _missing(name: str, path: Path) -> DataError:
    names = [*NAMED, "stories"]
    siblings = {}
    if path.parent.is_dir():
        siblings = {entry.name: str(entry) for entry in path.parent.iterdir() if not entry.name.startswith(".")}
    hint = nearest(path.name, [*names, *siblings])
    if hint.startswith("did you mean"):
        near = hint.removeprefix("did you mean ").removesuffix("?")
        hint = f"did you mean {siblings.get(near, near)}?"
    else:
        hint = f"give a path, or one of {', '.join(sorted(names))}, hf:NAME"
    return DataError(f"no such file or data: {name}; {hint}")
