# %% [markdown]
# # 4 · What each choice gains
#
# RMSNorm or LayerNorm? Rotary positions or learned ones? SwiGLU, QK-norm, Muon? Each has a paper that says it is
# better. We ask by experiment: one baseline, one change at a time, three seeds each, on equal terms.
#
# This notebook shows two things: what the choices do at this size, and how to tell a real difference from noise.
#
# Further reading: Narang et al., 2021, *Do Transformer Modifications Transfer Across Implementations and Applications?*
# They found that most of them do not.

# %%
# %config InlineBackend.figure_formats = ["svg"]
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import numpy as np
import torch

from minigpt import GPT, load_config, train
from minigpt.data.stories.generator import generate_stories
from minigpt.explanation import read_metrics, record
from minigpt.explanation.canvas import COLOURS, GRID, INK, QUIET, quiet
from minigpt.model.cost import flops_per_token, parameter_table
from minigpt.runtime.device import make_runtime
from minigpt.training import accumulate, make_optimizer, update

plt.rcParams |= {"svg.hashsalt": "minigpt", "svg.fonttype": "none", "font.size": 10, "text.color": INK}
folder = Path(tempfile.mkdtemp())  # all that is written goes there; the last cell deletes it

# %% [markdown]
# ## The baseline
#
# minigpt's default shape and optimizer, made tiny: two layers of width 64, a context of 64 characters, 150 steps of 512
# characters of `stories`. A run takes a few seconds.

# %%
settings = {
    "data.source": "stories",
    "data.stories_count": 2000,
    "data.cache_dir": str(folder / "cache"),
    "model.num_layers": 2,
    "model.embed_dim": 64,
    "model.num_heads": 4,
    "model.max_seq_len": 64,
    "model.ff_dim": 168,
    "model.attention": "sdpa",
    "optimizer.learning_rate": 0.02,
    "optimizer.adamw_ratio": 1.6,
    "optimizer.weight_decay": 0.0,
    "schedule.kind": "linear",
    "schedule.min_lr_ratio": 0.0,
    "schedule.warmup_steps": 10,
    "train.max_steps": 150,
    "train.batch_size": 8,
    "train.eval_every": 30,
    "train.eval_batches": 20,
    "train.save_every": 150,
    "train.sample_every": 0,
    "train.precision": "fp32",
    "train.compile": "off",
    "logging.runs_dir": str(folder / "runs"),
    "logging.plots": False,
}
seeds = (1, 2, 3)

# %% [markdown]
# ## The choices
#
# - **Norm.** RMSNorm (Zhang and Sennrich, 2019) divides by the root mean square, $x / \sqrt{\overline{x^2}} \cdot w$.
#   LayerNorm (Ba et al., 2016) subtracts the mean first, $(x - \bar x) / \sqrt{\overline{(x - \bar x)^2}} \cdot w$.
# - **Position.** RoPE (Su et al., 2021) rotates queries and keys by $t\,\theta^{-2i/D}$, so that their distance counts.
#   Others add a vector for each position: a learned one, or fixed waves (Vaswani et al., 2017).
# - **Activation.** SwiGLU (Shazeer, 2020) has a third matrix as a gate, $W_3 (\mathrm{silu}(W_1 x) \odot W_2 x)$. GELU,
#   $W_2\, \mathrm{gelu}(W_1 x)$, and ReLU² (So et al., 2021), $W_2 \max(0, W_1 x)^2$, have two matrices.
# - **QK-norm** (Henry et al., 2020): queries and keys are normalised before their product, or they are not.
# - **Optimizer.** Muon (Jordan et al., 2024) for the matrices in the blocks, with AdamW for the rest; or AdamW
#   (Loshchilov and Hutter, 2019) for all.
#
# The last row of the experiment changes everything at once: GPT-2's architecture, trained with AdamW.

# %%
gelu = {"model.activation": "gelu_tanh", "model.ff_dim": 252}
adamw = {"optimizer.kind": "adamw", "optimizer.learning_rate": 4e-3}
variants = {
    "baseline": {},
    "LayerNorm": {"model.norm": "layernorm"},
    "learned positions": {"model.position": "learned"},
    "sinusoidal positions": {"model.position": "sinusoidal"},
    "GELU": gelu,
    "ReLU²": gelu | {"model.activation": "relu2"},
    "no QK-norm": {"model.qk_norm": False},
    "AdamW": adamw,
    "GPT-2 and AdamW": gelu | adamw | {"model.shape": "gpt2"},
}
configs = {name: load_config(overrides=settings | changes) for name, changes in variants.items()}

# %% [markdown]
# ## Equal terms
#
# - **The same tokens**, in the same order for the same seed, and the same validation text.
# - **The same size.** SwiGLU has three matrices where GELU has two, so it gets two thirds of the width:
#   $3 \cdot 168 = 2 \cdot 252$. Otherwise we would measure size.
# - **A fair learning rate for each.** The most common mistake in such comparisons is to tune one side only.
#
# The operations per token are then exactly equal. The seconds may differ; we measure them at the end.

# %%
shapes = {name: config.model.model_copy(update={"vocab_size": 64}) for name, config in configs.items()}
for name, shape in shapes.items():
    weights = parameter_table(shape)["total"]
    print(f"{name:22} {weights:8,} weights   {flops_per_token(shape):8,} operations per token")
operations = [flops_per_token(shape) for shape in shapes.values()]
assert len(set(operations)) == 1

# %% [markdown]
# ### How the rates were chosen
#
# They come from an earlier sweep, with another seed than those below. The table shows the validation loss after 150
# steps.
#
# | Muon's rate | AdamW's rate next to it | loss | | AdamW alone | loss | GPT-2's shape, AdamW |
# |---|---|---|---|---|---|---|
# | 0.02 | 0.016 | 1.517 | | 0.002 | 2.249 | 2.383 |
# | **0.02** | **0.032** | 1.478 | | **0.004** | 2.234 | **2.330** |
# | 0.02 | 0.064 | 1.471 | | 0.008 | 2.243 | 2.487 |
# | 0.04 | 0.032 | 1.475 | | | | |
#
# The bold rates are used. The other variants keep the baseline's rates. Was that fair to them? At AdamW's rates of
# 0.016, 0.032 and 0.064, sinusoidal positions reached 2.293, 2.158 and 2.071, no QK-norm 1.835, 1.761 and 1.662,
# learned positions 2.033 and 2.059 at the first two. So even at its own best rate, each would still be far from the
# baseline's 1.48.

# %% [markdown]
# ## Run
#
# Nine variants, three seeds. A seed sets the first weights and the order of the windows.

# %%
curves, losses = {}, {}
for name, changes in variants.items():
    for seed in seeds:
        config = load_config(overrides=settings | changes | {"train.seed": seed})
        run = train(config, name=f"{name} {seed}", quiet=True)
        losses.setdefault(name, []).append(run.state.val_loss)
        metrics = read_metrics(run.path)
        there = np.isfinite(metrics["val_loss"])
        curves.setdefault(name, []).append((metrics["step"][there], metrics["val_loss"][there]))

# %% [markdown]
# ## What a seed does
#
# If you repeat a run with another seed, the loss changes. If the seeds of one variant have a standard deviation of $s$,
# the mean of $n$ of them has a standard error of $s / \sqrt n$, and the difference of two such means has
#
# $$\mathrm{SE} = s \sqrt{2 / n}$$
#
# Three seeds say little about $s$; nine variants together say more, so we pool them. We call a difference *clear* if it
# is more than three standard errors, because we test eight differences.

# %%
spread = mean(stdev(values) ** 2 for values in losses.values()) ** 0.5
error = spread * (2 / len(seeds)) ** 0.5
base = mean(losses["baseline"])
difference = {name: mean(values) - base for name, values in losses.items()}
clear = {name for name in variants if abs(difference[name]) > 3 * error}

print(f"seeds scatter by {spread:.3f}; differences of means by {error:.3f}\n")
print(f"{'':22}  mean   seeds                 minus baseline")
for name, values in losses.items():
    each = " ".join(f"{value:.3f}" for value in values)
    word = "" if name == "baseline" else "clear" if name in clear else "within the spread"
    print(f"{name:22} {mean(values):.3f}   {each}   {difference[name]:+.3f}  {word}")

# %%
figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
names = list(variants)[::-1]
axes.axvspan(base - 3 * error, base + 3 * error, color=GRID, linewidth=0, label="no clear difference to the baseline")
for place, name in enumerate(names):
    colour = COLOURS[0] if name == "baseline" else COLOURS[1] if name in clear else QUIET
    axes.plot(losses[name], [place] * len(seeds), "o", color=colour, alpha=0.5, markersize=5)
    axes.plot([mean(losses[name])] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2.5)
quiet(axes, "validation loss after 150 steps: seeds and their mean", "nats per character", grid="x")
axes.set_yticks(range(len(names)), names, color=INK)
axes.legend(frameon=False, fontsize=9, loc="upper right")
plt.show()

# %% [markdown]
# ## Two losses to compare with
#
# How good is 1.5 nats? A model that knows only the last character, or the last two, cannot do better than the entropy
# of what follows them:
#
# $$H(x_t \mid x_{t-1}) = H(x_{t-1}, x_t) - H(x_{t-1})$$
#
# We compute it from the text. To have a lower loss than the first figure a model must look back: it must use its
# attention.

# %%
text = "".join(generate_stories(1000, seed=5))


def entropy_of(length):
    """Entropy of sequences of this many characters, in nats."""
    counts = np.array([*Counter(text[at : at + length] for at in range(len(text) - 2)).values()])
    return float(-(counts / counts.sum()) @ np.log(counts / counts.sum()))


one, two = entropy_of(2) - entropy_of(1), entropy_of(3) - entropy_of(2)
print(f"knowing one character: {one:.2f} nats; knowing two: {two:.2f}")

# %% [markdown]
# ## The curves
#
# Each line is the mean of the seeds, with a band from the lowest to the highest. Dashed lines: knowing one character,
# knowing two.

# %%
panels = {
    "norm": ["LayerNorm"],
    "position": ["learned positions", "sinusoidal positions"],
    "activation": ["GELU", "ReLU²"],
    "QK-norm": ["no QK-norm"],
    "optimizer": ["AdamW"],
    "all of it": ["GPT-2 and AdamW"],
}
figure, grid = plt.subplots(2, 3, figsize=(9, 5.2), layout="constrained", sharex=True, sharey=True)
for axes, (title, members) in zip(grid.flat, panels.items(), strict=True):
    for name, colour in zip(["baseline", *members], COLOURS, strict=False):
        at, rows = curves[name][0][0], np.array([loss for _, loss in curves[name]])
        axes.fill_between(at, rows.min(0), rows.max(0), color=colour, alpha=0.25, linewidth=0)
        axes.plot(at, rows.mean(0), color=colour, label=name)
    for level in (one, two):
        axes.axhline(level, color=QUIET, linestyle="--", linewidth=0.9, zorder=1)
    quiet(axes, title)
    axes.set(xlim=(0, 150), ylim=(1.2, 3.6), xticks=(0, 50, 100))
    axes.legend(frameon=False, fontsize=8.5, loc="upper right")
for axes in grid[1]:
    axes.set_xlabel("step", color=QUIET)
for axes in grid[:, 0]:
    axes.set_ylabel("nats per character", color=QUIET)
plt.show()

# %% [markdown]
# ## What we see
#
# - **Optimizer, position and QK-norm are clear**, whatever the seed.
# - **AdamW alone ends at the loss of knowing one character.** It has hardly begun to look back. The baseline is by then
#   near the loss of knowing two characters.
# - **RoPE** knows from the first step how far two characters are apart. Learned positions must first be learned, one by
#   one, and the model must learn to read fixed waves.
# - **QK-norm** makes queries and keys large enough from the start, so attention can choose. Without it they begin
#   small, and attention is flat until they have grown. The cell below measures it on untrained models.
# - **Norm and activation** move the loss by no more than the seeds do. Three seeds of this size cannot show a
#   difference; a difference seen in one seed is chance.
# - **Gains do not add up.** The increases of the loss by single changes sum to far more than the increase by GPT-2's
#   shape with AdamW: a model that does not look back hardly uses these choices.

# %%
assert {"learned positions", "sinusoidal positions", "no QK-norm", "AdamW", "GPT-2 and AdamW"} <= clear
assert mean(losses["AdamW"]) > one - 0.15 and base < two + 0.2
assert all(abs(difference[name]) < 0.15 for name in ("LayerNorm", "GELU", "ReLU²"))
parts = ("LayerNorm", "learned positions", "GELU", "no QK-norm", "AdamW")  # what GPT-2's shape changes
total = sum(difference[name] for name in parts)
print(f"one by one {total:+.2f}, together {difference['GPT-2 and AdamW']:+.2f}")
assert total > 1.3 * difference["GPT-2 and AdamW"]

flat = np.log(np.arange(1, 65))  # entropy of attention with equal weights for all places
below = {}
for name in ("baseline", "no QK-norm"):
    recording = record(GPT(shapes[name], seed=1), np.random.default_rng(1).integers(0, 50, 64))
    below[name] = float((flat - recording.attention_entropy).mean())
    print(f"untrained, {name:10}: entropy of attention {below[name]:.4f} nats below flat")
assert below["baseline"] > 10 * below["no QK-norm"]

# %% [markdown]
# ## And in time?
#
# Equal tokens do not take equal seconds. We time one step of each variant in turn, in thirty rounds, by the processor's
# clock. We take the median of its ratio to the baseline's step of the same round, so other work on the machine counts
# little, though on a busy machine the ratio can still be wrong by a tenth. Then we compare the losses at the time when
# the faster of the two had finished. (This is rough: a run planned to be shorter would have lowered its rate sooner.)

# %%
runtime = make_runtime("cpu", "fp32")
batch = torch.randint(50, (8, 64), generator=torch.Generator().manual_seed(1))
models = {name: GPT(shapes[name]) for name in variants}
optimizers = {name: make_optimizer(models[name], configs[name].optimizer, "fp32") for name in variants}
times = {name: [] for name in variants}
for _ in range(30):
    for name, model in models.items():
        began = time.process_time()
        accumulate(model, [(batch, batch)], runtime=runtime)
        update(model, optimizers[name], runtime=runtime)
        times[name].append(time.process_time() - began)
took = {name: float(np.median(np.divide(values, times["baseline"]))) for name, values in times.items()}

average = {name: np.mean([loss for _, loss in rows], axis=0) for name, rows in curves.items()}
at = curves["baseline"][0][0]
print(f"{'':22} time   loss    the baseline's in that time")
for name in variants:
    both = min(1, took[name])
    ours, mine = (np.interp(150 * both / took[which], at, average[which]) for which in (name, "baseline"))
    print(f"{name:22} {took[name]:.2f}   {ours:.3f}   {mine:.3f}")
    assert name not in clear or mine < ours

# %% [markdown]
# A step of Muon does more work than one of AdamW: fifteen more products for each matrix. Here the gain is many times
# larger than this cost.

# %% [markdown]
# ## What this does not show
#
# These are models of 100,000 weights that read 77,000 characters. **Conclusions at this size are small-scale ones.**
# They only show which choice *starts* fastest. Later the differences become smaller: `minigpt demo`, a model nine times
# larger, ended 0.101 nats above the entropy of the stories with AdamW in 1,000 steps, and 0.094 with Muon in 750
# (docs/LOG.md, one seed each). QK-norm was made to keep a large model stable in a long run; this gain is not visible
# where nothing is unstable. AdamW alone has one rate for all weights, but next to Muon the embedding has its own rate,
# eight times larger: part of Muon's lead may come from this freedom. And the text of one grammar is not typical of all
# text.
#
# The method is right at any size: one change, the same budget, rates tuned on both sides, several seeds, and the spread
# next to the mean.

# %% [markdown]
# ## Exercise 1
#
# You want to see a difference of 0.01 nats clearly, at three standard errors. How many seeds of each side does it take,
# with the spread measured above?

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# 3 s sqrt(2 / n) <= 0.01, so n >= 2 (3 s / 0.01)^2. Small differences are expensive: half the difference takes four
# times as many seeds.
needed = {wanted: int(np.ceil(2 * (3 * spread / wanted) ** 2)) for wanted in (0.1, 0.02, 0.01)}
print(needed)
for wanted, count in needed.items():
    assert 3 * spread * (2 / count) ** 0.5 <= wanted
    assert count == 1 or 3 * spread * (2 / (count - 1)) ** 0.5 > wanted

# %% [markdown]
# ## Exercise 2
#
# Was AdamW given a bad learning rate? Train it with half and with double the rate, seed 1. Could either overtake Muon?

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
rates = {4e-3: losses["AdamW"][0]}
for rate in (2e-3, 8e-3):
    changes = adamw | {"optimizer.learning_rate": rate, "train.seed": 1}
    rates[rate] = train(load_config(overrides=settings | changes), name=f"AdamW at {rate}", quiet=True).state.val_loss
print({rate: round(rates[rate], 3) for rate in sorted(rates)}, "and the baseline:", round(base, 3))
# No: a factor of two in either direction changes the loss far less than the optimizer does.
assert max(rates.values()) - min(rates.values()) < 0.5 * difference["AdamW"]
assert min(rates.values()) > max(losses["baseline"])

# %% [markdown]
# ## Exercise 3
#
# Now ask the reverse. How many steps did the baseline need for the loss at which each other variant ended? (Use the
# curves, with a straight line between two evaluations.)

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
mine = average["baseline"]
reached = {}
for name in variants:
    if mean(losses[name]) > mine[-1]:  # those that ended worse
        reached[name] = float(np.interp(-mean(losses[name]), -mine, at))  # np.interp needs rising numbers
        print(f"{name:22} ended where the baseline was at step {reached[name]:.0f} of 150")
assert reached["GPT-2 and AdamW"] < 100
assert all(steps < 150 for steps in reached.values())

# %%
shutil.rmtree(folder)
