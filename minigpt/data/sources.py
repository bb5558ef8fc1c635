"""Find the text that `data.source` names, and read its documents: files, standard input, named texts, stories, hf:NAME.

A `Source` has one part, "train", which is not split yet, or its published parts train, val and test.

These are one document each: a plain text; a split of WikiText, text8 or enwik8, as in published results; a file of a
directory; a line of JSON lines; a story.

Names come before paths: to read a file called `stories`, write ./stories.
"""

import contextlib
import glob
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from minigpt.config import DataConfig
from minigpt.data import huggingface
from minigpt.data.json_rows import LINES, Form, json_form, read_documents
from minigpt.data.named_datasets import NAMED, Part
from minigpt.data.text_files import Blocks, binary_reason, check_encoding, decoded, spool_stdin, unreadable, zipped
from minigpt.download import Progress, digest, locate
from minigpt.errors import DataError, EncodingError, first_names, nearest
from minigpt.files import expand_home, find
from minigpt.layout import RunFolder

STORIES_SEED = 0
"""Seed of the stories that all runs train on. Another seed gives stories that no run has seen."""

Reader = Callable[[], Iterator[Blocks]]
"""Starts reading a part from its beginning."""


@dataclass(frozen=True)
class Source:
    """A text that can be read again and again.

    Attributes:
        name: the name that the person gave.
        identity: plain values that change whenever the text may have changed; part of the cache's key.
        parts: split name -> reader of its documents.
        single: every part is known to be one document, without reading it.
        skipped: files of a directory or glob that are not text.
    """

    name: str
    identity: Any
    parts: Mapping[str, Reader]
    single: bool = False
    skipped: tuple[str, ...] = ()


def resolve(config: DataConfig, progress: Progress | None = None) -> Source:
    """Find the source that `config.source` names. A published text is downloaded if it is not here yet.

    Raises:
        DataError: no such text, empty, binary, unreadable, or it cannot be downloaded.
        StorageError: a download cannot be stored.
    """
    check_encoding(config.encoding)
    source, mark = _find(config, progress), config.split_at
    if not mark:
        return source
    parts = {split: partial(_split_all, read, mark) for split, read in source.parts.items()}
    return replace(source, identity=[source.identity, mark], parts=parts, single=False)


def _find(config: DataConfig, progress: Progress | None) -> Source:
    name = config.source
    if not name:  # as a path it would mean this folder
        raise DataError("data.source: is empty; name a text, or . for the files in this folder")
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
        form = json_form(path, config.encoding)
        read = partial(read_documents, path, config.encoding, config.text_field, "standard input", form)
        return Source(name, ["stdin", digest(path), *_form_parts(form)], {"train": read}, single=form is None)
    return _files(config)


def _split_all(read: Reader, mark: str) -> Iterator[Blocks]:
    """Cut each document at every mark, and remove the marks."""
    for blocks in read():
        yield from _split(blocks, mark)


def _split(blocks: Blocks, mark: str) -> Iterator[Blocks]:
    pieces, more = _pieces(blocks, mark), True

    def part() -> Blocks:
        nonlocal more
        for piece in pieces:
            if piece is None:
                return
            yield piece
        more = False

    while more:
        document = part()
        yield document
        for _ in document:  # skip the pieces that the reader has not read
            continue


def _pieces(blocks: Blocks, mark: str) -> Iterator[str | None]:
    """Yield the text in pieces, and None in place of each mark; a mark may begin in one block and end in the next."""
    held = ""
    for block in blocks:
        *parts, last = (held + block).split(mark)
        for part in parts:
            yield from [part] if part else []
            yield None
        cut = max(0, len(last) - len(mark) + 1)
        yield from [last[:cut]] if cut else []
        held = last[cut:]
    yield from [held] if held else []


def _stories(config: DataConfig) -> Source:
    from minigpt.data.stories.generator import generate_stories

    def read() -> Iterator[Blocks]:
        return (iter((story,)) for story in generate_stories(config.stories_count, STORIES_SEED))

    folder = Path(__file__).parent / "stories"
    code = sha256(b"".join((folder / name).read_bytes() for name in ("generator.py", "grammar.py")))
    return Source("stories", ["stories", config.stories_count, STORIES_SEED, code.hexdigest()], {"train": read})


def _named(name: str, progress: Progress | None) -> Source:
    files = {split: locate(part.file, progress) for split, part in NAMED[name].items()}
    readers = {split: partial(_read_part, files[split], part) for split, part in NAMED[name].items()}
    single = not any(part.split_at for part in NAMED[name].values())
    return Source(name, [name, {split: digest(path) for split, path in files.items()}], readers, single)


def _read_part(path: Path, part: Part) -> Iterator[Blocks]:
    """Yield the documents of one split of a published text, without the line ends next to the marks."""
    blocks = zipped(path, part.member, part.start, part.stop) if part.member else decoded(path, "utf-8", str(path))
    if not part.split_at:
        yield blocks
        return
    for document in _split(blocks, part.split_at):
        if text := "".join(document).strip("\n"):
            yield iter((text,))


def _files(config: DataConfig) -> Source:
    name, path = config.source, Path(expand_home(config.source))
    try:
        there = find(path)
    except OSError as error:
        raise unreadable(path, error) from None
    if there and stat.S_ISREG(there.st_mode):
        _check_file(path, config, name)
        form = json_form(path, config.encoding)
        return _file_source(config, {path: form}, single=form is None)
    if there and stat.S_ISDIR(there.st_mode):
        found, left = _walk(path)
    elif there:
        raise DataError(f"{name}: is not a file or directory; pipe it in: cat {name} | minigpt train -")
    elif glob.has_magic(name):
        found, left = [Path(entry) for entry in glob.glob(str(path), recursive=True)], {}  # noqa: PTH207  may be absolute
    else:
        raise _missing(name, path)
    folder, found = there is not None, sorted(entry for entry in found if entry.is_file())
    skipped: dict[Path, str] = {}
    forms: dict[Path, Form | None] = {}
    for entry in found:
        there = entry.stat()
        if not there.st_size:
            continue
        reason, form = _kind(str(entry), config.encoding, there.st_size, there.st_mtime_ns)
        if reason:
            skipped[entry] = reason
        else:
            forms[entry] = form
    for entry, form in list(forms.items()):
        if form and not entry.name.lower().endswith(LINES) and (reason := _no_rows(entry, form, config)):
            left[entry] = reason
            del forms[entry]
    if not forms:
        why = next((f": {entry} {reason}" for entry, reason in [*skipped.items(), *left.items()]), "")
        where = "is a directory without text files" if folder else "matches no text file"
        raise DataError(f"{name}: {where}{why}; name files that hold text")
    if left:
        reasons = [f"{entry} {reason}" for entry, reason in left.items()]
        warnings.warn(f"{name}: left out: {first_names(reasons)}", stacklevel=2)
    return _file_source(config, forms, skipped=tuple(map(str, skipped)))


@lru_cache(maxsize=1 << 18)
def _kind(path: str, encoding: str, size: int, mtime_ns: int) -> tuple[str | None, Form | None]:
    """The reason why a file is not text, and the form of its JSON. Kept, so that a process looks at each file once.

    A run finds its text several times, and a folder may have 200,000 files.
    """
    reason = binary_reason(Path(path), encoding)
    return reason, None if reason else json_form(Path(path), encoding)


def _walk(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Find the files of a folder and of the folders in it, except hidden ones; and the other entries, with a reason.

    Runs are left out: after `minigpt train .` the same command finds runs/ among the texts.

    Raises DataError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename), error) from None

    found: list[Path] = []
    left: dict[Path, str] = {}
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [*folders]:
            if Path(place, name).is_symlink():
                left[Path(place, name)] = f"(a link to a folder; to read it, name a glob: '{folder}/**/*')"
            elif _is_run(Path(place, name)):
                left[Path(place, name)] = "(a run of minigpt)"
                folders.remove(name)
        for entry in (Path(place, name) for name in files if not name.startswith(".")):
            try:
                is_file = entry.is_file()
            except OSError as error:
                raise unreadable(entry, error) from None
            if is_file:
                found.append(entry)
            else:
                left[entry] = "(a link to nothing)" if entry.is_symlink() else "(not a file)"
    return found, left


def _is_run(folder: Path) -> bool:
    try:
        return RunFolder(folder).is_run and RunFolder(folder).checkpoints.is_dir()
    except OSError:  # the walk reports a folder that cannot be read
        return False


def _no_rows(path: Path, form: Form, config: DataConfig) -> str | None:
    """The reason why the first row of a JSON file is not a text; None if it is a text."""
    try:
        next(read_documents(path, config.encoding, config.text_field, None, form), None)
    except EncodingError:  # reported when the text is read
        return None
    except DataError as error:
        return f"(JSON: {str(error).removeprefix(str(path)).lstrip(': ')})"
    return None


def _file_source(
    config: DataConfig, paths: Mapping[Path, Form | None], single: bool = False, skipped: tuple[str, ...] = ()
) -> Source:
    def read() -> Iterator[Blocks]:
        for path, form in paths.items():
            yield from read_documents(path, config.encoding, config.text_field, None, form)

    identity = []
    for path, form in paths.items():
        there = path.stat()
        identity.append([str(path.resolve()), there.st_size, there.st_mtime_ns, *_form_parts(form)])
    return Source(config.source, ["files", identity], {"train": read}, single, skipped)


def _check_file(path: Path, config: DataConfig, label: str) -> None:
    if path.stat().st_size == 0:
        raise DataError(f"{label}: is empty; give a text")
    reason = binary_reason(path, config.encoding)
    if reason:
        fix = "" if "--data.encoding" in reason else "; give plain text, .jsonl, or .gz of these"
        raise DataError(f"{label}: is not text, it {reason}{fix}")


def _form_parts(form: Form | None) -> list[str]:
    """The form as a part of a file's identity: a cached text that was read in another form is not used."""
    return [form] if form else []


def _missing(name: str, path: Path) -> DataError:
    names = [*NAMED, "stories"]
    siblings = {}
    with contextlib.suppress(OSError):  # the folder is missing, or may not be read
        siblings = {entry.name: str(entry) for entry in path.parent.iterdir() if not entry.name.startswith(".")}
    hint = nearest(path.name, [*names, *siblings])
    if hint.startswith("did you mean"):
        near = hint.removeprefix("did you mean ").removesuffix("?")
        hint = f"did you mean {siblings.get(near, near)}?"
    else:
        hint = f"give a path, or one of {', '.join(sorted(names))}, hf:NAME"
    return DataError(f"no such file or data: {name}; {hint}")
