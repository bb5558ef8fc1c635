"""Print configuration: `minigpt config schema | show | recipes`."""

from dataclasses import dataclass
from typing import Literal

from minigpt.cli.arguments import PathText, Positional, parse
from minigpt.config import dump_config, load_config, recipes, schema
from minigpt.console import out, out_json
from minigpt.errors import UserError


@dataclass(frozen=True)
class Config:
    """Print configuration.

    minigpt config schema > recipe.schema.json
    minigpt config show shakespeare-char --train.max-steps 100
    minigpt config recipes
    """

    what: Positional[Literal["schema", "show", "recipes"]]
    """schema: JSON Schema for editors; show: a recipe with all defaults filled in; recipes: the shipped recipes."""
    recipe: Positional[PathText | None] = None
    """show: a recipe; without one, show prints the defaults."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, overrides = parse(Config, argv, "config", with_config=True)
    if args.what != "show" and (args.recipe or overrides):
        what = args.recipe or next(iter(overrides))
        raise UserError(f"{what}: {args.what} takes no recipe and no settings; use minigpt config show")
    if args.what == "schema":
        out_json(schema())
    elif args.what == "show":
        out(dump_config(load_config(args.recipe, overrides)))
    else:
        width = max(map(len, recipes()))
        for name, path in recipes().items():
            out(f"{name:<{width}}  {path}")
    return 0
