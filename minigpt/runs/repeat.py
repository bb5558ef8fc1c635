"""Write one shell line that repeats a run."""

import shlex
from typing import Any

from minigpt.runs.record import RunRecord
from minigpt.runs.settings import as_flag, essential, flat


def receipt_line(run: RunRecord, flags: bool = False) -> str:
    """The line: minigpt train runs/my/config.yaml --name my-again  # minigpt 0.1.0, torch 2.13.0, ...; data sha256 ...

    Args:
        run: the run to repeat.
        flags: write every setting as a flag, instead of the path of the run's config: for another machine.
    """
    config, tuned = run.config, run.config.finetune.base is not None
    words = ["minigpt", "finetune" if tuned else "train"]
    if flags:
        words += [_quote(word) for word in (config.finetune.base, config.data.source) if word]
        spelled = (as_flag(path, value) for path, value in _spelled(run).items())
        words += [f"{flag}={_quote(text)}" for flag, text in spelled]
    else:
        words.append(_quote(str(run.folder.config)))
    line = f"{' '.join(words)} --name {_quote(run.path.name + '-again')}"
    versions = ", ".join(f"{name} {number}" for name, number in run.receipt.get("versions", {}).items())
    hashes = run.receipt.get("data", {}).get("sha256", {})
    data = ", ".join(f"{split} {sha256}" for split, sha256 in hashes.items())
    return f"{line}  # {versions}; data sha256: {data}" if run.receipt else line


def _spelled(run: RunRecord) -> dict[str, Any]:
    """The settings to write: as few as possible, but all of them for a fine-tuning, whose defaults depend on its
    base.
    """
    settings = essential(run.config) if run.config.finetune.base is None else flat(run.config)
    on_the_line = ("data.source", "finetune.base", "logging.name")
    return {path: value for path, value in settings.items() if path not in on_the_line}


def _quote(word: str) -> str:
    r"""Quote a word for a shell, on one line; with $'\n' (bash, zsh, ksh) if it has line ends or other control
    characters.
    """
    if word.isprintable():
        return shlex.quote(word)
    plain = {"\n": r"\n", "\t": r"\t", "'": r"\'", "\\": r"\\"}
    letters = (plain.get(char, char if char.isprintable() else f"\\U{ord(char):08x}") for char in word)
    return f"$'{''.join(letters)}'"
