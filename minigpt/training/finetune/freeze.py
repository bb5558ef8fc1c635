"""Choose which parameters of a model are trained, and how fast."""

from fnmatch import fnmatchcase

from minigpt.errors import ConfigError, nearest
from minigpt.model import GPT
from minigpt.runtime.precision import Optimizer


def freeze(model: GPT, patterns: tuple[str, ...]) -> None:
    """Freeze the parameters that the patterns name, and all parameters in the parts that they name.

    freeze(model, ("embedding", "blocks.0", "blocks.*.norm?"))

    Raises ConfigError: a pattern names nothing, or no parameter is left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        found = [name for name in parameters if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not found:
            parts = dict.fromkeys(".".join(name.split(".")[:size]) for name in parameters for size in (1, 2, 3, 4))
            raise ConfigError(f"finetune.freeze: nothing is called {pattern!r}; {nearest(pattern, parts)}")
        for name in found:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("finetune.freeze: nothing is left to learn; freeze less")


def decay_by_layer(model: GPT, optimizer: Optimizer, decay: float) -> None:
    """Split the optimizer's groups by layer, and scale the rate of each by decay^(layers above it).

    Two blocks with decay 0.5: last norm and head 1, blocks.1 0.5, blocks.0 0.25, embeddings 0.125 (a tied head is
    the embedding). Source: Clark et al., 2020 (ELECTRA), appendix A. Call it before the first step.
    """
    above = {parameter: _layers_above(name, model.config.num_layers) for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for layers in sorted({above[parameter] for parameter in group["params"]}):
            members = [parameter for parameter in group["params"] if above[parameter] == layers]
            groups.append({**group, "params": members, "lr_scale": group.get("lr_scale", 1.0) * decay**layers})
    optimizer.param_groups[:] = groups


def _layers_above(name: str, num_layers: int) -> int:
    part, _, rest = name.partition(".")
    if part == "blocks":
        return num_layers - int(rest.split(".")[0])
    return 0 if part in ("norm", "head") else num_layers + 1  # embedding, positions
