"""Show what a model costs: `minigpt model inspect`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from minigpt.cli.arguments import PathText, Positional, parse
from minigpt.config import RunConfig, load_config
from minigpt.console import SafeConsole, counted, out_json
from minigpt.errors import UserError
from minigpt.layout import CONFIG, RunFolder


@dataclass(frozen=True)
class Model:
    """Show what a model costs: parameters per part, FLOPs per token, memory, and the shape at each step.

    If the vocabulary is not set, it is that of the tokenizer's kind (char: 65).

    minigpt model inspect shakespeare-char
    minigpt model inspect runs/my
    minigpt model inspect --model.embed-dim 768 --model.num-layers 12 --model.num-heads 12 --model.vocab-size 50257
    """

    action: Positional[Literal["inspect"]]
    """inspect, the only action."""
    what: Positional[PathText | None] = None
    """A recipe or a run directory (default: the default shape)."""
    json: bool = False
    """Print one JSON object: config, batch_size (sequences at a time), parameters, flops_per_token, training_memory,
    inference_memory, shapes."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, overrides = parse(Model, argv, "model", with_config=True)
    from minigpt.machine.bench.shape import with_vocabulary

    folder = Path(args.what) if args.what else None
    is_folder = folder is not None and folder.is_dir()
    if folder and is_folder and not RunFolder(folder).is_run:
        raise UserError(f"{args.what}: is not a run: it has no {CONFIG}; give a run directory or a recipe")
    recipe = str(RunFolder(folder).config) if folder and is_folder else args.what
    report = inspect(with_vocabulary(load_config(recipe, overrides)))
    if args.json:
        out_json(report)
    else:
        _show(report)
    return 0


def inspect(config: RunConfig) -> dict[str, Any]:
    """All figures as plain values. The model's vocabulary must be known."""
    from minigpt.model.cost import flops_per_token, parameter_table, shape_walk
    from minigpt.runtime.memory_estimate import inference_memory, memory_of_run

    shape = config.model
    training = memory_of_run(config)
    inference = inference_memory(shape)
    return {
        "config": shape.model_dump(mode="json"),
        "batch_size": config.train.rows,
        "parameters": parameter_table(shape),
        "flops_per_token": {"training": flops_per_token(shape), "inference": flops_per_token(shape, training=False)},
        "training_memory": asdict(training) | {"total": training.total},
        "inference_memory": asdict(inference) | {"total": inference.total},
        "shapes": [list(row) for row in shape_walk(shape)],
    }


def _show(report: dict[str, Any]) -> None:
    console = SafeConsole(highlight=False)
    total = report["parameters"]["total"]
    table = Table("part", "parameters", "share", box=None, title="parameters")
    for part, count in report["parameters"].items():
        table.add_row(part, f"{count:,}", f"{count / total:.1%}")
    console.print(table)
    flops = report["flops_per_token"]
    console.print(f"FLOPs per token: training {flops['training']:,}, inference {flops['inference']:,}")
    table = Table(
        "memory, MB", "weights", "gradients", "optimizer", "activations", "cache", "average", "total", box=None
    )
    for kind in ("training", "inference"):
        bytes_ = report[f"{kind}_memory"].values()
        name = f"training, {counted(report['batch_size'], 'sequence')}" if kind == "training" else "inference"
        table.add_row(name, *(f"{value / 1e6:,.1f}" for value in bytes_))
    console.print(table)
    table = Table("module", "in", "out", box=None, title="shapes (one sequence; all blocks are equal)")
    for row in report["shapes"]:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console.print(table)
