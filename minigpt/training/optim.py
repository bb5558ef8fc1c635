"""Make optimizers with their parameter groups, and save and load their state as named tensors."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minigpt.config import OptimizerConfig
from minigpt.errors import CheckpointError
from minigpt.model.parts import Block
from minigpt.runtime.precision import Optimizer
from minigpt.runtime.ranks import ALONE, Ranks
from minigpt.training.adamw import AdamW
from minigpt.training.muon import Muon


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, precision: str = "bf16", ranks: Ranks = ALONE
) -> Optimizer:
    """AdamW for all parameters; or (Nor)Muon for the blocks' matrices, with AdamW at a share of its rate for the rest.

    Matrices and embeddings have weight decay; norms and biases do not.
    """
    pieces = hidden_matrices(model) if config.has_muon else {}
    share = config.adamw_ratio if config.has_muon else 1.0
    parameters = [p for p in model.parameters() if p.requires_grad and p not in pieces]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay, "lr_scale": share},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0, "lr_scale": share},
    ]
    groups = [group for group in groups if group["params"]]
    rate = config.learning_rate * share
    adamw = AdamW(groups, lr=rate, betas=(config.beta1, config.beta2), eps=config.eps)
    if not pieces:
        return adamw
    dtype = torch.float32 if precision in ("fp32", "tf32") else torch.bfloat16  # the type of the run's matrix products
    row_beta = config.beta2 if config.kind == "normuon" else None
    return Muon(pieces, adamw, config.learning_rate, config.momentum, config.weight_decay, row_beta, dtype, ranks)


def hidden_matrices(model: nn.Module) -> dict[Tensor, list[int]]:
    """The blocks' matrices, each with the numbers of rows of the matrices stacked in it (q, k, v; gate, up)."""
    pieces: dict[Tensor, list[int]] = {}
    for block in (module for module in model.modules() if isinstance(module, Block)):
        attention, feed_forward = block.attention, block.feed_forward
        query, key = attention.num_heads * attention.head_size, attention.kv_heads * attention.head_size
        pieces[attention.qkv.weight] = [query, key, key]
        rows = feed_forward.up.out_features
        pieces[feed_forward.up.weight] = [rows // feed_forward.gates] * feed_forward.gates
        for matrix in (attention.out.weight, feed_forward.down.weight):
            pieces[matrix] = [matrix.shape[0]]
    return {matrix: rows for matrix, rows in pieces.items() if matrix.requires_grad}


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """State as {"exp_avg:blocks.0.norm1.weight": ...}; empty before the first step."""
    return {
        f"{key}:{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    model: nn.Module,
    optimizer: Optimizer,
    tensors: dict[str, Tensor],
    own: Callable[[Tensor, Tensor], Tensor] = lambda tensor, like: tensor,
) -> None:
    """Replace the state by the named tensors; `own` takes this rank's part of each.

    Raises CheckpointError if a name is unknown.
    """
    parameters = dict(model.named_parameters())
    optimizer.state.clear()  # a checkpoint of step 0 has no state, also after steps in this process
    for full_name, value in tensors.items():
        key, _, name = full_name.partition(":")
        if name not in parameters:
            raise CheckpointError(f"the optimizer's state names {name}, which this model does not have")
        part = own(value, parameters[name]) if value.dim() else value  # scalars such as the step count are not sharded
        optimizer.state[parameters[name]][key] = part.to(parameters[name].device, copy=True)
