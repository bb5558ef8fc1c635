"""Every error that a person can cause, as one tree. The command prints it as one clear line and exits with 2.

    MiniGPTError                 anything minigpt raises on purpose (exit code 1 where nobody is to blame)
    ├── DivergedError            a loss, gradient or weight that is not a number any more
    └── UserError                something the person can fix (exit code 2)
        ├── ConfigError          wrong key, type or value in a recipe or on the command line; holds all of them
        ├── DataError            a text that is missing, empty, binary, too short, or that cannot be fetched
        │   ├── EncodingError    bytes that are not in the encoding asked for
        │   └── TokenFileError   a token file that is damaged, foreign, or made by another tokenizer
        ├── TokenizerError       a tokenizer that cannot be trained, loaded, or that does not know a character
        ├── CheckpointError      a checkpoint that is foreign, or does not fit the model
        │   └── DamagedError     one that is truncated or altered
        ├── RunError             a run that exists already, or that does not exist
        ├── GenerationError      a prompt or a sampling setting that cannot be used
        ├── ParallelError        processes that do not find each other, or that lost each other
        └── StorageError         a disk that is full or a directory that cannot be written

A message names the problem, then the fix: "no such file: my.txt; give a path, or one of stories, shakespeare".
"""

import difflib
import errno
from collections.abc import Iterable, Sequence
from pathlib import Path

MOST_CHOICES = 5
"""Names that an error suggests."""


class MiniGPTError(Exception):
    """Base of everything minigpt raises on purpose."""

    exit_code = 1
    alone = False  # of several processes, whether this one alone knows of it; else the first of them tells it


class DivergedError(MiniGPTError):
    """Training blew up; nothing of it was saved."""


class UserError(MiniGPTError):
    """A mistake that the person can fix; its message says how."""

    exit_code = 2


class ConfigError(UserError):
    """Wrong configuration. `problems` lists every mistake as "path: what is wrong"."""

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))


class DataError(UserError):
    """A text that cannot be used."""


class EncodingError(DataError):
    """Bytes that are not text in the encoding asked for."""


class TokenFileError(DataError):
    """A token file that is damaged, foreign, or made by another tokenizer."""


class TokenizerError(UserError):
    """A tokenizer that cannot be trained, loaded or used on this text."""


class CheckpointError(UserError):
    """A checkpoint that is damaged, foreign, or does not fit."""


class DamagedError(CheckpointError):
    """A checkpoint that is not as it was written. `what` is the damage, `fix` what to do."""

    def __init__(self, what: str, fix: str):
        self.what = what
        super().__init__(f"{what}; {fix}")


class RunError(UserError):
    """A run that exists already, or that is not there."""


class GenerationError(UserError):
    """A prompt or a setting of generation that cannot be used."""


class ParallelError(UserError):
    """Processes that train together and do not find, or have lost, each other."""


class StorageError(UserError):
    """The disk is full or the directory cannot be written; what was there before is whole."""


def storage_error(path: str | Path, error: Exception, fix: str | None = None) -> StorageError:
    """The one-line error for a failed write. `fix`: what the person can do ("": nothing to say), by default in a run.

    storage_error("x.json", error, "choose another file") -> "x.json: cannot be written (Is a directory); choose ..."
    """
    if fix is not None:
        why = getattr(error, "strerror", None) or error
        return StorageError(f"{path}: cannot be written ({why})" + (f"; {fix}" if fix else ""))
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text or "os error 28" in text:
        return StorageError(f"{path}: the disk is full; free some space and resume, the previous checkpoint is whole")
    return StorageError(f"{path}: cannot be written ({text}); choose another directory with --logging.runs-dir")


def nearest(name: str, choices: Iterable[str], more: str = "") -> str:
    """The hint that ends an error about an unknown name: at most `MOST_CHOICES` names.

    nearest("bathc_size", ["batch_size", "seed"])      -> "did you mean batch_size?"
    nearest("zzz", ["a", "b"])                         -> "choose from a, b"
    nearest("zzz", many, "see minigpt train --help")   -> "see minigpt train --help"

    `more`: where all the names stand, if there are many.
    """
    choices = list(choices)
    if close := difflib.get_close_matches(name, choices, n=1):
        return f"did you mean {close[0]}?"
    if len(choices) <= MOST_CHOICES:
        return f"choose from {', '.join(choices)}"
    return more or f"choose from {', '.join(choices[:MOST_CHOICES])} and {len(choices) - MOST_CHOICES} more"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, its class where it has none: torch's go on for pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
