"""Write and read checkpoints: directories of safetensors and JSON, written atomically, without pickle.

    runs/NAME/checkpoints/
        step-00000500/
            model.safetensors       the weights
            ema.safetensors         their running average, if there is one; generation and evaluation use it
            optimizer.safetensors   the optimizer's moments, by parameter name
            state.json              the model's config, the step, and all else that exact resume needs
            manifest.json           sizes and sha256 of the files above, written last
        best, last                  text files that name one of the directories
        step-00000500.needed        text file that names another run, which began from this checkpoint
        needed-step-00000500/       that checkpoint, if its run has saved the step again with other weights

Everything is written to a new directory, which is renamed at the end. So a reader sees the whole new checkpoint or the
one before; if the run's process deletes or replaces it meanwhile, `current` reads again. This module knows files, not
models, so that the model's `GPT.from_pretrained` may import it.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minigpt.console import counted
from minigpt.errors import CheckpointError, DamagedError, first_line, storage_error
from minigpt.files import (
    aside,
    delete_folder,
    delete_path,
    file_sha256,
    find,
    parse_json,
    replace_folder,
    sync,
    temporary_path,
    write_text,
)
from minigpt.layout import MANIFEST, POINTERS, STATE, RunFolder, is_pointer, is_step, step_of, whole_steps
from minigpt.weights import sharded
from minigpt.weights.aside import is_needed, keep_needed
from minigpt.weights.checkpoint_state import IMPORTED, CheckpointState, TrainState, read_state

FORMAT = 1
Tensors = Mapping[str, torch.Tensor]
Read = TypeVar("Read")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: tensors by part ("model", "ema", "optimizer") and name, and state.json."""

    path: Path
    tensors: dict[str, dict[str, torch.Tensor]]
    state: CheckpointState

    @property
    def train(self) -> TrainState:
        """The state of training. Raises CheckpointError for weights that were not trained here, or were quantised."""
        train = self.state.train
        if train is None or train.stop_reason == IMPORTED or self.state.quantization:
            raise CheckpointError(f"{self.path}: has only weights, so training cannot continue from it; fine-tune it")
        return train

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The weights to use: the running average if there is one."""
        return self.tensors.get("ema") or self.tensors["model"]


def save(directory: Path, tensors: Mapping[str, Tensors], state: CheckpointState) -> Path:
    """Write a checkpoint, completely or not at all.

    Args:
        directory: the checkpoint's directory; its parent is made if missing.
        tensors: {"model": {...}, "optimizer": {...}, ...}.
        state: the content of state.json.

    Raises:
        StorageError: the disk is full or not writable; an older checkpoint in `directory` stays whole.
    """
    work = temporary_path(directory)
    try:
        work.mkdir(parents=True)
        for part, named in tensors.items():
            cpu = {name: tensor.detach().to("cpu", copy=False).contiguous() for name, tensor in named.items()}
            write_tensors(work / f"{part}.safetensors", cpu)
        seal(work, directory, state)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(work, ignore_errors=True)
        raise storage_error(directory, error) from None
    return directory


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the usual permissions of a new file (umask); safetensors would make it 0600.

    Raises OSError or SafetensorError.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata)
    path.chmod(mode)


def seal(work: Path, directory: Path, state: CheckpointState) -> None:
    """Finish a checkpoint whose tensors are in `work`: write state and manifest, then rename. Raises StorageError."""
    try:
        (work / STATE).write_text(json.dumps(state.to_json(), indent=1) + "\n", encoding="utf-8")
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in sorted(work.iterdir())
        }
        for name in files:
            sync(work / name)
        manifest = json.dumps({"format": FORMAT, "files": files}, indent=1)
        (work / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
        sync(work / MANIFEST)
        sync(work)
        keep_needed(directory, files)
        replace_folder(work, directory)  # a resumed run may save the same step again
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise storage_error(directory, error) from None


def load(path: Path, parts: tuple[str, ...] = ("model", "ema")) -> Checkpoint:
    """Read a checkpoint after checking every byte against its manifest.

    Args:
        path: a run, a checkpoint, or a `best`/`last` file.
        parts: the parts to read; missing ones are left out.

    Raises:
        CheckpointError: no checkpoint there, or not one of minigpt. DamagedError: truncated or altered.
    """
    return current(path, lambda directory: _read(directory, parts))


def current(path: Path, read: Callable[[Path], Read]) -> Read:
    """read(directory) of the checkpoint that `path` means, as in `load`.

    The process that trains the run may delete or replace this checkpoint meanwhile. Then `path` is looked up again.
    """
    while True:
        directory = resolve(path)
        before = find(directory)
        try:
            return read(directory)
        except (CheckpointError, OSError):
            now = find(directory)
            if before and now and before.st_mtime_ns == now.st_mtime_ns:
                raise


def _read(directory: Path, parts: tuple[str, ...]) -> Checkpoint:
    verify(directory)
    try:
        files = {part: directory / f"{part}.safetensors" for part in parts}
        tensors = {part: load_file(file) for part, file in files.items() if file.exists()}
        if sharded.in_parts(directory):
            tensors = sharded.read_parts(directory, parts)
        state = read_state(directory)
    except (OSError, SafetensorError, ValueError, TypeError) as error:  # TypeError: a size of 2^63
        raise DamagedError(
            f"{directory}: cannot be read ({first_line(error)})", "use another checkpoint of the run"
        ) from None
    return Checkpoint(directory, tensors, state)


def verify(directory: Path) -> None:
    """Check sizes and sha256 of every file. Raises DamagedError naming the file and another checkpoint."""
    files = _read_manifest(directory)
    others = [str(other) for other in whole_steps(directory.parent) if other != directory]
    hint = "the run has no other checkpoint; copy or make it again"
    if others:
        hint = f"use another checkpoint of the run (minigpt train does this itself): {others[-1]}"
    for name, (size, sha256) in files.items():
        file = directory / name
        if not file.is_file():
            raise DamagedError(f"{directory}: {name} is missing", hint)
        if (found := file.stat().st_size) != size:
            raise DamagedError(f"{file}: truncated ({found:,} of {counted(size, 'byte')})", hint)
        if file_sha256(file) != sha256:
            raise DamagedError(f"{file}: damaged (its sha256 differs from the manifest)", hint)


def _read_manifest(directory: Path) -> dict[str, tuple[int, str]]:
    """Each file's name with its bytes and sha256. Raises DamagedError, CheckpointError."""
    try:
        manifest = parse_json((directory / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{directory}: format {manifest['format']} is not {FORMAT}; use the version of minigpt that wrote it"
            )
        return {name: (int(entry["bytes"]), entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        what = f"{directory}: not a whole minigpt checkpoint (no readable manifest.json)"
        raise DamagedError(what, "use another checkpoint of the run") from None


def resolve(path: Path) -> Path:
    """Find the checkpoint directory of a run (its best, else its last), a checkpoint, or a `best`/`last` file."""
    if (path / MANIFEST).is_file():
        return path
    folder, pointers = RunFolder(path).checkpoints, POINTERS
    if is_pointer(path):
        folder, pointers = path.parent, (path.name,)
    for pointer in (folder / name for name in pointers if (folder / name).is_file()):
        name = pointer.read_text(encoding="utf-8", errors="replace").strip()
        if not is_step(name):  # incomplete, or changed by hand
            continue
        for target in (folder / name, aside(folder / name)):  # `save` is between its two renames, or was killed there
            if target.exists():
                return target
    if found := whole_steps(folder):
        return found[-1]
    if not path.exists():
        raise CheckpointError(f"no such run or checkpoint: {path}; `ls {path.parent}` shows what is there")
    if RunFolder(path).is_run:
        raise CheckpointError(f"{path}: holds no checkpoint yet; wait for its first, or continue its training")
    raise CheckpointError(
        f"{path}: holds no checkpoint; give a run directory, a checkpoint, or a Hugging Face directory"
    )


def restore(folder: Path) -> None:
    """Rename a checkpoint back that a killed process was about to replace. No other process may be training the run.

    Raises StorageError.
    """
    for old in folder.glob(".step-*-old"):
        target = old.with_name(old.name[1:].removesuffix("-old"))
        try:
            if not target.exists():
                old.rename(target)
        except OSError as error:
            raise storage_error(target, error) from None


def delete(directory: Path) -> None:
    """Delete a checkpoint. After a kill it is whole, or the next `delete_unfinished` deletes the rest.

    Raises StorageError.
    """
    try:
        delete_folder(directory)
    except OSError as error:
        raise storage_error(directory, error) from None


def delete_later(folder: Path, step: int) -> None:
    """Delete the checkpoints after the step from which a run goes on: it drops the metrics of these steps.

    Those that another run needs stay. Raises StorageError.
    """
    for path in whole_steps(folder):
        if step_of(path) > step and not is_needed(path):
            delete(path)


def delete_unfinished(folder: Path) -> None:
    """Delete unfinished checkpoints that a killed process left. No other process may be training the run.

    Other files stay, since `folder` may be a link to a folder that holds more. Raises StorageError.
    """
    for left in (path for form in (".*.tmp", ".step-*", ".last-*", ".best-*") for path in folder.glob(form)):
        try:
            delete_path(left)
        except OSError as error:
            raise storage_error(left, error) from None


def point(folder: Path, name: str, checkpoint: Path) -> None:
    """Write a checkpoint's name into the file `best` or `last`, atomically. Raises StorageError."""
    write_text(folder / name, checkpoint.name + "\n")
