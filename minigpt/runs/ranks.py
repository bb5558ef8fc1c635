"""A run by several processes: joining them, and placing the model on them. One process alone is the simple case."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from math import gcd
from pathlib import Path
from typing import cast

import torch
from rich.console import Console

from minigpt.config import RunConfig
from minigpt.console import messages
from minigpt.errors import ConfigError
from minigpt.model import GPT
from minigpt.model.kernels.chunked_loss import loss_terms
from minigpt.runs.plan import Plan
from minigpt.runtime.device import Runtime
from minigpt.runtime.ranks import ALONE, Ranks
from minigpt.training import Trainer
from minigpt.training.hooks.checkpoints import Checkpoints
from minigpt.training.muon import Muon
from minigpt.weights import checkpoint
from minigpt.weights.damage import PARTS


@contextmanager
def joined(config: RunConfig, quiet: bool = False, divisible: bool = True) -> Iterator[tuple[Ranks, Console]]:
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
        yield ALONE, console
        return
    from minigpt.runtime.parallel import join

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    console = messages(quiet or rank > 0)
    if problems := _problems(config, world, divisible):
        raise ConfigError(problems)
    device = _device(config.train.device)
    if config.parallel.cpu_offload and device.type == "cpu":
        console.print("parallel.cpu_offload: the ranks compute on CPUs, so there is nothing to offload: no effect")
    with join(device, config.parallel.timeout_seconds) as ranks:
        yield ranks, console


def _problems(config: RunConfig, world: int, divisible: bool) -> list[str]:
    """What does not go with several ranks."""
    batch, problems = config.train.batch_size, []
    if batch % world:
        below, above = batch // world * world, -(-batch // world) * world
        fits = f"{below} or {above} is" if below else f"{above} is"
        problems.append(f"train.batch_size: {batch} is not a multiple of the {world} ranks; {fits}")
    if config.parallel.kind == "fsdp" and not divisible:
        problems.append("parallel.kind: fsdp is for training from nothing; fine-tuning runs with ddp")
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
        raise ConfigError(f"train.device: this host has {here} GPUs; torchrun --nproc-per-node {here or 1}")
    return torch.device("cuda", local)


@contextmanager
def planned(ranks: Ranks, plan: AbstractContextManager[Plan]) -> Iterator[Plan]:
    """Rank 0's plan, on all ranks; it alone holds the run against other processes. The others read its checkpoint."""
    with ExitStack() as held:
        made: list[Plan] = []

        def decide() -> tuple[Path, Path | None]:
            made.append(held.enter_context(plan))
            return made[0].path, made[0].saved and made[0].saved.path

        path, saved = ranks.share(decide)
        yield made[0] if made else Plan(path, checkpoint.load(saved, PARTS) if saved else None)


def divides(config: RunConfig, ranks: Ranks) -> bool:
    """Whether each rank holds a part of the model only."""
    return ranks.world > 1 and config.parallel.kind == "fsdp"


def saver_of(config: RunConfig, ranks: Ranks) -> type[Checkpoints]:
    """The hook that writes checkpoints."""
    if not (divides(config, ranks) and config.parallel.sharded_checkpoints):
        return Checkpoints
    from minigpt.training.hooks.sharded_checkpoints import ShardedCheckpoints

    return ShardedCheckpoints


def place(model: GPT, config: RunConfig, runtime: Runtime) -> tuple[GPT, GPT]:
    """The model on its device, or this rank's part of it; and what runs in a training step: it, or a compiled view."""
    ranks, settings = runtime.ranks, config.parallel
    if not divides(config, ranks):
        model = model.to(runtime.device)
        forward = runtime.prepare(model)
    else:
        from minigpt.runtime.parallel.wrap import compile_blocks, shard

        kind = runtime.device.type
        with runtime.autocast():
            low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        shard(model, runtime.device, low, settings.cpu_offload)
        if runtime.compile and runtime.can_compile():
            compile_blocks(model)
            model.loss_terms = torch.compile(loss_terms, dynamic=False)
        forward = model
    if settings.activation_checkpointing:
        from minigpt.runtime.parallel.wrap import recompute_blocks

        recompute_blocks(forward)
    return model, forward


def connect(trainer: Trainer, config: RunConfig) -> None:
    """Let the ranks of a built trainer exchange what they must: gradients, or parts of matrices for Muon."""
    ranks = trainer.runtime.ranks
    if isinstance(trainer.optimizer, Muon):
        trainer.optimizer.ranks = ranks
    if ranks.world > 1 and not divides(config, ranks):
        from minigpt.runtime.parallel.wrap import Replicated

        trainer.forward = cast(GPT, Replicated(trainer.model, trainer.forward.loss))


def undivided(model: GPT, config: RunConfig, ranks: Ranks) -> GPT:
    """The model itself, or where ranks hold parts of it, a whole copy in each one's memory; every rank must ask."""
    if not divides(config, ranks):
        return model
    copy = GPT(model.config)
    copy.load_weights({name: ranks.whole(tensor).cpu() for name, tensor in model.weights().items()})
    copy.use_attention(config.model.attention)
    return copy.eval()


def share_of_batch(config: RunConfig, ranks: Ranks) -> int:
    """Most sequences of one forward pass of a rank."""
    share = config.train.batch_size // ranks.world
    return min(config.train.rows, share)


def eval_size(config: RunConfig, ranks: Ranks, limit: int | None = None) -> tuple[int, int | None]:
    """Rows of a validation batch, and how many batches: the same rows in all, whatever the number of ranks.

    batch_size 12, eval_batches 2: one rank (12, 2), four (3, 8). At most `limit` rows, where memory has ended before.
    """
    rows, count = config.train.rows, config.train.eval_batches
    size = gcd(rows, share_of_batch(config, ranks), limit or 0)
    return size, count and count * (rows // size)
