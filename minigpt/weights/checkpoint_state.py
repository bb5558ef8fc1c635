"""Read and write state.json: everything in a checkpoint except its tensors. No other module reads or writes it.

This module does not import torch, so that listing runs, which reads states, stays fast.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from minigpt.errors import CheckpointError, nearest
from minigpt.files import parse_json
from minigpt.layout import STATE

IMPORTED = "imported"
"""`TrainState.stop_reason` of a model that was not trained here."""


@dataclass
class TrainState:
    """What changes during a run, except tensors; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    val_loss: float | None = None
    eval_step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    evals_since_best: int = 0
    evals_since_cut: int = 0
    cuts: int = 0
    finished: bool = False
    stop_reason: str = ""
    scaler: dict[str, Any] = field(default_factory=dict)
    micro_batch_size: int | None = None  # if memory was too small for the config's value
    skipped: list[int] = field(default_factory=list)  # batches that are never used again, in order
    rate_scale: float = 1.0
    decay_after_warmup: bool = False  # the learning rate decays from the end of warm-up; False in older runs
    unlogged: list[list[float]] = field(default_factory=list)  # [loss, gradient norm] of each step since the last line
    averaged: int = 0  # number of steps in the average of the weights at the run's end


_LATER = ("decay_after_warmup", "unlogged", "averaged")
"""Fields of `TrainState` that older versions refuse; they are only written if they are set."""


@dataclass
class RecoveryState:
    """What the guard knows about the run. A rollback restores `losses` and `bad`; the rest covers the whole run."""

    losses: list[float] = field(default_factory=list)  # losses of recent good steps
    bad: list[tuple[int, int]] = field(default_factory=list)  # (step, batch)
    start: float | None = None  # the first loss
    streak: int = 0  # bad steps in a row
    rollbacks: int = 0
    incidents: int = 0  # number of lines in incidents.jsonl


@dataclass(frozen=True)
class CheckpointState:
    """The content of state.json. A field that is None is not in the file.

    Attributes:
        model: the model's config; None only if the checkpoint holds an adapter.
        train: the state of training; None for weights that were not trained here.
        tokenizer: fingerprint of the tokenizer.
        precision, attention, compile, micro_batch_size: choices that the run made by measuring; a resumed run keeps
            them.
        lora: settings of the adapter, if the checkpoint holds an adapter instead of a model.
        base: path and sha256 of the model that the adapter belongs to.
        recovery: what the guard knows.
        quantization: bits, group, embedding_bits, and the run that was quantised.
    """

    model: Mapping[str, Any] | None = None
    train: TrainState | None = None
    tokenizer: str | None = None
    precision: str | None = None
    attention: str | None = None
    compile: bool | None = None
    micro_batch_size: int | None = None
    lora: Mapping[str, Any] | None = None
    base: Mapping[str, str] | None = None
    recovery: RecoveryState | None = None
    quantization: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The state as the JSON object of the file."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        if train := found.get(
            "train"
        ):  # leave these out if not set, so that an older minigpt, which refuses unknown fields, can read the file
            found["train"] = {name: value for name, value in train.items() if value or name not in _LATER}
        if self.precision is not None:  # then micro_batch_size was decided too, perhaps as None
            found.setdefault("micro_batch_size", None)
        return {each.name: found[each.name] for each in fields(self) if each.name in found}

    @classmethod
    def from_json(cls, given: Any, where: Path | str) -> Self:
        """Make a state from the file's JSON object. Raises CheckpointError naming a wrong or missing field."""
        _check(given, cls, where, "")
        if given.get("model") is None and given.get("lora") is None:
            raise CheckpointError(f"{where}: lacks model; use the version of minigpt that wrote it")
        for name, kind, needed in (("train", TrainState, "step"), ("recovery", RecoveryState, None)):
            if given.get(name) is None:
                continue
            _check(given[name], kind, where, f"{name}.")
            if needed is not None and needed not in given[name]:
                raise CheckpointError(f"{where}: lacks {name}.{needed}; use the version of minigpt that wrote it")
        try:
            return _types(cls).validate_python(given)
        except ValidationError as error:
            wrong = error.errors()[0]
            field = ".".join(map(str, wrong["loc"]))
            raise CheckpointError(f"{where}: {field} is wrong ({wrong['msg']}); use another checkpoint") from None


@cache  # it takes some milliseconds to make, and a list of runs reads many states
def _types(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_state(checkpoint: Path) -> CheckpointState:
    """Read the state of a checkpoint directory.

    Raises OSError or ValueError if it cannot be read, CheckpointError if it is not a state of this version.
    """
    file = checkpoint / STATE
    return CheckpointState.from_json(parse_json(file.read_bytes()), file)


def _check(given: Any, kind: Any, where: Path | str, prefix: str) -> None:
    """Raise CheckpointError unless `given` is a JSON object with no other fields than the dataclass has."""
    if not isinstance(given, dict):
        raise CheckpointError(f"{where}: {prefix.rstrip('.') or 'state.json'} is not an object; use another checkpoint")
    known = [each.name for each in fields(kind)]
    for name in given:
        if name not in known:
            raise CheckpointError(
                f"{where}: has {prefix}{name}, which this version does not know ({nearest(name, known)}); "
                "use the version of minigpt that wrote it"
            )
