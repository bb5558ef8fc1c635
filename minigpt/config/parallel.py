"""Settings of training in several processes."""

from typing import Literal, Self

from pydantic import model_validator

from minigpt.config.section import Positive, Section


class ParallelConfig(Section):
    """Several processes that train one model: torchrun --nproc-per-node 4 -m minigpt train recipe.yaml."""

    kind: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: every process holds the whole model. fsdp: each process holds a part of the weights, gradients and optimizer
    state, for models too large for one device. auto is ddp. With one process it makes no difference."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass and compute the rest again: less memory, a third more work.
    Works with one process too."""
    cpu_offload: bool = False
    """fsdp on GPUs: weights, gradients and optimizer state stay in the host's memory; slow, for the largest models."""
    sharded_checkpoints: bool = False
    """fsdp: every process writes its own part of a checkpoint, in the background; minigpt runs consolidate joins them
    into one file. When it is off, the first process gathers the parts and writes them."""
    timeout_seconds: Positive = 600
    """Longest wait for another process within a step; after that the run ends."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cpu_offload and self.kind != "fsdp":
            raise ValueError("cpu_offload needs kind fsdp; set --parallel.kind fsdp, or leave it out")
        if self.sharded_checkpoints and self.kind != "fsdp":
            raise ValueError("sharded_checkpoints needs kind fsdp; set --parallel.kind fsdp, or leave it out")
        return self
