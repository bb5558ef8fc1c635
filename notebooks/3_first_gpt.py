# %% [markdown]
# # 3 · Train your first GPT, and look inside
#
# We train a GPT of 230,000 parameters, in a minute, on stories for small children. Then we look inside: what surprises
# it, where it looks, what it would predict if it stopped after half of its layers. At the end we kill a run and resume
# it, bit for bit.
#
# Paper: Radford et al., 2018, *Improving Language Understanding by Generative Pre-Training*, the first GPT.

# %%
# %config InlineBackend.figure_formats = ["svg"]
import copy
import math
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import torch
from IPython.display import SVG, Image

from minigpt import GPT, evaluate_run, explain, generate_text, load_config, load_run, train
from minigpt.data.stories.generator import entropy, generate_stories
from minigpt.explanation import read_metrics, record
from minigpt.explanation.canvas import COLOURS, INK, QUIET, quiet
from minigpt.explanation.dataset import loss_by_position, token_losses
from minigpt.explanation.figures import draw_explanation
from minigpt.explanation.over_time import timeline
from minigpt.files import read_lines
from minigpt.layout import whole_steps
from minigpt.model.cost import flops_per_token, parameter_table, shape_walk
from minigpt.weights.checkpoint import load

plt.rcParams |= {"svg.hashsalt": "minigpt", "svg.fonttype": "none", "font.size": 10, "text.color": INK}
folder = Path(tempfile.mkdtemp())  # all that is written goes there; the last cell deletes it

# %% [markdown]
# ## A text whose best loss is known
#
# The text is `stories`. A small grammar writes it: it draws a hero, a place, a mishap, and so on. So no download is
# needed, and there is one more advantage. Nobody knows how well *any* model could predict Shakespeare. For this text we
# know it. Predicting a choice of probability $p$ costs $-\ln p$ nats, everything else costs nothing, and the mean is
# the **entropy** of the text (Shannon, 1948):
#
# $$H = -\sum_x P(x) \ln P(x)$$
#
# No model can have a lower loss. This is the floor that training approaches.

# %%
for story in generate_stories(2, seed=7):
    print(story)
floor = entropy().nats_per_token_char
print(f"{entropy().nats_per_story:.1f} nats in a story of {entropy().chars_per_story:.0f} characters, on average:")
print(f"floor {floor:.4f} nats per character")

# %% [markdown]
# ## The settings
#
# Settings are dotted paths, as on the command line. All others keep their defaults. A token is a character here.

# %%
settings = {
    "data.source": "stories",
    "data.stories_count": 3000,
    "data.cache_dir": str(folder / "cache"),
    "model.num_layers": 2,
    "model.embed_dim": 96,
    "model.num_heads": 4,
    "model.max_seq_len": 128,
    "model.attention": "sdpa",
    "optimizer.learning_rate": 0.03,
    "optimizer.adamw_ratio": 0.2,
    "schedule.kind": "linear",
    "schedule.min_lr_ratio": 0.0,
    "schedule.warmup_steps": 20,
    "train.max_steps": 1000,
    "train.batch_size": 8,
    "train.eval_every": 100,
    "train.eval_batches": 10,
    "train.save_every": 50,
    "train.keep_checkpoints": 20,
    "train.sample_every": 50,
    "train.sample_prompt": "Once upon a time",
    "train.precision": "fp32",
    "train.compile": "off",
    "logging.runs_dir": str(folder / "runs"),
    "logging.plots": False,
    "generation.max_new_tokens": 70,
    "generation.temperature": 0.5,
}
config = load_config(overrides=settings)

# %% [markdown]
# ## What will it cost?
#
# We can compute the cost before we train. For each token, a weight takes part in one multiplication and one addition in
# the forward pass, and in twice as many in the backward pass. So $N$ weights, trained on $D$ tokens, cost about (Kaplan
# et al., 2020)
#
# $$C \approx 6 N D$$
#
# operations, plus the two products of attention.

# %%
shape = config.model.model_copy(update={"vocab_size": 64})  # the tokenizer will give the exact number
table = parameter_table(shape)
for part, count in table.items():
    print(f"{part:13} {count:9,}")
tokens = config.train.max_steps * config.train.batch_size * shape.max_seq_len
print(f"\n6 N                  {6 * table['total']:11,} operations per token")
print(f"with attention       {flops_per_token(shape):11,}")
print(f"{tokens:,} tokens  {flops_per_token(shape) * tokens:.2g} operations in all")
assert 1 < flops_per_token(shape) / (6 * table["total"]) < 1.3

# %% [markdown]
# These are the shapes of the data in the model, for one sequence of 128 characters:

# %%
for name, before, after in shape_walk(shape):
    print(f"{name:28} {before:15} -> {after}")

# %% [markdown]
# ## Train
#
# The loss is the mean surprise at the character that really came next:
#
# $$L = -\frac1N \sum_t \ln p(x_t \mid x_1 \dots x_{t-1})$$

# %%
run = train(config, name="first", quiet=True)
print(f"{run.state.step} steps, {run.state.tokens:,} characters read, validation loss {run.state.val_loss:.3f}")

# %% [markdown]
# A new model knows nothing: each of $V$ tokens gets about $1/V$, and the loss is near $\ln V$. From there it falls
# towards the entropy.

# %%
metrics = read_metrics(run.path)
vocabulary = run.tokenizer.vocab_size
untrained = GPT(run.config.model, seed=run.config.train.seed)  # the weights of step 0
with torch.no_grad():
    ids = torch.tensor([run.tokenizer.encode(next(generate_stories(1, seed=7)))[:128]])
    first_loss = float(untrained.loss(ids[:, :-1], ids[:, 1:], valid=127))

figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
there = np.isfinite(metrics["val_loss"])
axes.plot(metrics["step"], metrics["loss"], color=COLOURS[0], linewidth=1, alpha=0.6, label="training")
axes.plot(metrics["step"][there], metrics["val_loss"][there], "o-", color=COLOURS[0], markersize=4, label="validation")
axes.plot(0, first_loss, "o", color=COLOURS[1], clip_on=False, label=f"before training: {first_loss:.2f}")
clueless = math.log(vocabulary)
for level, name, side in ((clueless, f"ln {vocabulary} = {clueless:.2f}", 1), (floor, f"entropy {floor:.2f}", 0.02)):
    axes.axhline(level, color=QUIET, linestyle="--", linewidth=1)
    axes.annotate(name, (side, level), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha="right" if side == 1 else "left", va="bottom", color=QUIET)  # fmt: skip
quiet(axes, "loss, in nats per character", "step")
axes.set(ylim=(0, 4.7), xlim=(0, config.train.max_steps))
axes.legend(frameon=False, loc="center right")
plt.show()

assert abs(first_loss - clueless) < 0.3
assert floor < run.state.val_loss < 0.8

# %% [markdown]
# These are texts that it wrote during training, each time after the same words. First come letters in likely pairs,
# then words, then whole sentences. Following the thread of a story takes longer: even `minigpt demo`, which trains a
# four times larger model, still forgets names.

# %%
for sample in read_lines(run.path / "samples.jsonl"):
    if sample["step"] in (50, 100, 200, 500, 1000):
        print(f"{sample['step']:4}  Once upon a time{sample['text']!r}")

# %% [markdown]
# ## Measure
#
# There are three names for one thing. **Perplexity**: the model is as unsure as if it chose among this many equally
# likely characters. **Bits per byte**: how small a file the model could pack the text into; you can compare them across
# tokenizers:
#
# $$\text{perplexity} = e^L \qquad \text{bits per byte} = \frac{L}{\ln 2} \cdot \frac{\text{tokens}}{\text{bytes}}$$
#
# The chart also shows simpler models of the same text, and the entropy.

# %%
report = evaluate_run(load_run(run.path))  # the whole validation split, the best checkpoint
print("   ".join(f"{name.replace('_', ' ')} {report[name]:.4f}" for name in ("loss", "perplexity", "bits_per_byte")))
bits = {name: report["floors"][name] for name in ("uniform", "unigram", "five_gram", "xz")}
bits |= {"this model": report["bits_per_byte"], "entropy": report["floors"]["entropy"]}
for name, value in bits.items():
    print(f"{name:10} {value:6.3f} {'█' * round(10 * value)}")

assert math.isclose(report["perplexity"], math.exp(report["loss"]))
assert math.isclose(report["bits_per_byte"], report["loss"] / math.log(2) * report["tokens"] / report["bytes"])
assert report["floors"]["entropy"] < report["bits_per_byte"] < report["floors"]["five_gram"]

# %% [markdown]
# `five_gram` predicts a byte from the four before it; `xz` packs the text together with the training text.
#
# ## What surprises it?
#
# We record one pass over the beginning of a story, and draw $-\ln p$ of each character. The ticks are the entropy of
# the prediction: the surprise that the model itself expected.

# %%
model, tokenizer = GPT.from_pretrained(run.path), run.tokenizer
prompt = "Sam was a shy fox who loved figs. One windy day, Sam"
explanation = explain(model, tokenizer, tokenizer.encode(prompt))
SVG(draw_explanation(explanation, folder / "surprise.svg", "surprise"))

# %% [markdown]
# Surprise is high at the beginnings of words, where the grammar chooses; the rest of a word costs almost nothing. Here
# we see the grammar: only its choices cost.
#
# But look at the second *Sam*. A reader who remembers the hero of the story would expect it. Does this model remember?
# We give the story to other heroes, so that Sam is a stranger in it:

# %%
surprise = np.array(explanation["loss"][1:])
begins = np.array([before == " " for before in prompt[:-1]])  # characters after a space
print(f"first letters: {surprise[begins].mean():.2f} nats, all others: {surprise[~begins].mean():.2f}")
print(f"{begins.mean():.0%} of the characters carry {surprise[begins].sum() / surprise.sum():.0%} of the surprise")
assert surprise[begins].mean() > 3 * surprise[~begins].mean()

cost = {}
for hero in ("Sam", "Ben", "Kit", "Pip"):
    cost[hero] = record(model, tokenizer.encode(prompt.replace("Sam", hero, 1))).loss[-3]
    print(f"a story about {hero}: the S of the second name costs {cost[hero]:.2f} nats")
assert cost["Sam"] > max(cost.values()) - 0.5

# %% [markdown]
# It does not: Sam costs as much in his own story. The loss is still above the floor, and this is a part of the reason.
#
# ## Where does it look?
#
# Row $t$ of each picture shows where character $t$ of the first sentence looks; darker means more. A diagonal is a
# fixed distance back. The title names layer and head.

# %%
start = explain(model, tokenizer, tokenizer.encode(prompt[:33]))
picture = draw_explanation(start, folder / "attention.png", "attention")
PIL.Image.open(picture).convert("RGB").reduce(2).quantize(64).save(picture)
Image(filename=picture)

# %% [markdown]
# Do some heads have a job that we can name? We do not judge by eye, but measure on random characters that are then
# repeated (Olsson et al., 2022, *In-context Learning and Induction Heads*): how much attention goes to the character
# before, to the first one, to copies, or to *what followed a copy*? The run kept its checkpoints, so we can see when
# the jobs appeared.

# %%
way = timeline(run.path, tokenizer, tokenizer.encode(prompt))
at = [row["step"] for row in way["steps"]]
figure, axes = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
kinds = explanation["heads"]["kinds"]
for kind, colour in zip(kinds, COLOURS, strict=False):
    best = [np.max(row["heads"][kind]) for row in way["steps"]]
    axes.plot(at, best, "o-", color=colour, markersize=4, label=kind.replace("_", " "))
quiet(axes, "score of the best head of each kind", "step")
axes.set(ylim=(0, None), xlim=(0, config.train.max_steps))
axes.legend(frameon=False, loc=(0.72, 0.35))
plt.show()

chance = explanation["heads"]["chance"]
score = {kind: np.max(way["steps"][-1]["heads"][kind]) for kind in kinds}
print("   ".join(f"{kind} {score[kind]:.2f} (chance {chance[kind]:.2f})" for kind in kinds))
assert score["previous_token"] > 3 * chance["previous_token"]
assert score["induction"] < 0.2

# %% [markdown]
# A head gets a *name* if its score is 0.4 or more. Spelling needs the last few characters, so the first job that
# appears is that of a *previous-token head*. No head copies yet (induction), so names are not remembered: that takes
# more training.
#
# ## What would it predict half-way?
#
# The **logit lens** (nostalgebraist, 2020) reads the residual stream after each layer as if it were the last. A frame
# marks a correct guess.

# %%
SVG(draw_explanation(start, folder / "lens.svg", "lens"))

# %%
lens = [np.mean(row[1:]) for row in explanation["lens"]["loss"]]
for name, loss in zip(("embedding", "layer 0", "layer 1"), lens, strict=True):
    print(f"{name:10} {loss:6.3f} nats {'█' * round(5 * loss)}")
assert lens[-1] < lens[0] and lens[-1] < lens[-2]

# %% [markdown]
# ## Kill it and bring it back
#
# A checkpoint holds the weights, the optimizer's moments and the number of the step. That is enough: step $k + 1$ is a
# pure function of them and the seed. We copy the run as it was on the disk 100 steps before its end, as if the machine
# had crashed there, and give the same command again. It continues, and ends with the same bits.

# %%
killed = folder / "again" / "first"
shutil.copytree(run.path, killed)
for checkpoint in whole_steps(killed / "checkpoints"):
    if int(checkpoint.name[5:]) > config.train.max_steps - 100:
        shutil.rmtree(checkpoint)
print("last checkpoint:", whole_steps(killed / "checkpoints")[-1].name)

again = train(load_config(overrides=settings | {"logging.runs_dir": str(killed.parent)}), name="first", quiet=True)
parts = ("model", "optimizer")
one, two = (load(path / "checkpoints" / "last", parts).tensors for path in (run.path, again.path))
for part in parts:
    assert one[part].keys() == two[part].keys()
    assert all(torch.equal(one[part][name], two[part][name]) for name in one[part])
print(f"step {again.state.step}: {sum(map(len, one.values()))} tensors, every bit the same")

# %% [markdown]
# And it writes. Higher temperatures take more risks (notebook 5).

# %%
for temperature in (0.3, 0.8, 1.2):
    text = generate_text(model, "Once upon a time", max_new_tokens=110, temperature=temperature, seed=1)
    print(f"{temperature}: Once upon a time{text}\n")

# %% [markdown]
# ## Exercise 1
#
# Count the parameters by hand. The width is $C = 96$, the vocabulary is padded to 128 rows, the feed-forward part has
# three matrices of $\frac83 C$ by $C$, and there are no biases. Do not forget the norms: two in each layer, one at the
# end, and one for the queries and one for the keys of each layer, which are as long as a head.

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
# Attention: q, k, v and out, C x C each. The head is the embedding (tied), so it counts once.
C, layers, head_size = 96, 2, 24
by_hand = {
    "embedding": 128 * C,
    "attention": layers * 4 * C * C,
    "feed_forward": layers * 3 * C * (8 * C // 3),
    "norms": layers * (2 * C + 2 * head_size) + C,
}
print(by_hand, sum(by_hand.values()))
counted = parameter_table(run.config.model)
assert counted["attention"] + counted["norms"] == by_hand["attention"] + by_hand["norms"]
assert (counted["embedding"], counted["feed_forward"]) == (by_hand["embedding"], by_hand["feed_forward"])
assert counted["total"] == sum(by_hand.values()) == sum(parameter.numel() for parameter in model.parameters())

# %% [markdown]
# ## Exercise 2
#
# Does it help to have read more text? Draw the loss by the position in the context, over a hundred windows of
# validation text. (`minigpt.explanation.dataset` has `token_losses` and `loss_by_position`.)

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
held_out = load_run(run.path).prepared().splits["val"].tokens[: 300 * 128 + 1]
by_place = loss_by_position(token_losses(model, held_out), 128)
figure, axes = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
axes.plot(range(128), by_place, color=COLOURS[2])
quiet(axes, "loss by place, in nats per character", "characters before")
axes.set(ylim=(0, None), xlim=(0, 127))
plt.show()
early, middle, late = by_place[0], by_place[8:16].mean(), by_place[64:].mean()
print(f"nothing before {early:.2f}, 8 to 15 characters {middle:.2f}, 64 and more {late:.2f}")
assert early > 2 * middle > 2 * late

# %% [markdown]
# ## Exercise 3
#
# Which head matters most? Remove each one, alone, and measure how much the loss of that text rises. (A head's output
# goes through its own columns of `block.attention.out.weight`; set them to zero.) Do the sharpest heads matter most?

# %% tags=["exercise-answer"] jupyter={"source_hidden": true}
whole = token_losses(model, held_out[: 60 * 128 + 1]).mean()
harm = np.zeros((2, 4))
for layer in range(2):
    for head in range(4):
        without = copy.deepcopy(model)
        with torch.no_grad():
            without.blocks[layer].attention.out.weight[:, 24 * head : 24 * (head + 1)] = 0
        harm[layer, head] = token_losses(without, held_out[: 60 * 128 + 1]).mean() - whole
        sharp = np.mean(explanation["attention_entropy"][layer][head])
        print(f"head {layer}.{head}: loss + {harm[layer, head]:.3f}   entropy of its attention {sharp:.2f}")
# The sharpest heads are in the upper layers, but everything there uses what the first layer finds.
assert harm[0].min() > 0.05 and harm[0].mean() > 2 * harm[1].mean()

# %% [markdown]
# **Further:** `minigpt explain RUN --prompt "..."` puts all these pictures on one page, with hover. Notebook 4 asks
# what each design choice of this model is good for.

# %%
shutil.rmtree(folder)
