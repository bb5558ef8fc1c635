"""minigpt train."""

from dataclasses import dataclass

import tyro

from minigpt.cli.console import config_from, out, parse, report_run


@dataclass(frozen=True)
class Train:
    """Train a GPT from scratch.

    minigpt train my.txt
    minigpt train recipes/shakespeare-char-cpu.yaml --train.max-minutes 5
    minigpt train runs/my/config.yaml --name again --optimizer.learning-rate 3e-3

    The same command continues a run that was cut off. Ctrl-C saves and stops.
    """

    what: tyro.conf.Positional[tuple[str, ...]] = ()
    """A recipe (.yaml or a shipped name), data (file, directory, glob, name, - for standard input), or both."""
    name: str | None = None
    """Name of the run: runs/NAME."""
    resume: bool = False
    """Continue a run although settings such as the budget differ."""
    tiny_run: bool = False
    """Shrink the recipe to about a minute of CPU, to see that everything works."""
    prepare_only: bool = False
    """Stop once the text is tokenized."""
    json: bool = False
    """Print one JSON object at the end: run, step, seconds, stop_reason, val_loss, best_loss, best_step, epochs."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, overrides = parse(Train, argv, "train", with_config=True)
    config, recipe = config_from(args.what, overrides)
    from minigpt.assemble import make_tokenizer, prepare_data, tiny, train
    from minigpt.assemble.directory import default_name

    name = args.name
    if args.tiny_run:  # under a name of its own: the real run comes after it
        config = tiny(config)
        name = name or f"{default_name(config, recipe)}-tiny"
    if args.prepare_only:
        prepared = prepare_data(config, make_tokenizer(config))
        out(str(prepared.directory))
        return 0
    run = train(config, name=name, resume=args.resume, recipe=recipe)
    return report_run(run, args.json)
