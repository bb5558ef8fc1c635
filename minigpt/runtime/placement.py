"""Decide once whether a run's model is in one process, replicated or sharded, and do what depends on that.

Placement             one process holds the whole model
ReplicatedPlacement   each rank holds all of it, and gradients are averaged (DDP)
ShardedPlacement      each rank holds a part of every tensor (FSDP2)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd

import torch
from rich.console import Console
from torch import nn

from minigpt import torchrun
from minigpt.config import RunConfig, TrainConfig
from minigpt.config.parallel import ParallelConfig
from minigpt.console import counted, messages
from minigpt.errors import ConfigError, ParallelError
from minigpt.model import GPT
from minigpt.model.kernels.chunked_loss import loss_terms
from minigpt.model.learner import Learner
from minigpt.runtime.device import Runtime, check_runtime
from minigpt.runtime.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Placement:
    """One process, which holds the whole model."""

    parallel: ParallelConfig
    ranks: Ranks = ALONE

    @property
    def shards(self) -> int:
        """Number of ranks that share weights, gradients and optimizer."""
        return 1

    def place(self, model: GPT, runtime: Runtime) -> tuple[GPT, Learner]:
        """Move the model (or this rank's part of it) to its device. Returns it, and the learner for training steps.

        The learner is the model itself, or a view of it.
        """
        model = model.to(runtime.device)
        view = runtime.prepare(model)
        if self.parallel.activation_checkpointing:
            from minigpt.runtime.parallel.wrap import Recomputed, with_blocks

            view = with_blocks(view, Recomputed)
        return model, view

    def learner(self, model: GPT, stepped: Learner) -> Learner:
        """The learner for training steps, which also averages gradients over the ranks if there are several."""
        return stepped

    def evaluated(self, model: GPT, stepped: Learner) -> Learner:
        """The learner for evaluations."""
        return model

    def whole(self, model: GPT, needed: bool = True) -> GPT:
        """The whole model; if ranks hold parts of it, a whole copy in this rank's memory. Every rank must call this.

        A rank that does not need the copy (needed=False) gets `model` back.
        """
        return model

    def rows(self, config: TrainConfig) -> int:
        """Largest number of sequences in one forward pass of a rank."""
        return min(config.rows, config.batch_size // self.ranks.world)

    def eval_size(self, config: TrainConfig, limit: int | None = None) -> tuple[int, int | None]:
        """(rows of a validation batch, number of batches). The total of rows does not depend on the number of ranks.

        batch_size 12, eval_batches 2: (12, 2) with one rank, (3, 8) with four. `limit`: largest number of rows that
        fit in memory, if more have failed.
        """
        size = gcd(config.rows, self.rows(config), limit or 0)
        return size, config.eval_batches and config.eval_batches * (config.rows // size)


class ReplicatedPlacement(Placement):
    """Each rank holds the whole model; gradients are averaged over the ranks."""

    def learner(self, model: GPT, stepped: Learner) -> Learner:
        """The learner for training steps: the same loss; the backward pass also averages gradients over the ranks."""
        from minigpt.runtime.parallel.wrap import Replicated

        return Replicated(model, stepped.loss)


class ShardedPlacement(Placement):
    """Each rank holds a part of every tensor."""

    @property
    def shards(self) -> int:
        """The number of ranks."""
        return self.ranks.world

    def place(self, model: GPT, runtime: Runtime) -> tuple[GPT, Learner]:
        """Keep this rank's part of the model. Returns it, and a view that gathers each block's weights when it runs."""
        from minigpt.runtime.parallel.wrap import CompiledInTraining, Recomputed, shard

        compiles, kind = runtime.compile and runtime.can_compile(), runtime.device.type
        with runtime.autocast():
            low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        if compiles:
            model.loss_terms = torch.compile(loss_terms, dynamic=False)

        def wrap(block: nn.Module) -> nn.Module:
            block = CompiledInTraining(block) if compiles else block
            return Recomputed(block) if self.parallel.activation_checkpointing else block

        return model, shard(model, runtime.device, low, self.parallel.cpu_offload, wrap)

    def evaluated(self, model: GPT, stepped: Learner) -> Learner:
        """The view, as in training, since the model itself does not gather the weights."""
        return stepped

    def whole(self, model: GPT, needed: bool = True) -> GPT:
        """A whole copy of the model in this rank's memory, if it needs one. Every rank must call this."""
        weights: dict[str, torch.Tensor] = {}
        for name, tensor in model.weights().items():
            whole = self.ranks.whole(tensor)
            if needed:
                weights[name] = whole.cpu()
        if not needed:
            return model
        copy = GPT(model.config)
        copy.load_weights(weights)
        copy.use_attention(model.config.attention)
        return copy.eval()


def make_placement(config: RunConfig, ranks: Ranks = ALONE) -> Placement:
    """Make the placement for a config and these ranks."""
    if ranks.world == 1:
        return Placement(config.parallel, ranks)
    kind = ShardedPlacement if config.parallel.kind == "fsdp" else ReplicatedPlacement
    return kind(config.parallel, ranks)


@contextmanager
def joined(config: RunConfig, quiet: bool = False, divisible: bool = True) -> Iterator[tuple[Placement, Console]]:
    """Connect the ranks that torchrun started, inside the `with` block. Yields the placement, and this rank's console.

    Without torchrun this is one process.

    Args:
        config: its parallel section, batch size and device are checked here.
        quiet: print nothing; ranks other than 0 never print.
        divisible: whether this kind of training works with a sharded model (parallel.kind fsdp).

    Raises:
        ConfigError: settings that do not fit this number of ranks; a device that is not here.
        ParallelError: a rank does not answer.
    """
    if torchrun.world() == 1:
        console = messages(quiet)
        check_runtime(config.train.device, config.train.precision)
        if config.parallel.kind == "fsdp":
            console.print("parallel.kind: fsdp divides a model among processes, but there is only one: no effect")
        yield make_placement(config), console
        return
    from minigpt.runtime.parallel.group import join

    if "RANK" not in os.environ:
        raise ParallelError("WORLD_SIZE is set, but RANK is not; start with torchrun, or unset WORLD_SIZE")
    rank, world = torchrun.rank(), torchrun.world()
    console = messages(quiet or rank > 0)
    if problems := _problems(config, world, divisible):
        raise ConfigError(problems)
    device = _device(config.train.device)
    if config.parallel.cpu_offload and device.type == "cpu":
        console.print("parallel.cpu_offload: the ranks compute on CPUs, so there is nothing to offload: no effect")
    with join(device, config.parallel.timeout_seconds) as ranks:
        yield make_placement(config, ranks), console


def _problems(config: RunConfig, world: int, divisible: bool) -> list[str]:
    """Settings that do not work with this number of ranks."""
    batch, problems = config.train.batch_size, []
    if batch % world:
        below, above = batch // world * world, -(-batch // world) * world
        fits = f"{below} or {above} is" if below else f"{above} is"
        problems.append(f"train.batch_size: {batch} is not a multiple of the {world} ranks; {fits}")
    if config.parallel.kind == "fsdp" and not divisible:
        problems.append("parallel.kind: fsdp cannot fine-tune; fine-tuning runs with ddp")
    if config.parallel.kind == "fsdp" and config.train.masked_inputs:
        problems.append("train.masked_inputs: goes with parallel.kind ddp, not with fsdp")
    if config.finetune.dpo_beta:
        problems.append("finetune.dpo_beta: pairs are learned by one process; leave torchrun out")
    return problems


def _device(name: str) -> torch.device:
    """The device of this process: the GPU with its local rank as number, or the CPU. Raises ConfigError."""
    kind, _, number = name.partition(":")
    if number or kind not in ("auto", "cuda", "cpu"):
        raise ConfigError(f"train.device: {name} is one device for all ranks; choose auto, cuda or cpu")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    local, here = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
    if local >= here:
        raise ConfigError(f"train.device: this host has {counted(here, 'GPU')}; torchrun --nproc-per-node {here or 1}")
    return torch.device("cuda", local)
