"""Say what kind of training a run is: from scratch (here), or from a model (`runs.finetune`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from minigpt.config import RunConfig
from minigpt.model import GPT
from minigpt.runtime.device import Runtime
from minigpt.runtime.precision import Optimizer
from minigpt.runtime.ranks import Ranks
from minigpt.training import make_optimizer
from minigpt.training.objective import WHOLE, Loss, Saved


class Task(Protocol):
    """What differs between kinds of training.

    Attributes:
        command: the command of minigpt that repeats the run.
        saved: what a checkpoint keeps of the model.
        evaluate_objective: whether evaluations also use the objective's loss instead of the next-token loss.
        others: the models that the objective uses besides the model that learns.
        state, receipt, files: what to add to checkpoints, to the receipt, and to the run directory (files by name).
    """

    @property
    def command(self) -> str: ...
    @property
    def saved(self) -> Saved: ...
    @property
    def evaluate_objective(self) -> bool: ...
    @property
    def others(self) -> Sequence[GPT]: ...
    @property
    def state(self) -> Mapping[str, Any]: ...
    @property
    def receipt(self) -> Mapping[str, Any]: ...
    @property
    def files(self) -> Mapping[str, str]: ...

    def model(self, config: RunConfig) -> GPT:
        """A model with the weights that the run starts with."""
        ...

    def objective(self, runtime: Runtime) -> Loss | None:
        """The loss of a step, if it is not the next-token loss."""
        ...

    def optimizer(self, model: GPT, config: RunConfig, precision: str, ranks: Ranks) -> Optimizer:
        """An optimizer of the parameters that learn."""
        ...

    def share(self, config: RunConfig) -> float:
        """The share of the parameters that learn."""
        ...


@dataclass(frozen=True)
class FromScratch:
    """Training from random weights; `receipt` is what a budget adds to the receipt."""

    receipt: Mapping[str, Any] = field(default_factory=dict)
    command: str = "train"
    saved: Saved = WHOLE
    evaluate_objective: bool = False
    others: Sequence[GPT] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def model(self, config: RunConfig) -> GPT:
        """A model with random weights, drawn from the config's seed."""
        return GPT(config.model, seed=config.train.seed)

    def objective(self, runtime: Runtime) -> Loss | None:
        """None: the loss is the next-token loss."""
        return None

    def optimizer(self, model: GPT, config: RunConfig, precision: str, ranks: Ranks) -> Optimizer:
        """The optimizer that the config asks for."""
        return make_optimizer(model, config.optimizer, precision, ranks)

    def share(self, config: RunConfig) -> float:
        """1: all parameters learn."""
        return 1.0
