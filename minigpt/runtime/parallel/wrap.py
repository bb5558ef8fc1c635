"""Make a built model ready for several ranks, or for less memory: DDP, FSDP2, activation checkpointing.

Notable: a step calls a view of the model. The model itself keeps its parameters' names, so a checkpoint is the same
whoever wrote it.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar, cast

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


Model = TypeVar("Model", bound=nn.Module)


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


class Sharded:
    """A model divided over the ranks, as steps and evaluations call it: each block is gathered when it is used.

    After a pass without gradients the root's weights are let go: no backward pass comes that would do it.

    Args:
        model: decides whether this is training; `model.eval()` does not reach a view.
        view: of it, which FSDP gathers.
    """

    def __init__(self, model: nn.Module, view: nn.Module):
        self.model, self.view = model, view

    def parameters(self) -> Iterator[nn.Parameter]:
        """This rank's parts."""
        return self.view.parameters()

    def loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the model's own; all ranks call it."""
        self.view.training = self.model.training
        out = cast(Callable[..., Tensor], self.view.loss)(*args, **kwargs)
        if not torch.is_grad_enabled():
            cast(FSDPModule, self.view).reshard()
        return out


def shard(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    offload: bool = False,
    wrap: Callable[[nn.Module], nn.Module] = lambda block: block,
) -> Sharded:
    """Divide the model's weights, in place, over all ranks. Its parameters become DTensors and keep their names.

    The blocks' weights travel in `dtype`, which below fp32 rounds the norms' too; gradients are summed in fp32, and the
    residual stream is as without.

    Args:
        model: on the CPU, best; every rank must hold the same weights.
        dtype: that autocast multiplies in, else the weights' own.
        offload: keep the parts in the host's memory (only GPUs).
        wrap: what is done to each block inside of the gathering: `CompiledInTraining`, `Recomputed`.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = CPUOffloadPolicy() if offload and device.type == "cuda" else OffloadPolicy()
    low = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    view = with_blocks(model, wrap)
    for block in cast(Blocks, view).blocks:
        fully_shard(block, mesh=mesh, offload_policy=policy, mp_policy=low)
    fully_shard(view, mesh=mesh, offload_policy=policy)
    register_fsdp_forward_method(view, "loss")
    if device.type == "cpu":
        for module in view.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)  # gloo cannot average
    return Sharded(model, view)


def with_blocks(model: Model, wrap: Callable[[nn.Module], nn.Module]) -> Model:
    """A view of the model that calls its blocks through `wrap`; the model itself, and its weights' names, stay."""
    view = copy.copy(model)
    view._modules = {**model._modules, "blocks": nn.ModuleList(map(wrap, cast(Blocks, model).blocks))}
    return view


class CompiledInTraining(nn.Module):
    """A block that torch.compile has made faster, in training only: an evaluation would compile it once more."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self.fast = block, torch.compile(block.forward, dynamic=False)

    def forward(self, *args: Any) -> Any:
        return self.fast(*args) if self.block.training else self.block(*args)


class Recomputed(nn.Module):
    """A block under activation checkpointing (Chen et al., 2016): the backward pass runs it again from its input.

    The same dropout comes out, since the generators are set back. It costs a third more work, and saves all that a
    block keeps but [B, T, C].
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.block(*args)
        return checkpoint(self.block, *args, use_reentrant=False)
