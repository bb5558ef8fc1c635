"""Optimizers: parameter groups, and their state as named tensors that a checkpoint can hold."""

from torch import Tensor, nn, optim

from minigpt.config import OptimizerConfig
from minigpt.errors import CheckpointError


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> optim.AdamW:
    """AdamW; matrices and embeddings decay, norms and biases do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def optimizer_tensors(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """State as {"exp_avg:blocks.0.norm1.weight": ...}; empty before the first step."""
    return {
        f"{key}:{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(model: nn.Module, optimizer: optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put the named tensors back. Raises CheckpointError if they are of another model."""
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        key, _, name = full_name.partition(":")
        if name not in parameters:
            raise CheckpointError(f"the optimizer's state names {name}, which this model has not")
        on_device = value if key == "step" and value.device.type == "cpu" else value.to(parameters[name].device)
        optimizer.state[parameters[name]][key] = on_device.clone()
