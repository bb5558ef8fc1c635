"""minigpt demo."""

from dataclasses import dataclass

from minigpt.cli.console import console, out, out_json, parse


@dataclass(frozen=True)
class Demo:
    """Train the embedded default: about two minutes on two CPU cores, no network. Then write stories with it.

    minigpt demo

    The text is written by a small grammar whose exact entropy is known: the loss that no model can beat.
    """

    name: str = "demo"
    """Name of the run: runs/NAME."""
    json: bool = False
    """Print one JSON object: run, seconds, val_loss, entropy, gap (all nats per character), samples."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, overrides = parse(Demo, argv, "demo", with_config=True)
    from minigpt.assemble import train
    from minigpt.config import find_recipe, load_config
    from minigpt.data.stories import entropy
    from minigpt.generation import generate_text

    recipe = find_recipe("demo")
    console.print("[bold]minigpt demo[/bold]: a small GPT learns to write stories, character by character")
    run = train(load_config(recipe, overrides), name=args.name, recipe=str(recipe))
    samples = generate_text(run.model, run.config.train.sample_prompt, run.tokenizer, num_samples=3, max_new_tokens=400)
    floor = entropy().nats_per_token_char
    loss = run.state.val_loss or float("nan")
    if args.json:
        figures = {"seconds": round(run.state.seconds, 1), "val_loss": loss, "entropy": floor, "gap": loss - floor}
        out_json({"run": str(run.path), **figures, "samples": list(samples)})
        return 0
    for number, sample in enumerate(samples, 1):
        out(f"\n--- story {number} ---\n{sample.strip()}")
    out(
        f"\nvalidation loss {loss:.3f} nats per character; the grammar's own entropy is {floor:.3f}, "
        f"so {loss - floor:.3f} is left to learn.\n"
        f"Trained in {run.state.seconds:.0f} s. Next:\n"
        f'  minigpt generate {run.path} --prompt "Once upon a time"\n'
        f"  minigpt eval {run.path}\n"
        f"  minigpt train my.txt"
    )
    return 0
