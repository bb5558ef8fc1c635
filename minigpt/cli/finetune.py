"""Train a model further: `minigpt finetune`."""

import shlex
from dataclasses import dataclass
from typing import ClassVar

from minigpt.cli.arguments import Name, PathText, Positional, as_run, parse, with_word
from minigpt.cli.finished import report_run
from minigpt.console import loading, out
from minigpt.errors import UserError


@dataclass(frozen=True)
class Finetune:
    """Train a model further, on a text or on questions and answers.

    minigpt finetune runs/my more.txt
    minigpt finetune runs/my chats.jsonl --name chat
    minigpt finetune gpt2-directory answers.jsonl --lora.rank 8
    minigpt finetune runs/chat pairs.jsonl --finetune.dpo-beta 0.1
    minigpt finetune runs/small more.txt --finetune.teacher runs/large,runs/my
    minigpt finetune runs/chat/config.yaml --name again
    minigpt finetune --merge runs/answers --out runs/whole

    Data: any text that train takes, or JSON records, of which only the answers are learned. The keys of a record tell
    its layout: {"prompt", "completion"}; {"messages": [{"role", "content"}]} with roles system, user and assistant;
    ShareGPT's {"conversations": [{"from", "value"}]}; Alpaca's {"instruction", "input", "output"}; {"prompt", "chosen",
    "rejected"}. minigpt eval scores the run on the records that are held out.

    The defaults suit fine-tuning: 16 rows per step, adamw, 10 steps of warm-up, a cosine to 0, no weight decay, no
    compilation; all settings of the model are the base's. Records teach a small model (width 512 at most) a new skill:
    it learns at the rate of training from scratch, for about 1,200 steps (3 to 30 epochs). A text and a wider model use
    a tenth of the rate and 3 epochs; an adapter uses the full rate. DPO uses 3 epochs, at a hundredth of the full rate,
    an adapter at a tenth. The same command continues an interrupted run. Ctrl-C saves and stops.

    A run with --lora.rank holds only the adapter. To load it, minigpt needs the checkpoint that it began from,
    unchanged, at the same path or moved together with it. A run that --merge writes needs no base.
    """

    COMMON: ClassVar = (
        "name",
        "resume",
        "train.max_epochs",
        "train.max_steps",
        "train.max_minutes",
        "train.batch_size",
        "optimizer.learning_rate",
        "lora.rank",
        "lora.alpha",
        "finetune.seq_len",
        "finetune.val_source",
        "train.seed",
        "merge",
        "out",
        "json",
    )

    what: Positional[tuple[PathText, ...]] = ()
    """The base (a run, a checkpoint, a Hugging Face directory), then the data; or a recipe (.yaml) that names them."""
    name: Name | None = None
    """Name of the run: runs/NAME (default: from base and data)."""
    resume: bool = False
    """Continue a run although settings such as its length differ. Without a recipe, settings that you leave out are the
    run's own. A length that you give replaces the old one."""
    merge: PathText | None = None
    """Write this run's adapter merged with its base, as an ordinary run, into --out; trains nothing."""
    out: PathText | None = None
    """merge: the directory to write."""
    json: bool = False
    """Print one JSON object at the end: run, step, seconds, stop_reason, val_loss, best_loss, best_step, epochs,
    bits_per_byte (of the best checkpoint on the whole validation split; null if it was not scored)."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, overrides = parse(Finetune, argv, "finetune", with_config=True)
    others = args.what or overrides or args.json or args.name or args.resume
    if (args.merge is None) != (args.out is None) or (args.merge and others):
        raise UserError("--merge RUN and --out DIR belong together, and take nothing else")
    yamls = [word for word in args.what if word.endswith((".yaml", ".yml"))]
    words = [word for word in args.what if word not in yamls]
    if len(yamls) > 1 or len(words) > 2:
        what = "one base, one data source and one recipe are enough"
        raise UserError(f"{args.what[-1]}: {what}; quote a glob or a path with spaces; put files in a folder")
    if not args.merge and len(words) + 2 * len(yamls) < 2:
        raise UserError("name a base and the data, for example: minigpt finetune runs/my chats.jsonl")
    loading()
    from minigpt.runs.finetune import fine_tune, merge_run

    if args.merge and args.out:
        out(str(merge_run(as_run(args.merge, "finetune --merge"), args.out)))
        return 0
    base, data = [*words, None, None][:2]
    if base and data:
        base = as_run(base, "finetune")
    overrides = with_word(with_word(overrides, "finetune.base", base), "data.source", data)
    command = shlex.join(["minigpt", "finetune", *argv])
    run = fine_tune(base, data, overrides, args.name, args.resume, yamls[0] if yamls else None, command=command)
    return report_run(run, args.json)
