"""A built model made ready for several ranks, or for less memory: DDP, FSDP2, activation checkpointing.

Notable: the model is changed in place and keeps its parameters' names, so a checkpoint is the same whoever wrote it.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint


class Blocks(Protocol):
    """What is asked of a model: its blocks, each called once in a pass."""

    @property
    def blocks(self) -> Iterable[nn.Module]: ...


class _Loss(nn.Module):
    """DDP wraps what is called as a module, and a training step calls a model's loss.

    It holds the parameters alone: buffers, which DDP would send around in every step, never change.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]):
        super().__init__()
        self.weights, self.compute = nn.ParameterList(model.parameters()), loss

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.compute(*args, **kwargs)


class Replicated(nn.Module):
    """A model that every rank holds; gradients are averaged over the ranks while the backward pass makes them.

    Args:
        model: holds the parameters; rank 0's are copied to all.
        loss: of a training step, of this model or of what stands for it.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]):
        super().__init__()
        self.ddp = DistributedDataParallel(_Loss(model, loss), gradient_as_bucket_view=True)

    def loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the model's own."""
        return self.ddp(*args, **kwargs)


def shard(model: nn.Module, device: torch.device, dtype: torch.dtype, offload: bool = False) -> None:
    """Divide the model, in place, over all ranks: each block is gathered when it is used, and let go after.

    Its parameters become DTensors; only `loss` may be called, by all ranks. The blocks' weights travel in `dtype`,
    which below fp32 rounds the norms' too; gradients are summed in fp32, and the residual stream is as without.

    Args:
        model: on the CPU, best; every rank must hold the same weights.
        dtype: that autocast multiplies in, else the weights' own.
        offload: keep the parts in the host's memory (only GPUs).
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = CPUOffloadPolicy() if offload and device.type == "cuda" else OffloadPolicy()
    low = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in cast(Blocks, model).blocks:
        fully_shard(block, mesh=mesh, offload_policy=policy, mp_policy=low)
    fully_shard(model, mesh=mesh, offload_policy=policy)
    register_fsdp_forward_method(model, "loss")
    sharded, loss = cast(FSDPModule, model), cast(Callable[..., Tensor], model.loss)
    if device.type == "cpu":
        for module in model.modules():
            if is_sharded(module):
                module.set_force_sum_reduction_for_comms(True)  # gloo cannot average

    def resharding(*args: Any, **kwargs: Any) -> Tensor:
        out = loss(*args, **kwargs)
        if not torch.is_grad_enabled():
            sharded.reshard()  # the root is kept for a backward pass, which will not come
        return out

    model.loss = resharding  # pyright: ignore[reportArgumentType]


def is_sharded(model: object) -> TypeGuard[FSDPModule]:
    """Whether `shard` divided it."""
    return isinstance(model, FSDPModule)


def compile_blocks(model: nn.Module) -> None:
    """torch.compile for a sharded model, in place: what is inside of the gathering, in training only."""
    for block in cast(Blocks, model).blocks:
        eager, fast = block.forward, torch.compile(block.forward, dynamic=False)
        block.forward = _in_training(block, fast, eager)  # pyright: ignore[reportArgumentType]


def _in_training(block: nn.Module, yes: Callable[..., Any], no: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any) -> Any:
        return yes(*args) if block.training else no(*args)

    return forward


def recompute_blocks(model: Blocks) -> None:
    """Activation checkpointing (Chen et al., 2016), in place: the backward pass runs each block again from its input.

    The same dropout comes out, since the generators are set back. It costs a third more work, and saves all that a
    block keeps but [B, T, C].
    """
    for block in model.blocks:
        block.forward = _recomputed(block.forward)  # pyright: ignore[reportArgumentType]


def _recomputed(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args)
        return checkpoint(inner, *args, use_reentrant=False)

    return forward
