"""Train on the built-in stories, then write stories: `minigpt demo`."""

import math
import shlex
from dataclasses import dataclass

from minigpt.cli.arguments import Name, parse, tell_unused
from minigpt.cli.finished import headline_of
from minigpt.console import console, loading, out, out_json
from minigpt.errors import UserError

MOST_MINUTES = 1.2
STORY_TOKENS = 160
"""Largest number of tokens in a story; most stories end before."""


@dataclass(frozen=True)
class Demo:
    """Train on the built-in stories: about a minute on two CPU cores, no network. Then write stories.

    minigpt demo

    A slow machine does fewer steps in that time; --train.max-minutes 3 trains for three minutes. A small grammar writes
    the text, so its exact entropy is known: the loss that no model can beat.
    """

    name: Name = Name("demo")
    """Name of the run: runs/NAME."""
    json: bool = False
    """Print one JSON object: run, seconds, loss, entropy, gap (these three in nats per byte), samples."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, overrides = parse(Demo, argv, "demo", with_config=True)
    console.print("[bold]minigpt demo[/bold]: a small GPT learns to write stories", markup=True)
    loading(quiet=True)
    from minigpt.config import find_recipe, load_config
    from minigpt.data.stories.generator import entropy
    from minigpt.evals import evaluate_run
    from minigpt.generation.text import generate_text
    from minigpt.runs.load import load_run
    from minigpt.runs.task import FromScratch
    from minigpt.runs.train import train

    recipe = find_recipe("demo")
    # the recipe's steps are for 72 seconds: they would end a longer run before its time
    length = {"train.max_steps": None} if overrides.get("train.max_minutes") else {"train.max_minutes": MOST_MINUTES}
    config = load_config(recipe, length | overrides)
    if config.data.source != "stories":
        raise UserError(f"demo trains on its own stories; on another text: minigpt train demo {config.data.source}")
    tell_unused(config, None, overrides)
    task = FromScratch({"command": shlex.join(["minigpt", "demo", *argv])})
    run = train(config, name=args.name, recipe=str(recipe), task=task)
    settings = run.config.generation.model_dump() | {"num_samples": 3, "max_new_tokens": STORY_TOKENS}
    prompt = run.config.train.sample_prompt
    samples = [prompt + text for text in generate_text(run.model, prompt, run.tokenizer, **settings)]
    seconds = run.state.seconds
    if not args.json:
        for number, sample in enumerate(samples, 1):
            out(f"\n--- story {number} ---\n{sample.strip()}")
        out("")
    report = run.report or evaluate_run(load_run(run.path))  # a very short run has no report
    loss, floor = report["bits_per_byte"] * math.log(2), entropy().nats_per_char
    if args.json:
        figures = {"seconds": round(seconds, 1), "loss": loss, "entropy": floor, "gap": loss - floor}
        out_json({"run": str(run.path), **figures, "samples": samples})
        return 0
    if line := headline_of(run):
        out(line)
    path = shlex.quote(run.path.as_posix())  # cmd.exe knows no quotes around runs\demo
    left = f"{round(loss, 3) - round(floor, 3):.3f} is left to learn"  # as a reader subtracts
    out(
        f"loss {loss:.3f} nats per byte; the grammar's own entropy is {floor:.3f}: {left}\n"
        f"Trained in {seconds:.0f} s. Next:\n"
        f'  minigpt generate {path} --prompt "Once upon a time"\n'
        f"  minigpt eval {path}\n"
        f"  minigpt train my.txt"
    )
    return 0
