"""Print the rows of RESULTS.md that are older than the code they measure.

    python benchmarks/stale.py

A row is older if a commit after its own changed a path that its claim depends on (DEPENDS). That does not make its
figure wrong: it says which rows to measure again first. Rows whose command is pytest are left out: the tests prove them
again at every commit.
"""

import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from history import ROOT, Row, results

TRAINING = ("minigpt/model", "minigpt/training", "minigpt/runtime", "minigpt/runs/train.py")
GENERATING = ("minigpt/model", "minigpt/generation")
DEPENDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"llama.cpp|^generation|narrow model|speculative", (*GENERATING, "minigpt/weights/quantized.py")),
    (r"web page", ("minigpt/export/page",)),
    (r"^server", ("minigpt/serve/engine", "minigpt/serve/api", "minigpt/generation")),
    (r"BPE|word of 300,000", ("minigpt/tokenizers",)),
    (r"preparing", ("minigpt/data", "minigpt/tokenizers")),
    (r"first line", ("minigpt/cli", "minigpt/before_torch.py", "minigpt/runs/budget")),
    (r"demo", (*TRAINING, "minigpt/data/stories", "minigpt/cli/demo.py", "recipes/demo.yaml")),
    (r"budget|text of your own", (*TRAINING, "minigpt/runs/budget")),
    (r"fine-tuning|LoRA", (*TRAINING, "minigpt/runs/finetune.py")),
    (r"int8 costs|int4 costs", ("minigpt/weights", "minigpt/runs/quantize.py")),
    (r"nanogpt|shakespeare|tiny-6.7m|wikitext2|small-25m|training|growth", (*TRAINING, "recipes")),
)
"""The paths that a claim depends on: the first pattern that matches it counts."""


def paths(claim: str) -> tuple[str, ...]:
    """The paths that a claim depends on; () if no pattern matches."""
    return next((found for pattern, found in DEPENDS if re.search(pattern, claim)), ())


def full_claims(rows: list[Row]) -> list[tuple[Row, str]]:
    """Each row with its full claim: "the same on a GPU" continues the claim above it."""
    found, last = [], ""
    for row in rows:
        last = f"{last.split(':: ')[0]}:: {row.claim}" if row.claim.startswith("the same") else row.claim
        found.append((row, last))
    return found


def changes(commit: str, changed: tuple[str, ...], root: Path = ROOT) -> int:
    """How many commits after this one changed a path. Raises CalledProcessError: no such commit."""
    command = ["git", "rev-list", "--count", "--no-merges", f"{commit}..HEAD", "--", *changed]
    return int(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)


def stale(rows: list[Row], root: Path = ROOT) -> list[tuple[int, str, Row]]:
    """(commits since, claim, row) of each row that is older than its code, the oldest first."""
    found = [
        (changes(row.commit, changed, root), claim, row)
        for row, claim in full_claims(rows)
        if not row.command.startswith("`pytest") and (changed := paths(claim))
    ]
    return sorted((one for one in found if one[0]), key=lambda one: -one[0])


if __name__ == "__main__":
    rows = results()
    found = stale(rows)
    for count, claim, row in found:
        print(f"{count:4} commits since {row.commit}  {row.machine:<9.9}  {claim.replace('::', ',')}")
    print(f"{len(found)} of {len(rows)} rows are older than the code that they measure")
