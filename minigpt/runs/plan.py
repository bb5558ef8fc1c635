"""Decide which run directory a command means, and whether it starts, continues, or refuses."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from minigpt.config import RunConfig, comment, dump_config, load_config, read_yaml
from minigpt.errors import RunError, first_names, storage_error
from minigpt.files import delete_unfinished, write_text
from minigpt.layout import CONFIG, RunFolder, check_name
from minigpt.runs.lock import run_lock
from minigpt.runs.receipt import read_receipt
from minigpt.runtime.ranks import Ranks
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint import Checkpoint
from minigpt.weights.damage import PARTS, newest_whole

# What may differ when --resume continues a run: how long, how often, where; not the model or its data.
_MAY_CHANGE = {
    "train": {
        "max_steps", "max_epochs", "max_tokens", "max_minutes", "eval_every", "eval_batches", "early_stopping",
        "sample_every", "sample_prompt", "save_every", "keep_checkpoints", "device", "compile", "micro_batch_size",
    },
    "optimizer": {"learning_rate", "adamw_ratio", "weight_decay", "momentum", "beta1", "beta2", "eps"},
    "data": {"cache_dir"},  # another place for the same token files
    "finetune": {"base"},  # another path of the same weights
    "schedule": None, "generation": None, "logging": None, "recovery": None,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A run directory, and the checkpoint to continue from, if any."""

    path: Path
    saved: Checkpoint | None = None

    @property
    def finished(self) -> bool:
        """Whether the run had ended by itself at this checkpoint."""
        return self.saved is not None and self.saved.train.finished


@contextmanager
def plan_run(
    config: RunConfig, name: str | None, default_name: str, resume: bool, say: Callable[[str], object]
) -> Iterator[Plan]:
    """Choose a new run, or an unfinished one with the same name and settings to continue; and lock it for this process.

    Nothing is ever overwritten. If the name was given and a run with other settings has it, that is an error; if the
    name was derived, the next free name is taken. `resume` continues with new settings if that makes sense (a longer
    budget). If the newest checkpoint is damaged, an older one is taken, and `say` is called.

    Raises:
        RunError: the run exists with other settings, or another process trains it, or `resume` finds none.
    """
    path = pick_run(config, name, default_name, resume)
    first = Path(config.logging.runs_dir) / (name or default_name)
    if path != first:
        others = compare(load_config(RunFolder(first).config), config, strict=True)
        say(f"{first} was trained with another {first_names(others)}: this run is {path}")
    with run_lock(path):
        folder = RunFolder(path).checkpoints
        saved = newest_whole(folder, say)
        delete_unfinished(path)
        checkpoint.delete_unfinished(folder)
        if saved:  # a process that was killed may have left newer ones
            checkpoint.delete_later(folder, saved.train.step)
        yield Plan(path, saved)


def pick_run(config: RunConfig, name: str | None, default_name: str, resume: bool) -> Path:
    """Find the directory that `plan_run` uses, and change nothing. Raises RunError."""
    base = Path(config.logging.runs_dir)
    path = base / check_name(name or default_name)
    between = path.parents[: len(path.parts) - len(base.parts) - 1]
    if outer := next((folder for folder in between if RunFolder(folder).is_run), None):
        raise RunError(f"{outer} is a run, which cannot hold another; choose another name with --name")
    number = 2
    while (folder := RunFolder(path)).in_use():
        if not folder.is_run:
            raise RunError(f"{path} is not a run, and is not empty; choose another name with --name")
        old = load_config(folder.config)
        _check_rates(folder, old, config)
        differences = compare(old, config, strict=not resume)
        if not differences:
            if "merged" in read_receipt(path):
                raise RunError(f"{path}: was merged, so it has only weights, and cannot be continued; fine-tune it")
            return path
        if resume:
            raise RunError(f"{path} cannot be continued with another {first_names(differences)}; choose a new --name")
        if name is not None:
            others = first_names(differences)
            raise RunError(f"{path} exists with another {others}; choose a new --name, or --resume to continue it")
        path, number = base / f"{default_name}-{number}", number + 1
    if resume:
        raise RunError(f"nothing to resume: no run at {path}; leave --resume out to start it")
    return path


def _check_rates(folder: RunFolder, before: RunConfig, config: RunConfig) -> None:
    """Raise RunError if an old run would continue at another rate.

    In old runs learning_rate was only AdamW's rate. In the same command it would now be Muon's rate, which the user
    does not want.
    """
    old, new = before.optimizer, config.optimizer
    same = (new.learning_rate, new.adamw_ratio) == (old.learning_rate, old.adamw_ratio)
    if same or not old.kind == new.kind == "muon":
        return
    if "muon_learning_rate" in (read_yaml(folder.config) or {}).get("optimizer", {}):
        raise RunError(
            f"{folder.path} began when learning_rate was adamw's, and now it is muon's; to continue it unchanged: "
            f"--optimizer.learning-rate {old.learning_rate} --optimizer.adamw-ratio {old.adamw_ratio}; "
            "or choose a new --name"
        )


def compare(old: RunConfig, new: RunConfig, strict: bool) -> list[str]:
    """Dotted names of the settings that differ (without logging). If not `strict`, settings that may change are left
    out.

    A new run's `auto` agrees with any value of the old one.
    """
    names = []
    before, after = old.model_dump(), new.model_dump()
    for section, fields in before.items():
        for field, value in fields.items():
            if (
                after[section][field] in (value, "auto")
                or section in ("logging", "parallel")  # these change only what is printed and which ranks compute
                or (section, field) == ("model", "vocab_size")
            ):
                continue
            allowed = _MAY_CHANGE.get(section, set())
            other_task = section == "finetune" and None in (value, after[section][field])  # one has no base
            if strict or other_task or (allowed is not None and field not in allowed):
                names.append(f"{section}.{field}")
    return names


def default_name(config: RunConfig, recipe: str | None) -> str:
    """A name from the recipe's file (for runs/NAME/config.yaml: NAME), else from the data, with the letters of any
    script.
    """
    if recipe is not None:
        path = Path(recipe)
        return path.parent.name if path.name == CONFIG and path.parent.name else path.stem
    stem = Path(config.data.source.rstrip("/*")).name.split(".")[0]
    stem = regex.sub(r"[^\p{L}\p{M}\p{N}._-]+", "-", stem)
    return stem.encode()[:180].decode(errors="ignore").strip("-.") or "run"  # `check_name` allows 200 bytes


def write_run_files(path: Path, config: RunConfig, receipt: dict[str, Any], about: str) -> None:
    """Write config.yaml, which begins with the comment `about`, and receipt.json. Raises StorageError."""
    folder = RunFolder(path)
    text = comment(about) + dump_config(config)
    write_text(folder.config, text, parents=True)  # first: a directory with this file is a run
    write_text(folder.receipt, json.dumps(receipt, indent=2) + "\n")
    try:
        folder.checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from None


@contextmanager
def planned(ranks: Ranks, plan: AbstractContextManager[Plan]) -> Iterator[Plan]:
    """Rank 0's plan, on all ranks; only rank 0 locks the run. The other ranks read its checkpoint."""
    with ExitStack() as held:
        made: list[Plan] = []

        def decide() -> tuple[Path, Path | None]:
            made.append(held.enter_context(plan))
            return made[0].path, made[0].saved and made[0].saved.path

        path, saved = ranks.broadcast(decide)
        yield made[0] if made else Plan(path, checkpoint.load(saved, PARTS) if saved else None)
