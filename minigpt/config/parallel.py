"""Settings of training by several processes."""

from typing import Literal, Self

from pydantic import model_validator

from minigpt.config.section import Positive, Section


class ParallelConfig(Section):
    """Several processes that train one model: torchrun --nproc-per-node 4 -m minigpt train recipe.yaml."""

    kind: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: every process holds the model; fsdp: each a part of weights, gradients and optimizer state, for models that
    one device cannot hold; auto is ddp. In one process it makes no difference."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass and compute the rest again: less memory, a third more work.
    Also in one process."""
    cpu_offload: bool = False
    """fsdp on GPUs: weights, gradients and optimizer state stay in the host's memory; slow, for the largest models."""
    sharded_checkpoints: bool = False
    """fsdp: every process writes its own part of a checkpoint, in the background; minigpt runs consolidate makes one
    file of them. Without it the parts are gathered and the first process writes."""
    timeout_seconds: Positive = 600
    """Longest wait for another process within a step; one that is silent for longer ends the run."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cpu_offload and self.kind != "fsdp":
            raise ValueError("cpu_offload needs kind fsdp; set --parallel.kind fsdp, or leave it out")
        if self.sharded_checkpoints and self.kind != "fsdp":
            raise ValueError("sharded_checkpoints needs kind fsdp; set --parallel.kind fsdp, or leave it out")
        return self
