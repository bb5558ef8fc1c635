"""Define all errors that a person can cause, as one tree. The command prints an error as one line and exits with 2.

    MiniGPTError                 anything that minigpt raises on purpose (exit code 1 if the person cannot fix it)
    ├── DivergedError            a loss, gradient or weight became NaN or infinite
    └── UserError                something that the person can fix (exit code 2)
        ├── ConfigError          wrong keys, types or values in a recipe or on the command line; has all of them
        ├── DataError            a text is missing, empty, binary, too short, or cannot be fetched
        │   ├── EncodingError    bytes are not in the given encoding
        │   └── TokenFileError   a token file is damaged, not a token file, or made by another tokenizer
        ├── TokenizerError       a tokenizer cannot be trained or loaded, or does not have a character
        ├── CheckpointError      a checkpoint is not one of minigpt, or does not fit the model
        │   └── DamagedError     a checkpoint is truncated or altered
        ├── RunError             a run exists already, or does not exist
        ├── GenerationError      a prompt or a sampling setting cannot be used
        ├── ParallelError        processes cannot find each other, or have lost each other
        └── StorageError         the disk is full, or a directory cannot be written

A message names the problem, then the fix: "no such file: my.txt; give a path, or one of stories, shakespeare".
"""

import difflib
import errno
from collections.abc import Iterable, Sequence
from pathlib import Path

MOST_CHOICES = 5
"""Most names that an error lists."""


class MiniGPTError(Exception):
    """Base of everything that minigpt raises on purpose."""

    exit_code = 1
    alone = False  # True: this process of several prints it at once. False: rank 0 has the same error, and prints it


class DivergedError(MiniGPTError):
    """Training diverged; the bad weights were not saved."""


class UserError(MiniGPTError):
    """A mistake that the person can fix; the message says how."""

    exit_code = 2


class ConfigError(UserError):
    """Wrong configuration. `problems` lists every mistake as "path: what is wrong"."""

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))


class DataError(UserError):
    """A text that cannot be used."""


class EncodingError(DataError):
    """Bytes that are not text in the given encoding."""


class TokenFileError(DataError):
    """A token file that is damaged, not a token file, or made by another tokenizer."""


class TokenizerError(UserError):
    """A tokenizer that cannot be trained, loaded or used on this text."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, not one of minigpt, or does not fit the model."""


class DamagedError(CheckpointError):
    """A checkpoint that has changed since it was written. `what`: the damage; `fix`: what to do."""

    def __init__(self, what: str, fix: str):
        self.what = what
        super().__init__(f"{what}; {fix}")


class RunError(UserError):
    """A run that exists already, or does not exist."""


class GenerationError(UserError):
    """A prompt or a setting of generation that cannot be used."""


class ParallelError(UserError):
    """Processes that train together but cannot find each other, or have lost each other."""


class StorageError(UserError):
    """The disk is full or the directory cannot be written; older files are whole. `why`: the system's reason."""

    def __init__(self, message: str, why: str = ""):
        self.why = why
        super().__init__(message)


def storage_error(path: str | Path, error: Exception, fix: str | None = None) -> StorageError:
    """Make the one-line error for a failed write. `fix`: advice for the person; "": none; None: that for a run's files.

    storage_error("x.json", error, "choose another file") -> "x.json: cannot be written (Is a directory); choose ..."

    `error` may be a StorageError about a temporary path, which the message then does not name.
    """
    why = str(getattr(error, "why", None) or getattr(error, "strerror", None) or error)
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in why or "os error 28" in why
    if fix is None and full:
        what = "the disk is full; free some space and resume, the previous checkpoint is whole"
        return StorageError(f"{path}: {what}", why)
    fix = "choose another directory with --logging.runs-dir" if fix is None else fix
    return StorageError(f"{path}: cannot be written ({why})" + (f"; {fix}" if fix else ""), why)


def nearest(name: str, choices: Iterable[str], more: str = "") -> str:
    """Make the hint at the end of an error about an unknown name, with at most `MOST_CHOICES` names.

    nearest("bathc_size", ["batch_size", "seed"])      -> "did you mean batch_size?"
    nearest("zzz", ["a", "b"])                         -> "choose from a, b"
    nearest("zzz", many, "see minigpt train --help")   -> "see minigpt train --help"

    `more`: where the person can find all names, if there are many.
    """
    choices = list(choices)
    if close := difflib.get_close_matches(name, choices, n=1):
        return f"did you mean {close[0]}?"
    return more if more and len(choices) > MOST_CHOICES else f"choose from {first_names(choices)}"


def first_names(names: Sequence[object], between: str = ", ") -> str:
    """The first `MOST_CHOICES` names, and how many more there are: "a, b, c, d, e and 7 more"."""
    more = f" and {len(names) - MOST_CHOICES:,} more" if len(names) > MOST_CHOICES else ""
    return between.join(map(str, names[:MOST_CHOICES])) + more


def first_line(error: BaseException) -> str:
    """The first line of an exception's message (torch's may have pages), or its class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
