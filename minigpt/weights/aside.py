"""Keep checkpoints apart that the run may not use, replace or delete: damaged ones, and those that other runs need."""

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from minigpt.console import tell
from minigpt.errors import storage_error
from minigpt.files import json_object, write_text
from minigpt.layout import MANIFEST, NEEDED


def set_aside(step: Path, why: str = "damaged") -> Path:
    """Rename a checkpoint, such as to damaged-step-00000500, so that its run no longer takes it for one of its own.

    Raises StorageError.
    """
    names = (f"{why}-{step.name}{f'-{number}' if number else ''}" for number in count())
    target = next(path for path in map(step.with_name, names) if not path.exists())
    try:
        return step.rename(target)
    except OSError as error:
        raise storage_error(step, error) from None


def mark_needed(directory: Path, run: Path) -> None:
    """Write next to a checkpoint that another run needs it; the run of the checkpoint then never deletes it.

    Raises StorageError.
    """
    write_text(_mark(directory), f"{run.absolute()}\n", "")


def is_needed(directory: Path) -> bool:
    """Whether a checkpoint is marked as needed by another run."""
    return _mark(directory).is_file()


def _mark(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}{NEEDED}")


def keep_needed(directory: Path, files: Mapping[str, Any]) -> None:
    """Rename a checkpoint to needed-step-00000500 if another run needs it and its run is about to save other weights
    as this step, as it does after a rollback.

    Args:
        files: the new checkpoint's part of the manifest. Files that only one of the two has do not count: when parts
            are joined, the weights stay the same.

    Raises StorageError.
    """
    before = json_object(directory / MANIFEST).get("files", {}) if is_needed(directory) else {}
    if any(before[name] != files[name] for name in before.keys() & files if name.endswith(".safetensors")):
        kept = set_aside(directory, "needed")
        tell(f"{directory}: has other weights now; those that another run needs are kept in {kept.name}")


def kept_for_others(directory: Path) -> list[Path]:
    """The checkpoints of the same step, oldest first, that `keep_needed` has renamed."""
    return sorted(directory.parent.glob(f"needed-{directory.name}*"))
