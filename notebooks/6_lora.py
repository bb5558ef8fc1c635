# %% [markdown]
# # 6 · Fine-tune with LoRA
#
# A model can tell stories. Now it should tell them as a pirate does. We could train all its weights further. **LoRA**
# does not change them. It learns a small correction for each matrix: a file of a few kilobytes that can be removed
# again. How good is it? What does the model forget? And why is a small correction enough?
#
# Paper: Hu et al., 2021, *LoRA: Low-Rank Adaptation of Large Language Models*.

# %%
# %config InlineBackend.figure_formats = ["svg"]
import copy
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from minigpt import evaluate_run, fine_tune, generate_text, load_config, load_run, train
from minigpt.config.finetune import LoRAConfig
from minigpt.data.stories.generator import generate_stories
from minigpt.explanation import read_metrics
from minigpt.explanation.canvas import COLOURS, INK, QUIET, quiet
from minigpt.files import write_lines
from minigpt.runs.data import prepare_data
from minigpt.training.finetune import Adapters, add_lora, merge
from minigpt.training.finetune.lora import layers
from minigpt.weights.checkpoint import resolve

plt.rcParams |= {"svg.hashsalt": "minigpt", "svg.fonttype": "none", "font.size": 10, "text.color": INK}
folder = Path(tempfile.mkdtemp())  # all files are written there; the last cell deletes it

# %% [markdown]
# ## The base
#
# A small GPT, trained on `stories` (notebook 3 does it slowly).

# %%
common = {
    "model.attention": "sdpa",
    "data.cache_dir": str(folder / "cache"),
    "logging.runs_dir": str(folder / "runs"),
    "logging.plots": False,
    "train.batch_size": 8,
    "train.eval_batches": 10,
    "train.sample_every": 0,
    "train.precision": "fp32",
    "train.compile": "off",
}
shape = {
    "data.stories_count": 1500,
    "model.num_layers": 2,
    "model.embed_dim": 96,
    "model.max_seq_len": 128,
    "optimizer.learning_rate": 0.03,
    "optimizer.adamw_ratio": 0.2,
    "schedule.kind": "linear",
    "schedule.min_lr_ratio": 0.0,
    "schedule.warmup_steps": 20,
    "train.max_steps": 500,
    "train.eval_every": 500,
    "train.save_every": 500,
}
base = train(load_config(overrides=common | shape), name="base", quiet=True)
print(f"validation loss {base.state.val_loss:.3f} nats per character")

# %% [markdown]
# ## The new text
#
# Pirates tell the same stories in other words. Every word of the list gets its own new word, and none of these is in
# the old stories, so the change can be reversed. The new text is neither easier nor harder to predict than the old one,
# only different.

# %%
words = {
    "the": "ye", "The": "Ye", "and": "n", "was": "be", "said": "growled", "called": "hailed", "named": "dubbed",
    "little": "wee", "friends": "mateys", "came": "sailed", "found": "spied", "for": "fer", "of": "o",
    "loved": "craved", "over": "oer", "day": "tide",
}  # fmt: skip


def pirate(text):
    return re.sub(r"\b(" + "|".join(words) + r")\b", lambda match: words[match[0]], text)


stories = list(generate_stories(400, seed=11))
assert not set(words.values()) & {word for story in stories for word in re.findall(r"\w+", story)}
print(stories[0])
print(pirate(stories[0]))

text = folder / "pirate.jsonl"
write_lines(text, [{"text": pirate(story)} for story in stories])

# %%
model = load_run(base.path).model
texts = (
    prepare_data(load_config(overrides={"data.source": str(text)} | common), base.tokenizer),
    load_run(base.path).prepared(),
)


def bits(model):
    """Bits per byte of held-out text: (pirate stories, plain stories)."""
    run = replace(load_run(base.path), model=model)
    return tuple(evaluate_run(run, prepared=prepared)["bits_per_byte"] for prepared in texts)


before = bits(model)
print(f"the base: {before[0]:.3f} bits per byte on pirate stories, {before[1]:.3f} on plain ones")
assert before[0] > 2 * before[1]

# %% [markdown]
# ## The idea
#
# A layer multiplies its input $x$ by a matrix $W$ of $N$ rows and $K$ columns. Fine-tuning adds an update: $W + \Delta
# W$. LoRA assumes that $\Delta W$ needs few directions, so that two thin matrices can represent it:
#
# $$W x + \frac{\alpha}{r} B A x, \qquad A: r \times K, \quad B: N \times r$$
#
# $r$ is the **rank**. $W$ is frozen. $B$ begins at zero, so at first nothing changes. There are $r (N + K)$ numbers to
# learn instead of $N K$.

# %%
total = sum(parameter.numel() for parameter in model.parameters())
ids = torch.tensor([base.tokenizer.encode("Once upon a time")])
adapted = add_lora(copy.deepcopy(model), LoRAConfig(rank=8))
with torch.no_grad():
    assert torch.equal(adapted(ids), model(ids))  # nothing has changed yet

print(f"{'layer':28}    N x K    weights   r = 1   r = 8")
for name, layer in layers(adapted).items():
    N, K = layer.weight.shape
    print(f"{name:28} {N:4} x {K:<4} {N * K:8,} {N + K:7,} {8 * (N + K):7,}")
learned = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
print(f"\nin all {total:,} weights; with r = 8 {learned:,} are learned, {learned / total:.0%}")
assert learned == sum(8 * sum(layer.weight.shape) for layer in layers(adapted).values())

# %% [markdown]
# ## Three ways to learn
#
# We compare all weights, LoRA of rank 1, and LoRA of rank 8. All see the same batches. The rates are the best of an
# earlier sweep from a base like this one, in bits per byte of pirate stories: all weights 1e-3 (0.834) and 3e-3
# (0.802); LoRA 8 3e-3 (0.950), 1e-2 (0.874) and 3e-2 (0.896); LoRA 1 1e-2 and 3e-2 (both 1.100). An adapter needs a
# higher rate than the weights themselves.

# %%
ways = {
    "all weights": {"optimizer.learning_rate": 3e-3},
    "LoRA 1": {"lora.rank": 1, "optimizer.learning_rate": 1e-2},
    "LoRA 8": {"lora.rank": 8, "optimizer.learning_rate": 1e-2},
}
budget = {"train.max_steps": 150, "train.eval_every": 15, "train.save_every": 150}
runs = {way: fine_tune(base.path, text, common | budget | given, name=way, quiet=True) for way, given in ways.items()}

figure, axes = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
for (way, run), colour in zip(runs.items(), COLOURS, strict=False):
    metrics = read_metrics(run.path)
    there = np.isfinite(metrics["val_loss"])
    curve = [before[0], *metrics["bits_per_byte"][there]]
    axes.plot([0, *metrics["step"][there]], curve, "o-", color=colour, markersize=4, label=way, clip_on=False)
axes.axhline(before[1], color=QUIET, linestyle="--", linewidth=1, label="the base, on plain stories")
quiet(axes, "bits per byte of held-out pirate stories", "step")
axes.set(ylim=(0, 2), xlim=(0, 150))
axes.legend(frameon=False, ncols=2)
plt.show()

# %% [markdown]
# ## What it learns, what it forgets
#
# A model that says *ye* instead of *the* has become worse at plain stories. That is forgetting (McCloskey and Cohen,
# 1989, called it catastrophic). We measure both texts, and the size of the file that must be kept.

# %%
tuned = {way: load_run(run.path).model for way, run in runs.items()}
after = {way: bits(tuned[way]) for way, run in runs.items()}
print(f"{'':12} pirate   plain   learned weights   file")
print(f"{'the base':12} {before[0]:6.3f}  {before[1]:6.3f}")
for way, run in runs.items():
    learning = sum(parameter.numel() for parameter in run.model.parameters() if parameter.requires_grad)
    name = "model" if way == "all weights" else "adapter"
    size = (resolve(run.path) / f"{name}.safetensors").stat().st_size / 1000
    print(f"{way:12} {after[way][0]:6.3f}  {after[way][1]:6.3f}   {learning:15,}   {size:5.0f} kB")

figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
points = {"the base": before, **after}
for (name, (new, old)), colour in zip(points.items(), (QUIET, *COLOURS), strict=False):
    axes.plot(old, new, "o", color=colour, markersize=9)
    axes.annotate(name, (old, new), (10, 0), textcoords="offset points", va="center", color=colour)
quiet(axes, "bits per byte of both texts", "plain stories: to the right is forgotten", "both")
axes.set_ylabel("pirate stories: down is learned", color=INK, fontsize=9.5)
axes.set(xlim=(0.9 * before[1], 1.25 * max(old for _, old in after.values())), ylim=(0, 2.1))
plt.show()

gain = {way: (before[0] - new) / (before[0] - after["all weights"][0]) for way, (new, _) in after.items()}
print(f"of what all weights learn, LoRA 1 learns {gain['LoRA 1']:.0%} and LoRA 8 {gain['LoRA 8']:.0%}")
assert 0.5 < gain["LoRA 1"] < gain["LoRA 8"] - 0.05
assert gain["LoRA 8"] > 0.85
assert all(old > 1.1 * before[1] for _, old in after.values())  # all forget

# %% [markdown]
# Rank 8 comes near to all weights, with a ninth of the numbers; rank 1 has most of the gain with 1.3 %. All three
# forget.
#
# Does LoRA forget less? Biderman et al., 2024, *LoRA Learns Less and Forgets Less*, found this in large models. For
# this small model, do not conclude it from the picture: in the sweep, all weights at a third of the rate (0.834 on
# pirates) had 0.94 on plain stories, LoRA 8 had 0.96. How much is learned matters more than how.
#
# This is what they write now, after the same words:

# %%
for name, writer in {"the base": model, **tuned}.items():
    said = generate_text(writer, "Once upon a time", base.tokenizer, max_new_tokens=130, temperature=0.3, seed=3)
    print(f"{name}: Once upon a time{said.rstrip()}\n")

# %% [markdown]
# ## On and off
#
# With an adapter nothing is lost: $W$ is still there. Without the adapter the base gives exactly the same bits as
# before. One base can have many adapters, and change them between two sentences.

# %%
adapters = Adapters(copy.deepcopy(model))
adapters.load("pirate", runs["LoRA 8"].path)
with torch.no_grad():
    plain = adapters.use(None)(ids)
    as_pirate = adapters.use("pirate")(ids)
    plain_again = adapters.use(None)(ids)
assert torch.equal(plain, model(ids)) and torch.equal(plain_again, plain)
print(f"with the adapter logits move by up to {(as_pirate - plain).abs().max():.1f}; without it, by nothing")

# %% [markdown]
# Or the adapter is **merged**: $W + \frac{\alpha}{r} B A$ is one matrix again. The model is as fast as the base. The
# results differ only by rounding.

# %%
adapted = adapters.use("pirate")
with torch.no_grad():
    apart = adapted(ids)
    merge(adapted)
    together = adapted(ids)
difference = (apart - together).abs().max() / apart.abs().max()
print(f"adapter and merged model differ by {difference:.1e} of the largest logit")
assert difference < 1e-5
assert not layers(adapted) and sum(p.numel() for p in adapted.parameters()) == total

# %% [markdown]
# ## Is the update of low rank?
#
# The paper assumes that the update that fine-tuning needs has a low rank. Is that true?
#
# We look at the update that training *all* weights has made, $\Delta W = W_\text{after} - W_\text{before}$. By its
# singular values $\sigma_1 \ge \sigma_2 \ge \dots$, every matrix is a sum of directions:
#
# $$\Delta W = \sum_i \sigma_i\, u_i v_i^\top$$
#
# If the first few were large and the others near zero, it would be nearly of low rank.

# %%
matrices = list(layers(add_lora(copy.deepcopy(model), LoRAConfig())))


def update(way, name):
    """The change of a matrix [N, K]."""
    return (tuned[way].get_submodule(name).weight - model.get_submodule(name).weight).detach()


figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
ranks = {"all weights": 32, "LoRA 1": 1, "LoRA 8": 8}  # how many to draw: the others of an adapter are zero
for axes, name in zip(panels, ("blocks.0.attention.qkv", "blocks.1.feed_forward.up"), strict=True):
    for (way, count), colour in zip(ranks.items(), COLOURS, strict=False):
        values = torch.linalg.svdvals(update(way, name))[:count]
        axes.plot(range(1, count + 1), values, "o-", color=colour, markersize=4, label=way)
    quiet(axes, f"singular values of the update, {name}", "number")
    axes.set(yscale="log", xlim=(0, 33))
panels[1].legend(frameon=False)
plt.show()

for way, rank in (("LoRA 1", 1), ("LoRA 8", 8)):
    assert all(torch.linalg.matrix_rank(update(way, name), rtol=1e-4) == rank for name in matrices)
shares = {}
for rank in (1, 8, 32):
    energies = [torch.linalg.svdvals(update("all weights", name)) ** 2 for name in matrices]
    shares[rank] = float(np.mean([energy[:rank].sum() / energy.sum() for energy in energies]))
    print(f"all weights: the first {rank:2} of 96 directions hold {shares[rank]:.0%} of the squared update")

assert shares[1] < 0.3 and shares[8] < 0.5 < shares[32]
for name in ("blocks.0.attention.qkv", "blocks.1.feed_forward.up"):
    of_adapter, of_all = (torch.linalg.svdvals(update(way, name))[:8] for way in ("LoRA 8", "all weights"))
    assert (of_adapter > 1.5 * of_all).all()

# %% [markdown]
# No: eight directions hold clearly less than half. And yet LoRA 8 learns nearly as much. It does not find the first
# directions of the same update. It finds *another* update: few directions, each about twice as strong or more. Many
# updates lead to the same behaviour, and some of them have a low rank. (Exercise 3 keeps only the first directions, and
# loses more.)

# %% [markdown]
# ## Exercise 1
#
# At which rank does an adapter have as many numbers as its matrix? Find it for a matrix of 96 x 96 and for one of 512 x
# 96. What does that mean for small models?

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# r (N + K) = N K, so r = N K / (N + K). For a width of 4,096 rank 8 is small; for our width it is not very small.
for N, K in ((96, 96), (512, 96), (4096, 4096)):
    even = N * K / (N + K)
    print(f"{N} x {K}: rank {even:.1f}; rank 8 holds {8 / even:.1%} of the matrix")
    assert int(even) * (N + K) <= N * K < (int(even) + 1) * (N + K)
assert 96 * 96 / (96 + 96) == 48

# %% [markdown]
# ## Exercise 2
#
# Give the adapter half its strength (scale every $B$ by one half). Is the model then half a pirate? Measure both texts.

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
strengths = {0.0: before, 1.0: after["LoRA 8"]}
adapters = Adapters(copy.deepcopy(model))
adapters.load("pirate", runs["LoRA 8"].path)
halved = adapters.use("pirate")
with torch.no_grad():
    for layer in layers(halved).values():
        layer.lora_B *= 0.5
strengths[0.5] = bits(halved)
for strength in sorted(strengths):
    print(f"strength {strength}: pirate {strengths[strength][0]:.3f}, plain {strengths[strength][1]:.3f}")
# It is between the two on the new text, and it has forgotten less. It gives both words a probability: n and and, ye and
# the.
assert strengths[1.0][0] < strengths[0.5][0] < strengths[0.0][0]
assert strengths[0.0][1] < strengths[0.5][1] < strengths[1.0][1]

# %% [markdown]
# ## Exercise 3
#
# Take the update of *all weights* and keep only the first $r$ directions of each matrix in the blocks
# (`torch.linalg.svd`). How much of what was learned remains with $r = 1$, with $r = 8$?

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
found = {}
for rank in (1, 8, 96):
    cut = copy.deepcopy(tuned["all weights"])
    for name in matrices:
        u, s, v = torch.linalg.svd(update("all weights", name), full_matrices=False)
        low = u[:, :rank] * s[:rank] @ v[:rank]
        cut.get_submodule(name).weight.data = model.get_submodule(name).weight.data + low
    found[rank] = bits(cut)[0]
    kept = (before[0] - found[rank]) / (before[0] - after["all weights"][0])
    print(f"rank {rank:2}: {found[rank]:.3f} bits per byte, {kept:.0%} of what was learned")
assert abs(found[96] - after["all weights"][0]) < 1e-3  # all directions: the update itself
assert found[96] < found[8] < found[1]
# An adapter trained as rank 8 does better than the first 8 directions of an update that was free to use all.
assert found[8] > after["LoRA 8"][0] + 0.05

# %% [markdown]
# **Further:** `minigpt finetune runs/my qa.jsonl --lora.rank 8` does this for your own model, also with questions and
# answers, and `minigpt finetune --merge` turns it into an ordinary run. Schulman et al., 2025, *LoRA Without Regret*,
# say when LoRA equals full fine-tuning and when it does not.

# %%
shutil.rmtree(folder)
