"""Does Muon beat AdamW here? The same model and steps, two seeds each, measured on the whole validation split.

    python examples/compare_runs.py [STEPS]

One seed says little: compare the means with the spread. The picture shows the curves of all four runs.
"""

import sys
from pathlib import Path
from statistics import mean

from minigpt import evaluate_run, load_config, load_run, train
from minigpt.explanation import plot_runs

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 150
losses: dict[str, list[float]] = {}
paths: list[Path] = []

for kind in ("muon", "adamw"):
    for seed in (1, 2):
        config = load_config(
            overrides={
                "optimizer.kind": kind,
                "data.stories_count": 500,
                "model.num_layers": 2,
                "model.embed_dim": 64,
                "model.max_seq_len": 64,
                "train.seed": seed,
                "train.max_steps": steps,
                "train.batch_size": 8,
                "train.sample_every": 0,
                "schedule.warmup_steps": 10,
                "logging.plots": False,
            }
        )
        run = train(config, name=f"{kind}-{seed}", quiet=True)
        loss = evaluate_run(load_run(run.path / "checkpoints" / "last"))["loss"]
        losses.setdefault(kind, []).append(loss)
        paths.append(run.path)

print("optimizer  mean   seeds")
for kind, values in losses.items():
    print(f"{kind:<9}  {mean(values):.3f}  {', '.join(f'{value:.3f}' for value in values)}")
print(plot_runs(paths, Path("compare.png")))
