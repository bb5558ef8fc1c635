"""Decide once where a run's model lies, alone, replicated or sharded, and answer what follows from that.

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

from minigpt.config import RunConfig, TrainConfig
from minigpt.config.parallel import ParallelConfig
from minigpt.console import counted, messages
from minigpt.errors import ConfigError
from minigpt.model import GPT
from minigpt.model.kernels.chunked_loss import loss_terms
from minigpt.model.learner import Learner
from minigpt.runtime.device import Runtime
from minigpt.runtime.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Placement:
    """One process alone, which holds the whole model."""

    parallel: ParallelConfig
    ranks: Ranks = ALONE

    @property
    def shards(self) -> int:
        """Ranks among which weights, gradients and optimizer are divided."""
        return 1

    def place(self, model: GPT, runtime: Runtime) -> tuple[GPT, Learner]:
        """The model on its device, or this rank's part of it; and what a step calls: it, or a view of it."""
        model = model.to(runtime.device)
        view = runtime.prepare(model)
        if self.parallel.activation_checkpointing:
            from minigpt.runtime.parallel.wrap import Recomputed, with_blocks

            view = with_blocks(view, Recomputed)
        return model, view

    def learner(self, model: GPT, stepped: Learner) -> Learner:
        """What a step calls, so that the ranks exchange what they must."""
        return stepped

    def evaluated(self, model: GPT, stepped: Learner) -> Learner:
        """What an evaluation calls."""
        return model

    def whole(self, model: GPT) -> GPT:
        """The model itself, or where ranks hold parts of it, a whole copy in each one's memory; every rank must ask."""
        return model

    def rows(self, config: TrainConfig) -> int:
        """Most sequences of one forward pass of a rank."""
        return min(config.rows, config.batch_size // self.ranks.world)

    def eval_size(self, config: TrainConfig, limit: int | None = None) -> tuple[int, int | None]:
        """Rows of a validation batch, and how many batches: the same rows in all, whatever the number of ranks.

        batch_size 12, eval_batches 2: one rank (12, 2), four (3, 8). At most `limit` rows, where memory has ended
        before.
        """
        size = gcd(config.rows, self.rows(config), limit or 0)
        return size, config.eval_batches and config.eval_batches * (config.rows // size)


class ReplicatedPlacement(Placement):
    """Each rank holds the whole model, and gradients are averaged."""

    def learner(self, model: GPT, stepped: Learner) -> Learner:
        """What a step calls: the same loss, with gradients averaged while the backward pass makes them."""
        from minigpt.runtime.parallel.wrap import Replicated

        return Replicated(model, stepped.loss)


class ShardedPlacement(Placement):
    """Each rank holds a part of every tensor."""

    @property
    def shards(self) -> int:
        """All ranks."""
        return self.ranks.world

    def place(self, model: GPT, runtime: Runtime) -> tuple[GPT, Learner]:
        """This rank's part of the model; steps and evaluations call a view that gathers each block when it is used."""
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
        """The view too, since the model alone gathers nothing."""
        return stepped

    def whole(self, model: GPT) -> GPT:
        """A whole copy in this rank's memory; every rank must ask."""
        copy = GPT(model.config)
        copy.load_weights({name: self.ranks.whole(tensor).cpu() for name, tensor in model.weights().items()})
        copy.use_attention(model.config.attention)
        return copy.eval()


def make_placement(config: RunConfig, ranks: Ranks = ALONE) -> Placement:
    """The placement that the config asks for on these ranks."""
    if ranks.world == 1:
        return Placement(config.parallel, ranks)
    kind = ShardedPlacement if config.parallel.kind == "fsdp" else ReplicatedPlacement
    return kind(config.parallel, ranks)


@contextmanager
def joined(config: RunConfig, quiet: bool = False, divisible: bool = True) -> Iterator[tuple[Placement, Console]]:
    """The ranks that torchrun started, connected inside the block, or this process alone; and what this one prints to.

    Args:
        config: its parallel section, batch size and device are checked here.
        quiet: print nothing; ranks other than 0 never do.
        divisible: whether this kind of training can have a model in parts, which is parallel.kind fsdp.

    Raises:
        ConfigError: settings that do not go with this number of ranks.
        ParallelError: a rank that does not answer.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        console = messages(quiet)
        if config.parallel.kind == "fsdp":
            console.print("parallel.kind: fsdp divides a model among processes, and this is one: no effect")
        yield make_placement(config), console
        return
    from minigpt.runtime.parallel.group import join

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    console = messages(quiet or rank > 0)
    if problems := _problems(config, world, divisible):
        raise ConfigError(problems)
    device = _device(config.train.device)
    if config.parallel.cpu_offload and device.type == "cpu":
        console.print("parallel.cpu_offload: the ranks compute on CPUs, so there is nothing to offload: no effect")
    with join(device, config.parallel.timeout_seconds) as ranks:
        yield make_placement(config, ranks), console


def _problems(config: RunConfig, world: int, divisible: bool) -> list[str]:
    """What does not go with several ranks."""
    batch, problems = config.train.batch_size, []
    if batch % world:
        below, above = batch // world * world, -(-batch // world) * world
        fits = f"{below} or {above} is" if below else f"{above} is"
        problems.append(f"train.batch_size: {batch} is not a multiple of the {world} ranks; {fits}")
    if config.parallel.kind == "fsdp" and not divisible:
        problems.append("parallel.kind: fsdp is for training from nothing; fine-tuning runs with ddp")
    if config.parallel.kind == "fsdp" and config.train.masked_inputs:
        problems.append("train.masked_inputs: goes with parallel.kind ddp, not with fsdp")
    if config.finetune.dpo_beta:
        problems.append("finetune.dpo_beta: pairs are learned by one process; leave torchrun out")
    return problems


def _device(name: str) -> torch.device:
    """Where this process computes: on the GPU of its number on this host, or on the CPU. Raises ConfigError."""
    kind, _, number = name.partition(":")
    if number or kind not in ("auto", "cuda", "cpu"):
        raise ConfigError(f"train.device: {name} is one device for all ranks; choose auto, cuda or cpu")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    local, here = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
    if local >= here:
        raise ConfigError(f"train.device: this host has {counted(here, 'GPU')}; torchrun --nproc-per-node {here or 1}")
    return torch.device("cuda", local)
