"""Test that a flag or word that a command would not use is one error, before anything is read or written."""

from pathlib import Path

import pytest
from cli_run import fails

CASES = {
    "generate runs/my --out a.txt --batch-size 3": "--out and --batch-size: only with --prompts",
    "generate runs/my --prompts in.txt --json": "--json: not with --prompts",
    "generate runs/my --logprobs 3": "--logprobs: only with --json or --prompts",
    "data inspect my.txt --out a.txt": "--out: only with questions",
    "data questions --json": "--json: only with inspect",
    "data questions --data.source my.txt": "--data.source: is for a text",
    "explain runs/my --position 3": "--position: only with --step-by-step",
    "explain runs/my --picture lens": "--picture: only with --png or --svg",
    "explain runs/my --step-by-step --svg a.svg": "--svg: not with --step-by-step",
    "explain runs/my --out a.html --png a.png": "--out is for the page",
    "train my.txt --prepare-only --json": "--json: prints how a run ended",
    "finetune --merge runs/a --out runs/b --name c": "take nothing else",
    "quantize runs/my --bits 8 --group 32": "--group: only with 4 bits",
    "runs compare runs/a runs/b --no-plot --out a.png": "--out: is for the picture",
    "train a.txt --data.source b.txt": "a.txt and --data.source b.txt say different things",
    "train a.txt --name a --logging.name b": "a and --logging.name b say different things; leave one of them out",
    "finetune runs/a a.txt --name a --logging.name b": "a and --logging.name b say different things",
    "demo --name a --logging.name b": "a and --logging.name b say different things",
    "finetune runs/a a.txt --finetune.base runs/b": "runs/a and --finetune.base runs/b say different things",
    "sweep a.txt --data.source b.txt,c.txt": "a.txt and --data.source ['b.txt', 'c.txt'] say different things",
    "sweep a.txt --tokenizer.vocab-size 300,400": "--tokenizer.vocab-size: no effect, since tokenizer.kind is char",
    "bench train --parallel.activation-checkpointing true": "--parallel.activation-checkpointing: has no effect on",
    "bench train --rounds 5": "--rounds: only with --vs hf",
    "bench generate --generation.top-k 3": "--generation.top-k: has no effect on minigpt bench generate",
    "bench data a.txt --data.source b.txt": "a.txt and --data.source b.txt say different things",
    "tokenizer train a.txt --kind char --vocab-size 300": "--vocab-size: not for the kind char",
    "tokenizer train a.txt --data.source b.txt": "--data.source: not a setting of minigpt tokenizer train",
    "config recipes nonsense": "nonsense: recipes takes no recipe and no settings",
    "config schema --train.max-steps 3": "--train.max-steps: schema takes no recipe and no settings",
    "config show shakespear-char": "no such recipe: shakespear-char; did you mean shakespeare-char?",
    "model inspect .": ".: is not a run: it has no config.yaml; give a run directory or a recipe",
    "model inspect shakespear-char": "no such recipe: shakespear-char; did you mean shakespeare-char?",
}


@pytest.mark.parametrize("line", CASES)
def test_it_is_refused(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    fails(capsys, line.split(), CASES[line])
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_not_started_by_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    argv = ["sweep", "stories", "--train.seed", "1,2", "--dry-run", "--logging.runs-dir", str(tmp_path)]
    fails(capsys, argv, "starts each run as a process of its own; leave torchrun out")
