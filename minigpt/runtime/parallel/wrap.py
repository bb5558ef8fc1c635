"""Prepare a built model for several ranks, or for less memory: DDP, FSDP2, activation checkpointing.

Training steps call a view of the model. The model itself keeps the names of its parameters, so checkpoints do not
depend on any of this.
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
    """What a model must have: its blocks, each called once per pass."""

    @property
    def blocks(self) -> Iterable[nn.Module]: ...


Model = TypeVar("Model", bound=nn.Module)


class _Loss(nn.Module):
    """A module that computes a model's loss, since DDP can only wrap a module.

    It has the parameters but not the buffers. DDP would broadcast buffers at every step, although they never change.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]):
        super().__init__()
        self.weights, self.compute = nn.ParameterList(model.parameters()), loss

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.compute(*args, **kwargs)


class Replicated(nn.Module):
    """A model that every rank holds. Gradients are averaged over the ranks during the backward pass.

    Args:
        model: has the parameters; those of rank 0 are copied to all ranks.
        loss: computes the loss of a training step, with this model or a view of it.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]):
        super().__init__()
        self.ddp = DistributedDataParallel(_Loss(model, loss), gradient_as_bucket_view=True)

    def loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Same as the model's `loss`."""
        return self.ddp(*args, **kwargs)


class Sharded:
    """The learner of a model that is split over the ranks. Each block's weights are gathered when the block runs.

    After a pass without gradients the root's weights are freed here, which otherwise the backward pass does.

    Args:
        model: its mode decides whether this is training, since `model.eval()` does not change a view.
        view: a view of the model, whose weights FSDP gathers.
    """

    def __init__(self, model: nn.Module, view: nn.Module):
        self.model, self.view = model, view

    def parameters(self) -> Iterator[nn.Parameter]:
        """This rank's parts of the parameters."""
        return self.view.parameters()

    def loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Same as the model's `loss`. All ranks must call it."""
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
    """Split the model's weights over all ranks, in place. Its parameters become DTensors and keep their names.

    The blocks' weights are sent in `dtype`; a dtype below fp32 rounds the norms' weights too. Gradients are summed in
    fp32, and the residual stream has the same dtype as without sharding.

    Args:
        model: should be on the CPU; every rank must hold the same weights.
        dtype: the dtype of autocast, or that of the weights without autocast.
        offload: keep the parts in the host's memory (only for GPUs).
        wrap: wraps each block before FSDP does: `CompiledInTraining`, `Recomputed`.
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
    """Make a view of the model whose blocks are wrapped. The model and the names of its weights stay the same."""
    view = copy.copy(model)
    view._modules = {**model._modules, "blocks": nn.ModuleList(map(wrap, cast(Blocks, model).blocks))}
    return view


class CompiledInTraining(nn.Module):
    """A block that runs compiled in training only. In evaluation it would have to be compiled a second time."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self.fast = block, torch.compile(block.forward, dynamic=False)

    def forward(self, *args: Any) -> Any:
        return self.fast(*args) if self.block.training else self.block(*args)


class Recomputed(nn.Module):
    """A block with activation checkpointing (Chen et al., 2016): the backward pass computes it again from its input.

    The random generators are reset, so dropout is the same. It costs a third more work. A block keeps only its input
    [B, T, C] for the backward pass.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.block(*args)
        return checkpoint(self.block, *args, use_reentrant=False)
