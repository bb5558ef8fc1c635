"""Run AdamW (Loshchilov and Hutter, 2019): Adam with a weight decay that is separate from the gradient.

A moving average of the gradients gives the direction of a step, and a moving average of their squares gives its scale,
so each weight changes by about the learning rate. One fused operation of torch does the work. The class
`torch.optim.AdamW` is not used, since it imports torch's compiler, which takes more than two seconds at the start.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minigpt.runtime.precision import State


class AdamW:
    """AdamW with the results of `torch.optim.AdamW(fused=True)`, bit for bit, and the same names in its state.

    Args:
        groups: dicts of params and weight_decay, perhaps lr; other keys are kept. `step` uses each group's lr.
        lr: the rate of groups without lr.
        betas: decay of the average of the gradients, and of the average of their squares.
        eps: added to the square root, so that tiny gradients do not give large steps.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ):
        self.param_groups: list[dict[str, Any]] = [{"lr": lr, "betas": betas, "eps": eps} | group for group in groups]
        self.state: State = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.device, parameter.dtype].append(parameter)
            for parameters in alike.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters on one device and of one dtype."""
        for parameter in parameters:
            if "exp_avg" not in (state := self.state[parameter]):
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)

        def known(name: str) -> list[Tensor]:
            return [self.state[parameter][name] for parameter in parameters]

        torch._foreach_add_(known("step"), 1)  # pyright: ignore[reportPrivateImportUsage]
        torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage, reportCallIssue]
            parameters,
            [parameter.grad for parameter in parameters],  # pyright: ignore[reportArgumentType]  none is None
            known("exp_avg"),
            known("exp_avg_sq"),
            [],
            known("step"),
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
